"""Links: what a pairwise loss does with a margin. Elementwise; values and gradients are finite at margins of 1e4."""

import jax

from jaxpref.losses.arrays import Array, floating


def logistic(margin: Array) -> jax.Array:
    """``-log sigmoid(margin)``: the negative log-likelihood of a Bradley-Terry win."""
    return -jax.nn.log_sigmoid(floating(margin))


def smoothed_logistic(margin: Array, label_smoothing: Array) -> jax.Array:
    """``-(1 - e) log sigmoid(margin) - e log sigmoid(-margin)``: the label is wrong with probability e."""
    return (1 - label_smoothing) * logistic(margin) + label_smoothing * logistic(-margin)


def hinge(margin: Array) -> jax.Array:
    """``max(0, 1 - margin)``."""
    return jax.nn.relu(1 - floating(margin))


def squared(margin: Array, target: Array) -> jax.Array:
    """``(margin - target)^2``."""
    return (floating(margin) - target) ** 2
