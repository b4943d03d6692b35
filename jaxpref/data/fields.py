"""Checked fields of a row: text, numbers and messages, or an error that names the field and what was expected."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxpref.errors import DataError

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "tool": "tool", "observation": "tool",
}  # fmt: skip


class Message(NamedTuple):
    """One turn; ``trained`` is False where the data gives an assistant's turn weight 0."""

    role: str
    content: str
    trained: bool = True


Text = str | tuple[Message, ...]


def messages(value: Any, name: str) -> tuple[Message, ...]:
    """One message or a list of them, each with ``role`` and ``content``, or ``from`` and ``value``.

    Some data sets store a list of messages by columns, as one object with lists.
    """
    turns = [value] if isinstance(value, Mapping) else value
    if isinstance(value, Mapping) and all(isinstance(column, list) for column in value.values()):
        turns = [dict(zip(value, cells, strict=False)) for cells in zip(*value.values(), strict=False)]
    if not isinstance(turns, list | tuple) or not turns:
        raise DataError(
            f"field {name!r} is {kind_of(value)}; expected a string or a list of messages with 'role' and 'content'."
        )
    return tuple(_message(turn, f"{name}[{n}]") for n, turn in enumerate(turns))


def _message(turn: Any, name: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"field {name!r} is {kind_of(turn)}; expected a message with 'role' and 'content'.")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(f"field {name!r} has role {role!r}; expected one of {', '.join(ROLES)}.")
    if turn.get("tool_calls"):
        raise DataError(
            f"field {name!r} calls tools, which no template of this library writes; expected 'content' as text."
        )
    if isinstance(content, list | tuple):
        content = "".join(_content_part(part, f"{name}.content[{n}]") for n, part in enumerate(content))
    content = text(content, f"{name}.content")
    weight = number(turn.get("weight", turn.get("loss_weight", 1)), f"{name}.weight", float)
    if weight not in (0, 1):
        raise DataError(f"field '{name}.weight' is {weight}; expected 0 (not trained) or 1.")
    if ROLES[role] == "assistant":
        not_empty(content, f"{name}.content")
    return Message(ROLES[role], content, weight == 1 or ROLES[role] != "assistant")


def _content_part(part: Any, name: str) -> str:
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        return text(part.get("text", part.get("value")), name)
    kind = part.get("type") if isinstance(part, Mapping) else kind_of(part)
    raise DataError(f"field {name!r} is of type {kind!r}; expected text.")


def text(value: Any, name: str) -> str:
    """A string that can be encoded."""
    if not isinstance(value, str):
        raise DataError(f"field {name!r} is {kind_of(value)}; expected a string.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"field {name!r} holds half of a surrogate pair at character {error.start}; expected valid Unicode."
        ) from error
    return value


def not_empty(text: str, name: str) -> str:
    """A response that says something."""
    if not text.strip():
        raise DataError(f"field {name!r} is empty; expected a response with at least one visible character.")
    return text


def number(value: Any, name: str, kind: type) -> float | int | bool:
    """A finite number of a kind; ``bool`` also takes 0 and 1, the others take no truth value."""
    value = value.item() if isinstance(value, np.generic) else value
    if kind is bool and (isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))):
        return bool(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    wanted = {bool: "true or false", int: "a whole number", float: "a finite number"}[kind]
    raise DataError(f"field {name!r} is {kind_of(value)}; expected {wanted}.")


def numbers(value: Any, name: str, allowed: tuple[float, ...] = ()) -> np.ndarray:
    """A list of finite numbers, of the ``allowed`` ones where there are any; float32."""
    if not isinstance(value, list | tuple | np.ndarray) or not len(value):
        raise DataError(f"field {name!r} is {kind_of(value)}; expected a list of numbers.")
    found = [number(entry, f"{name}[{n}]", float) for n, entry in enumerate(value)]
    for n, entry in enumerate(found):
        if allowed and entry not in allowed:
            wanted = " or ".join(f"{each:g}" for each in allowed)
            raise DataError(f"field '{name}[{n}]' is {entry:g}; expected {wanted}.")
    return np.array(found, np.float32)


def missing(row: Mapping, name: str) -> DataError:
    """The error for a field that a row lacks."""
    return DataError(f"field '{name}' is missing; the row has {', '.join(map(repr, row)) or 'no fields'}.")


def kind_of(value: Any) -> str:
    """What a value is, in words for an error."""
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return f"an object with fields {', '.join(map(repr, value)) or 'none'}"
    if isinstance(value, str):
        return f"the string {value[:30]!r}{'...' if len(value) > 30 else ''}"
    return "missing" if value is None else f"{type(value).__name__} {value!r}"
