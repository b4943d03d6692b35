"""Errors for names that do not exist."""

from collections.abc import Iterable

from jaxpref.errors import hint


def known(name: str, names: Iterable[str], what: str, error: type[Exception]) -> None:
    """Raises ``error`` with the nearest right name unless ``name`` is among ``names``; ``what`` begins the sentence."""
    names = list(names)
    if name not in names:
        raise error(f"{what} {name!r}, which does not exist; {hint(name, names)}")
