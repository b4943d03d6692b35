"""Methods that learn from demonstrations."""

from jaxpref import losses
from jaxpref.objectives.registry import register


def _sft_reduction(hyperparameters):
    """The mean over all tokens of the batch is a sum over examples, divided by the number of tokens."""
    if hyperparameters["normalize"] == "batch_token_mean":
        return {"normalize": "sequence_sum"}, "tokens"
    return {}, "examples"


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
