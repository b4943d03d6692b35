"""Fine-tuning under other divergences than the one that supervised fine-tuning implies."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array

# Concave functions of the implicit reward x. Clips keep them inside their domain; there is no gradient beyond.
DIVERGENCES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tv": lambda x: x,
    "pearson_chi2": lambda x: x - x**2 / 4,
    "squared_hellinger": lambda x: jnp.maximum(x, -0.9) / (1 + jnp.maximum(x, -0.9)),
    "jensen_shannon": lambda x: jnp.log(2 - jnp.exp(-jnp.maximum(x, -0.69))),
    "reverse_kl": lambda x: -links.capped_exp(-(x + 1)),
}


def f_sft_loss(logps: Array, ref_logps: Array, *, beta: float = 0.1, divergence: str = "tv") -> jax.Array:
    r"""Fine-tuning on demonstrations that matches their distribution under an f-divergence.

    .. math:: L = -\frac{1}{\beta} \varphi(x), \quad x = \beta \log \frac{\pi(y|x)}{\pi_{ref}(y|x)}

    =====================  ==============================
    divergence             :math:`\varphi(x)`
    =====================  ==============================
    ``tv``                 :math:`x`
    ``pearson_chi2``       :math:`x - x^2 / 4`
    ``squared_hellinger``  :math:`x / (1 + x)`
    ``jensen_shannon``     :math:`\log(2 - e^{-x})`
    ``reverse_kl``         :math:`-e^{-(x + 1)}`
    =====================  ==============================

    Total variation has the gradient of supervised fine-tuning: nothing restrains the update, which asks for a smaller
    learning rate. The others weigh examples less that are already far above the reference.

    See *Implicit Reward as the Bridge: A Unified View of SFT and DPO Connections* (https://arxiv.org/abs/2507.00018).

    Variant: derived from the duals of imitation learning, on whole responses. Experimental: the authors' own functions
    may be per token, and by their account the smaller learning rate helps more. Clips at -0.9 (Hellinger) and -0.69
    (Jensen-Shannon) keep x inside the domain; the exponent of the reverse KL is held at 80.

    Args:
        logps, ref_logps: ``[B]``, summed log-probabilities of demonstrations under policy and reference (a constant).
        beta: scale of the implicit reward, > 0; it cancels for ``tv``.
        divergence: a row of the table.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    domains.choice(DIVERGENCES, divergence=divergence)
    return -DIVERGENCES[divergence](beta * scores.log_ratio(logps, ref_logps)) / beta
