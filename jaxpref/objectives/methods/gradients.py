"""Methods that make one direction of the gradients of several objectives."""

import math

import numpy as np

from jaxpref import losses
from jaxpref.objectives.registry import register


def _direction(gradients, hyperparameters):
    weights, options = np.asarray(hyperparameters["weights"]), {name: hyperparameters[name] for name in ("c", "clip")}
    direction, aux = losses.raco_direction(gradients, weights, **options)
    return direction, {"coefficient": aux.coef, "phi": aux.phi}


register(
    "raco",
    losses.raco_loss,
    feedback="pairs",
    title="Reward-free Alignment for Conflicting Objectives",
    url="https://arxiv.org/abs/2602.02495",
    formula="g + c |g| g_p / |g_p|, g = sum_i w_i g_i, g_i the gradient of dpo on what objective i prefers",
    disagreements="The correction is clipped by the weights, as in the paper; the released scripts leave the clip off.",
    at_reference=lambda hyperparameters, side: math.log(2) * sum(hyperparameters["weights"]),
    aux_metrics={"losses": "loss", "margins": "margin", "accuracies": "accuracy"},
    combine=_direction,
    combine_hyperparameters={"c": 0.4, "clip": True},
)
