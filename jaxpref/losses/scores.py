"""Scores: what a pairwise loss compares. All arrays ``[B]``."""

import jax
import jax.numpy as jnp

from jaxpref.losses.arrays import Array, at_least_one, check_shape, floating, masked_sum, per_example


def log_ratio(logps: Array, ref_logps: Array) -> jax.Array:
    """``log pi(y|x) - log ref(y|x)``; the reference is a constant, no gradient reaches it."""
    logps, ref_logps = per_example(logps=logps, ref_logps=ref_logps)
    return logps - jax.lax.stop_gradient(ref_logps)


def average(sums: Array, lengths: Array) -> jax.Array:
    """Sums per token; an empty response has the average 0."""
    check_shape(sums.shape, lengths=lengths)
    return floating(sums) / at_least_one(lengths)


def pair_log_ratios(
    chosen_logps: Array, rejected_logps: Array, ref_chosen_logps: Array, ref_rejected_logps: Array
) -> tuple[jax.Array, jax.Array]:
    """Log-ratios of the chosen and of the rejected responses, after checking that all four arrays are ``[B]``."""
    arrays = per_example(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    return log_ratio(arrays[0], arrays[2]), log_ratio(arrays[1], arrays[3])


def pair_margin(
    chosen_logps: Array, rejected_logps: Array, ref_chosen_logps: Array, ref_rejected_logps: Array
) -> jax.Array:
    """By how much the chosen response's log-ratio is above the rejected one's; arguments as of pair_log_ratios."""
    chosen, rejected = pair_log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return chosen - rejected


def pair_averages(
    chosen_logps: Array, rejected_logps: Array, chosen_lengths: Array, rejected_lengths: Array
) -> tuple[jax.Array, jax.Array]:
    """Average log-probabilities of the chosen and of the rejected responses, after checking that all are ``[B]``."""
    arrays = per_example(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    return average(arrays[0], arrays[2]), average(arrays[1], arrays[3])


NLL = ("per_sequence_mean", "batch_token_mean", "sequence_sum")


def negative_log_likelihood(logps: jax.Array, lengths: Array | None, rows: jax.Array, normalize: str) -> jax.Array:
    """The likelihood of the chosen response, a term that several losses add.

    Each response's mean over its own tokens, its sum, or ``batch_token_mean``: the sum over all rows that count,
    divided by the number of their tokens, one number for every row. Lengths are read unless it is the sum.
    """
    nll = jnp.where(rows, -logps, 0)
    if normalize == "sequence_sum":
        return nll
    check_shape(nll.shape, chosen_lengths=lengths)
    if normalize == "per_sequence_mean":
        return average(nll, jnp.where(rows, lengths, 1))
    return jnp.broadcast_to(jnp.sum(nll) / at_least_one(masked_sum(floating(lengths), rows)), nll.shape)
