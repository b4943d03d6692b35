"""Alignment of distributions by optimal transport: sorted rewards against sorted rewards."""

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, at_least_one, check_shape, floating, per_example, selection


def aot_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    where: Array | None = None,
    rejected_where: Array | None = None,
    *,
    beta: float = 0.01,
    label_smoothing: float = 0.0,
    paired: bool = True,
) -> jax.Array:
    r"""Alignment via optimal transport: the distribution of rewards dominates, instead of one response another.

    .. math::
        L_k = -\log \sigma(\beta d_k), \quad
        d_k = [\log \pi(y_w|x) - \log \pi(y_l|x)]_{(k)} - [\log \pi_{ref}(y_w|x) - \log \pi_{ref}(y_l|x)]_{(k)}

    where :math:`x_{(k)}` is the k-th smallest of the batch. Without pairs, the log-ratios of chosen and of rejected
    responses are sorted: :math:`d_k = a_{(k)} - b_{(k)}`. *Batch-level*: value k is of the k-th order statistic and
    belongs to no example, so that only sums and means say something; the order of the batch is the global batch's.

    See *Distributional Preference Alignment of LLMs via Optimal Transport* (https://arxiv.org/abs/2406.05882).

    Variant: ``paired=True`` and ``paired=False`` are ``aot`` and ``aot_pair`` of one framework, which later calls the
    second ``aot_unpaired``. With unequal numbers of chosen and rejected responses, the k-th chosen one meets the
    rejected ones' quantile at the same level, interpolated. Label smoothing is that of *cDPO*.

    Args:
        chosen_logps, ref_chosen_logps: ``[B]``, summed log-probabilities under policy and reference (a constant).
        rejected_logps, ref_rejected_logps: ``[B]``, the same of the rejected responses; ``[N]`` if not paired.
        where: ``[B]``, rows that count; of the rejected ones as well, where there are as many. Excluded rows change
            nothing; the sorted values lie on the rows that count, in order, and are 0 elsewhere.
        rejected_where: ``[B]``, rejected rows that count; ``[N]`` if not paired.
        beta: strength of the KL constraint, > 0.
        label_smoothing: probability in [0, 0.5] that a label is flipped.
        paired: whether margins of pairs are sorted, or rewards of either side.

    Returns:
        ``[B]``, in the order of the sort.
    """
    domains.positive(beta=beta)
    domains.at_most_half(label_smoothing=label_smoothing)
    chosen = per_example(chosen_logps=chosen_logps, ref_chosen_logps=ref_chosen_logps)
    rejected = per_example(rejected_logps=rejected_logps, ref_rejected_logps=ref_rejected_logps)
    if paired:
        check_shape(chosen[0].shape, rejected_logps=rejected_logps)
    rows, others = both_selections(where, rejected_where, chosen[0].size, rejected[0].size)
    if paired:
        rows &= others
        upper, lower = chosen[0] - rejected[0], jax.lax.stop_gradient(chosen[1] - rejected[1])
        others = rows
    else:
        upper, lower = scores.log_ratio(*chosen), scores.log_ratio(*rejected)
    opponents = _quantiles(_sorted(lower, others), jnp.sum(others), jnp.sum(rows), rows.size)
    sorted_distances = _sorted(upper, rows) - opponents
    distance = sorted_distances[jnp.maximum(jnp.cumsum(rows) - 1, 0)]
    return jnp.where(rows, links.smoothed_logistic(beta * distance, label_smoothing), 0)


def both_selections(
    where: Array | None, rejected_where: Array | None, chosen: int, rejected: int
) -> tuple[jax.Array, jax.Array]:
    """Chosen and rejected rows that count; of equal numbers, ``where`` holds for both."""
    rows, others = selection(where, chosen), selection(rejected_where, rejected, "rejected_where")
    return rows, others & rows if where is not None and chosen == rejected else others


def _sorted(x: jax.Array, rows: jax.Array) -> jax.Array:
    """What counts, ascending; zeros after it."""
    ascending = jnp.sort(jnp.where(rows, x, jnp.inf))
    return jnp.where(jnp.arange(x.size) < jnp.sum(rows), ascending, 0)


def _quantiles(ascending: jax.Array, count: jax.Array, levels: jax.Array, size: int) -> jax.Array:
    """Quantiles ``[size]`` of the first ``count`` values, in the middles of ``levels`` equal parts.

    They are the values themselves where there are as many, and the last one beyond ``levels``.
    """
    place = (jnp.arange(size) + 0.5) * (floating(count) / at_least_one(levels)) - 0.5
    place = jnp.clip(place, 0, jnp.maximum(count - 1, 0))
    below, above = jnp.floor(place).astype(int), jnp.ceil(place).astype(int)
    return ascending[below] + (place - below) * (ascending[above] - ascending[below])
