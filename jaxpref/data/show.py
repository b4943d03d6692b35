"""Examples and batches as text that a person can read, with the target tokens marked.

In colour, the prompt is plain, trained tokens are green and untrained response tokens yellow. In plain text, trained
tokens stand in ``[[ ]]`` and untrained ones in ``(( ))``. Ends of lines are written as ``\\n``.
"""

import io
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import rich.console
import rich.text

from jaxpref.batch import Batch
from jaxpref.data.layouts import NOWHERE, padding_share
from jaxpref.data.records import Tokenized
from jaxpref.data.tokenizers import Tokenizer

STYLES = {"title": "bold", "prompt": "", "trained": "green", "untrained": "yellow", "note": "dim"}
BRACKETS = {"trained": ("[[", "]]"), "untrained": ("((", "))")}
LONGEST_LIST = 8
Piece = tuple[str, str]  # (style, text)


def examples(rows: Iterable[Tokenized], tokenizer: Tokenizer, *, colour: bool = True) -> str:
    """Token examples, one paragraph each: where they come from, their numbers, prompt and responses."""
    pieces = []
    for row in rows:
        pieces += [("title", row.origin), ("note", _numbers(row.side)), ("prompt", "\n")]
        pieces += _sequences(tokenizer, row.prompt, zip(row.responses, row.masks, strict=True))
    return _text(pieces, colour)


def batch(planned: Batch, tokenizer: Tokenizer, *, limit: int | None = None, colour: bool = True) -> str:
    """A planned batch (numpy arrays), read back from its rows: exactly the tokens that the model sees and predicts.

    Args:
        planned: see :func:`jaxpref.data.layouts.plan`.
        tokenizer: that made it.
        limit: examples to show of each stream; None shows all.
        colour: ANSI colours, or brackets.
    """
    rows = planned.rows
    size = f"{int(planned.count)} micro-batches of {rows.tokens.shape[-2]} rows of {rows.tokens.shape[-1]} tokens"
    if planned.row_lengths is not None:
        lengths = planned.row_lengths[: int(planned.count)]
        size += f" ({np.sum(lengths < rows.tokens.shape[-1])} of them of {lengths.min()})"
    pieces = [("title", size), ("note", f", {padding_share(planned):.1%} padding"), ("prompt", "\n")]
    for stream, found in planned.examples.items():
        for n in np.flatnonzero(found.where)[:limit]:
            numbers = {key: values[n] for key, values in found.side.items() if np.ndim(values[n]) < 2}
            place = f", micro-batch {found.micro[n]}{_numbers(numbers)}"
            pieces += [("title", f"{stream} {n}"), ("note", place), ("prompt", "\n")]
            prompts, responses = zip(
                *(_read_back(planned, stream, n, k) for k in range(found.index.shape[1])), strict=True
            )
            prompt = max(prompts, key=len)  # that of an empty response is not in the rows
            pieces += _sequences(
                tokenizer, prompt, zip(responses, (_mask(found, n, k) for k in range(len(responses))), strict=True)
            )
    return _text(pieces, colour)


def _read_back(planned: Batch, stream: str, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(prompt, response) of an example as its rows hold them."""
    places = planned.examples[stream].index[n, k]
    places = places[places != NOWHERE]
    if not len(places):
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    length = planned.rows.tokens.shape[-1]
    row, first = divmod(int(places[0]), length)
    tokens, targets, positions, segments = (np.asarray(field).reshape(-1, length)[row] for field in planned.rows)
    before = np.flatnonzero((segments == segments[first]) & (positions < positions[first]))
    return tokens[[*before, first]], targets[places % length]


def _mask(found, n: int, k: int) -> np.ndarray:
    return found.mask[n, k][found.index[n, k] != NOWHERE]


def _sequences(tokenizer: Tokenizer, prompt: Sequence[int], responses: Iterable) -> list[Piece]:
    pieces = [("note", f"  prompt ({len(prompt)} tokens): "), ("prompt", _shown(tokenizer, prompt)), ("prompt", "\n")]
    for k, (ids, mask) in enumerate(responses):
        pieces.append(("note", f"  response {k} ({len(ids)} tokens, {int(np.sum(mask))} trained): "))
        at = 0
        for trained, run in itertools.groupby(np.asarray(mask, bool).tolist()):
            size = len(list(run))
            text = _shown(tokenizer, ids[at : at + size], [*prompt, *ids[:at]])
            pieces.append(("trained" if trained else "untrained", text))
            at += size
        pieces.append(("prompt", "\n"))
    return [*pieces, ("prompt", "\n")]


def _shown(tokenizer: Tokenizer, ids: Sequence[int], after: Sequence[int] = ()) -> str:
    return tokenizer.decode(ids, after=after, special=True).replace("\n", "\\n")


def _numbers(side: dict) -> str:
    return "".join(f", {key} {_number(np.asarray(value).tolist())}" for key, value in sorted(side.items()))


def _number(value: float | list) -> str:
    """A number, or a list of them; one that is too long to read (an embedding) is cut."""
    if isinstance(value, list) and len(value) > LONGEST_LIST:
        return f"[{', '.join(map(str, value[:LONGEST_LIST]))}, ... {len(value)} numbers]"
    return str(value)


def _text(pieces: list[Piece], colour: bool) -> str:
    if not colour:
        return "".join(
            "".join((*BRACKETS[style][:1], text, *BRACKETS[style][1:])) if style in BRACKETS else text
            for style, text in pieces
        )
    text = rich.text.Text()
    for style, part in pieces:
        text.append(part, style=STYLES[style] or None)
    console = rich.console.Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=120)
    console.print(text, end="", soft_wrap=True)
    return console.file.getvalue()
