"""Direct preference optimisation: plain, with smoothed labels, and robust to flipped ones."""

import jax

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, per_example


def dpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    reference_free: bool = False,
) -> jax.Array:
    r"""Direct preference optimisation.

    .. math::
        L = -(1 - \epsilon) \log \sigma(z) - \epsilon \log \sigma(-z), \quad
        z = \beta \left[ \log \frac{\pi(y_w|x)}{\pi_{ref}(y_w|x)} - \log \frac{\pi(y_l|x)}{\pi_{ref}(y_l|x)} \right]

    A larger beta keeps the policy closer to the reference. Where the policy is the reference, the loss is log 2.

    See *Direct Preference Optimization: Your Language Model is Secretly a Reward Model*
    (https://arxiv.org/abs/2305.18290).

    Variant: log-probabilities are sums over tokens, not averages. Label smoothing is the convex mixture of *cDPO*, the
    same as :func:`cdpo_loss`; some trainers accept and ignore it, one inverts its meaning.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        beta: strength of the KL constraint, > 0.
        label_smoothing: probability in [0, 0.5] that a label is flipped.
        reference_free: compare with the uniform reference, that is leave the reference out.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    domains.at_most_half(label_smoothing=label_smoothing)
    chosen, rejected = scores.pair_log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    if reference_free:
        chosen, rejected = per_example(chosen_logps=chosen_logps, rejected_logps=rejected_logps)
    return links.smoothed_logistic(beta * (chosen - rejected), label_smoothing)


def cdpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> jax.Array:
    r"""Conservative DPO: labels are wrong with probability epsilon, so margins stay finite.

    .. math:: L = -(1 - \epsilon) \log \sigma(z) - \epsilon \log \sigma(-z)

    with z as in :func:`dpo_loss`. The minimum over z lies at :math:`\log((1 - \epsilon) / \epsilon)`.

    See *A note on DPO with noisy preferences & relationship to IPO* (https://ericmitchell.ai/cdpo.pdf).

    Variant: a convex mixture that scales nothing else; the unbiased estimator is *robust DPO*, another loss.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        beta: strength of the KL constraint, > 0.
        label_smoothing: probability in [0, 0.5] that a label is flipped.

    Returns:
        ``[B]``.
    """
    pair = (chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return dpo_loss(*pair, beta=beta, label_smoothing=label_smoothing)


def rdpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> jax.Array:
    r"""Robust DPO: from labels that are flipped with probability epsilon, an unbiased estimate of DPO on clean ones.

    .. math:: L = \frac{-(1 - \epsilon) \log \sigma(z) + \epsilon \log \sigma(-z)}{1 - 2 \epsilon}

    with z as in :func:`dpo_loss`. The flipped label's loss is subtracted, so wide margins have negative losses, which
    fall like :math:`-\epsilon z / (1 - 2 \epsilon)` without bound.

    See *Provably Robust DPO: Aligning Language Models with Noisy Feedback* (https://arxiv.org/abs/2403.00409).

    Variant: this is the *robust* loss, not the mixture of :func:`cdpo_loss`, and not the loss on rationales that other
    work also calls RDPO.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        beta: strength of the KL constraint, > 0.
        label_smoothing: probability in [0, 0.5) that a label is flipped.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    domains.below_half(label_smoothing=label_smoothing)
    margin = beta * scores.pair_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    kept, flipped = (1 - label_smoothing) * links.logistic(margin), label_smoothing * links.logistic(-margin)
    return (kept - flipped) / (1 - 2 * label_smoothing)
