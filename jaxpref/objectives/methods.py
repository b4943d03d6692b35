"""The catalogue: one registration for every method."""

import math

from jaxpref import losses
from jaxpref.objectives.registry import register


def _log_two(hyperparameters, side):
    return math.log(2)


def _sft_reduction(hyperparameters):
    """The mean over all tokens of the batch is a sum over examples, divided by the number of tokens."""
    if hyperparameters["normalize"] == "batch_token_mean":
        return {"normalize": "sequence_sum"}, "tokens"
    return {}, "examples"


def _kto_at_reference(hyperparameters, side):
    weights = hyperparameters["desirable_weight"], hyperparameters["undesirable_weight"]
    return side["label"] * weights[0] / 2 + (1 - side["label"]) * weights[1] / 2


register(
    "sft",
    losses.sft_loss,
    feedback="demonstrations",
    title="Training language models to follow instructions with human feedback",
    url="https://arxiv.org/abs/2203.02155",
    formula="-sum log p(token) / number of tokens",
    disagreements="Mean over the batch's tokens (default), each sequence's mean, or its sum.",
    reduction=_sft_reduction,
)
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
    "kto",
    losses.kto_loss,
    feedback="unpaired",
    title="KTO: Model Alignment as Prospect Theoretic Optimization",
    url="https://arxiv.org/abs/2402.01306",
    formula="w (1 - sigmoid(+-beta (log-ratio - z0))), z0 = max(0, mean log-ratio of mismatched pairs)",
    disagreements="z0 of the global batch, clamped after the mean; official code estimates it per micro-batch.",
    at_reference=_kto_at_reference,
    aux_metrics={"kl": "z0"},
)
register(
    "simpo",
    losses.simpo_loss,
    feedback="pairs",
    title="SimPO: Simple Preference Optimization with a Reference-Free Reward",
    url="https://arxiv.org/abs/2405.14734",
    formula="-log sigmoid(beta (chosen - rejected average log-prob) - gamma)",
    disagreements="gamma = beta gamma_beta_ratio (official) unless gamma is given (other frameworks).",
)
register(
    "orpo",
    losses.orpo_loss,
    feedback="pairs",
    title="ORPO: Monolithic Preference Optimization without Reference Model",
    url="https://arxiv.org/abs/2403.07691",
    formula="average NLL(chosen) - lam log sigmoid(log odds ratio of average log-probs)",
    disagreements="NLL over the response only; the official code averages over prompt and response.",
    reward_scale="lam",
)
register(
    "bradley_terry",
    losses.bradley_terry_loss,
    feedback="pairs",
    title="Training language models to follow instructions with human feedback",
    url="https://arxiv.org/abs/2203.02155",
    formula="-log sigmoid((chosen reward - rejected reward - margin) / temperature)",
    disagreements="Centring takes the raw sum of rewards. margin and target_prob are used where the data has them.",
)
