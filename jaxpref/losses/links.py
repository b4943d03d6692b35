"""Links: what a pairwise loss does with a margin. Elementwise; values and gradients are finite at margins of 1e4."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxpref.losses.arrays import Array, floating


def logistic(margin: Array) -> jax.Array:
    """``-log sigmoid(margin)``: the negative log-likelihood of a Bradley-Terry win."""
    return -jax.nn.log_sigmoid(floating(margin))


def smoothed_logistic(margin: Array, label_smoothing: Array) -> jax.Array:
    """``-(1 - e) log sigmoid(margin) - e log sigmoid(-margin)``: the label is wrong with probability e."""
    return (1 - label_smoothing) * logistic(margin) + label_smoothing * logistic(-margin)


def smoothed(link: Callable[[Array], jax.Array], margin: Array, label_smoothing: Array) -> jax.Array:
    """Any link where the label is wrong with probability e: ``(1 - e) link(margin) + e link(-margin)``."""
    return (1 - label_smoothing) * link(margin) + label_smoothing * link(-margin)


def hinge(margin: Array) -> jax.Array:
    """``max(0, 1 - margin)``."""
    return jax.nn.relu(1 - floating(margin))


def squared(margin: Array, target: Array) -> jax.Array:
    """``(margin - target)^2``."""
    return (floating(margin) - target) ** 2


def bernoulli_kl(margin: Array, log_win: Array, log_loss: Array) -> jax.Array:
    """Divergence of a coin with log-odds ``margin`` from one with these log-probabilities of its two sides."""
    margin = floating(margin)
    won = jax.nn.sigmoid(margin) * (jax.nn.log_sigmoid(margin) - log_win)
    return won + jax.nn.sigmoid(-margin) * (jax.nn.log_sigmoid(-margin) - log_loss)


def capped_exp(exponent: Array) -> jax.Array:
    """``e^exponent`` with exponents held at 80, which is short of float32's largest number; no gradient beyond."""
    return jnp.exp(jnp.minimum(floating(exponent), 80))
