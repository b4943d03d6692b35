"""Kahneman-Tversky optimisation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, scores
from jaxpref.losses.arrays import Array, check_shape, masked_mean, per_example, selection


class KtoAux(NamedTuple):
    """Attributes: kl: scalar z0, the estimated KL divergence from the reference in nats."""

    kl: jax.Array


def kto_loss(
    logps: Array,
    ref_logps: Array,
    labels: Array,
    kl_logps: Array,
    kl_ref_logps: Array,
    where: Array | None = None,
    kl_where: Array | None = None,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[jax.Array, KtoAux]:
    r"""Kahneman-Tversky optimisation: single responses labelled good or bad, valued against the policy's drift z0.

    .. math::
        L_i = \lambda_D [1 - \sigma(\beta (c_i - z_0))] \text{ if desirable}, \quad
        \lambda_U [1 - \sigma(\beta (z_0 - c_i))] \text{ if not}, \quad
        c = \log \frac{\pi(y|x)}{\pi_{ref}(y|x)}, \quad z_0 = \max\!\left(0, \tfrac{1}{M} \sum_j c^{kl}_j\right)

    where :math:`c^{kl}` belongs to mismatched pairs, another example's response under this example's prompt.

    See *KTO: Model Alignment as Prospect Theoretic Optimization* (https://arxiv.org/abs/2402.01306).

    Variant: z0 mixes the whole batch, is clamped after averaging, carries no gradient, and is in nats (beta multiplies
    it inside). Official code estimates it per micro-batch; here the arrays are meant to be the global batch's.

    Args:
        logps, ref_logps: ``[B]``, summed log-probabilities of the responses under policy and reference (a constant).
        labels: ``[B]``, true where the response is desirable.
        kl_logps, kl_ref_logps: ``[M]``, the same of the mismatched pairs; M need not be B.
        where: ``[B]``, rows that count; excluded rows have value 0 and change nothing. With M = B it holds for the
            mismatched pairs as well.
        kl_where: ``[M]``, mismatched pairs that count (an empty response says nothing about the KL).
        beta: strength of the KL constraint, > 0.
        desirable_weight, undesirable_weight: weights of the two labels, >= 0.

    Returns:
        ``(values [B] in input order, KtoAux)``.
    """
    domains.positive(beta=beta)
    domains.nonnegative(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    logps, ref_logps = per_example(logps=logps, ref_logps=ref_logps)
    kl_logps, kl_ref_logps = per_example(kl_logps=kl_logps, kl_ref_logps=kl_ref_logps)
    check_shape(logps.shape, labels=labels)
    rows = selection(where, logps.size)
    kl_rows = selection(kl_where, kl_logps.size, "kl_where")
    if where is not None and rows.shape == kl_rows.shape:
        kl_rows &= rows

    kl = jax.lax.stop_gradient(jnp.maximum(masked_mean(scores.log_ratio(kl_logps, kl_ref_logps), kl_rows), 0))
    ratio = jnp.where(rows, scores.log_ratio(logps, ref_logps), 0)
    desirable = jnp.asarray(labels).astype(bool)
    gain = jnp.where(desirable, ratio - kl, kl - ratio)
    weight = jnp.where(desirable, desirable_weight, undesirable_weight)
    # 1 - sigmoid(x) as sigmoid(-x): no cancellation once an example is very good.
    return jnp.where(rows, weight * jax.nn.sigmoid(-beta * gain), 0), KtoAux(kl)
