"""DPO whose beta follows the batch, on a subset of it that is drawn around the usual margin."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, at_least_one, floating, masked_mean, selection


class BetaDpoState(NamedTuple):
    """Attributes: gap_mean, gap_std: scalars, moving averages of the margins' mean and standard deviation."""

    gap_mean: jax.Array
    gap_std: jax.Array


class BetaDpoAux(NamedTuple):
    """Attributes: beta_used: scalar; selection_mask: ``[B]`` bool, the examples to train on."""

    beta_used: jax.Array
    selection_mask: jax.Array


def beta_dpo_state() -> BetaDpoState:
    """The state before the first batch."""
    return BetaDpoState(*(jnp.zeros((), jnp.result_type(float)) for _ in BetaDpoState._fields))


def beta_dpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    state: BetaDpoState,
    key: Array | None = None,
    selection_mask: Array | None = None,
    where: Array | None = None,
    *,
    beta0: float = 0.1,
    a: float = 0.6,
    rho: float = 0.2,
    momentum: float = 0.9,
    min_beta: float = 1e-3,
    update: bool = True,
) -> tuple[jax.Array, BetaDpoState, BetaDpoAux]:
    r"""DPO with a dynamic beta: one for each batch, larger where its margins are above the usual.

    .. math::
        L_i = -\log \sigma(\beta_B D_i), \quad
        \beta_B = \max\!\left( \beta_0 [1 + a (\bar D_{selected} - M)],\; \beta_{min} \right)

    D is the difference of the log-ratios. First the moving averages are updated, M of the batch's mean of D, S of its
    standard deviation; then :math:`\lfloor B (1 - \rho) \rfloor` examples, at least one, are drawn without replacement
    with probabilities proportional to :math:`e^{-(D_i - M)^2 / 2 S^2}`. beta carries no gradient.

    See *β-DPO: Direct Preference Optimization with Dynamic β* (https://arxiv.org/abs/2407.08639).

    Variant: values are of all examples; the method trains on the mean over aux's selection. Averages start at 0, as in
    the official code, and the batch is the global one. Noise of the draw is given out in the order of the margins, so
    that the order of the batch does not matter.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        state: of the last call, or :func:`beta_dpo_state`.
        key: random key of the draw; may be None with a selection_mask.
        selection_mask: ``[B]``, a selection that replaces the draw.
        where: ``[B]``, rows that count; excluded rows have value 0 and change nothing.
        beta0: beta of a batch with the usual margin, > 0.
        a: how far beta follows the margin, >= 0.
        rho: share of examples that is left out, in [0, 1].
        momentum: share of the old averages, in [0, 1].
        min_beta: lower bound of beta, > 0.
        update: whether the moving averages take this batch in before they are used.

    Returns:
        ``(values [B], new state, BetaDpoAux)``.
    """
    domains.positive(beta0=beta0, min_beta=min_beta)
    domains.nonnegative(a=a)
    domains.fraction(rho=rho, momentum=momentum)
    margin = scores.pair_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    rows = selection(where, margin.size)
    margin = jnp.where(rows, margin, 0)
    gap = jax.lax.stop_gradient(margin)
    if update:
        state = _updated(state, gap, rows, momentum)
    if selection_mask is not None:
        selected = rows & selection(selection_mask, margin.size, "selection_mask")
    elif key is None:
        raise ValueError("key is None, but the draw of examples needs one unless selection_mask is given.")
    else:
        selected = _draw(key, gap, rows, state, rho)
    beta = jnp.maximum(beta0 * (1 + a * (masked_mean(gap, selected) - state.gap_mean)), min_beta)
    values = jnp.where(rows, links.logistic(beta * margin), 0)
    return values, state, BetaDpoAux(beta, selected)


def _updated(state: BetaDpoState, gap: jax.Array, rows: jax.Array, momentum: float) -> BetaDpoState:
    """Takes a batch in, with its unbiased deviation; one without examples changes nothing."""
    count, mean = jnp.sum(rows), masked_mean(gap, rows)
    variance = jnp.sum(jnp.where(rows, (gap - mean) ** 2, 0)) / at_least_one(count - 1)
    batch = BetaDpoState(mean, jnp.sqrt(variance))
    return jax.tree.map(lambda old, new: jnp.where(count > 0, momentum * old + (1 - momentum) * new, old), state, batch)


def _draw(key: Array, gap: jax.Array, rows: jax.Array, state: BetaDpoState, rho: float) -> jax.Array:
    """``[B]`` bool: examples drawn without replacement, the largest of log-weight plus Gumbel noise."""
    deviation = (gap - state.gap_mean) / jnp.maximum(state.gap_std, 1e-6)
    order = jnp.argsort(jnp.where(rows, gap, jnp.inf))
    noise = jax.random.gumbel(key, gap.shape, gap.dtype)[jnp.argsort(order)]
    chance = jnp.where(rows, noise - deviation**2 / 2, -jnp.inf)
    rank = jnp.argsort(jnp.argsort(-chance))
    # The small number keeps products such as 10 (1 - 0.3) from falling just below the whole number that they are.
    count = jnp.floor(jnp.sum(rows) * (1 - floating(rho)) + 1e-3)
    return rows & (rank < jnp.maximum(count, 1))
