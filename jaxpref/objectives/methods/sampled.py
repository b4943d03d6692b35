"""Methods that read other responses than those of the pair."""

import functools
import math

from jaxpref import losses
from jaxpref.objectives.registry import register


@functools.wraps(losses.vpo_loss)
def _offline_vpo(*arrays, **bound):
    """Offline there is one calibration response, the chosen one, for every pair: both means are over pairs."""
    pairs, calibration = losses.vpo_loss(*arrays, **bound)
    return pairs + calibration


register(
    "vpo",
    _offline_vpo,
    feedback="pairs",
    title="Value-Incentivized Preference Optimization: A Unified Approach to Online and Offline RLHF",
    url="https://arxiv.org/abs/2405.19320",
    formula="dpo + sign alpha beta (log-ratio of the chosen response)",
    disagreements="Calibrates by the chosen responses, as offline (sign -1); online takes samples and sign 1.",
    at_reference=lambda hyperparameters, side: math.log(2),
)
register(
    "copg",
    losses.copg_loss,
    feedback="ranked",
    title="Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in a supervised-friendly fashion",
    url="https://arxiv.org/abs/2406.19185",
    formula="sum over pairs of responses of (difference of (score - beta log-ratio))^2 / 2 / (responses - 1)",
    disagreements="The paper ascends the direction without the factor beta; a technical report leaves out the half.",
)
register(
    "knowpat",
    losses.knowpat_loss,
    feedback="ranked",
    title="Knowledgeable Preference Alignment for LLMs in Domain-specific Question Answering",
    url="https://arxiv.org/abs/2311.06503",
    formula="lam alignment + average NLL(best), the alignment of each response with all that rank below it",
    disagreements="The alignment is divided by the number of responses - 1; the official code divides by 3 always.",
    reward_scale="",
)
