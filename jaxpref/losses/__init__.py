"""Alignment losses: pure functions of arrays, one flat namespace.

Every loss takes arrays first and hyperparameters by keyword, and returns unreduced values: ``[B]`` for a batch of B
examples unless its docstring says *batch-level*; ``(values, aux)`` where it has more to say. All work under ``jit``,
``grad`` and ``vmap``, compute in float32 at least (float64 under ``jax_enable_x64``), check shapes, and raise
``ValueError`` for a concrete hyperparameter outside its domain.

Most pairwise losses are weight x link(difference of scores) + regulariser; :mod:`links` and :mod:`scores` hold the
parts.
"""

from jaxpref.losses import arrays, domains, links, scores
from jaxpref.losses.likelihood.sft import sft_loss
from jaxpref.losses.pairwise.dpo import cdpo_loss, dpo_loss
from jaxpref.losses.pairwise.ipo import ipo_loss
from jaxpref.losses.pairwise.wpo import wpo_loss, wpo_weights
from jaxpref.losses.reference_free.orpo import OrpoAux, orpo_loss
from jaxpref.losses.reference_free.simpo import simpo_loss
from jaxpref.losses.reward.bradley_terry import bradley_terry_loss
from jaxpref.losses.sequences import log1mexp, sequence_logps, token_logps
from jaxpref.losses.unpaired.kto import KtoAux, kto_loss

__all__ = [
    "KtoAux",
    "OrpoAux",
    "arrays",
    "bradley_terry_loss",
    "cdpo_loss",
    "domains",
    "dpo_loss",
    "ipo_loss",
    "kto_loss",
    "links",
    "log1mexp",
    "orpo_loss",
    "scores",
    "sequence_logps",
    "sft_loss",
    "simpo_loss",
    "token_logps",
    "wpo_loss",
    "wpo_weights",
]
