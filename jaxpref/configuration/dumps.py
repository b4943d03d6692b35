"""Configs as text, and what changed between two of them."""

import fnmatch
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxpref.configuration.checks import plain

# What a resumed run may change: none of it alters the numbers of a step that was already taken.
RESUMABLE = (
    "train.steps", "train.epochs", "log.*", "evals", "evals.*", "checkpoint.*", "early_stop.*", "profile", "mesh.*",
    "compare", "compare.*",
)  # fmt: skip


class Change(NamedTuple):
    """One field that differs; a field that one side lacks is None there."""

    field: str
    old: Any
    new: Any
    allowed: bool

    def __str__(self) -> str:
        return f"{self.field}: {self.old!r} -> {self.new!r}"


def to_json(config: Mapping[str, Any] | ConfigDict) -> str:
    """The config as JSON, readable by :func:`jaxpref.configuration.from_json`."""
    return json.dumps(plain(config), indent=2) + "\n"


def to_text(config: Mapping[str, Any] | ConfigDict) -> str:
    """One line per field, ``a.b = value``, sorted."""
    return "".join(f"{field} = {value!r}\n" for field, value in sorted(flatten(config).items()))


def flatten(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """Dotted field -> value; lists and tuples are values, and so are empty sections."""
    fields: dict[str, Any] = {}

    def walk(value, where):
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                walk(inner, f"{where}.{name}" if where else name)
        else:
            fields[where] = value

    walk(json.loads(json.dumps(plain(config))), "")
    return fields


def difference(old: Mapping[str, Any] | ConfigDict, new: Mapping[str, Any] | ConfigDict) -> list[Change]:
    """Fields that differ, and whether a run that was begun with ``old`` may continue with ``new`` there."""
    before, after = flatten(old), flatten(new)
    fields = [field for field in sorted(before | after) if before.get(field) != after.get(field)]
    changes = [Change(field, before.get(field), after.get(field), _resumable(field)) for field in fields]
    return changes + _reordered(plain(old), plain(new))


def _reordered(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """The same entries in another order; the first data stream defines epochs, and stages follow each other."""
    orders = [(name, list(old.get(name, {})), list(new.get(name, {}))) for name in ("data", "stages")]
    return [Change(f"order of {n}", a, b, False) for n, a, b in orders if a != b and set(a) == set(b)]


def _resumable(field: str) -> bool:
    names = field.split(".")
    inner = ".".join(names[2:] if names[0] == "stages" else names)
    return any(fnmatch.fnmatch(inner, pattern) for pattern in RESUMABLE)
