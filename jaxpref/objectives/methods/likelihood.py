"""Methods that learn from demonstrations."""

import math

from jaxpref import losses
from jaxpref.objectives.registry import register


def _sft_reduction(hyperparameters):
    """The mean over all tokens of the batch is a sum over examples, divided by the number of tokens."""
    if hyperparameters["normalize"] == "batch_token_mean":
        return {"normalize": "sequence_sum"}, "tokens"
    return {}, "examples"


def _f_sft_at_reference(hyperparameters, side):
    return math.exp(-1) / hyperparameters["beta"] if hyperparameters["divergence"] == "reverse_kl" else 0.0


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
    "dynamic_ft",
    losses.dynamic_ft_loss,
    feedback="demonstrations",
    title="On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification",
    url="https://arxiv.org/abs/2508.05629",
    formula="-sum p(token) log p(token) / number of tokens, p(token) constant",
    disagreements="Also called DFT, as discriminative fine-tuning is. Normalised as sft.",
    surrogate=True,
    reduction=_sft_reduction,
)
register(
    "f_sft",
    losses.f_sft_loss,
    feedback="demonstrations",
    title="Implicit Reward as the Bridge: A Unified View of SFT and DPO Connections",
    url="https://arxiv.org/abs/2507.00018",
    formula="-phi(beta log-ratio) / beta, phi by the divergence; tv is sft",
    disagreements="Derived from duals of imitation learning, on whole responses; the authors' forms may be per token.",
    at_reference=_f_sft_at_reference,
    relevant={"beta": {"divergence": "pearson_chi2"}},
)
