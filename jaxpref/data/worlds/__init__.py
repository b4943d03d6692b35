"""Built-in worlds with a known true reward: code, deterministic, no download.

A world has ``records(kind, *, size, seed, split, ...)`` (the record types of users' data), ``prompts(split)``,
``reward(prompt, response)``, ``well_formed(response, prompt=)`` and ``optimum(beta)``: the best policy's reward and KL.
``tokenizer(name)`` makes its phrases single tokens; bytes work as well, with sequences four times as long.
"""

from typing import Any

from jaxpref.data.tokenizers import Tokenizer
from jaxpref.data.worlds import annotation, bandit, sentiment, words
from jaxpref.data.worlds.bandit import Bandit
from jaxpref.errors import DataError, hint

__all__ = ["NAMES", "Bandit", "annotation", "bandit", "get", "sentiment", "tokenizer", "words"]

NAMES = ("bandit", "sentiment")


def get(name: str, **options: Any):
    """The world of a name; ``options`` are the fields of :class:`Bandit`, and the sentiment world has none.

    Raises:
        DataError: for an unknown world or option.
    """
    if name not in NAMES:
        raise DataError(f"There is no world named '{name}'; {hint(name, NAMES)}")
    known = tuple(bandit.Bandit.__dataclass_fields__) if name == "bandit" else ()
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise DataError(f"World '{name}' has no option named '{unknown[0]}'; {hint(unknown[0], known)}")
    return Bandit(**options) if name == "bandit" else sentiment


def tokenizer(name: str, **options: Any) -> Tokenizer:
    """A word-level tokenizer for the world of a name; ``options`` are those of :func:`get`."""
    return words.tokenizer(f"world:{name}", get(name, **options).phrases())
