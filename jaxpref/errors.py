"""Errors that a user can mend: one clear sentence saying what, where, what was expected, and how to mend it."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Base class; the command line prints the message alone and exits with a non-zero code."""


class ConfigError(UserError):
    """A config field is unknown, unread, contradictory, or outside its domain."""


class DataError(UserError):
    """A record, a source, a template or a tokenizer cannot be used as it is."""


class ModelError(UserError):
    """A checkpoint, an architecture or a mesh does not fit."""


class CheckpointError(UserError):
    """A run cannot be saved or resumed as asked."""


class TrainingError(UserError):
    """A self-check of a running training failed."""


def hint(name: str, names: Iterable[str]) -> str:
    """The end of an error about a name that does not exist: ``did you mean 'x'?``, or the names that there are."""
    names = [str(known) for known in names]
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there are {', '.join(sorted(names))}." if names else "there are none."
