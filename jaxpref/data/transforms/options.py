"""What the transforms share: the type of a row and of what makes rows of one, and checks of options."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxpref.data import records
from jaxpref.data.fields import Message, Text
from jaxpref.data.records import ASSISTANT
from jaxpref.errors import ConfigError

Row = dict[str, Any]
# (row, its place in the source) -> rows, and a reason in the place of each one that is left out
Maker = Callable[[Row, int], Iterable[Row | str]]


def whole(name: str, value: Any, least: int) -> None:
    """Raises ConfigError unless an option is a whole number, ``least`` or above."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is {value!r}; expected a whole number, {least} or above.")


def drawing(seed: int, place: int) -> np.random.Generator:
    """What draws for one row, by the seed and the row's place alone."""
    return np.random.default_rng((seed, place))


def pair(row: Row) -> records.Record:
    """A row of pairs in normal form."""
    (record,) = records.parse("pairs", row)
    return record


def written(text: Text) -> Any:
    """A prompt or response as a row has it: a string, or messages with ``role``, ``content`` and ``weight``."""
    if isinstance(text, str):
        return text
    return [{"role": m.role, "content": m.content} | ({} if m.trained else {"weight": 0}) for m in text]


def last_words(text: Text) -> str:
    """What is said last: the last turn of messages, or a string; of a transcript without the cue to answer."""
    return text.removesuffix(ASSISTANT) if isinstance(text, str) else text[-1].content


def replaced(text: Text, words: str) -> Text:
    """The same with other last words."""
    if isinstance(text, str):
        return words + (ASSISTANT if text.endswith(ASSISTANT) else "")
    return (*text[:-1], Message(text[-1].role, words, text[-1].trained))
