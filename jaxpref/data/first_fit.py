"""First fit decreasing: what of an example lies together, and the micro-batch and the rows that it lies in."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpref.batch import Layout


class Piece(NamedTuple):
    """What of an example must lie in one micro-batch: its prompt with the responses from ``first`` on."""

    stream: str
    number: int
    first: int
    prompt: np.ndarray
    responses: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]


def pieces(streams: Mapping[str, Sequence[Any]], shapes: Mapping[str, Any]) -> tuple[list[Piece], list[Piece]]:
    """``(those that get a gradient, mismatched responses)`` of a batch whose streams have these ``StreamShape``s."""
    own, partners = [], []
    for name, shape in shapes.items():
        for n, example in enumerate(streams[name]):
            prompt, responses = np.asarray(example.prompt), tuple(map(np.asarray, example.responses))
            parts = [(0, len(responses))] if not shape.partnered else [(0, 1), (1, 2)]
            for kept, (start, stop) in zip((own, partners), parts, strict=False):
                kept.append(Piece(name, n, start, prompt, responses[start:stop], example.masks[start:stop]))
    return own, partners


def footprint(piece: Piece, layout: Layout, *, final: bool) -> np.ndarray:
    """Tokens that a piece takes of (prompt region, each response region) when shared, else of each segment."""
    sizes = np.array([len(response) for response in piece.responses])
    if layout.shared:
        unused = [0] * (layout.responses - len(sizes))
        return np.array([len(piece.prompt) - 1, *np.where(sizes > 0, sizes + final, 0), *unused])
    return np.where(sizes > 0, len(piece.prompt) - 1 + sizes + final, 0)


class Place(NamedTuple):
    """Where a piece lies: its micro-batch, and the row of each of its segments (shared: of all of it)."""

    micro: int
    rows: list[int]


def first_fit(
    footprints: Sequence[np.ndarray], layout: Layout, *, rows: int, packed: bool, micro_batches: int
) -> tuple[dict[int, Place], np.ndarray] | None:
    """Places the largest pieces first, each in the first micro-batch with room for the whole of it.

    Where the layout has short rows, pieces that they cannot hold come first; the others fill up what is left of the
    long rows, then short ones.

    Args:
        footprints: of each piece, see :func:`footprint`.
        layout: regions of a row.
        rows: of a micro-batch.
        packed: whether a row may hold several pieces.
        micro_batches: how many there are.

    Returns:
        ``(piece -> place, in the order of placing; which of the micro-batches used are short)``, or None where the
        micro-batches are too few.
    """
    empty = np.zeros((rows, 1 + layout.responses), np.int64)
    kinds = [layout.shortened, layout] if layout.short else [layout]
    kind_of = [
        next(kind for kind in kinds if kind is layout or room(footprint, empty, kind, packed) is not None)
        for footprint in footprints
    ]
    loads, opened, places = [], [], {}
    for piece in sorted(range(len(footprints)), key=lambda i: (kind_of[i] is not layout, -int(footprints[i].sum()))):
        found = _first_room(footprints[piece], loads, opened, packed)
        if found is None:
            if len(loads) == micro_batches:
                return None
            loads.append(empty.copy())
            opened.append(kind_of[piece])
            found = Place(len(loads) - 1, room(footprints[piece], empty, opened[-1], packed))
        places[piece] = found
        if layout.shared:
            loads[found.micro][found.rows[0]] += footprints[piece]
        else:
            np.add.at(loads[found.micro][:, 1], found.rows, footprints[piece])
    return places, np.array([kind is not layout for kind in opened], bool)


def _first_room(footprint: np.ndarray, loads, layouts: Sequence[Layout], packed: bool) -> Place | None:
    for micro, (load, layout) in enumerate(zip(loads, layouts, strict=True)):
        if (rows := room(footprint, load, layout, packed)) is not None:
            return Place(micro, rows)
    return None


def room(footprint: np.ndarray, load: np.ndarray, layout: Layout, packed: bool) -> list[int] | None:
    """Rows of a micro-batch for the segments of a piece, or None; ``load`` is what its regions hold ``[R, 1 + K]``."""
    if layout.shared:
        capacity = np.array([layout.prompt, *[layout.response] * layout.responses])
        fits = np.all(load + footprint <= capacity, axis=-1) & (packed | (load.sum(-1) == 0))
        return [int(np.argmax(fits))] if fits.any() else None
    load, rows = load[:, 1].copy(), []
    for tokens in footprint:
        fits = (load + tokens <= layout.response) & (packed | (load == 0))
        if not fits.any():
            return None
        rows.append(int(np.argmax(fits)))
        load[rows[-1]] += tokens
    return rows
