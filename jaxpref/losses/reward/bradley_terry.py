"""Bradley-Terry reward models."""

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links
from jaxpref.losses.arrays import Array, per_example


def bradley_terry_loss(
    chosen_rewards: Array,
    rejected_rewards: Array,
    margin: Array | None = None,
    target_prob: Array | None = None,
    *,
    label_smoothing: float = 0.0,
    center_coefficient: float | None = None,
    temperature: float = 1.0,
) -> jax.Array:
    r"""Reward modelling as a logistic regression on differences of rewards.

    .. math::
        L = -p \log \sigma(d) - (1 - p) \log \sigma(-d) + c\,(r_w + r_l)^2, \quad d = \frac{r_w - r_l - m}{T}

    where p is 1, or :math:`1 - \epsilon` with label smoothing, or the target probability that the chosen response wins
    (smoothed alike: :math:`(1 - \epsilon) p + \epsilon (1 - p)`).

    See *Training language models to follow instructions with human feedback* (https://arxiv.org/abs/2203.02155) and,
    for margins, *Llama 2: Open Foundation and Fine-Tuned Chat Models* (https://arxiv.org/abs/2307.09288).

    Variant: the centring term takes the raw rewards, not halved, without margin and temperature. Smoothing and target
    probabilities act on d after the margin.

    Args:
        chosen_rewards, rejected_rewards: ``[B]``.
        margin: ``[B]``, by how much the chosen response should win; None is 0.
        target_prob: ``[B]`` in [0, 1], probability that the chosen response wins (a tie is 0.5); None is 1.
        label_smoothing: probability in [0, 0.5] that a label is flipped.
        center_coefficient: weight c >= 0 of the squared sum of rewards, or None; 0.01 is common.
        temperature: T > 0.

    Returns:
        ``[B]``.
    """
    domains.at_most_half(label_smoothing=label_smoothing)
    domains.positive(temperature=temperature)
    chosen, rejected = per_example(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    margin = jnp.zeros_like(chosen) if margin is None else margin
    target_prob = jnp.ones_like(chosen) if target_prob is None else target_prob
    _, margin, target = per_example(chosen_rewards=chosen, margin=margin, target_prob=target_prob)

    difference = (chosen - rejected - margin) / temperature
    flipped = label_smoothing * target + (1 - label_smoothing) * (1 - target)
    values = links.smoothed_logistic(difference, flipped)
    if center_coefficient is None:
        return values
    domains.nonnegative(center_coefficient=center_coefficient)
    return values + center_coefficient * (chosen + rejected) ** 2
