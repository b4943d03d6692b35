"""Methods that compare pairs with a reference."""

import math

from jaxpref import losses
from jaxpref.objectives.registry import register


def _log_two(hyperparameters, side):
    return math.log(2)


register(
    "dpo",
    losses.dpo_loss,
    feedback="pairs",
    title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    url="https://arxiv.org/abs/2305.18290",
    formula="-log sigmoid(beta (chosen log-ratio - rejected log-ratio))",
    disagreements="Sums of token log-probabilities. Label smoothing is cDPO's; some trainers accept and ignore it.",
    at_reference=_log_two,
)
register(
    "cdpo",
    losses.cdpo_loss,
    feedback="pairs",
    title="A note on DPO with noisy preferences & relationship to IPO",
    url="https://ericmitchell.ai/cdpo.pdf",
    formula="-(1 - e) log sigmoid(z) - e log sigmoid(-z), z as in dpo",
    disagreements="A convex mixture; robust DPO divides by 1 - 2e and subtracts. One fork calls 1 what is 0 here.",
    at_reference=_log_two,
)
register(
    "ipo",
    losses.ipo_loss,
    feedback="pairs",
    title="A General Theoretical Paradigm to Understand Learning from Human Preferences",
    url="https://arxiv.org/abs/2310.12036",
    formula="(chosen log-ratio - rejected log-ratio - 1 / (2 tau))^2, log-ratios per token",
    disagreements="Per token (the authors' results, default) or summed (the paper's equation): another tau.",
    reward_scale="tau",
    at_reference=lambda hyperparameters, side: (1 / (2 * hyperparameters["tau"])) ** 2,
)
register(
    "wpo",
    losses.wpo_loss,
    feedback="pairs",
    title="WPO: Enhancing RLHF with Weighted Preference Optimization",
    url="https://arxiv.org/abs/2406.11827",
    formula="min(1, w(chosen) w(rejected)) times dpo, log w = mean over tokens of log p - log sum_v p(v)^2",
    disagreements="The product of the weights is clamped at 1 (official); others do not clamp.",
)
