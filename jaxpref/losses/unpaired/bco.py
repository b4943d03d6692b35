"""Binary classifier optimisation, on single responses and on pairs: rewards against a running shift."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, check_shape, floating, masked_mean, per_example, selection


class BcoState(NamedTuple):
    """What the shift remembers.

    Attributes:
        delta: scalar, the shift after the last batch; 0 before the first.
        count: scalar, examples (``running_mean``) or batches (pairs) that the mean has seen.
        class_means: ``[2]``, moving averages of the rewards of undesirable and of desirable responses.
        class_counts: ``[2]``, how many of them there were.
    """

    delta: jax.Array
    count: jax.Array
    class_means: jax.Array
    class_counts: jax.Array


def bco_state() -> BcoState:
    """The state before the first batch, for :func:`bco_loss`, :func:`bco_pair_loss` and :func:`mpo_loss`."""
    return BcoState(*(jnp.zeros(shape, jnp.result_type(float)) for shape in ((), (), 2, 2)))


def density_ratio(prob_desirable: Array, labels: Array, lower: float, upper: float) -> jax.Array:
    r"""``[B]``: :math:`p / (1 - p)` within bounds for undesirable responses, 1 for desirable ones; constants."""
    prob = jax.lax.stop_gradient(floating(prob_desirable))
    return jnp.where(labels, 1, jnp.clip(prob / (1 - prob + 1e-8), lower, upper))


def bco_loss(
    logps: Array,
    ref_logps: Array,
    labels: Array,
    state: BcoState,
    prob_desirable: Array | None = None,
    where: Array | None = None,
    *,
    beta: float = 0.1,
    delta_mode: str = "class_balanced_ema",
    ema: float = 0.9,
    min_density_ratio: float = 0.5,
    max_density_ratio: float = 10.0,
) -> tuple[jax.Array, BcoState]:
    r"""Binary classifier optimisation: a classifier of good and bad responses whose logit is the shifted reward.

    .. math::
        L_i = -\log \sigma(R_i - \delta) \text{ if desirable}, \quad
        -w_i \log \sigma(-(R_i - \delta)) \text{ if not}, \quad R = \beta \log \frac{\pi(y|x)}{\pi_{ref}(y|x)}

    The shift is updated with the batch's own rewards before it is used, and carries no gradient:

    .. math:: \delta = \frac{m_{good} + m_{bad}}{2}, \quad m \leftarrow \mathrm{ema}\; m + (1 - \mathrm{ema})\; \bar R

    Where desirable and undesirable responses come from different prompts, w matches the distributions: with p the
    probability that a prompt is one of a desirable response, w is p / (1 - p) within bounds.

    See *Binary Classifier Optimization for Large Language Model Alignment* (https://arxiv.org/abs/2404.04656).

    Variant: ``class_balanced_ema`` is the paper's shift, one moving average for each label; the first batch that has a
    label sets it, a batch without leaves it, and a label never seen has the other's. ``running_mean`` is another
    framework's: the mean of all rewards so far, each example once, which moves with the balance of labels. The paper
    gives no coefficient for the moving average that could be checked.

    Args:
        logps, ref_logps: ``[B]``, summed log-probabilities of the responses under policy and reference (a constant).
        labels: ``[B]``, true where the response is desirable.
        state: of the last call, or :func:`bco_state`.
        prob_desirable: ``[B]`` in [0, 1], p from a classifier of prompts; None is w = 1.
        where: ``[B]``, rows that count; excluded rows have value 0 and change nothing.
        beta: strength of the KL constraint, > 0.
        delta_mode: ``class_balanced_ema`` or ``running_mean``.
        ema: share of the old average, in [0, 1]; read by ``class_balanced_ema``.
        min_density_ratio, max_density_ratio: bounds of w, >= 0.

    Returns:
        ``(values [B], new state)``.
    """
    domains.positive(beta=beta)
    domains.fraction(ema=ema)
    domains.nonnegative(min_density_ratio=min_density_ratio, max_density_ratio=max_density_ratio)
    domains.choice(("class_balanced_ema", "running_mean"), delta_mode=delta_mode)
    logps, ref_logps = per_example(logps=logps, ref_logps=ref_logps)
    check_shape(logps.shape, labels=labels)
    rows, desirable = selection(where, logps.size), jnp.asarray(labels).astype(bool)
    rewards = beta * jnp.where(rows, scores.log_ratio(logps, ref_logps), 0)
    if delta_mode == "running_mean":
        state = _running_mean(state, rewards, rows, jnp.sum(rows))
    else:
        state = _class_balanced(state, rewards, rows, desirable, ema)
    values = links.logistic(jnp.where(desirable, 1, -1) * (rewards - state.delta))
    if prob_desirable is not None:
        check_shape(logps.shape, prob_desirable=prob_desirable)
        prob = jnp.where(rows, prob_desirable, 0)
        values *= density_ratio(prob, desirable, min_density_ratio, max_density_ratio)
    return jnp.where(rows, values, 0), state


def bco_pair_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    state: BcoState,
    where: Array | None = None,
    *,
    beta: float = 0.1,
) -> tuple[jax.Array, BcoState]:
    r"""Binary classifier optimisation on pairs: the chosen response is good, the rejected one bad, whatever the other.

    .. math::
        L = -\log \sigma(R_w - \delta) - \log \sigma(-(R_l - \delta)), \quad
        R = \beta \log \frac{\pi(y|x)}{\pi_{ref}(y|x)}

    where delta is the mean of the batches' mean rewards so far, this batch's included, without gradient. Whatever delta
    is, the loss is an upper bound of DPO's.

    See *Binary Classifier Optimization for Large Language Model Alignment* (https://arxiv.org/abs/2404.04656).

    Variant: every batch counts once, both responses alike; a newer version of one framework leaves the shift out.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        state: of the last call, or :func:`bco_state`.
        where: ``[B]``, rows that count; excluded rows have value 0 and change nothing.
        beta: strength of the KL constraint, > 0.

    Returns:
        ``(values [B], new state)``.
    """
    domains.positive(beta=beta)
    ratios = scores.pair_log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    rows = selection(where, ratios[0].size)
    chosen, rejected = (beta * jnp.where(rows, ratio, 0) for ratio in ratios)
    state = pair_shift(state, chosen, rejected, rows)
    return jnp.where(rows, shifted_logistic(chosen, rejected, state.delta), 0), state


def pair_shift(state: BcoState, chosen: jax.Array, rejected: jax.Array, rows: jax.Array) -> BcoState:
    """The state after a batch of pairs with these rewards ``[B]``: one more batch in the mean, unless it is empty."""
    return _running_mean(state, (chosen + rejected) / 2, rows, jnp.any(rows))


def shifted_logistic(chosen: jax.Array, rejected: jax.Array, delta: jax.Array) -> jax.Array:
    """``[B]``: the chosen reward is above the shift, and the rejected one below."""
    return links.logistic(chosen - delta) + links.logistic(delta - rejected)


def _running_mean(state: BcoState, rewards: jax.Array, rows: jax.Array, count: jax.Array) -> BcoState:
    """Takes the batch's mean into the shift, with the weight ``count``."""
    mean = jax.lax.stop_gradient(masked_mean(rewards, rows))
    total = state.count + floating(count)
    delta = state.delta + (mean - state.delta) * floating(count) / jnp.maximum(total, 1)
    return state._replace(delta=delta, count=total)


def _class_balanced(state: BcoState, rewards: jax.Array, rows: jax.Array, desirable: jax.Array, ema: float) -> BcoState:
    classes = jnp.stack([rows & ~desirable, rows & desirable])
    batch = jax.lax.stop_gradient(masked_mean(rewards, classes))
    moved = jnp.where(state.class_counts > 0, ema * state.class_means + (1 - ema) * batch, batch)
    means = jnp.where(jnp.any(classes, axis=-1), moved, state.class_means)
    counts = state.class_counts + floating(jnp.sum(classes, axis=-1))
    return state._replace(delta=masked_mean(means, counts > 0), class_means=means, class_counts=counts)
