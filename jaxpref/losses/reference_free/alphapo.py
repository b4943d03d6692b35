"""AlphaPO: SimPO with another shape of the reward."""

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, floating


def alphapo_reward(average_logps: Array, alpha: float) -> jax.Array:
    r""":math:`(1 - p^{-\alpha}) / \alpha` of the geometric mean p of the token probabilities; log p where alpha is 0.

    Elementwise. :math:`p^{-\alpha}` is held at :math:`e^{80}`, with no gradient beyond.
    """
    average_logps, alpha = floating(average_logps), floating(alpha)
    divisor = jnp.where(alpha == 0, 1, alpha)
    shaped = -jnp.expm1(jnp.minimum(-divisor * average_logps, 80)) / divisor
    return jnp.where(alpha == 0, average_logps, shaped)


def alphapo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    chosen_lengths: Array,
    rejected_lengths: Array,
    *,
    beta: float = 2.5,
    gamma: float = 0.1,
    alpha: float = 0.25,
) -> jax.Array:
    r"""AlphaPO: a parameter bends the reward, and with it how far the likelihood of both responses is displaced.

    .. math::
        L = -\log \sigma(\beta (r_w - r_l) - \gamma), \quad r = \frac{1 - p^{-\alpha}}{\alpha}, \quad
        \log p = \frac{\log \pi(y|x)}{n}

    alpha = 0 is SimPO. Above it, unlikely responses have steep rewards; below it, flat ones.

    See *AlphaPO: Reward Shape Matters for LLM Alignment* (https://arxiv.org/abs/2501.03884).

    Variant: gamma is the margin itself, not its ratio to beta.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        chosen_lengths, rejected_lengths: ``[B]``, tokens of the responses.
        beta: scale of the rewards, > 0.
        gamma: target margin, >= 0.
        alpha: shape of the reward, any finite number.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    domains.nonnegative(gamma=gamma)
    domains.finite(alpha=alpha)
    averages = scores.pair_averages(chosen_logps, rejected_logps, chosen_lengths, rejected_lengths)
    chosen, rejected = (alphapo_reward(average, alpha) for average in averages)
    return links.logistic(beta * (chosen - rejected) - gamma)
