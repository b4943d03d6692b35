"""Domains of hyperparameters: a concrete value outside raises, a traced one (a schedule, a vmapped sweep) passes."""

import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any

import jax


def positive(**parameters: Any) -> None:
    """Each parameter is a finite number above 0."""
    _check(parameters, lambda x: 0 < x < math.inf, "a finite number > 0")


def nonnegative(**parameters: Any) -> None:
    """Each parameter is a finite number, 0 or above."""
    _check(parameters, lambda x: 0 <= x < math.inf, "a finite number >= 0")


def at_most_half(**parameters: Any) -> None:
    """Each parameter is a probability of error: between 0 and 0.5."""
    _check(parameters, lambda x: 0 <= x <= 0.5, "between 0 and 0.5")


def below_half(**parameters: Any) -> None:
    """Each parameter is a probability of error that leaves the label informative: from 0 to below 0.5."""
    _check(parameters, lambda x: 0 <= x < 0.5, "between 0 and 0.5, 0.5 excluded")


def fraction(**parameters: Any) -> None:
    """Each parameter is between 0 and 1."""
    _check(parameters, lambda x: 0 <= x <= 1, "between 0 and 1")


def below_one(**parameters: Any) -> None:
    """Each parameter is from 0 to below 1."""
    _check(parameters, lambda x: 0 <= x < 1, "between 0 and 1, 1 excluded")


def above_zero_to_one(**parameters: Any) -> None:
    """Each parameter is above 0 and at most 1."""
    _check(parameters, lambda x: 0 < x <= 1, "between 0 and 1, 0 excluded")


def nonnegative_or_infinite(**parameters: Any) -> None:
    """Each parameter is a number, 0 or above; infinity is one."""
    _check(parameters, lambda x: x >= 0, "a number >= 0")


def sign(**parameters: Any) -> None:
    """Each parameter is -1 or 1."""
    _check(parameters, lambda x: x in (-1, 1), "-1 or 1")


def nonnegative_entries(**vectors: Any) -> None:
    """Each entry of each vector is a finite number, 0 or above."""
    for name, vector in vectors.items():
        nonnegative(**{f"{name}[{n}]": entry for n, entry in enumerate(_entries(vector))})


def simplex(**vectors: Any) -> None:
    """The entries of each vector are shares: 0 or above, and 1 together."""
    nonnegative_entries(**vectors)
    for name, vector in vectors.items():
        entries = _entries(vector)
        if entries and abs(sum(entries) - 1) > 1e-5:
            raise ValueError(f"{name} is {entries}, but must sum to 1.")


def finite(**parameters: Any) -> None:
    """Each parameter is any finite number, of either sign."""
    _check(parameters, math.isfinite, "a finite number")


def whole(**parameters: Any) -> None:
    """Each parameter is a whole number, 1 or above."""
    _check(parameters, lambda x: 1 <= x < math.inf and x == int(x), "a whole number >= 1")


def several(**parameters: Any) -> None:
    """Each parameter is a whole number, 2 or above."""
    _check(parameters, lambda x: 2 <= x < math.inf and x == int(x), "a whole number >= 2")


def zero_without(argument: str, value: Any, **parameters: Any) -> None:
    """Each parameter is 0 where ``value``, the array that the term it weighs needs, is None."""
    if value is None:
        for name, weight in parameters.items():
            if not isinstance(weight, numbers.Real) or weight != 0:
                raise ValueError(f"{name} is {weight!r}, but must be 0 where {argument} is None.")


def choice(allowed: Iterable[str], **parameters: str) -> None:
    """Each parameter is one of the allowed names."""
    for name, value in parameters.items():
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, allowed))}.")


def _entries(vector: Any) -> list[float]:
    """The numbers of a vector; none where it is traced."""
    try:
        return [float(entry) for entry in (vector.tolist() if hasattr(vector, "tolist") else vector)]
    except jax.errors.ConcretizationTypeError:
        return []


def _check(parameters: dict[str, Any], inside: Callable[[float], bool], domain: str) -> None:
    for name, value in parameters.items():
        if getattr(value, "ndim", 0) > 0:
            raise ValueError(f"{name} has shape {value.shape}, but must be a scalar (jax.vmap maps over values).")
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except jax.errors.ConcretizationTypeError:
            continue
        except (TypeError, ValueError):
            number = math.nan
        if not inside(number):
            raise ValueError(f"{name} is {value!r}, but must be {domain}.")
