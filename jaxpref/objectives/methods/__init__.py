"""The catalogue: one registration for every method, by the same families as ``jaxpref.losses``."""

from jaxpref.objectives.methods import (
    auxiliary,
    batchwise,
    gradients,
    joint,
    likelihood,
    pairwise,
    reference_free,
    references,
    reward,
    sampled,
    unpaired,
)

__all__ = [
    "auxiliary",
    "batchwise",
    "gradients",
    "joint",
    "likelihood",
    "pairwise",
    "reference_free",
    "references",
    "reward",
    "sampled",
    "unpaired",
]
