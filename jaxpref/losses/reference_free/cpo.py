"""Contrastive preference optimisation, and its variant that adapts how strongly the rejected response is rejected."""

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, per_example, selection


def cpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    chosen_lengths: Array | None = None,
    where: Array | None = None,
    *,
    beta: float = 0.1,
    cpo_alpha: float = 1.0,
    label_smoothing: float = 0.0,
    loss: str = "sigmoid",
    nll: str = "batch_token_mean",
) -> jax.Array:
    r"""Contrastive preference optimisation: DPO against a uniform reference, with the chosen response's likelihood.

    .. math::
        L = -\log \sigma(z) + \alpha\, \mathrm{NLL}_w, \quad z = \beta [\log \pi(y_w|x) - \log \pi(y_l|x)]

    See *Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation*
    (https://arxiv.org/abs/2401.08417).

    Variant: the contrastive term takes sums over tokens. The likelihood term is the mean over all chosen tokens of the
    batch, one number added to every row, as the official code and others compute it; the paper's is a response's sum,
    ``nll="sequence_sum"``, which weighs about its length more. Label smoothing mixes with the flipped margin, for
    either link.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        chosen_lengths: ``[B]``, tokens of the chosen responses; may be None where cpo_alpha is 0 or nll a sum.
        where: ``[B]``, rows that count; excluded rows have value 0 and change nothing.
        beta: scale of the margin, > 0.
        cpo_alpha: weight of the likelihood term, >= 0.
        label_smoothing: probability in [0, 0.5] that a label is flipped.
        loss: the link, ``sigmoid`` or ``hinge`` (``max(0, 1 - z)``).
        nll: ``batch_token_mean``, ``per_sequence_mean`` or ``sequence_sum``.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    domains.nonnegative(cpo_alpha=cpo_alpha)
    domains.at_most_half(label_smoothing=label_smoothing)
    domains.choice(("sigmoid", "hinge"), loss=loss)
    domains.choice(scores.NLL, nll=nll)
    chosen, rejected = per_example(chosen_logps=chosen_logps, rejected_logps=rejected_logps)
    rows = selection(where, chosen.size)
    margin = beta * jnp.where(rows, chosen - rejected, 0)
    values = links.smoothed(links.logistic if loss == "sigmoid" else links.hinge, margin, label_smoothing)
    if chosen_lengths is None and nll != "sequence_sum":
        domains.zero_without("chosen_lengths", chosen_lengths, cpo_alpha=cpo_alpha)
    else:
        values += cpo_alpha * scores.negative_log_likelihood(chosen, chosen_lengths, rows, nll)
    return jnp.where(rows, values, 0)


def arpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    chosen_lengths: Array,
    rejected_lengths: Array,
    where: Array | None = None,
    *,
    beta: float = 0.1,
    eta1: float = 0.9,
    eta2: float = 0.4,
    cpo_alpha: float = 1.0,
    nll: str = "batch_token_mean",
) -> jax.Array:
    r"""Adaptive-rejection preference optimisation: contrastive, but a response almost as likely is hardly rejected.

    .. math::
        L = -\log \sigma(\beta [\log \pi(y_w|x) - \tau \log \pi(y_l|x)]) + \alpha\, \mathrm{NLL}_w, \quad
        \tau = \min\!\left(\eta_1 e^{\eta_2 |m_w - m_l|} - 1,\; 1\right), \quad m = \frac{\log \pi(y|x)}{n}

    See *X-ALMA: Plug & Play Modules and Adaptive Rejection for Quality Translation at Scale*
    (https://arxiv.org/abs/2410.03115).

    Variant: as in the official code, gradients flow through tau, and tau may be negative, down to eta1 - 1 where both
    responses are as likely per token. The likelihood term is that of :func:`cpo_loss`.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        chosen_lengths, rejected_lengths: ``[B]``, tokens of the responses.
        where: ``[B]``, rows that count; excluded rows have value 0 and change nothing.
        beta: scale of the margin, > 0.
        eta1: rejection of an equally likely response, plus 1; > 0.
        eta2: how fast rejection grows with the distance of the averages, >= 0.
        cpo_alpha: weight of the likelihood term, >= 0.
        nll: ``batch_token_mean``, ``per_sequence_mean`` or ``sequence_sum``.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta, eta1=eta1)
    domains.nonnegative(eta2=eta2, cpo_alpha=cpo_alpha)
    domains.choice(scores.NLL, nll=nll)
    averages = scores.pair_averages(chosen_logps, rejected_logps, chosen_lengths, rejected_lengths)
    chosen, rejected = per_example(chosen_logps=chosen_logps, rejected_logps=rejected_logps)
    rows = selection(where, chosen.size)
    chosen, rejected, distance = (jnp.where(rows, x, 0) for x in (chosen, rejected, averages[0] - averages[1]))
    rejection = jnp.minimum(eta1 * links.capped_exp(eta2 * jnp.abs(distance)) - 1, 1)
    values = links.logistic(beta * (chosen - rejection * rejected))
    values += cpo_alpha * scores.negative_log_likelihood(chosen, chosen_lengths, rows, nll)
    return jnp.where(rows, values, 0)
