"""Alignment losses: pure functions of arrays, one flat namespace.

Every loss takes arrays first and hyperparameters by keyword, and returns unreduced values: ``[B]`` for a batch of B
examples unless its docstring says *batch-level*; ``(values, aux)`` where it has more to say. All work under ``jit``,
``grad`` and ``vmap``, compute in float32 at least (float64 under ``jax_enable_x64``), check shapes, and raise
``ValueError`` for a concrete hyperparameter outside its domain.

Most pairwise losses are weight x link(difference of scores) + regulariser; :mod:`links` and :mod:`scores` hold the
parts.
"""

from jaxpref.losses import arrays, domains, links, scores
from jaxpref.losses.batchwise.beta_dpo import BetaDpoAux, BetaDpoState, beta_dpo_loss, beta_dpo_state
from jaxpref.losses.batchwise.lcpo import LcpoAux, LcpoState, lcpo_loss, lcpo_state
from jaxpref.losses.batchwise.mixed import dpo_nll_loss, mpo_loss
from jaxpref.losses.batchwise.relative import relative_rpo_loss
from jaxpref.losses.batchwise.transport import aot_loss
from jaxpref.losses.gradients.raco import RacoAux, RacoLossAux, raco_direction, raco_loss
from jaxpref.losses.likelihood.degree import preference_degree_loss
from jaxpref.losses.likelihood.dynamic_ft import dynamic_ft_loss
from jaxpref.losses.likelihood.f_sft import f_sft_loss
from jaxpref.losses.likelihood.sft import sft_loss
from jaxpref.losses.pairwise.anchored import apo_loss, dpop_loss, flex_dpo_loss, nca_pair_loss
from jaxpref.losses.pairwise.calibrated import cal_dpo_loss, sppo_hard_loss, sppo_loss
from jaxpref.losses.pairwise.divergences import discopop_loss, exo_pair_loss, f_dpo_loss
from jaxpref.losses.pairwise.dpo import cdpo_loss, dpo_loss, rdpo_loss
from jaxpref.losses.pairwise.hinge import dpo_hinge_loss
from jaxpref.losses.pairwise.ipo import ipo_loss
from jaxpref.losses.pairwise.joint import dove_loss, mapl_inter_loss, mapl_intra_loss
from jaxpref.losses.pairwise.length import ld_dpo_loss, ld_logps, ln_dpo_loss, r_dpo_loss
from jaxpref.losses.pairwise.references import (
    hybrid_dpo_loss,
    mrpo_reference,
    sequential_po_loss,
    sequential_po_rewards,
    update_reference,
)
from jaxpref.losses.pairwise.strengths import dno_loss, mm_dpo_loss, reward_aware_rpo_loss, soft_preference_loss
from jaxpref.losses.pairwise.ties import todo_loss
from jaxpref.losses.pairwise.wpo import wpo_loss, wpo_weights
from jaxpref.losses.reference_free.alphapo import alphapo_loss, alphapo_reward
from jaxpref.losses.reference_free.cpo import arpo_loss, cpo_loss
from jaxpref.losses.reference_free.mapo import MapoDiffusionAux, mapo_diffusion_loss, mapo_lm_loss, mapo_score
from jaxpref.losses.reference_free.orpo import OrpoAux, orpo_loss
from jaxpref.losses.reference_free.semantic import SEMANTIC_LOSSES, SemanticAux, semantic_preference_loss
from jaxpref.losses.reference_free.simpo import simpo_loss
from jaxpref.losses.reference_free.slic import slic_loss
from jaxpref.losses.reward.bradley_terry import bradley_terry_loss
from jaxpref.losses.sampled.copg import copg_loss
from jaxpref.losses.sampled.dft import dft_loss
from jaxpref.losses.sampled.hypo import HypoAux, hypo_loss
from jaxpref.losses.sampled.knowpat import knowpat_align_loss, knowpat_loss
from jaxpref.losses.sampled.vpo import vpo_loss
from jaxpref.losses.sequences import log1mexp, sequence_logps, token_logps
from jaxpref.losses.unpaired.apo import apo_zero_unpaired_loss
from jaxpref.losses.unpaired.bco import BcoState, bco_loss, bco_pair_loss, bco_state, density_ratio
from jaxpref.losses.unpaired.kto import KtoAux, kto_loss
from jaxpref.losses.unpaired.pmpo import pmpo_loss, pmpo_values

__all__ = [
    "BcoState",
    "BetaDpoAux",
    "BetaDpoState",
    "HypoAux",
    "KtoAux",
    "LcpoAux",
    "LcpoState",
    "MapoDiffusionAux",
    "OrpoAux",
    "RacoAux",
    "RacoLossAux",
    "SEMANTIC_LOSSES",
    "SemanticAux",
    "alphapo_loss",
    "alphapo_reward",
    "aot_loss",
    "apo_loss",
    "apo_zero_unpaired_loss",
    "arpo_loss",
    "arrays",
    "bco_loss",
    "bco_pair_loss",
    "bco_state",
    "beta_dpo_loss",
    "beta_dpo_state",
    "bradley_terry_loss",
    "cal_dpo_loss",
    "cdpo_loss",
    "copg_loss",
    "cpo_loss",
    "density_ratio",
    "dft_loss",
    "discopop_loss",
    "dno_loss",
    "domains",
    "dove_loss",
    "dpo_hinge_loss",
    "dpo_loss",
    "dpo_nll_loss",
    "dpop_loss",
    "dynamic_ft_loss",
    "exo_pair_loss",
    "f_dpo_loss",
    "f_sft_loss",
    "flex_dpo_loss",
    "hybrid_dpo_loss",
    "hypo_loss",
    "ipo_loss",
    "knowpat_align_loss",
    "knowpat_loss",
    "kto_loss",
    "lcpo_loss",
    "lcpo_state",
    "ld_dpo_loss",
    "ld_logps",
    "links",
    "ln_dpo_loss",
    "log1mexp",
    "mapl_inter_loss",
    "mapl_intra_loss",
    "mapo_diffusion_loss",
    "mapo_lm_loss",
    "mapo_score",
    "mm_dpo_loss",
    "mpo_loss",
    "mrpo_reference",
    "nca_pair_loss",
    "orpo_loss",
    "pmpo_loss",
    "pmpo_values",
    "preference_degree_loss",
    "r_dpo_loss",
    "raco_direction",
    "raco_loss",
    "rdpo_loss",
    "relative_rpo_loss",
    "reward_aware_rpo_loss",
    "scores",
    "semantic_preference_loss",
    "sequence_logps",
    "sequential_po_loss",
    "sequential_po_rewards",
    "sft_loss",
    "simpo_loss",
    "slic_loss",
    "soft_preference_loss",
    "sppo_hard_loss",
    "sppo_loss",
    "todo_loss",
    "token_logps",
    "update_reference",
    "vpo_loss",
    "wpo_loss",
    "wpo_weights",
]
