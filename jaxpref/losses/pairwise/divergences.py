"""Direct preference optimisation with other divergences from the reference, and with other links."""

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array

DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha")


def f_dpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    *,
    beta: float = 0.1,
    divergence: str = "reverse_kl",
    alpha: float = 0.5,
) -> jax.Array:
    r"""DPO with another f-divergence as the constraint: rewards are the derivative f' of the probability ratio.

    .. math::
        L = -\log \sigma(\beta [f'(u_w) - f'(u_l)]), \quad u = \frac{\pi(y|x)}{\pi_{ref}(y|x)}

    with :math:`f'(u) = \log u` for ``reverse_kl`` (DPO), :math:`-1/u` for ``forward_kl``, :math:`\log(u / (1 + u))` for
    ``js`` and :math:`(1 - u^{-\alpha}) / \alpha` for ``alpha``, which is the reverse KL divergence at 0 and the forward
    one at 1; constants cancel in the difference.

    See *Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints*
    (https://arxiv.org/abs/2309.16240).

    Variant: alpha is the paper's. Another framework's coefficient is 1 - alpha. Powers of u are held at :math:`e^{80}`.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        beta: strength of the constraint, > 0.
        divergence: ``reverse_kl``, ``forward_kl``, ``js`` or ``alpha``.
        alpha: order of the alpha-divergence, any finite number; the paper's are in (0, 1). Others leave it unused.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    domains.choice(DIVERGENCES, divergence=divergence)
    domains.finite(alpha=alpha)
    score = {
        "reverse_kl": lambda ratio: ratio,
        "forward_kl": lambda ratio: -links.capped_exp(-ratio),
        "js": jax.nn.log_sigmoid,
        "alpha": lambda ratio: _alpha_score(ratio, alpha),
    }[divergence]
    chosen, rejected = scores.pair_log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return links.logistic(beta * (score(chosen) - score(rejected)))


def _alpha_score(ratio: jax.Array, alpha: Array) -> jax.Array:
    """``(1 - e^(-alpha ratio)) / alpha``, and its limit where alpha is 0."""
    divisor = jnp.where(alpha == 0, 1, alpha)
    return jnp.where(alpha == 0, ratio, -jnp.expm1(jnp.minimum(-alpha * ratio, 80)) / divisor)


def exo_pair_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    *,
    beta: float = 0.1,
    label_smoothing: float = 1e-3,
    log_epsilon: float | None = None,
) -> jax.Array:
    r"""Efficient exact optimisation on pairs: the reverse KL divergence where DPO takes the forward one.

    .. math::
        L = q \log \frac{q}{1 - \epsilon} + (1 - q) \log \frac{1 - q}{\epsilon}, \quad q = \sigma(z)

    with z as in :func:`dpo_loss`. It is 0 where :math:`q = 1 - \epsilon`; the gradient flows through every q.

    See *Towards Efficient Exact Optimization of Language Model Alignment* (https://arxiv.org/abs/2402.00856).

    Variant: epsilon is never 0, where the divergence is infinite. The official code takes targets that do not add up to
    1, of logarithms 0 and ``log_epsilon``; a ``log_epsilon`` that is given does so and replaces ``label_smoothing``.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        beta: strength of the KL constraint, > 0.
        label_smoothing: probability in (0, 0.5] that a label is flipped.
        log_epsilon: logarithm of the rejected response's target, any finite number (-10 in the official code), or None.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta, label_smoothing=label_smoothing)
    domains.at_most_half(label_smoothing=label_smoothing)
    margin = beta * scores.pair_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    if log_epsilon is None:
        return links.bernoulli_kl(margin, jnp.log1p(-label_smoothing), jnp.log(label_smoothing))
    domains.finite(log_epsilon=log_epsilon)
    return links.bernoulli_kl(margin, 0.0, log_epsilon)


def discopop_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    *,
    beta: float = 0.05,
    tau: float = 0.05,
) -> jax.Array:
    r"""DiscoPOP, the log-ratio modulated loss: logistic for wrong margins, exponential for right ones.

    .. math:: L = (1 - m) \log(1 + e^{-z}) + m e^{-z}, \quad m = \sigma(z / \tau)

    with z as in :func:`dpo_loss`. The gradient flows through m, and the loss is not convex. A large tau makes it the
    mean of the two.

    See *Discovering Preference Optimization Algorithms with and for Large Language Models*
    (https://arxiv.org/abs/2406.08414).

    Variant: beta scales z before tau divides it, as in the paper. The exponent of :math:`m e^{-z}`, which is large only
    for a tau above 1, is held at 80.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        beta: strength of the KL constraint, > 0.
        tau: width of the transition between the two, > 0.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta, tau=tau)
    margin = beta * scores.pair_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    exponential = links.capped_exp(jax.nn.log_sigmoid(margin / tau) - margin)
    return jax.nn.sigmoid(-margin / tau) * links.logistic(margin) + exponential
