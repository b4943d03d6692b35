"""The catalogue: one registration for every method, by the same families as ``jaxpref.losses``."""

from jaxpref.objectives.methods import likelihood, pairwise, reference_free, reward, unpaired

__all__ = ["likelihood", "pairwise", "reference_free", "reward", "unpaired"]
