"""The planner: lays the examples of one global batch into rows of one fixed shape.

One description serves four layouts. A row is ``[prompt Tp | response_0 Tr | ... | response_{K-1} Tr]``
(:class:`jaxpref.batch.Layout`):

=============== ======================= ============================================================
layout          regions                 a row holds
=============== ======================= ============================================================
padded          Tp = 0, one response    one prompt + response
packed          Tp = 0, one response    as many (prompt + response) as fit
shared          Tp > 0, K responses     one prompt and its K responses
packed+shared   Tp > 0, K responses     as many prompts, each with its K responses, as fit
=============== ======================= ============================================================

In the shared layouts the prompt region holds ``prompt[:-1]`` and each response region ``prompt[-1:] + response[:-1]``,
so that every target is scored inside its own region. Mismatched responses (KTO) never get a gradient, so they lie, each
with a copy of its prompt, in micro-batches of their own behind the others. Reward heads read the last response token
itself: with ``final`` it is fed to the model as well, as one more position without a target.

In the packed layouts some micro-batches may have short rows, whose response regions are shorter: what fits them costs
less there. They lie at the beginning of the place that any row takes, so that a batch keeps its shape.

The plan is a pure function of the examples' tokens: every process computes the same one.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxpref.batch import IDS, PROMPT_LENGTHS, Batch, Examples, Layout, Rows, computed_tokens
from jaxpref.data.first_fit import Piece, Place, first_fit, footprint, pieces
from jaxpref.errors import ConfigError, DataError

LAYOUTS = ("padded", "packed", "shared", "packed+shared")
# Side inputs with a number for each response, of which examples may have fewer.
PER_RESPONSE = ("scores", PROMPT_LENGTHS)
NOWHERE = np.int32(2**31 - 1)  # an index outside every batch: gathered as zero


class StreamShape(NamedTuple):
    """Fixed shape of a stream's examples.

    Attributes:
        examples: how many a batch holds.
        responses: of each.
        prompt, response: tokens of the longest.
        sides: names of side inputs.
        partnered: whether response 1 is a mismatched one, which never gets a gradient.
        widths: side inputs that are lists of numbers -> how many.
    """

    examples: int
    responses: int
    prompt: int
    response: int
    sides: tuple[str, ...] = ()
    partnered: bool = False
    widths: Mapping[str, int] = MappingProxyType({})

    @property
    def together(self) -> int:
        """Responses of an example that lie in one micro-batch."""
        return 1 if self.partnered else self.responses


class BatchShape(NamedTuple):
    """Everything static about a batch: one compile serves every batch of this shape.

    Attributes:
        layout: regions of a row.
        rows: rows of a micro-batch.
        micro_batches: the most micro-batches that any batch of these streams can need.
        streams: shape of each stream's examples.
        packed: whether a row may hold several examples.
        final: whether the last response token is fed to the model.
    """

    layout: Layout
    rows: int
    micro_batches: int
    streams: dict[str, StreamShape]
    packed: bool
    final: bool


def batch_shape(
    streams: Mapping[str, StreamShape],
    *,
    layout: str = "padded",
    rows: int = 0,
    length: int = 0,
    prompt_length: int = 0,
    response_length: int = 0,
    short_length: int = 0,
    final: bool = False,
    multiple_of: int = 1,
    granule: int = 1,
) -> BatchShape:
    """The shape of batches whose sizes are given; :mod:`jaxpref.data.sizing` chooses sizes that suit the data.

    Args:
        streams: shape of each stream's examples.
        layout: one of ``LAYOUTS``.
        rows: rows of a micro-batch; 0 means one micro-batch for the longest possible batch.
        length: tokens of a packed row (packed only); 0 means the longest sequence.
        prompt_length, response_length: region sizes (packed+shared only); 0 means the longest prompt and response.
        short_length: response regions (packed: tokens) of short rows; there are none where it is not positive, or as
            long as the row's own.
        final: feed the last response token too (reward heads).
        multiple_of: the rows are divided over this many devices.
        granule: every region is rounded up to a multiple of it (kernels compute blocks of so many tokens).

    Raises:
        ConfigError: unknown layout, a row that the longest example does not fit, or rows that do not divide.
    """
    row, slots = regions(
        streams,
        layout=layout,
        length=length,
        prompt_length=prompt_length,
        response_length=response_length,
        final=final,
        granule=granule,
    )
    segments = [(s.examples, 1 if row.shared else s.together) for s in streams.values()]
    total, largest = sum(n * k for n, k in segments), max(k for _, k in segments)
    partners = sum(s.examples for s in streams.values() if s.partnered)
    rows = rows or math.ceil(total / slots / multiple_of) * multiple_of
    if rows % multiple_of:
        raise ConfigError(
            f"batch.rows is {rows}, which {multiple_of} data-parallel devices cannot divide; "
            f"use a multiple of {multiple_of}."
        )
    if rows * slots < largest:
        raise ConfigError(
            f"batch.rows is {rows}, but one example needs {largest} rows of layout {layout!r}; use at least {largest}."
        )
    # First fit refuses an example only when fewer slots (of the longest segment) are free than it has segments: none is
    # refused while there are slots for all.
    uniform = len({k for _, k in segments}) == 1
    placed = rows * slots // largest * largest if uniform else rows * slots - largest + 1
    micro_batches = 1 if total <= rows * slots else math.ceil(total / placed)
    micro_batches += math.ceil(partners / (rows * slots))
    packed = layout.startswith("packed")
    if short_length > 0 and not packed:
        raise ConfigError(f"batch.short_length is {short_length}, but only packed layouts have short rows; leave it 0.")
    return with_short_rows(BatchShape(row, rows, micro_batches, dict(streams), packed, final), short_length, granule)


def with_short_rows(shape: BatchShape, length: int, granule: int) -> BatchShape:
    """The shape with short rows whose response regions (packed: tokens) are so long; arguments of batch_shape."""
    short = math.ceil(max(length, 0) / granule) * granule
    return shape._replace(layout=shape.layout._replace(short=short if short < shape.layout.response else 0))


def regions(
    streams: Mapping[str, StreamShape],
    *,
    layout: str,
    length: int = 0,
    prompt_length: int = 0,
    response_length: int = 0,
    final: bool = False,
    granule: int = 1,
) -> tuple[Layout, int]:
    """The regions of a row, and how many of the longest segments (shared: examples) fit into one, for sure.

    Args and errors: see :func:`batch_shape`.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"batch.layout is {layout!r}; expected one of {', '.join(LAYOUTS)}.")
    shapes, packed = list(streams.values()), layout.startswith("packed")
    prompt, responses = max(s.prompt for s in shapes), max(s.together for s in shapes)
    response = max(s.response for s in shapes) + final
    sizes = {"length": length, "prompt_length": prompt_length, "response_length": response_length}
    read = {"packed": ["length"], "packed+shared": ["prompt_length", "response_length"]}.get(layout, [])
    for name in sizes:
        if sizes[name] and name not in read:
            raise ConfigError(f"batch.{name} is {sizes[name]}, but layout {layout!r} does not choose it; leave it 0.")
    if layout.endswith("shared"):
        # A prompt of one token leaves the prompt region empty; one padding column keeps the layout recognisable.
        row = Layout(
            _region(max(prompt - 1, 1), prompt_length, "prompt", granule),
            responses,
            _region(response, response_length, "response", granule),
        )
        slots = min(row.prompt // max(prompt - 1, 1), row.response // response)
    else:
        row = Layout(0, 1, _region(prompt + response - 1, length, "row", granule))
        slots = row.response // (prompt + response - 1)
    return row, slots if packed else 1


def _region(needed: int, size: int, name: str, granule: int) -> int:
    if size and size < needed:
        raise ConfigError(
            f"the {name} region holds {size} tokens, but the longest example needs {needed}; "
            "raise it or lower config.length."
        )
    return math.ceil((size or needed) / granule) * granule


def plan(streams: Mapping[str, Sequence[Any]], shape: BatchShape) -> Batch:
    """Lays examples (``jaxpref.data.Tokenized``) into rows, first fit decreasing.

    All responses of an example but a mismatched one lie in one micro-batch, so that separable objectives need one pass.

    Args:
        streams: for each stream of ``shape``, at most ``shape.streams[name].examples`` examples.

    Returns:
        A :class:`jaxpref.batch.Batch` of numpy arrays; ``examples[name].where`` is False for missing examples.

    Raises:
        DataError: an example is longer than the shape allows or lacks a side input.
    """
    examples = {name: _empty_examples(stream) for name, stream in shape.streams.items()}
    for name, stream in shape.streams.items():
        for n, example in enumerate(streams[name]):
            _check(example, name, stream)
            examples[name].where[n] = True
            for key in stream.sides:
                place = (n, slice(len(example.responses))) if key in PER_RESPONSE else n
                examples[name].side[key][place] = example.side[key]
    own, partners = pieces(streams, shape.streams)
    arranged = arrange(own, partners, shape)
    rows = _write_rows(examples, own, partners, arranged, shape)
    count, lengths = len(arranged.short), None
    if shape.layout.short:
        lengths = np.full(shape.micro_batches, shape.layout.length, np.int32)
        lengths[:count][arranged.short] = shape.layout.shortened.length
    return Batch(rows, np.int32(count), np.int32(arranged.trained), examples, lengths)


class Arrangement(NamedTuple):
    """Where the pieces of a batch lie.

    Attributes:
        own, partners: place of each piece, in the order of placing.
        trained: micro-batches of those that get a gradient; the partners' are behind them.
        short: of each micro-batch, whether its rows are short.
    """

    own: dict[int, Place]
    partners: dict[int, Place]
    trained: int
    short: np.ndarray


def arrange(own: Sequence[Piece], partners: Sequence[Piece], shape: BatchShape) -> Arrangement:
    """Places pieces by first fit decreasing; without short rows, where these would take more micro-batches than fit."""
    layout, left = shape.layout, shape.micro_batches
    fitted = []
    for kind in (own, partners):
        footprints = [footprint(piece, layout, final=shape.final) for piece in kind]
        found = first_fit(footprints, layout, rows=shape.rows, packed=shape.packed, micro_batches=left)
        if found is None:
            return arrange(own, partners, shape._replace(layout=layout._replace(short=0)))
        fitted.append(found)
        left -= len(found[1])
    (own_places, short), (partner_places, partners_short) = fitted
    if not len(short):
        short = np.zeros(1, bool)  # an empty batch still computes a micro-batch
    behind = {piece: place._replace(micro=place.micro + len(short)) for piece, place in partner_places.items()}
    return Arrangement(own_places, behind, len(short), np.concatenate([short, partners_short]))


def _empty_examples(stream: StreamShape) -> Examples:
    shape = (stream.examples, stream.responses, stream.response)
    return Examples(
        index=np.full(shape, NOWHERE, np.int32),
        mask=np.zeros(shape, bool),
        last=np.full(shape[:2], NOWHERE, np.int32),
        micro=np.zeros(shape[:1], np.int32),
        where=np.zeros(shape[:1], bool),
        side={key: _empty_side(key, stream) for key in stream.sides},
    )


def _empty_side(key: str, stream: StreamShape) -> np.ndarray:
    axes = (stream.responses,) if key in PER_RESPONSE else (stream.widths[key],) if key in stream.widths else ()
    return np.zeros((stream.examples, *axes), np.int32 if key == IDS else np.float32)


def _check(example: Any, name: str, stream: StreamShape) -> None:
    longest = max(len(response) for response in example.responses)
    ragged = any(key in PER_RESPONSE for key in stream.sides)
    if len(example.responses) > stream.responses or (len(example.responses) < stream.responses and not ragged):
        raise DataError(
            f"{example.origin}: {len(example.responses)} responses in stream {name!r}; expected {stream.responses}."
        )
    if not 1 <= len(example.prompt) <= stream.prompt or longest > stream.response:
        raise DataError(
            f"{example.origin}: prompt of {len(example.prompt)} and response of {longest} tokens in stream {name!r}; "
            f"expected 1 to {stream.prompt} and at most {stream.response}."
        )
    for key in stream.sides:
        if key not in example.side:
            raise DataError(f"{example.origin}: field {key!r} is missing; other rows of stream {name!r} have it.")
    for key, width in stream.widths.items():
        if len(example.side[key]) != width:
            raise DataError(
                f"{example.origin}: field {key!r} holds {len(example.side[key])} numbers in stream {name!r}; "
                f"expected {width}."
            )


def _write_rows(examples, own: list[Piece], partners: list[Piece], arranged: Arrangement, shape: BatchShape) -> Rows:
    """Writes all pieces into rows, and into ``examples`` where they lie."""
    size = (shape.micro_batches, shape.rows, shape.layout.length)
    rows = Rows(*(np.zeros(size, np.int32) for _ in Rows._fields))
    used = np.zeros((*size[:2], 1 + shape.layout.responses), np.int64)
    segments = np.zeros(size[:2], np.int32)
    for kind, places in ((own, arranged.own), (partners, arranged.partners)):
        for number, place in places.items():
            piece, layout = kind[number], shape.layout.shortened if arranged.short[place.micro] else shape.layout
            _write(rows, examples[piece.stream], piece, place, used, segments, layout, final=shape.final)
            if piece.first == 0:
                examples[piece.stream].micro[piece.number] = place.micro
    return rows


def _write(rows, examples, piece: Piece, at: Place, used, segments, layout: Layout, *, final: bool) -> None:
    prompt, (_, number_of_rows, length), (micro, places) = piece.prompt, rows.tokens.shape, at

    def put(row: int, region: int, start: int, tokens, targets, first_position: int, segment: int) -> int:
        at = start + used[micro, row, region]
        place = (micro, row, slice(at, at + len(tokens)))
        rows.tokens[place], rows.targets[place], rows.segments[place] = tokens, targets, segment
        rows.positions[place] = first_position + np.arange(len(tokens))
        used[micro, row, region] += len(tokens)
        return (micro * number_of_rows + row) * length + at

    if layout.shared:
        row = places[0]
        segments[micro, row] += 1
        put(row, 0, 0, prompt[:-1], prompt[1:], 0, segments[micro, row])
    for k, response in enumerate(piece.responses):
        if not len(response):
            continue
        if layout.shared:
            head, region, start = prompt[-1:], 1 + k, layout.prompt + k * layout.response
        else:
            head, region, start, row = prompt, 1, 0, places[k]
            segments[micro, row] += 1
        tokens = np.concatenate([head, response if final else response[:-1]])
        targets = np.concatenate([head[1:], response, [0] * final])
        at = put(row, region, start, tokens, targets, len(prompt) - len(head), segments[micro, row])
        first = at + len(head) - 1
        place = piece.number, piece.first + k
        examples.index[place][: len(response)] = first + np.arange(len(response))
        examples.mask[place][: len(response)] = piece.masks[k]
        if final:
            examples.last[place] = first + len(response)


def padding_share(batch: Batch) -> float:
    """Share of the computed token positions that hold no token."""
    return 1 - int(np.sum(batch.rows.segments > 0)) / int(computed_tokens(batch))


def describe(shape: BatchShape) -> str:
    """Rows, micro-batches and regions of a shape in a few words, for summaries."""
    row = shape.layout
    sizes = " | ".join(map(str, (row.prompt, *[row.response] * row.responses))) if row.shared else str(row.length)
    micro = "one micro-batch" if shape.micro_batches == 1 else f"up to {shape.micro_batches} micro-batches"
    short = f", or short ones of {row.short} a response" if row.short and row.shared else ""
    short = f", or short ones of {row.short}" if row.short and not row.shared else short
    return f"{micro} of {shape.rows} row{'s' * (shape.rows > 1)} of [{sizes}] tokens{short}"
