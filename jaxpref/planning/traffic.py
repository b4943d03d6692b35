"""What a compiled program sends between chips, read from its text.

A collective inside a loop counts once for every turn. Loops over layers and over chunks of tokens have constant bounds
in the text; a loop without one is the engine's loop over micro-batches, whose count is data.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}  # else 4
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([\w\-]+)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations|called_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Collective(NamedTuple):
    """One collective operation of the text.

    Attributes:
        kind: one of ``KINDS``.
        sent: bytes that a device sends in one execution.
        times: executions in a step.
        devices: how many take part together; 0 where the text does not say (permutations).
    """

    kind: str
    sent: float
    times: int
    devices: int


def collectives(text: str, micro_batches: int = 1) -> list[Collective]:
    """Every collective of an optimised HLO text.

    Args:
        text: ``compiled.as_text()``.
        micro_batches: turns of loops whose bound the text does not hold.
    """
    computations = dict(_computations(text))
    entry = next(name for name, lines in computations.items() if lines[0].startswith("ENTRY"))
    return list(_walk(entry, computations, 1, micro_batches))


def bytes_by_kind(found: list[Collective]) -> dict[str, float]:
    """Bytes that a device sends in a step, by kind; kinds that do not occur are left out."""
    totals = {kind: sum(c.sent * c.times for c in found if c.kind == kind) for kind in KINDS}
    return {kind: total for kind, total in totals.items() if total}


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, lines = header.group(2), [line]
        elif line.startswith("}"):
            yield name, lines
        else:
            lines.append(line)


def _walk(name: str, computations, times: int, micro_batches: int) -> Iterator[Collective]:
    for line in computations[name]:
        operation = _OPERATION.match(line)
        if not operation:
            continue
        shape, kind = operation.groups()
        if kind.removesuffix("-start") in KINDS:
            yield _collective(line, shape, kind, times)
            continue
        turns = 1
        if kind == "while":
            turns = _turns(line, computations, micro_batches)
        for group in _CALLED.findall(line):
            for called in re.findall(r"%([\w.\-]+)", group):
                yield from _walk(called, computations, times * turns, micro_batches)


def _turns(line: str, computations, micro_batches: int) -> int:
    """How often a loop turns: its counter starts at 0, is compared with a constant, and grows by a constant."""
    known = _TRIPS.search(line)
    if known:
        return int(known.group(1))
    condition = computations[_CONDITION.search(line).group(1)]
    compared = _definition(condition, "ROOT")
    bound = next((n for name in _names(compared) if (n := _constant(condition, name)) is not None), None)
    if bound is None or "direction=LT" not in compared:
        return micro_batches
    index = re.search(r"index=(\d+)", _definition(condition, _names(compared)[0]))
    body = computations[re.search(r"body=%?([\w.\-]+)", line).group(1)]
    carried = _names(_definition(body, "ROOT").rpartition(" tuple(")[2])
    grown = _definition(body, carried[int(index.group(1))]) if index else ""
    step = next((n for name in _names(grown) if (n := _constant(body, name)) is not None), 1)
    return math.ceil(bound / max(step, 1))


def _definition(lines: list[str], name: str) -> str:
    """The right-hand side of an operation, without metadata; ``ROOT`` is the computation's result."""
    start = re.compile(r"^\s+ROOT " if name == "ROOT" else rf"^\s+(?:ROOT )?%{re.escape(name)} = ")
    found = next((line for line in lines if start.match(line)), "")
    return found.partition(" = ")[2].partition(", metadata=")[0]


def _names(text: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", text)


def _constant(lines: list[str], name: str) -> int | None:
    value = re.search(r"constant\((\d+)\)", _definition(lines, name))
    return int(value.group(1)) if value else None


def _collective(line: str, shape: str, kind: str, times: int) -> Collective:
    started, kind = kind.endswith("-start"), kind.removesuffix("-start")
    sizes = [math.prod(map(int, filter(None, d.split(",")))) * _BYTES.get(t, 4) for t, d in _ARRAY.findall(shape)]
    devices = _group(line)
    if kind == "collective-permute":
        # A started one's type is (input, output, flags).
        return Collective(kind, sizes[0] if started else sum(sizes), times, 0)
    others = (devices - 1) / devices if devices else 1.0
    if kind == "all-gather":
        # A started one's type is (inputs, outputs); the outputs are larger.
        size = max(sizes) if started else sum(sizes)
        return Collective(kind, size * others, times, devices)
    size = sum(sizes) / (2 if started and kind != "all-reduce" else 1)
    if kind == "reduce-scatter":
        return Collective(kind, size * (devices - 1), times, devices)
    return Collective(kind, size * others * (2 if kind == "all-reduce" else 1), times, devices)


def _group(line: str) -> int:
    """How many devices take part in one instance of the collective."""
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if named:
        sizes = dict(re.findall(r"'([\w.]+)'=(\d+)", named.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([\w.]+)'", named.group(2)))
    tiled = re.search(r"replica_groups=\[\d+,(\d+)\]<=", line)
    if tiled:
        return int(tiled.group(1))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return len(listed.group(1).split(",")) if listed else 0
