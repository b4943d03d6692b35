"""Latent collective preference optimisation: labels are believed as far as their annotator and the model say."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, at_least_one, check_shape, floating, per_example, selection

BASES = ("dpo", "ipo", "simpo", "cpo")


class LcpoState(NamedTuple):
    """Attributes: eta: ``[K]``, how often each annotator's labels are thought to be right."""

    eta: jax.Array


class LcpoAux(NamedTuple):
    """Attributes: p: ``[B]``, probability of the label under the model; w: ``[B]``, that it is right, all told."""

    p: jax.Array
    w: jax.Array


def lcpo_state(annotators: int = 1, eta0: float = 0.9) -> LcpoState:
    """The state before the first batch: ``annotators`` of them, all believed with the probability ``eta0``."""
    domains.whole(annotators=annotators)
    domains.fraction(eta0=eta0)
    return LcpoState(jnp.full(int(annotators), eta0, jnp.result_type(float)))


def lcpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    annotator_ids: Array,
    state: LcpoState,
    chosen_lengths: Array | None = None,
    rejected_lengths: Array | None = None,
    where: Array | None = None,
    *,
    base: str = "dpo",
    beta: float = 0.1,
    tau: float = 0.1,
    gamma: float = 1.0,
    ema: float = 0.1,
    m_step: str = "likelihood",
) -> tuple[jax.Array, LcpoState, LcpoAux]:
    r"""Latent collective preference optimisation: expectation-maximisation over whether each label is right.

    .. math::
        L = -w \log p - (1 - w) \log (1 - p), \quad p = \sigma(L_0 - L_1), \quad
        w = \frac{p\, \eta_k}{p\, \eta_k + (1 - p)(1 - \eta_k)}

    where L1 and L0 are the base loss of the pair as labelled and of the pair turned round, and k is its annotator. w
    carries no gradient. After the loss, :math:`\eta_k` moves by ``ema`` towards the mean of its labels' w.

    See *Latent Collective Preference Optimization: A General Framework for Robust LLM Alignment*
    (https://arxiv.org/abs/2509.24159).

    Variant: ``likelihood`` is the published M-step; for IPO it is logistic, no longer squared. ``raw`` is an earlier
    one, :math:`w L_1 + (1 - w) L_0`. Of CPO only the contrastive term is taken. The updated eta is held in
    [1e-4, 1 - 1e-4], the one in use is not: eta = 1 is the base likelihood. A later version is called RE-PO.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants. simpo and cpo have none.
        annotator_ids: ``[B]``, 0 where unknown; an id outside of the state's range is read as 0 too.
        state: of the last call, or :func:`lcpo_state`, with the number of annotators and eta0, where eta starts.
        chosen_lengths, rejected_lengths: ``[B]``, tokens of the responses; needed by ipo and simpo.
        where: ``[B]``, rows that count; excluded rows have value 0 and change nothing.
        base: ``dpo``, ``ipo`` (per token), ``simpo`` or ``cpo``.
        beta: scale of the margin, > 0; not read by ipo.
        tau: strength of the regularisation of ipo, > 0.
        gamma: target margin of simpo, >= 0; not scaled by beta.
        ema: step of eta, in [0, 1].
        m_step: ``likelihood`` or ``raw``.

    Returns:
        ``(values [B], new state, LcpoAux)``.
    """
    domains.positive(beta=beta, tau=tau)
    domains.nonnegative(gamma=gamma)
    domains.fraction(ema=ema)
    domains.choice(BASES, base=base)
    domains.choice(("likelihood", "raw"), m_step=m_step)
    if base in ("ipo", "simpo") and (chosen_lengths is None or rejected_lengths is None):
        raise ValueError(f"base is {base!r}, which needs chosen_lengths and rejected_lengths.")
    margin = _margin(base, (chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps),
                     (chosen_lengths, rejected_lengths))  # fmt: skip
    check_shape(margin.shape, annotator_ids=annotator_ids)
    rows = selection(where, margin.size)
    margin = jnp.where(rows, margin, 0)
    right, wrong = _base_losses(base, margin, beta, tau, gamma)
    log_odds = 2 * margin / tau if base == "ipo" else wrong - right

    annotators = jnp.asarray(annotator_ids).astype(int)
    annotators = jnp.where((annotators >= 0) & (annotators < state.eta.size), annotators, 0)
    eta = state.eta[annotators]
    belief = jax.lax.stop_gradient(log_odds + jnp.log(eta) - jnp.log1p(-eta))
    w, doubt = jax.nn.sigmoid(belief), jax.nn.sigmoid(-belief)  # 1 - w without cancellation
    if m_step == "likelihood":
        right, wrong = links.logistic(log_odds), links.logistic(-log_odds)
    values = w * right + doubt * wrong
    aux = LcpoAux(jax.nn.sigmoid(log_odds), w)
    return jnp.where(rows, values, 0), _updated(state, annotators, w, rows, ema), aux


def _margin(base: str, logps: tuple[Array, ...], lengths: tuple[Array, Array]) -> jax.Array:
    """What the base loss is a function of, ``[B]``."""
    ratios = scores.pair_log_ratios(*logps)
    if base in ("simpo", "cpo"):
        ratios = per_example(chosen_logps=logps[0], rejected_logps=logps[1])
    for name, given in zip(("chosen_lengths", "rejected_lengths"), lengths, strict=True):
        if given is not None:
            check_shape(ratios[0].shape, **{name: given})
    if base in ("ipo", "simpo"):
        ratios = scores.average(ratios[0], lengths[0]), scores.average(ratios[1], lengths[1])
    return ratios[0] - ratios[1]


def _base_losses(base: str, margin: jax.Array, beta: float, tau: float, gamma: float) -> tuple[jax.Array, jax.Array]:
    """Loss of the pair as it is labelled, and of the pair turned round."""
    if base == "ipo":
        return links.squared(margin, 1 / (2 * tau)), links.squared(-margin, 1 / (2 * tau))
    shift = gamma if base == "simpo" else 0
    return links.logistic(beta * margin - shift), links.logistic(-beta * margin - shift)


def _updated(state: LcpoState, annotators: jax.Array, w: jax.Array, rows: jax.Array, ema: float) -> LcpoState:
    """Moves the annotators that the batch has towards the mean of their w."""
    counts = jnp.zeros_like(state.eta).at[annotators].add(floating(rows))
    sums = jnp.zeros_like(state.eta).at[annotators].add(jnp.where(rows, w, 0))
    moved = (1 - ema) * state.eta + ema * sums / at_least_one(counts)
    return LcpoState(jnp.where(counts > 0, jnp.clip(moved, 1e-4, 1 - 1e-4), state.eta))
