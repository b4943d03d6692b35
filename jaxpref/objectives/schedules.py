"""Schedules: a scalar hyperparameter that moves with the step, ``dict(schedule="linear", start=, end=, steps=)``."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpref.errors import ConfigError
from jaxpref.objectives.naming import known

FIELDS = {"linear": ("start", "end", "steps"), "cosine": ("start", "end", "steps"), "constant": ("start",)}


class Schedule(NamedTuple):
    """From ``start`` at step 0 to ``end`` at step ``steps``, and ``end`` for ever after."""

    kind: str
    start: float
    end: float
    steps: int

    def at(self, step: Any) -> jax.Array:
        """The value at a step, which may be traced."""
        progress = jnp.clip(step / self.steps, 0.0, 1.0)
        if self.kind == "cosine":
            progress = (1 - jnp.cos(jnp.pi * progress)) / 2
        return self.start + (self.end - self.start) * progress


def read(field: str, value: Any) -> Any:
    """Turns a config's mapping into a :class:`Schedule`; anything else is returned as it is."""
    if not isinstance(value, Mapping) and not hasattr(value, "to_dict"):
        return value
    value = dict(value)
    kind = value.pop("schedule", None)
    if kind not in FIELDS:
        raise ConfigError(f"{field} has the schedule {kind!r}; expected schedule= one of {', '.join(FIELDS)}.")
    for name in value:
        known(name, FIELDS[kind], f"{field} (a {kind} schedule) has the field", ConfigError)
    missing = [name for name in FIELDS[kind] if name not in value]
    if missing:
        raise ConfigError(f"{field} is a {kind} schedule without {', '.join(missing)}; give {', '.join(FIELDS[kind])}.")
    for name, number in value.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ConfigError(f"{field}.{name} is {number!r}; expected a number.")
    if value.get("steps", 1) < 1:
        raise ConfigError(f"{field}.steps is {value['steps']}; expected at least 1.")
    return Schedule(kind, value["start"], value.get("end", value["start"]), value.get("steps", 1))


def at(value: Any, step: Any) -> Any:
    """A hyperparameter's value at a step."""
    return value.at(step) if isinstance(value, Schedule) else value


def ends(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The values at both ends of the schedules among them: everything that a domain check has to see."""

    def take(end):
        return {name: getattr(value, end) if isinstance(value, Schedule) else value for name, value in values.items()}

    return [take("start"), take("end")]
