"""Mixtures of a preference with the likelihood of the chosen response."""

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, per_example, selection
from jaxpref.losses.unpaired.bco import BcoState, pair_shift, shifted_logistic


def dpo_nll_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    chosen_lengths: Array,
    where: Array | None = None,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    nll: str = "per_sequence_mean",
) -> jax.Array:
    r"""DPO with the likelihood of the chosen response, which plain DPO lets fall: reasoning preference optimisation.

    .. math:: L = -\log \sigma(z) - \alpha \frac{\log \pi(y_w|x)}{n_w}

    with z as in :func:`dpo_loss`.

    See *Iterative Reasoning Preference Optimization* (https://arxiv.org/abs/2404.19733).

    Variant: the likelihood is divided by the response's own length (paper); another framework has
    ``batch_token_mean``, the mean over all chosen tokens of the batch, one number added to every row. Regularised
    preference optimisation is the same form with a small alpha, 0.005.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        chosen_lengths: ``[B]``, tokens of the chosen responses.
        where: ``[B]``, rows that count; excluded rows have value 0 and change nothing.
        beta: strength of the KL constraint, > 0.
        alpha: weight of the likelihood term, >= 0.
        nll: ``per_sequence_mean``, ``batch_token_mean`` or ``sequence_sum``.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    domains.nonnegative(alpha=alpha)
    domains.choice(scores.NLL, nll=nll)
    margin = scores.pair_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    (chosen_logps,) = per_example(chosen_logps=chosen_logps)
    rows = selection(where, margin.size)
    likelihood = scores.negative_log_likelihood(chosen_logps, chosen_lengths, rows, nll)
    return jnp.where(rows, links.logistic(beta * jnp.where(rows, margin, 0)) + alpha * likelihood, 0)


def mpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    chosen_lengths: Array,
    state: BcoState,
    where: Array | None = None,
    *,
    beta: float = 0.1,
    w_p: float = 0.8,
    w_q: float = 0.2,
    w_g: float = 1.0,
    nll: str = "per_sequence_mean",
    use_delta: bool = True,
) -> tuple[jax.Array, BcoState]:
    r"""Mixed preference optimisation: which response is better, whether each is good, and how to write the good one.

    .. math::
        L = w_p L_{DPO} + w_q \left[ -\log \sigma(R_w - \delta) - \log \sigma(-(R_l - \delta)) \right]
        - w_g \frac{\log \pi(y_w|x)}{n_w}

    with the second term and its running shift delta as in :func:`bco_pair_loss`.

    See *Enhancing the Reasoning Ability of Multimodal Large Language Models via Mixed Preference Optimization*
    (https://arxiv.org/abs/2411.10442).

    Variant: the likelihood is per response, as the authors describe it; their code takes ``batch_token_mean``. A newer
    version of another framework has no shift, ``use_delta=False``. The likelihood term is summed with the other two;
    logged rewards are not multiplied by the weights.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        chosen_lengths: ``[B]``, tokens of the chosen responses.
        state: of the last call, or :func:`bco_state`.
        where: ``[B]``, rows that count; excluded rows have value 0 and change nothing.
        beta: strength of the KL constraint, > 0.
        w_p, w_q, w_g: weights of preference, quality and generation, >= 0.
        nll: ``per_sequence_mean``, ``batch_token_mean`` or ``sequence_sum``.
        use_delta: whether rewards are shifted; if not, the state stays as it is.

    Returns:
        ``(values [B], new state)``.
    """
    domains.positive(beta=beta)
    domains.nonnegative(w_p=w_p, w_q=w_q, w_g=w_g)
    domains.choice(scores.NLL, nll=nll)
    ratios = scores.pair_log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    (chosen_logps,) = per_example(chosen_logps=chosen_logps)
    rows = selection(where, chosen_logps.size)
    chosen, rejected = (beta * jnp.where(rows, ratio, 0) for ratio in ratios)
    state = pair_shift(state, chosen, rejected, rows) if use_delta else state
    preference = links.logistic(chosen - rejected)
    quality = shifted_logistic(chosen, rejected, state.delta if use_delta else jnp.zeros(()))
    generation = scores.negative_log_likelihood(chosen_logps, chosen_lengths, rows, nll)
    return jnp.where(rows, w_p * preference + w_q * quality + w_g * generation, 0), state
