"""Supervised fine-tuning."""

import chex
import jax
import jax.numpy as jnp

from jaxpref.losses import domains
from jaxpref.losses.arrays import Array, at_least_one, check_shape, floating, masked_mean, masked_sum, selection

NORMALIZATIONS = ("batch_token_mean", "sequence_mean", "sequence_sum")


def sft_loss(
    token_logps: Array,
    mask: Array,
    where: Array | None = None,
    *,
    normalize: str = "batch_token_mean",
) -> jax.Array:
    r"""Negative log-likelihood of demonstrations.

    .. math:: L = -\frac{\sum_{i,t} m_{it} \log \pi(y_{it} \mid x_i, y_{i,<t})}{\sum_{i,t} m_{it}}

    That is ``batch_token_mean``, one scalar (*batch-level*): every token weighs the same, so long answers weigh more.
    ``sequence_mean`` gives each example's own token mean and ``sequence_sum`` its sum, both ``[B]``.

    See *Training language models to follow instructions with human feedback* (https://arxiv.org/abs/2203.02155).

    Args:
        token_logps: ``[B, T]``, position t holds the log-probability of token t; anything where masked.
        mask: ``[B, T]``, 1 on response tokens, the end-of-sequence token included.
        where: ``[B]``, rows that count; excluded rows change nothing.
        normalize: ``batch_token_mean``, ``sequence_mean`` or ``sequence_sum``.

    Returns:
        A scalar for ``batch_token_mean``, else ``[B]``. A row without any target has loss 0.
    """
    domains.choice(NORMALIZATIONS, normalize=normalize)
    chex.assert_rank(token_logps, 2, custom_message="argument token_logps")
    check_shape(jnp.shape(token_logps), mask=mask)
    mask = jnp.asarray(mask).astype(bool) & selection(where, jnp.shape(mask)[0])[:, None]
    nll = -floating(token_logps)
    if normalize == "batch_token_mean":
        return jnp.sum(masked_sum(nll, mask)) / at_least_one(jnp.sum(mask))
    return masked_mean(nll, mask) if normalize == "sequence_mean" else masked_sum(nll, mask)
