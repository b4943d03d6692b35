"""Chooses the row length, the region sizes and the rows of a micro-batch by predicted cost, on real batches.

Longer rows waste less of their ends, but attention computes every query-key pair of a row, also those of different
examples. More rows in a micro-batch fill a device better, but the last micro-batch of a batch is seldom full. Which of
these weighs more depends on the model, the device and the data, so that no rule of thumb holds: candidates are laid out
with trial batches of the data, and the cheapest one wins. What a batch *means* never depends on the choice.

One row length has to hold the longest example, and most examples are much shorter. So micro-batches may have short rows
instead, where that saves more than compiling a second program is worth.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpref.batch import Layout
from jaxpref.data import first_fit, layouts

STRETCH = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)  # sizes of a region tried, over the longest part that it must hold
PROPORTIONS = (0.8, 1.0, 1.25, 1.5)  # prompt regions tried, over the one that fills up as fast as the responses
SHORTER = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # response regions of short rows tried, over the row's own
CONTENDERS = 4  # shapes, the cheapest without short rows, that these are tried with
WORTH = 0.95  # cost with short rows, over the cost without, from which on they are worth a second program to compile


class Cost(NamedTuple):
    """What a device's work costs, in units of what one token costs beside attention.

    Attributes:
        pair: a query and a key that is not behind it, whether masked or not.
        least: tokens of a micro-batch on a device below which it takes no less time.
        micro_batch: what every micro-batch costs beside its tokens (adding up the gradient).
        several: factor on everything when a batch may need several micro-batches and the objective couples examples,
            which takes an extra forward pass (``jaxpref.training.engine``); 1 for separable objectives.
        apart: what a micro-batch of mismatched responses, which needs no gradient, costs of one that does.
    """

    pair: float
    least: float = 0.0
    micro_batch: float = 0.0
    several: float = 1.0
    apart: float = 1.0 / 3


# A Llama of width 512 on a CPU: a token's projections and MLP take as long as attending to 256 keys.
TYPICAL = Cost(pair=1 / 256, least=256, micro_batch=32)


def attention_pairs(row: Layout) -> float:
    """Query-key pairs that a causal kernel computes in a row: ``Tp^2 / 2 + K Tr (Tp + Tr / 2)``."""
    return row.prompt**2 / 2 + row.responses * row.response * (row.prompt + row.response / 2)


class Used(NamedTuple):
    """Micro-batches that a batch takes: of what gets a gradient, and of mismatched responses; then of short rows."""

    own: int
    partners: int
    short_own: int = 0
    short_partners: int = 0


def predicted(shape: layouts.BatchShape, used: Sequence[Used], cost: Cost, *, devices: int = 1) -> float:
    """Mean cost of batches.

    .. math:: \\max(R T, \\mathrm{least}) + \\mathrm{pair} \\; R A + \\mathrm{micro\\_batch}

    for each micro-batch, with R rows of T tokens and A attention pairs in that of a device.

    Args:
        shape: of the batches.
        used: micro-batches that each of them takes.
        cost: of the model on its device.
        devices: the rows are divided over so many.
    """
    rows, factor = shape.rows / devices, cost.several if shape.micro_batches > 1 else 1.0

    def micro_batch(row: Layout) -> float:
        return max(rows * row.length, cost.least) + cost.pair * rows * attention_pairs(row) + cost.micro_batch

    own, partners, short_own, short_partners = np.mean(used, axis=0)
    whole = micro_batch(shape.layout) * (factor * own + cost.apart * partners)
    short = micro_batch(shape.layout.shortened) * (factor * short_own + cost.apart * short_partners)
    return float(whole + short)


def choose(
    streams: Mapping[str, layouts.StreamShape],
    trials: Sequence[Mapping[str, Sequence[Any]]],
    cost: Cost,
    *,
    layout: str,
    rows: int = 0,
    length: int = 0,
    prompt_length: int = 0,
    response_length: int = 0,
    short_length: int = 0,
    final: bool = False,
    multiple_of: int = 1,
    granule: int = 1,
) -> layouts.BatchShape:
    """The cheapest shape for a packed layout.

    Args:
        streams: shape of each stream's examples.
        trials: batches of examples (``jaxpref.data.Tokenized``), as training may draw them.
        cost: of the model on its device.
        layout: ``packed`` or ``packed+shared``.
        rows, length, prompt_length, response_length, short_length: fixed sizes; 0 leaves them to the choice, a negative
            ``short_length`` excludes short rows.
        final, multiple_of, granule: see :func:`jaxpref.data.layouts.batch_shape`.

    Raises:
        ConfigError: see :func:`jaxpref.data.layouts.batch_shape`.
    """
    fixed = {"layout": layout, "final": final, "granule": granule}
    cut = [first_fit.pieces(batch, streams) for batch in trials]
    if layout == "packed":
        least, _ = layouts.regions(streams, length=length, **fixed)
        candidates = [{"length": size} for size in _stretched(least.length, length, granule)]
    else:
        least, _ = layouts.regions(streams, prompt_length=prompt_length, response_length=response_length, **fixed)
        prompts, responses = _typical_tokens(cut)
        candidates = [
            {"prompt_length": prompt, "response_length": response}
            for response in _stretched(least.response, response_length, granule)
            for prompt in _in_proportion(
                response * least.responses * prompts / max(responses, 1), least.prompt, prompt_length, granule
            )
        ]
    shapes = []
    for sizes in candidates:
        row, slots = layouts.regions(streams, **sizes, **fixed)
        filled = [[rows_needed(kind, row, final=final) for kind in batch] for batch in cut]
        for number in [rows] if rows else _numbers_of_rows(streams, row, slots, filled, multiple_of):
            shape = layouts.batch_shape(streams, rows=number, multiple_of=multiple_of, **sizes, **fixed)
            used = [Used(*(math.ceil(rows / number) for rows in batch)) for batch in filled]
            shapes.append((predicted(shape, used, cost, devices=multiple_of), shape))
    shapes.sort(key=lambda found: found[0])
    return _with_short_rows(shapes, cut, cost, short_length, granule=granule, devices=multiple_of)


def _with_short_rows(shapes, cut, cost: Cost, given: int, *, granule: int, devices: int) -> layouts.BatchShape:
    """The cheapest of ``(cost, shape)``, in their order, and of these with short rows where such are worth it."""
    least, best = shapes[0]
    if given > 0:
        return layouts.with_short_rows(best, given, granule)
    least *= WORTH
    for _, shape in shapes[: CONTENDERS if given == 0 else 0]:
        for length in _rounded((shape.layout.response * factor for factor in SHORTER), granule):
            shorter = layouts.with_short_rows(shape, length, granule)
            found = predicted(shorter, [micro_batches_used(batch, shorter) for batch in cut], cost, devices=devices)
            if found < least:
                least, best = found, shorter
    return best


def micro_batches_used(pieces: tuple[list[first_fit.Piece], ...], shape: layouts.BatchShape) -> Used:
    """Micro-batches that a batch of (own, mismatched) pieces takes, as :func:`jaxpref.data.layouts.plan` has them."""
    arranged = layouts.arrange(*pieces, shape)
    own, partners = arranged.short[: arranged.trained], arranged.short[arranged.trained :]
    return Used(sum(~own), sum(~partners), sum(own), sum(partners))


def rows_needed(pieces: Sequence[first_fit.Piece], row: Layout, *, final: bool) -> int:
    """Rows that the pieces of a batch fill, first fit decreasing as :func:`jaxpref.data.layouts.plan` does."""
    if not pieces:
        return 0
    taken = [first_fit.footprint(piece, row, final=final) for piece in pieces]
    taken.sort(key=lambda tokens: -int(tokens.sum()))
    if row.shared:
        capacity = np.array([row.prompt, *[row.response] * row.responses])
    else:
        capacity, taken = np.array([row.response]), [np.array([n]) for tokens in taken for n in tokens]
    used = np.zeros((len(taken), len(capacity)), np.int64)
    for tokens in taken:
        used[np.argmax(np.all(used + tokens <= capacity, axis=-1))] += tokens
    return max(1, int(np.count_nonzero(used.any(axis=-1))))


def _typical_tokens(cut) -> tuple[float, float]:
    """Tokens of all prompts, each counted once, and of all responses, of what gets a gradient."""
    pieces = [piece for own, _ in cut for piece in own]
    prompts = sum(len(piece.prompt) for piece in pieces)
    return prompts, sum(len(response) for piece in pieces for response in piece.responses)


def _stretched(needed: int, given: int, granule: int) -> list[int]:
    return [given] if given else _rounded((needed * factor for factor in STRETCH), granule)


def _in_proportion(balanced: float, needed: int, given: int, granule: int) -> list[int]:
    return [given] if given else _rounded((max(needed, balanced * factor) for factor in PROPORTIONS), granule)


def _rounded(sizes, granule: int) -> list[int]:
    return sorted({math.ceil(math.floor(size) / granule) * granule for size in sizes})


def _numbers_of_rows(streams, row: Layout, slots: int, used: Sequence[Sequence[int]], multiple_of: int) -> list[int]:
    """Rows of a micro-batch to try: few, as many as the trial batches fill, and enough for any batch."""
    segments = [(s.examples, 1 if row.shared else s.together) for s in streams.values()]
    least, most = (math.ceil(n / slots) for n in (max(k for _, k in segments), sum(n * k for n, k in segments)))
    filled = [n for batch in used for n in batch if n]
    few = itertools.takewhile(lambda n: n < max(filled), (step << k for k in itertools.count() for step in (2, 3)))
    return sorted({math.ceil(max(n, least) / multiple_of) * multiple_of for n in {1, *few, *filled, most}})
