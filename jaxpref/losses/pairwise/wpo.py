"""Weighted preference optimisation: pairs count by how likely the policy itself would have written them."""

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, check_shape, floating, masked_mean, per_example


def wpo_weights(token_logps: Array, token_alignment: Array, mask: Array) -> jax.Array:
    r"""How likely a response is under the policy, measured against what the policy would have sampled.

    .. math:: w = \exp \frac{1}{n} \sum_t \left( \log \pi(y_t) - c_t \right)

    See *WPO: Enhancing RLHF with Weighted Preference Optimization* (https://arxiv.org/abs/2406.11827).

    Variant: with :math:`c_t = \log \sum_v \pi(v)^2` ("sampled" alignment) a uniform distribution gives every token the
    weight 1; with :math:`c_t = \log \max_v \pi(v)` ("greedy") an argmax token has it.

    Args:
        token_logps: ``[B, T]``, log-probabilities of the response tokens under the policy.
        token_alignment: ``[B, T]``, :math:`c_t`.
        mask: ``[B, T]``, true on response tokens.

    Returns:
        ``[B]``; constants, no gradient reaches the policy. An empty response has the weight 1.
    """
    check_shape(jnp.shape(token_logps), token_alignment=token_alignment, mask=mask)
    ratio = masked_mean(floating(token_logps) - floating(token_alignment), jnp.asarray(mask).astype(bool))
    # Only a distribution over more than e^40 tokens has larger ones; the product of two must stay finite.
    return jax.lax.stop_gradient(jnp.exp(jnp.minimum(ratio, 40)))


def wpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    chosen_weights: Array,
    rejected_weights: Array,
    *,
    beta: float = 0.01,
    label_smoothing: float = 0.0,
    clamp: bool = True,
) -> jax.Array:
    r"""Weighted preference optimisation: DPO that simulates on-policy data by weighting off-policy pairs.

    .. math:: L = \min(1, w_w w_l) \left[ -(1 - \epsilon) \log \sigma(z) - \epsilon \log \sigma(-z) \right]

    with z as in :func:`dpo_loss` and the weights of :func:`wpo_weights`, which are constants.

    See *WPO: Enhancing RLHF with Weighted Preference Optimization* (https://arxiv.org/abs/2406.11827).

    Variant: the product of the weights is clamped at 1 as in the official code; ``clamp=False`` is another framework's.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        chosen_weights, rejected_weights: ``[B]``, from :func:`wpo_weights`.
        beta: strength of the KL constraint, > 0.
        label_smoothing: probability in [0, 0.5] that a label is flipped.
        clamp: whether a pair's weight is at most 1.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    domains.at_most_half(label_smoothing=label_smoothing)
    chosen, rejected = scores.pair_log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    check_shape(chosen.shape, chosen_weights=chosen_weights, rejected_weights=rejected_weights)
    weights = per_example(chosen_weights=chosen_weights, rejected_weights=rejected_weights)
    weight = jax.lax.stop_gradient(weights[0] * weights[1])
    weight = jnp.minimum(weight, 1) if clamp else weight
    return weight * links.smoothed_logistic(beta * (chosen - rejected), label_smoothing)
