"""Contrastive policy gradient."""

import chex
import jax
import jax.numpy as jnp

from jaxpref.losses import domains
from jaxpref.losses.arrays import Array, at_least_one, check_shape, floating


def copg_loss(
    logps: Array, ref_logps: Array, rewards: Array, mask: Array | None = None, *, beta: float = 0.1
) -> jax.Array:
    r"""Contrastive policy gradient: responses of a prompt with rewards, whichever distribution they come from.

    .. math::
        L = \frac{1}{K - 1} \sum_{i > j} \tfrac12 \left( R^\beta_i - R^\beta_j \right)^2, \quad
        R^\beta = R - \beta \log \frac{\pi(y|x)}{\pi_{ref}(y|x)}

    It vanishes where the policy is :math:`\pi_{ref} e^{R/\beta}`, normalised. Without importance weights and without
    clipping: every other response serves as baseline.

    See *Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in a supervised-friendly fashion*
    (https://arxiv.org/abs/2406.19185).

    Variant: a loss to minimise; its gradient is beta times the paper's direction. Other descriptions drop the half.

    Args:
        logps, ref_logps: ``[B, K]``, summed log-probabilities of K responses under policy and reference (a constant).
        rewards: ``[B, K]``, rewards of the responses.
        mask: ``[B, K]``, responses that are there; K is their number in the row.
        beta: strength of the KL constraint, > 0.

    Returns:
        ``[B]``; 0 for a row with fewer than two responses.
    """
    domains.positive(beta=beta)
    chex.assert_rank(logps, 2, custom_message="argument logps")
    present = jnp.ones(jnp.shape(logps), bool) if mask is None else mask
    check_shape(jnp.shape(logps), ref_logps=ref_logps, rewards=rewards, mask=present)
    present = jnp.asarray(present).astype(bool)
    regularized = floating(rewards) - beta * (floating(logps) - jax.lax.stop_gradient(floating(ref_logps)))
    regularized = jnp.where(present, regularized, 0)
    count = jnp.sum(present, axis=-1, keepdims=True)
    # The squared differences of all pairs sum to K times the squared deviations from the mean.
    deviation = jnp.where(present, regularized - jnp.sum(regularized, -1, keepdims=True) / at_least_one(count), 0)
    return 0.5 * jnp.sum(deviation**2 * count / at_least_one(count - 1), axis=-1)
