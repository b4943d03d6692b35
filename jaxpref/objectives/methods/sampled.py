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
