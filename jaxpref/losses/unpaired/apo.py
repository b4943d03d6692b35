"""Anchored preference optimisation on single responses."""

import jax
import jax.numpy as jnp

from jaxpref.losses.arrays import Array
from jaxpref.losses.unpaired.kto import kto_loss


def apo_zero_unpaired_loss(
    logps: Array,
    ref_logps: Array,
    labels: Array,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> jax.Array:
    r"""APO-zero on single responses: good ones gain probability against the reference, bad ones lose it.

    .. math::
        L = \lambda_D [1 - \sigma(\beta c)] \text{ if desirable}, \quad
        \lambda_U\, \sigma(\beta c) \text{ if not}, \quad c = \log \frac{\pi(y|x)}{\pi_{ref}(y|x)}

    See *Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment*
    (https://arxiv.org/abs/2408.06266).

    Variant: :func:`kto_loss` with its z0 fixed at 0, so that no example depends on another.

    Args:
        logps, ref_logps: ``[B]``, summed log-probabilities of the responses under policy and reference (a constant).
        labels: ``[B]``, true where the response is desirable.
        beta: strength of the KL constraint, > 0.
        desirable_weight, undesirable_weight: weights of the two labels, >= 0.

    Returns:
        ``[B]``.
    """
    anchor = jnp.zeros(1)
    weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    return kto_loss(logps, ref_logps, labels, anchor, anchor, beta=beta, **weights)[0]
