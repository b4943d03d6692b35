"""Knowledgeable preference alignment."""

import chex
import jax
import jax.numpy as jnp

from jaxpref.losses import domains
from jaxpref.losses.arrays import Array, at_least_one, check_shape, floating


def knowpat_align_loss(avg_logps: Array, mask: Array | None = None, *, divisor: float | None = None) -> jax.Array:
    r"""The alignment part of :func:`knowpat_loss`: each ranked answer against all that rank below it.

    .. math::
        L = \frac{1}{d} \sum_{i=1}^{n-1} \mu_i \left[ -\log \sigma(s_i)
            - \frac{1}{n - i} \sum_{j > i} \log \sigma(-s_j) \right], \quad
        \mu_i = \mathrm{sg}\!\left( \frac{s_i - \min_j s_j}{\max_j s_j - \min_j s_j} \right)

    The weights are the policy's own scores, not those of the ranking. So with two answers only the pairs count that
    the policy already ranks as it should.

    See *Knowledgeable Preference Alignment for LLMs in Domain-specific Question Answering*
    (https://arxiv.org/abs/2311.06503).

    Variant: the divisor d is n - 1, the number of terms. The official code divides by 3 however many there are
    (``divisor=3``).

    Args:
        avg_logps: ``[B, K]``, average log-probabilities s of the answers to a prompt, the best one first.
        mask: ``[B, K]``, answers that are there; n is their number in the row.
        divisor: d > 0, or None for n - 1.

    Returns:
        ``[B]``; 0 where all scores are equal.
    """
    chex.assert_rank(avg_logps, 2, custom_message="argument avg_logps")
    if divisor is not None:
        domains.positive(divisor=divisor)
    present = _present(avg_logps, mask)
    logps = jnp.where(present, floating(avg_logps), 0)
    low = jnp.min(jnp.where(present, logps, jnp.inf), axis=-1, keepdims=True)
    high = jnp.max(jnp.where(present, logps, -jnp.inf), axis=-1, keepdims=True)
    spread = jnp.where(high > low, high - low, 1)
    weights = jax.lax.stop_gradient(jnp.where(present & (high > low), (logps - low) / spread, 0))
    below = _sums_after(present)
    pushed = _sums_after(jnp.where(present, jax.nn.softplus(logps), 0)) / at_least_one(below)
    terms = jnp.where(below > 0, weights * (jax.nn.softplus(-logps) + pushed), 0)
    anchors = jnp.sum(present, axis=-1) - 1
    return jnp.sum(terms, axis=-1) / (at_least_one(anchors) if divisor is None else divisor)


def knowpat_loss(
    avg_logps: Array, mask: Array | None = None, *, lam: float = 0.01, divisor: float | None = None
) -> jax.Array:
    r"""Knowledgeable preference alignment: fine-tuning on the best answer, and the ranking of all.

    .. math:: L = \lambda L_{align} - s_1

    with the scores s, average log-probabilities, and the first part of :func:`knowpat_align_loss`.

    See *Knowledgeable Preference Alignment for LLMs in Domain-specific Question Answering*
    (https://arxiv.org/abs/2311.06503).

    Variant: lambda is that of the official scripts (the code's default is 100), the likelihood is a mean over the
    response's own tokens (the official code counts padding) and the divisor is n - 1 (official: 3).

    Args:
        avg_logps: ``[B, K]``, average log-probabilities of the answers to a prompt, the best one first.
        mask: ``[B, K]``, answers that are there.
        lam: weight of the alignment, >= 0.
        divisor: as in :func:`knowpat_align_loss`.

    Returns:
        ``[B]``.
    """
    domains.nonnegative(lam=lam)
    align = knowpat_align_loss(avg_logps, mask, divisor=divisor)
    best = jnp.where(_present(avg_logps, mask), floating(avg_logps), 0)[:, 0]
    return lam * align - best


def _present(avg_logps: Array, mask: Array | None) -> jax.Array:
    if mask is None:
        return jnp.ones(jnp.shape(avg_logps), bool)
    check_shape(jnp.shape(avg_logps), mask=mask)
    return jnp.asarray(mask).astype(bool)


def _sums_after(x: jax.Array) -> jax.Array:
    """For each entry of ``[B, K]`` the sum of those after it in its row."""
    return jnp.pad(jnp.cumsum(floating(x)[:, :0:-1], axis=-1)[:, ::-1], ((0, 0), (0, 1)))
