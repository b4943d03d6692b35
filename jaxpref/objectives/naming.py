"""Errors for names that do not exist."""

import difflib
from collections.abc import Iterable


def known(name: str, names: Iterable[str], what: str, error: type[Exception]) -> None:
    """Raises ``error`` with the nearest right name unless ``name`` is among ``names``; ``what`` begins the sentence."""
    names = list(names)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(names))}."
    raise error(f"{what} {name!r}, which does not exist; {hint}")
