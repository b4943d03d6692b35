"""Direct preference optimisation on pairs of which some are ties."""

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, check_shape
from jaxpref.losses.sequences import log1mexp


def todo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    tie: Array,
    *,
    beta: float = 0.01,
    alpha: float = 0.5,
    label_smoothing: float = 0.0,
) -> jax.Array:
    r"""Tie-rank oriented DPO: the likelihood of a win or of a tie, in a Bradley-Terry model that knows ties.

    .. math::
        P(w \succ l) = \sigma(z - \alpha), \quad
        P(\mathrm{tie}) = \frac{e^{2 \alpha} - 1}{(1 + e^{\alpha - z})(1 + e^{\alpha + z})}, \quad
        L = -\log P(\text{what was observed})

    with z as in :func:`dpo_loss`. Of a tie, either response may stand as the chosen one. Without ties, alpha towards 0
    is DPO.

    See *TODO: Enhancing LLM Alignment with Ternary Preferences* (https://arxiv.org/abs/2411.02442).

    Variant: the published code's parameter is ``-alpha``. Smoothed labels mix a win with the flipped one,
    :math:`\sigma(-z - \alpha)`; ties are not smoothed.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        tie: ``[B]``, true where neither response is the better one.
        beta: strength of the KL constraint, > 0.
        alpha: by how much a win must be ahead, > 0; a larger one makes ties likelier.
        label_smoothing: probability in [0, 0.5] that the label of a win is flipped.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta, alpha=alpha)
    domains.at_most_half(label_smoothing=label_smoothing)
    margin = beta * scores.pair_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    check_shape(margin.shape, tie=tie)
    won, lost = links.logistic(margin - alpha), links.logistic(-margin - alpha)
    tied = won + lost - (2 * alpha + log1mexp(-2 * alpha))  # log(e^2a - 1), also where e^2a is too large a number
    return jnp.where(jnp.asarray(tie).astype(bool), tied, (1 - label_smoothing) * won + label_smoothing * lost)
