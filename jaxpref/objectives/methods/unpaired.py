"""Methods that learn from single responses with a label."""

from jaxpref import losses
from jaxpref.objectives.registry import register


def _kto_at_reference(hyperparameters, side):
    weights = hyperparameters["desirable_weight"], hyperparameters["undesirable_weight"]
    return side["label"] * weights[0] / 2 + (1 - side["label"]) * weights[1] / 2


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
