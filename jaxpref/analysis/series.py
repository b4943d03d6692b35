"""The metrics of a run, read back: one curve per name."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxpref.errors import DataError

METRICS = "metrics.jsonl"


class Curve(NamedTuple):
    """Values of one metric.

    Attributes:
        steps: ``[n]`` int, ascending.
        values: ``[n]`` float64, nan and infinities included.
    """

    steps: np.ndarray
    values: np.ndarray

    def finite(self) -> "Curve":
        """Without the steps where the value is nan or infinite."""
        kept = np.isfinite(self.values)
        return Curve(self.steps[kept], self.values[kept])

    def thinned(self, points: int) -> "Curve":
        """At most ``points`` points: means of equal blocks of neighbours."""
        if len(self.steps) <= points:
            return self
        blocks = np.array_split(np.arange(len(self.steps)), points)
        means = [(self.steps[block].mean(), self.values[block].mean()) for block in blocks]
        return Curve(*(np.array(column) for column in zip(*means, strict=True)))


def read(workdir: str | epath.Path) -> dict[str, Curve]:
    """Curves of a run folder, in the order in which the names first appear; empty before the first line is written.

    A last line without its end was cut off by a crash and is left out; the run's next start removes it.

    Raises:
        DataError: a whole line is not an object with a step.
    """
    path = epath.Path(workdir) / METRICS
    if not path.exists():
        return {}
    lines = path.read_text().split("\n")[:-1]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{number} is not JSON ({error.msg}); remove the line or restore the file."
            ) from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise DataError(f"{path}:{number} has no whole number 'step'; every line is an object with one.")
        rows.append(row)
    return curves(rows)


def curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """Curves of rows ``{"step": ..., name: number, ...}``; fields that are no numbers have no curve."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float | None) and not isinstance(value, bool):
                steps, values = found.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(math.nan if value is None else float(value))
    return {name: Curve(np.array(steps), np.array(values)) for name, (steps, values) in found.items()}
