"""Preference optimisation as probabilistic inference."""

import jax
import jax.numpy as jnp

from jaxpref.losses import domains
from jaxpref.losses.arrays import Array, at_least_one, check_shape, masked_mean, per_example, selection


def pmpo_loss(
    logps: Array,
    labels: Array,
    kl_ref_to_policy: Array,
    where: Array | None = None,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
) -> jax.Array:
    r"""Preference optimisation as probabilistic inference (*batch-level*): sets of good and of bad responses.

    .. math::
        L = -\frac{\alpha}{|G|} \sum_{i \in G} \log \pi(y_i|x_i) + \frac{1 - \alpha}{|\bar G|} \sum_{i \notin G}
            \log \pi(y_i|x_i) + \frac{\beta}{N} \sum_i \mathrm{KL}(\pi_{ref} \Vert \pi)_i

    Either set may be empty; its term is 0. The divergence is what bounds the loss where there are bad responses.

    See *Preference Optimization as Probabilistic Inference* (https://arxiv.org/abs/2410.04166).

    Variant: each mean is over its own set and log-probabilities are sums over tokens. The divergence is from the
    reference to the policy over the whole vocabulary, not a log-ratio of sampled tokens.

    Args:
        logps: ``[N]``, summed log-probabilities of the responses under the policy.
        labels: ``[N]``, true where the response is good.
        kl_ref_to_policy: ``[N]``, KL divergence of the policy from the reference, summed over the response's tokens.
        where: ``[N]``, rows that count; excluded rows change nothing.
        alpha: weight of the good responses, between 0 and 1; the bad ones have the rest.
        beta: weight of the divergence, >= 0.

    Returns:
        A scalar.
    """
    values = pmpo_values(logps, labels, kl_ref_to_policy, where, alpha=alpha, beta=beta)
    return masked_mean(values, selection(where, values.size))


def pmpo_values(
    logps: Array,
    labels: Array,
    kl_ref_to_policy: Array,
    where: Array | None = None,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
) -> jax.Array:
    """What each example adds to :func:`pmpo_loss`, which is the mean of these ``[N]``; arguments as there."""
    domains.fraction(alpha=alpha)
    domains.nonnegative(beta=beta)
    logps, kl = per_example(logps=logps, kl_ref_to_policy=kl_ref_to_policy)
    check_shape(logps.shape, labels=labels)
    rows = selection(where, logps.size)
    good = rows & jnp.asarray(labels).astype(bool)
    sizes = [at_least_one(jnp.sum(members)) for members in (good, rows & ~good)]
    weight = jnp.where(good, -alpha / sizes[0], (1 - alpha) / sizes[1])
    return jnp.where(rows, jnp.sum(rows) * weight * jnp.where(rows, logps, 0) + beta * jnp.where(rows, kl, 0), 0)
