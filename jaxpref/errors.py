"""Errors that a user can mend: one clear sentence saying what, where, what was expected, and how to mend it."""


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
