"""Simple preference optimisation."""

import jax

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array


def simpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    chosen_lengths: Array,
    rejected_lengths: Array,
    *,
    beta: float = 2.0,
    gamma: float | None = None,
    gamma_beta_ratio: float = 0.5,
    label_smoothing: float = 0.0,
    loss: str = "sigmoid",
    sft_weight: float = 0.0,
) -> jax.Array:
    r"""Simple preference optimisation: average log-probabilities as rewards, a target margin, no reference.

    .. math:: L = -\log \sigma(z) - c\, m_w, \quad z = \beta (m_w - m_l) - \gamma, \quad m = \frac{\log \pi(y|x)}{n}

    See *SimPO: Simple Preference Optimization with a Reference-Free Reward* (https://arxiv.org/abs/2405.14734).

    Variant: the official parameterisation is ``gamma = beta * gamma_beta_ratio``; a ``gamma`` that is given wins (other
    frameworks take it directly). Label smoothing mixes with the flipped *shifted* margin, :math:`-z`, for either link.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        chosen_lengths, rejected_lengths: ``[B]``, tokens of the responses.
        beta: scale of the rewards, > 0; they are per token, so it is 20 to 100 times that of DPO.
        gamma: target margin, >= 0, or None for ``beta * gamma_beta_ratio``.
        gamma_beta_ratio: target margin in units of beta, >= 0.
        label_smoothing: probability in [0, 0.5] that a label is flipped.
        loss: the link, ``sigmoid`` or ``hinge`` (``max(0, 1 - z)``).
        sft_weight: weight c >= 0 of the average negative log-likelihood of the chosen response.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    domains.nonnegative(gamma_beta_ratio=gamma_beta_ratio, sft_weight=sft_weight)
    domains.at_most_half(label_smoothing=label_smoothing)
    domains.choice(("sigmoid", "hinge"), loss=loss)
    if gamma is None:
        gamma = beta * gamma_beta_ratio
    domains.nonnegative(gamma=gamma)
    chosen, rejected = scores.pair_averages(chosen_logps, rejected_logps, chosen_lengths, rejected_lengths)
    margin = beta * (chosen - rejected) - gamma
    preference = links.smoothed(links.logistic if loss == "sigmoid" else links.hinge, margin, label_smoothing)
    return preference - sft_weight * chosen
