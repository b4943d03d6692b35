"""Direct preference optimisation with a hinge: pairs that are far enough apart are left alone."""

import jax

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array


def dpo_hinge_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    *,
    beta: float = 0.05,
) -> jax.Array:
    r"""A hinge on the margin of DPO, the normalised hinge of rejection sampling optimisation.

    .. math:: L = \max(0, 1 - z)

    with z as in :func:`dpo_loss`. From a margin of 1 on, the loss and its gradient are 0.

    See *Statistical Rejection Sampling Improves Preference Optimization* (https://arxiv.org/abs/2309.06657).

    Variant: with a reference and without a likelihood term, unlike :func:`slic_loss`, whose name some trainers give it.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        beta: strength of the KL constraint, > 0.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    margin = scores.pair_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return links.hinge(beta * margin)
