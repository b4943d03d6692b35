"""Losses on pairs that draw each response's log-ratio to a target of its own."""

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, check_shape, floating, masked_mean, selection


def cal_dpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    where: Array | None = None,
    *,
    beta: float = 1e-3,
    cal_weight: float = 0.5,
    batch_mean: bool = False,
) -> jax.Array:
    r"""Calibrated DPO: a logistic loss of the margin, and log-ratios drawn to the rewards of a certain preference.

    .. math::
        L = -\log \sigma(a - b) + c \left[ \left(a - \tfrac{1}{2 \beta}\right)^2
        + \left(b + \tfrac{1}{2 \beta}\right)^2 \right]

    with the log-ratios a of the chosen and b of the rejected response. The logistic term has no beta.

    See *Cal-DPO: Calibrated Direct Preference Optimization for Language Model Alignment*
    (https://arxiv.org/abs/2412.14516).

    Variant: the official code adds the batch's mean of the squares to every pair's logistic term (``batch_mean``); the
    mean of the values and its gradient are the same. Its weight is 0.5, the paper's 1.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        where: ``[B]``, rows that count; excluded rows have value 0 and change nothing.
        beta: strength of the KL constraint, > 0; targets are 1 / (2 beta), in nats.
        cal_weight: weight c >= 0 of the squares.
        batch_mean: whether every pair has the mean of the squares over the batch in place of its own.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    domains.nonnegative(cal_weight=cal_weight)
    ratios = scores.pair_log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    rows = selection(where, ratios[0].size)
    chosen, rejected = (jnp.where(rows, ratio, 0) for ratio in ratios)
    squares = _distances(chosen, rejected, beta)
    squares = masked_mean(squares, rows) if batch_mean else squares
    return jnp.where(rows, links.logistic(chosen - rejected) + cal_weight * squares, 0)


def sppo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    chosen_probs_win: Array,
    chosen_probs_lose: Array | None = None,
    *,
    beta: float = 1e-3,
) -> jax.Array:
    r"""Self-play preference optimisation: log-ratios regress on how often a response beats the policy's own.

    .. math::
        L = \tfrac12 \left[ \left(a - \tfrac{1}{\beta} (P_w - \tfrac12)\right)^2
        + \left(b - \tfrac{1}{\beta} (P_l - \tfrac12)\right)^2 \right]

    with the log-ratios a of the chosen and b of the rejected response against the last iterate, and their probabilities
    P of beating a response of that iterate.

    See *Self-Play Preference Optimization for Language Model Alignment* (https://arxiv.org/abs/2405.00675).

    Variant: the official halved squares; other trainers leave the half out (:func:`sppo_hard_loss`). With one
    probability for each pair, :math:`P_l = 1 - P_w`.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the last iterate; constants.
        chosen_probs_win: ``[B]`` in [0, 1], probability that the chosen response beats the policy.
        chosen_probs_lose: ``[B]`` in [0, 1], that the rejected one does; None is ``1 - chosen_probs_win``.
        beta: strength of the KL constraint, > 0; targets are up to 1 / (2 beta) away from 0, in nats.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    chosen, rejected = scores.pair_log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    check_shape(chosen.shape, chosen_probs_win=chosen_probs_win)
    win = floating(chosen_probs_win)
    if chosen_probs_lose is None:
        chosen_probs_lose = 1 - win
    check_shape(chosen.shape, chosen_probs_lose=chosen_probs_lose)
    targets = (win - 0.5) / beta, (floating(chosen_probs_lose) - 0.5) / beta
    return (links.squared(chosen, targets[0]) + links.squared(rejected, targets[1])) / 2


def sppo_hard_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    *,
    beta: float = 1e-3,
) -> jax.Array:
    r"""Self-play preference optimisation with certain wins: the chosen response always beats the policy's own.

    .. math:: L = \left(a - \tfrac{1}{2 \beta}\right)^2 + \left(b + \tfrac{1}{2 \beta}\right)^2

    with the log-ratios a of the chosen and b of the rejected response.

    See *Self-Play Preference Optimization for Language Model Alignment* (https://arxiv.org/abs/2405.00675).

    Variant: not halved, twice :func:`sppo_loss` with the probabilities 1 and 0.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the last iterate; constants.
        beta: strength of the KL constraint, > 0; targets are 1 / (2 beta), in nats.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    chosen, rejected = scores.pair_log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return _distances(chosen, rejected, beta)


def _distances(chosen: jax.Array, rejected: jax.Array, beta: Array) -> jax.Array:
    """Squared distances of the two log-ratios from the targets of a certain preference."""
    return links.squared(chosen, 1 / (2 * beta)) + links.squared(rejected, -1 / (2 * beta))
