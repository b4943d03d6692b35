"""Sequence likelihood calibration."""

import jax

from jaxpref.losses import domains
from jaxpref.losses.arrays import Array, per_example


def slic_loss(
    chosen_logps: Array, rejected_logps: Array, sft_logps: Array, *, delta: float = 1.0, lam: float = 0.1
) -> jax.Array:
    r"""Sequence likelihood calibration with human feedback: a hinge on log-probabilities, and a likelihood term.

    .. math:: L = \max(0, \delta - \log \pi(y_w|x) + \log \pi(y_l|x)) - \lambda \log \pi(y_{sft}|x)

    See *SLiC-HF: Sequence Likelihood Calibration with Human Feedback* (https://arxiv.org/abs/2305.10425).

    Variant: all three log-probabilities are sums over tokens, and there is no reference; :func:`dpo_hinge_loss`, which
    some trainers call SLiC, has one. One framework adds a token-level likelihood to the hinge of each sequence.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        sft_logps: ``[B]``, those of the fine-tuning targets; a config takes the chosen responses.
        delta: margin in nats, > 0.
        lam: weight of the likelihood term, >= 0.

    Returns:
        ``[B]``.
    """
    domains.positive(delta=delta)
    domains.nonnegative(lam=lam)
    chosen, rejected, target = per_example(
        chosen_logps=chosen_logps, rejected_logps=rejected_logps, sft_logps=sft_logps
    )
    return jax.nn.relu(delta - chosen + rejected) - lam * target
