"""Methods that compare pairs with a reference which is not simply the policy before training, or with several."""

import itertools

import jax.numpy as jnp
import numpy as np

from jaxpref import losses
from jaxpref.losses import domains
from jaxpref.objectives.registry import register


def _mrpo(
    chosen_logps,
    rejected_logps,
    ref_chosen_logps,
    ref_rejected_logps,
    other_ref_chosen_logps,
    other_ref_rejected_logps,
    *,
    alpha: str | tuple[float, ...] = "paper",
    eps: float | None = None,
    eps_max: float = 0.1,
    beta: float = 0.1,
):
    """DPO with the one reference that :func:`jaxpref.losses.mrpo_reference` makes of several.

    See *Multi-Reference Preference Optimization for Large Language Models* (https://arxiv.org/abs/2405.16388).

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the base; constants.
        other_ref_chosen_logps, other_ref_rejected_logps: ``[B, O]``, the same under the other references; constants.
        alpha: ``paper``, ``code`` (one other reference only), or a weight >= 0 of the base and of each other one, in
            this order, that sum to 1.
        eps: radius of the clip relative to the base's log-probability, >= 0 (a large one clips nothing), or None for an
            adaptive one.
        eps_max: largest adaptive radius, >= 0.
        beta: strength of the KL constraint, > 0.

    Returns:
        ``[B]``.
    """
    if eps is not None:
        domains.nonnegative(eps=eps)
    chosen = jnp.stack([ref_chosen_logps, *other_ref_chosen_logps.T])
    rejected = jnp.stack([ref_rejected_logps, *other_ref_rejected_logps.T])
    if not isinstance(alpha, str):
        alpha = _one_each("the base and config.reference.others", len(chosen), alpha=alpha)
    combined = losses.mrpo_reference(chosen, rejected, alpha=alpha, eps=eps, eps_max=eps_max)
    return losses.dpo_loss(chosen_logps, rejected_logps, *combined, beta=beta)


def _sequential_po(
    chosen_logps,
    rejected_logps,
    ref_chosen_logps,
    ref_rejected_logps,
    other_ref_chosen_logps,
    other_ref_rejected_logps,
    *,
    alphas: float | tuple[float, ...] = 0.5,
    beta: float = 0.1,
):
    """:func:`jaxpref.losses.sequential_po_loss` with the rewards of earlier rounds from the policies of all of them.

    See *SPO: Multi-Dimensional Preference Sequential Alignment With Implicit Reward Modeling*
    (https://arxiv.org/abs/2405.12739).

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the policy of the round before; constants.
        other_ref_chosen_logps, other_ref_rejected_logps: ``[B, n - 1]``, the same under the policies before that one,
            the oldest first, which is the policy before the first round; constants.
        alphas: multipliers >= 0: one number for all earlier rounds, or one for each. A round keeps its multiplier in
            the rewards of all rounds that follow.
        beta: strength of the KL constraint, > 0, the same in all rounds.

    Returns:
        ``[B]``.
    """
    rounds = other_ref_chosen_logps.shape[-1]
    if np.ndim(alphas):
        alphas = _one_each("config.reference.others", rounds, alphas=alphas)
    else:
        domains.nonnegative(alphas=alphas)
        alphas = (alphas,) * rounds
    earlier = (
        _earlier_rewards(jnp.stack([*other_ref_chosen_logps.T, ref_chosen_logps]), alphas, beta),
        _earlier_rewards(jnp.stack([*other_ref_rejected_logps.T, ref_rejected_logps]), alphas, beta),
    )
    pair = chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    return losses.sequential_po_loss(*pair, *earlier, alphas=alphas, beta=beta)


def _earlier_rewards(policies, alphas, beta):
    """Rewards ``[n - 1, B]`` of the rounds between consecutive policies ``[n, B]``."""
    rewards = policies[:0]
    for number, (before, policy) in enumerate(itertools.pairwise(policies)):
        reward = losses.sequential_po_rewards(policy, before, rewards, alphas=alphas[:number], beta=beta)
        rewards = jnp.concatenate([rewards, reward[None]])
    return rewards


def _one_each(models, size, **values):
    """A list of numbers as a tuple, one for each of several models."""
    ((name, numbers),) = values.items()
    if np.shape(numbers) != (size,):
        raise ValueError(f"{name} is {numbers!r}, but must be {size} numbers, one for each of {models}.")
    return tuple(numbers)


_mrpo.__name__, _sequential_po.__name__ = "mrpo_reference", "sequential_po_loss"

register(
    "hybrid_dpo",
    losses.hybrid_dpo_loss,
    feedback="pairs",
    title="Mitigating Mismatch within Reference-based Preference Optimization",
    url="https://arxiv.org/abs/2602.11902",
    formula="-log sigmoid(beta (log p(chosen) - log p(rejected) - max(0, the same of the reference)))",
    disagreements="The paper calls it HyPO, a name that DPO with an online KL divergence has as well.",
)
register(
    "mrpo",
    _mrpo,
    feedback="pairs",
    title="Multi-Reference Preference Optimization for Large Language Models",
    url="https://arxiv.org/abs/2405.16388",
    formula="dpo against p~, 1 / p~ = sum over references of alpha / p, p clipped to within eps of the base's",
    disagreements="The base is the reference, the others are reference.others; rewards are logged against the base. "
    "alpha: the paper's weights, or the code's, which are crosswise, or fixed ones, the base's first.",
)
register(
    "sequential_po",
    _sequential_po,
    feedback="pairs",
    title="SPO: Multi-Dimensional Preference Sequential Alignment With Implicit Reward Modeling",
    url="https://arxiv.org/abs/2405.12739",
    formula="-log sigmoid(dpo's logit - sum over earlier rounds of alpha (R(chosen) - R(rejected))), R their rewards",
    disagreements="The reference is the policy of the round before, reference.others those before it, oldest first. "
    "Beyond two dimensions the recursion is derived; rewards are logged without the earlier rounds'.",
)
