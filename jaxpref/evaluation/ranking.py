"""Whether a policy finds the preferred response likelier, and what the best policy for the objective could reach.

See *Preference Learning Algorithms Do Not Learn Preference Rankings* (https://arxiv.org/abs/2405.19534).
"""

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, per_example


def ranking_accuracy(
    chosen_logps: Array,
    rejected_logps: Array,
    chosen_lengths: Array | None = None,
    rejected_lengths: Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Pairs whose chosen response is at least as likely as the rejected one; no reference is subtracted.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities under the policy.
        chosen_lengths, rejected_lengths: ``[B]``, tokens; where both are given, averages by token are compared.

    Returns:
        ``(correct [B] bool, their share)``.
    """
    chosen, rejected = per_example(chosen_logps=chosen_logps, rejected_logps=rejected_logps)
    if (chosen_lengths is None) != (rejected_lengths is None):
        raise ValueError("chosen_lengths and rejected_lengths must be given together.")
    if chosen_lengths is not None:
        chosen, rejected = scores.pair_averages(chosen, rejected, chosen_lengths, rejected_lengths)
    correct = chosen >= rejected
    return correct, _share(correct)


def idealized_ranking_accuracy(
    ref_chosen_logps: Array, ref_rejected_logps: Array, alpha: Array, *, beta: float = 0.1
) -> tuple[jax.Array, jax.Array]:
    r"""Log-ratios and ranking accuracy of the policy that minimises DPO's loss exactly.

    .. math:: \log \frac{\pi^*(y_w|x)}{\pi^*(y_l|x)} =
        \frac1\beta \log \frac{\alpha}{1 - \alpha} + \log \frac{\pi_{ref}(y_w|x)}{\pi_{ref}(y_l|x)}

    Args:
        ref_chosen_logps, ref_rejected_logps: ``[B]``, summed log-probabilities under the reference.
        alpha: ``[B]``, true probability that the chosen response is preferred.
        beta: of DPO, > 0.

    Returns:
        ``(log-ratios [B], share of those above 0)``.
    """
    domains.positive(beta=beta)
    chosen, rejected, alpha = per_example(
        ref_chosen_logps=ref_chosen_logps, ref_rejected_logps=ref_rejected_logps, alpha=alpha
    )
    ratio = (jnp.log(alpha) - jnp.log1p(-alpha)) / beta + chosen - rejected
    return ratio, _share(ratio > 0)


def dpo_loss_threshold(ref_chosen_logps: Array, ref_rejected_logps: Array, *, beta: float = 0.1) -> jax.Array:
    r"""The DPO loss ``[B]`` down to which a pair has to come for the policy to rank it correctly.

    .. math:: -\log \sigma(\beta c), \quad c = \log \frac{\pi_{ref}(y_l|x)}{\pi_{ref}(y_w|x)}

    Args:
        ref_chosen_logps, ref_rejected_logps: ``[B]``, summed log-probabilities under the reference.
        beta: of DPO, > 0.
    """
    domains.positive(beta=beta)
    chosen, rejected = per_example(ref_chosen_logps=ref_chosen_logps, ref_rejected_logps=ref_rejected_logps)
    return links.logistic(beta * (rejected - chosen))


def _share(correct: jax.Array) -> jax.Array:
    return jnp.mean(correct.astype(jnp.result_type(float)))
