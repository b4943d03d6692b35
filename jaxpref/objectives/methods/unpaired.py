"""Methods that learn from single responses with a label."""

import functools
import math

import numpy as np

from jaxpref import losses
from jaxpref.objectives.registry import register


def _kto_at_reference(hyperparameters, side):
    weights = hyperparameters["desirable_weight"], hyperparameters["undesirable_weight"]
    return side["label"] * weights[0] / 2 + (1 - side["label"]) * weights[1] / 2


@functools.wraps(losses.pmpo_loss)
def _pmpo(*arrays, **bound):
    """The scalar as a mean over examples, which can have weights."""
    return losses.pmpo_values(*arrays, **bound)


def _bco_at_reference(hyperparameters, side):
    """log 2 for each example, times the density ratio of the undesirable ones."""
    if "prob_desirable" not in side:
        return math.log(2)
    bounds = hyperparameters["min_density_ratio"], hyperparameters["max_density_ratio"]
    return math.log(2) * losses.density_ratio(side["prob_desirable"], np.asarray(side["label"]) > 0, *bounds)


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
    "apo_zero_unpaired",
    losses.apo_zero_unpaired_loss,
    feedback="unpaired",
    title="Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment",
    url="https://arxiv.org/abs/2408.06266",
    formula="w (1 - sigmoid(+-beta log-ratio)), kto with z0 = 0",
    disagreements="One framework offers it as a kind of KTO and still draws mismatched pairs; none are needed.",
    at_reference=_kto_at_reference,
)
register(
    "pmpo",
    _pmpo,
    feedback="unpaired",
    title="Preference Optimization as Probabilistic Inference",
    url="https://arxiv.org/abs/2410.04166",
    formula="-alpha mean log p(good) + (1 - alpha) mean log p(bad) + beta mean KL(reference || policy)",
    disagreements="Each mean is over its own label of the global batch; the KL divergence is over the vocabulary.",
    coupled=True,
    reward_scale="",
)
register(
    "bco",
    losses.bco_loss,
    feedback="unpaired",
    title="Binary Classifier Optimization for Large Language Model Alignment",
    url="https://arxiv.org/abs/2404.04656",
    formula="-log sigmoid(+-(beta log-ratio - delta)), delta = mean of both labels' mean rewards, moving",
    disagreements="delta balances the labels (paper) or is the mean of all rewards so far (delta_mode='running_mean'). "
    "Where thumbs go up for less than a third of a prompt's responses, the default min_density_ratio keeps its weights "
    "too large, and the shift follows them: lower it.",
    coupled=True,
    init_state=lambda hyperparameters: losses.bco_state(),
    state_metrics=("delta",),
    at_reference=_bco_at_reference,
)
