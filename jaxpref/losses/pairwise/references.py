"""Several references, or one that moves: what stands in the reference's place of a pairwise loss."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, check_shape, floating, per_example


def mrpo_reference(
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    *,
    alpha: Any = "paper",
    eps: float | None = None,
    eps_max: float = 0.1,
) -> tuple[jax.Array, jax.Array]:
    r"""One reference out of several: the weighted harmonic mean of their probabilities, for any loss with a reference.

    .. math:: \log \tilde p = -\log \sum_k \alpha_k \, e^{-\log p_k}, \quad \sum_k \alpha_k = 1

    of the chosen and of the rejected response apart. Before they are combined, the log-probabilities of the models
    other than the base are clipped to :math:`[(1 + \epsilon) \log p_0, (1 - \epsilon) \log p_0]`.

    See *Multi-Reference Preference Optimization for Large Language Models* (https://arxiv.org/abs/2405.16388).

    Variant: ``alpha="paper"`` weights a model by how far apart it holds the two responses,
    :math:`\alpha_k \propto |\log p_k(y_w) - \log p_k(y_l)|`. The released code, ``alpha="code"``, gives each of two
    models the other one's weight. Weights and radius are computed from the log-probabilities before the clip.

    Args:
        ref_chosen_logps, ref_rejected_logps: ``[K, B]``, summed log-probabilities of the responses under K references;
            number 0 is the base, the policy that training begins with.
        alpha: ``paper``, ``code`` (two models only) or K fixed weights >= 0 that sum to 1.
        eps: radius of the clip relative to the base's log-probability, >= 0 (infinite: no clip), or None for an
            adaptive one, ``eps_max`` times the share that the response has in the two mean log-probabilities.
        eps_max: largest adaptive radius, >= 0.

    Returns:
        ``(chosen [B], rejected [B])``, log-probabilities under the combined reference; constants.
    """
    domains.nonnegative(eps_max=eps_max)
    if eps is not None:
        domains.nonnegative_or_infinite(eps=eps)
    chex.assert_rank(ref_chosen_logps, 2, custom_message="argument ref_chosen_logps")
    check_shape(jnp.shape(ref_chosen_logps), ref_rejected_logps=ref_rejected_logps)
    logps = jax.lax.stop_gradient(jnp.stack([floating(ref_chosen_logps), floating(ref_rejected_logps)]))  # [2, K, B]
    weights = _reference_weights(jnp.abs(logps[0] - logps[1]), alpha)
    if eps is None:
        means = jnp.abs(jnp.mean(logps, axis=1))
        eps = eps_max * _shares(means, axis=0)
    radius = jnp.where(jnp.isinf(eps), jnp.inf, jnp.where(jnp.isinf(eps), 0, eps) * jnp.abs(logps[:, 0]))[:, None]
    clipped = logps.at[:, 1:].set(jnp.clip(logps[:, 1:], logps[:, :1] - radius, logps[:, :1] + radius))
    chosen, rejected = -jax.nn.logsumexp(-clipped, axis=1, b=weights)
    return chosen, rejected


def _reference_weights(gaps: jax.Array, alpha: Any) -> jax.Array:
    """Weights ``[K, B]`` of the references; ``gaps [K, B]`` is how far apart each holds the two responses."""
    if not isinstance(alpha, str):
        check_shape(gaps.shape[:1], alpha=alpha)
        domains.simplex(alpha=alpha)
        return jnp.broadcast_to(floating(alpha)[:, None], gaps.shape)
    domains.choice(("paper", "code"), alpha=alpha)
    if alpha == "paper" or len(gaps) == 1:
        return _shares(gaps, axis=0)
    if len(gaps) > 2:
        raise ValueError(f"alpha is 'code', which is defined for two references, not for {len(gaps)}.")
    base = gaps[1] / (gaps[0] + gaps[1] + 1e-6)
    return jnp.stack([base, 1 - base])


def _shares(parts: jax.Array, axis: int) -> jax.Array:
    """Parts divided by their sum; equal shares of nothing."""
    total = jnp.sum(parts, axis=axis, keepdims=True)
    return jnp.where(total > 0, parts / jnp.where(total > 0, total, 1), 1 / parts.shape[axis])


def sequential_po_rewards(
    logps: Array, ref_logps: Array, prev_rewards: Array, *, alphas: Any, beta: float = 0.1
) -> jax.Array:
    r"""Implicit rewards of a round of sequential preference optimisation, which the next round takes as earlier ones.

    .. math:: R_n = \beta \log \frac{\pi_n(y|x)}{\pi_{n-1}(y|x)} - \sum_{i<n} \alpha_i R_i

    See *SPO: Multi-Dimensional Preference Sequential Alignment With Implicit Reward Modeling*
    (https://arxiv.org/abs/2405.12739).

    Args:
        logps: ``[B]``, summed log-probabilities of the responses under the policy of this round.
        ref_logps: ``[B]``, the same under the policy of the round before; constants.
        prev_rewards: ``[n - 1, B]``, rewards of the earlier rounds, scaled by their beta; constants.
        alphas: ``[n - 1]``, multipliers of the earlier rounds, each >= 0.
        beta: strength of the KL constraint, > 0.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    ratio = scores.log_ratio(logps, ref_logps)
    chex.assert_rank(prev_rewards, 2, custom_message="argument prev_rewards")
    check_shape(jnp.shape(prev_rewards)[:1], alphas=alphas)
    check_shape((jnp.shape(prev_rewards)[0], *ratio.shape), prev_rewards=prev_rewards)
    domains.nonnegative_entries(alphas=alphas)
    earlier = jax.lax.stop_gradient(floating(prev_rewards))
    return beta * ratio - jnp.sum(floating(alphas)[:, None] * earlier, axis=0)


def sequential_po_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    prev_rewards_chosen: Array,
    prev_rewards_rejected: Array,
    *,
    alphas: Any,
    beta: float = 0.1,
) -> jax.Array:
    r"""Sequential preference optimisation: one dimension of preference a round, without losing the earlier ones.

    .. math::
        L = -\log \sigma\!\left( \beta \left[
            \log \frac{\pi(y_w|x)}{\pi_{n-1}(y_w|x)} - \log \frac{\pi(y_l|x)}{\pi_{n-1}(y_l|x)}
        \right] - \sum_{i<n} \alpha_i \left[ R_i(x, y_w) - R_i(x, y_l) \right] \right)

    with the rewards of :func:`sequential_po_rewards`. The first round has no earlier one and is DPO.

    See *SPO: Multi-Dimensional Preference Sequential Alignment With Implicit Reward Modeling*
    (https://arxiv.org/abs/2405.12739).

    Variant: for more than two dimensions the recursion is derived from the paper's constrained problem.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the policy of the *round before*; constants.
        prev_rewards_chosen, prev_rewards_rejected: ``[n - 1, B]``, implicit rewards of the responses in the earlier
            rounds, scaled by their beta; constants.
        alphas: ``[n - 1]``, multipliers of the earlier rounds, each >= 0.
        beta: strength of the KL constraint, > 0.

    Returns:
        ``[B]``.
    """
    pair = per_example(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    check_shape(jnp.shape(prev_rewards_chosen), prev_rewards_rejected=prev_rewards_rejected)
    chosen = sequential_po_rewards(pair[0], pair[2], prev_rewards_chosen, alphas=alphas, beta=beta)
    rejected = sequential_po_rewards(pair[1], pair[3], prev_rewards_rejected, alphas=alphas, beta=beta)
    return links.logistic(chosen - rejected)


def hybrid_dpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    *,
    beta: float = 0.1,
) -> jax.Array:
    r"""Hybrid DPO: the reference's margin counts only where it agrees with the label.

    .. math::
        L = -\log \sigma\!\left( \beta \left[ \log \frac{\pi(y_w|x)}{\pi(y_l|x)}
            - \max\!\left(0, \log \frac{\pi_{ref}(y_w|x)}{\pi_{ref}(y_l|x)} \right) \right] \right)

    Where the reference prefers the rejected response, DPO would be content with a policy that prefers it a little
    less; here the policy has to prefer the chosen one.

    See *Mitigating Mismatch within Reference-based Preference Optimization* (https://arxiv.org/abs/2602.11902).

    Variant: the paper abbreviates it HyPO, which is also the name of another method (:func:`hypo_loss`).

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        beta: strength of the KL constraint, > 0.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    pair = per_example(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    of_reference = jax.lax.stop_gradient(pair[2] - pair[3])
    return links.logistic(beta * (pair[0] - pair[1] - jnp.maximum(of_reference, 0)))


def update_reference(
    ref: Any, policy: Any, step: Array, *, mode: str = "soft", alpha: float = 0.6, every: int = 1
) -> Any:
    r"""The reference of TR-DPO after a step of the optimiser: it follows the policy, around any loss.

    .. math:: \pi_{ref} \leftarrow \alpha\, \pi + (1 - \alpha)\, \pi_{ref} \text{ (soft)}, \quad
              \pi_{ref} \leftarrow \pi \text{ (hard)}

    in every step that is a multiple of ``every``, and unchanged in between.

    See *Learn Your Reference Model for Real Good Alignment* (https://arxiv.org/abs/2404.09656).

    Variant: the paper mixes softly in every step (alpha of 0.5 or 0.6) or replaces hard every few hundred steps;
    another framework mixes softly every 512.

    Args:
        ref, policy: parameters, pytrees of one structure and shapes.
        step: number of finished steps, 1 after the first.
        mode: ``soft`` or ``hard``.
        alpha: the policy's share in a soft update, between 0 and 1; ``hard`` ignores it.
        every: number of steps between updates, >= 1.

    Returns:
        The new reference, a pytree like ``ref`` and of its types. Reference log-probabilities that were computed before
        belong to the old one.
    """
    domains.choice(("soft", "hard"), mode=mode)
    domains.fraction(alpha=alpha)
    domains.positive(every=every)
    chex.assert_trees_all_equal_shapes(ref, policy)
    now = jnp.asarray(step) % every == 0

    def updated(old, new):
        following = floating(new) if mode == "hard" else alpha * floating(new) + (1 - alpha) * floating(old)
        return jnp.where(now, following.astype(jnp.asarray(old).dtype), old)

    return jax.tree.map(updated, ref, policy)
