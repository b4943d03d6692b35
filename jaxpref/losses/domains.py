"""Domains of hyperparameters: a concrete value outside raises, a traced one (a schedule, a vmapped sweep) passes."""

import math
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


def choice(allowed: Iterable[str], **parameters: str) -> None:
    """Each parameter is one of the allowed names."""
    for name, value in parameters.items():
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, allowed))}.")


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
