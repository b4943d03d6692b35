"""Claims, what was measured about them, and the verdict."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from jaxpref.errors import DataError, UserError
from jaxpref.evaluation import statistics
from jaxpref.evaluation.statistics import Interval

VERDICTS = (REPRODUCED, PARTLY, NOT) = ("reproduced", "partly reproduced", "not reproduced")


class Absent(UserError):
    """What a claim needs is not here (real data, for example): it is skipped, and the reason shown."""


class Claim(NamedTuple):
    """A paper's claim and how it is put to the test.

    Attributes:
        statement: the claim, in a sentence.
        paper, url: its exact title, and where it is.
        reported: what the paper reports.
        setting: what is done here.
        minutes: what a full run takes on two CPU cores, about.
        notes: what to know of the result; of one that does not hold, the reason as far as it was looked into.
    """

    statement: str
    paper: str
    url: str
    reported: str
    setting: str
    minutes: float
    notes: str = ""


class Check(NamedTuple):
    """One quantity that the claim says something about.

    Attributes:
        statement: what has to be true, in words.
        values: one number a seed.
        low, high: between which their mean has to lie; the whole 95 % interval over seeds must.
    """

    statement: str
    values: Sequence[float]
    low: float = -np.inf
    high: float = np.inf

    @property
    def interval(self) -> Interval:
        return statistics.student(np.asarray(self.values, float))

    @property
    def holds(self) -> bool:
        interval = self.interval
        return bool(self.low < interval.low and interval.high < self.high)


class Outcome(NamedTuple):
    """What a run found.

    Attributes:
        measured: condition -> metric -> one number a seed; the result table.
        checks: what the claim comes to; the verdict is theirs.
        figure: the claim in a picture; a quick run may have none.
        beyond: what was asked on top, of which the paper says nothing: shown, with no part in the verdict.
    """

    measured: Mapping[str, Mapping[str, Sequence[float]]]
    checks: Sequence[Check]
    figure: Figure | None
    beyond: Sequence[Check] = ()


def above(statement: str, first, second=0.0) -> Check:
    """The mean over seeds of ``first - second``, paired, is above zero."""
    return Check(statement, np.asarray(first, float) - np.asarray(second, float), low=0.0)


def below(statement: str, first, second=0.0) -> Check:
    """The mean over seeds of ``first - second``, paired, is below zero."""
    return Check(statement, np.asarray(first, float) - np.asarray(second, float), high=0.0)


def near(statement: str, values, target: float, tolerance: float) -> Check:
    """The mean over seeds is within ``tolerance`` of ``target``."""
    return Check(statement, np.asarray(values, float), low=target - tolerance, high=target + tolerance)


def verdict(holds: Sequence[bool]) -> str:
    """``reproduced`` where every check holds, ``not reproduced`` where none does."""
    return REPRODUCED if all(holds) else PARTLY if any(holds) else NOT


def summary(outcome: Outcome) -> dict[str, Any]:
    """The outcome as plain numbers: what ``results.json`` holds.

    Raises:
        DataError: no checks, fewer than three seeds, conditions with different numbers of seeds, values not finite.
    """
    if not outcome.checks:
        raise DataError("the outcome of a claim has no checks; expected at least one.")
    measured = {
        condition: {metric: [float(value) for value in np.ravel(values)] for metric, values in metrics.items()}
        for condition, metrics in outcome.measured.items()
    }
    sizes = {len(values) for metrics in measured.values() for values in metrics.values()}
    sizes |= {len(np.ravel(check.values)) for check in (*outcome.checks, *outcome.beyond)}
    if len(sizes) != 1 or min(sizes) < 3:
        raise DataError(
            f"the outcome of a claim has {sorted(sizes)} numbers a quantity; expected one for each of 3 seeds or more."
        )
    return {
        "verdict": verdict([check.holds for check in outcome.checks]),
        "seeds": sizes.pop(),
        "checks": [_as_numbers(check) for check in outcome.checks],
        "beyond": [_as_numbers(check) for check in outcome.beyond],
        "measured": measured,
    }


def _as_numbers(check: Check) -> dict[str, Any]:
    mean, low, high, *_ = check.interval
    wanted = [None if np.isinf(end) else float(end) for end in (check.low, check.high)]
    return dict(statement=check.statement, mean=mean, low=low, high=high, wanted=wanted, holds=check.holds)
