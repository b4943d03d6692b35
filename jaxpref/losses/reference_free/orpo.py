"""Odds ratio preference optimisation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, check_shape, floating
from jaxpref.losses.sequences import log1mexp


class OrpoAux(NamedTuple):
    """Attributes: log_odds: ``[B]``, log odds ratio of chosen to rejected."""

    log_odds: jax.Array


def orpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    chosen_lengths: Array,
    rejected_lengths: Array,
    nll: Array | None = None,
    *,
    lam: float = 0.1,
) -> tuple[jax.Array, OrpoAux]:
    r"""Odds ratio preference optimisation: fine-tuning on the chosen response, penalised by the rejected one's odds.

    .. math::
        L = \mathrm{NLL}_w - \lambda \log \sigma\!\left( \log \frac{p_w / (1 - p_w)}{p_l / (1 - p_l)} \right), \quad
        \log p = \frac{\log \pi(y|x)}{n}

    See *ORPO: Monolithic Preference Optimization without Reference Model* (https://arxiv.org/abs/2403.07691).

    Variant: p is the geometric mean of the token probabilities. The likelihood term is the response's own average; the
    official code and others average over prompt and response, which comes in through ``nll``.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        chosen_lengths, rejected_lengths: ``[B]``, tokens of the responses.
        nll: ``[B]`` or a scalar that replaces the average negative log-likelihood of the chosen response.
        lam: weight of the odds ratio, >= 0.

    Returns:
        ``(values [B], OrpoAux)``.
    """
    domains.nonnegative(lam=lam)
    chosen, rejected = scores.pair_averages(chosen_logps, rejected_logps, chosen_lengths, rejected_lengths)
    if nll is None:
        nll = -chosen
    elif jnp.ndim(nll):
        check_shape(chosen.shape, nll=nll)
    log_odds = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
    return floating(nll) + lam * links.logistic(log_odds), OrpoAux(log_odds)
