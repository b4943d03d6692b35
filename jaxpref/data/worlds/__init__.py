"""Built-in worlds with a known true reward: code, deterministic, no download.

A world has ``records(kind, *, size, seed, split, ...)`` (the record types of users' data), ``prompts(split)``,
``reward(prompt, response)``, ``well_formed(response, prompt=)`` and ``optimum(beta)``: the best policy's reward and KL.
"""

import difflib
from typing import Any

from jaxpref.data.worlds import annotation, bandit, sentiment
from jaxpref.data.worlds.bandit import Bandit
from jaxpref.errors import DataError

__all__ = ["NAMES", "Bandit", "annotation", "bandit", "get", "sentiment"]

NAMES = ("bandit", "sentiment")


def get(name: str, **options: Any):
    """The world of a name; ``options`` are the fields of :class:`Bandit`, and the sentiment world has none.

    Raises:
        DataError: for an unknown world or option.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(NAMES)}."
        raise DataError(f"There is no world named '{name}'; {hint}")
    known = tuple(bandit.Bandit.__dataclass_fields__) if name == "bandit" else ()
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise DataError(f"World '{name}' has no option named '{unknown[0]}'; it knows {', '.join(known) or 'none'}.")
    return Bandit(**options) if name == "bandit" else sentiment
