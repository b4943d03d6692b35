"""Hybrid preference optimisation: pairs offline, the divergence from the reference online."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, at_least_one, check_shape, floating, masked_mean


class HypoAux(NamedTuple):
    """Attributes: kl_estimate: scalar, mean log-ratio of the samples, an estimate of the KL divergence in nats."""

    kl_estimate: jax.Array


def hypo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    online_logps: Array,
    ref_online_logps: Array,
    sample_mask: Array | None = None,
    *,
    beta: float = 0.05,
    lam: float = 1e-4,
    rloo: bool = True,
) -> tuple[jax.Array, jax.Array, HypoAux]:
    r"""Hybrid preference optimisation: DPO on pairs, and the reverse KL divergence on the policy's own samples.

    .. math::
        L = \frac1B \sum_i -\log \sigma(z_i) + \lambda\, \frac1{PK} \sum_{p,k} \mathrm{sg}(q_{pk} - b_{pk})
            \log \pi(y_{pk}|x_p), \quad q = \log \frac{\pi(y|x)}{\pi_{ref}(y|x)}

    with z as in :func:`dpo_loss`, sg for no gradient, and the baseline b, the mean of q over the other samples of the
    prompt. Only the gradient of the second sum means something: it is that of the divergence
    :math:`\mathrm{KL}(\pi \Vert \pi_{ref})`, whose value is ``kl_estimate``. DPO bounds it only where pairs are.

    See *The Importance of Online Data: Understanding Preference Fine-tuning via Coverage*
    (https://arxiv.org/abs/2406.01462).

    Variant: sums over tokens, the divergence of whole responses. Another method of this abbreviation clips the
    reference's margin (:func:`hybrid_dpo_loss`).

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        online_logps, ref_online_logps: ``[P, K]``, of K fresh samples of the policy for each of P prompts, under policy
            and reference (a constant).
        sample_mask: ``[P, K]``, samples that are there; the others have value 0 and change nothing.
        beta: strength of the KL constraint in DPO, > 0.
        lam: weight of the divergence, >= 0; small, for it sums over tokens.
        rloo: whether a prompt's other samples serve as baseline, where it has two or more.

    Returns:
        ``(values of the pairs [B], values of the samples [P, K], HypoAux)``; the loss is the sum of the two means.
    """
    domains.positive(beta=beta)
    domains.nonnegative(lam=lam)
    margin = scores.pair_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    chex.assert_rank(online_logps, 2, custom_message="argument online_logps")
    present = jnp.ones(jnp.shape(online_logps), bool) if sample_mask is None else sample_mask
    check_shape(jnp.shape(online_logps), ref_online_logps=ref_online_logps, sample_mask=present)
    present = jnp.asarray(present).astype(bool)
    logps = jnp.where(present, floating(online_logps), 0)
    ratio = jax.lax.stop_gradient(logps - jnp.where(present, floating(ref_online_logps), 0))
    advantage = ratio
    if rloo:
        others = jnp.sum(present, axis=-1, keepdims=True) - 1
        advantage -= (jnp.sum(ratio, axis=-1, keepdims=True) - ratio) / at_least_one(others)
    online = jnp.where(present, lam * logps * advantage, 0)
    return links.logistic(beta * margin), online, HypoAux(masked_mean(ratio.ravel(), present.ravel()))
