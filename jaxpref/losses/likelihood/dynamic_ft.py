"""Dynamic fine-tuning."""

import chex
import jax
import jax.numpy as jnp

from jaxpref.losses.arrays import Array, check_shape, floating, selection
from jaxpref.losses.likelihood.sft import sft_loss


def dynamic_ft_loss(
    token_logps: Array,
    mask: Array,
    where: Array | None = None,
    *,
    normalize: str = "batch_token_mean",
) -> jax.Array:
    r"""Dynamic fine-tuning: tokens of demonstrations weighted by the probability that the policy gives them.

    .. math:: L = -\frac{\sum_{i,t} m_{it}\, \mathrm{sg}(p_{it}) \log p_{it}}{\sum_{i,t} m_{it}}

    with the token probabilities p and sg for no gradient. That undoes the factor 1/p by which the gradient of the plain
    likelihood favours tokens that the policy finds improbable.

    See *On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification*
    (https://arxiv.org/abs/2508.05629).

    Variant: the mean over the tokens of the batch, one scalar (*batch-level*). ``sequence_mean`` gives each example's
    own token mean and ``sequence_sum`` its sum, both ``[B]``. Discriminative fine-tuning, also DFT, is
    :func:`dft_loss`.

    Args:
        token_logps: ``[B, T]``, position t holds the log-probability of token t; anything where masked.
        mask: ``[B, T]``, 1 on response tokens, the end-of-sequence token included.
        where: ``[B]``, rows that count; excluded rows change nothing.
        normalize: ``batch_token_mean``, ``sequence_mean`` or ``sequence_sum``.

    Returns:
        A scalar for ``batch_token_mean``, else ``[B]``.
    """
    chex.assert_rank(token_logps, 2, custom_message="argument token_logps")
    check_shape(jnp.shape(token_logps), mask=mask)
    counted = jnp.asarray(mask).astype(bool) & selection(where, jnp.shape(mask)[0])[:, None]
    logps = jnp.where(counted, floating(token_logps), 0)
    probabilities = jax.lax.stop_gradient(jnp.exp(jnp.minimum(logps, 0)))
    return sft_loss(probabilities * logps, counted, normalize=normalize)
