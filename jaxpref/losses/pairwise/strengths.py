"""Direct preference optimisation from labels that say by how much the chosen response is better."""

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, check_shape, floating

DISTANCES = ("rpo_bwd_kl", "rpo_fwd_kl", "rpo_sq")
SMALLEST_BETA = 1e-3


def soft_preference_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    preference_strength: Array,
    *,
    beta: float = 0.1,
) -> jax.Array:
    r"""Soft-preference cross-entropy: each pair comes with the probability that its chosen response is the better one.

    .. math:: L = -p \log \sigma(z) - (1 - p) \log \sigma(-z)

    with z as in :func:`dpo_loss`; the minimum lies at the log-odds of p. A strength of 1 is DPO, a constant
    :math:`1 - \epsilon` is cDPO, and 0.5 draws the margin to 0.

    See *Online Self-Preferring Language Models* (https://arxiv.org/abs/2405.14103).

    Variant: the paper's policy judges its own samples, in both orders of presentation, whose mean is the strength;
    where the strengths come from makes no difference here.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        preference_strength: ``[B]`` in [0, 1], probability that the chosen response is the better one.
        beta: strength of the KL constraint, > 0.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    margin = beta * scores.pair_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    check_shape(margin.shape, preference_strength=preference_strength)
    return links.smoothed_logistic(margin, 1 - floating(preference_strength))


def dno_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    reward_1: Array,
    reward_2: Array,
    *,
    eta: float = 0.1,
) -> jax.Array:
    r"""Direct Nash optimisation: a regression on how much more often one response beats the current policy's.

    .. math::
        L = -p \log \sigma(z) - (1 - p) \log \sigma(-z), \quad p = \sigma(r_1 - r_2), \quad
        z = \eta \left[ \log \frac{\pi(y_1|x)}{\pi_t(y_1|x)} - \log \frac{\pi(y_2|x)}{\pi_t(y_2|x)} \right]

    where :math:`r(y)` is the rate at which y wins against responses of the iterate :math:`\pi_t`, and that iterate is
    the reference. Rates lie in [0, 1], so p lies in [0.27, 0.73]: it is not the label of a win.

    See *Direct Nash Optimization: Teaching Language Models to Self-Improve with General Preferences*
    (https://arxiv.org/abs/2404.03715).

    Variant: the regression of the general algorithm. The paper's practical one is :func:`dpo_loss` on pairs whose
    scores differ enough, with the last iterate as its reference.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of responses 1 and 2 under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the last iterate; constants.
        reward_1, reward_2: ``[B]``, win rates of the two responses.
        eta: strength of the KL constraint, > 0.

    Returns:
        ``[B]``.
    """
    domains.positive(eta=eta)
    margin = eta * scores.pair_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    check_shape(margin.shape, reward_1=reward_1, reward_2=reward_2)
    return links.smoothed_logistic(margin, jax.nn.sigmoid(floating(reward_2) - floating(reward_1)))


def mm_dpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    reward_gap: Array,
    *,
    beta: float = 0.1,
    w: float = 0.5,
    k: float = 0.5,
) -> jax.Array:
    r"""DPO with a beta for each pair, larger where a reward model sees a clearer difference.

    .. math:: L = -\log \sigma(\beta_i D), \quad \beta_i = \max(\beta [1 + w (1 - e^{-k g_i})], 0.001)

    where D is the difference of log-ratios and g the gap of the rewards; :math:`\beta_i` is a constant, which lies
    between beta and :math:`\beta (1 + w)` for gaps of 0 and more.

    See *MM-RLHF: The Next Step Forward in Multimodal LLM Alignment* (https://arxiv.org/abs/2502.10391).

    Variant: the paper's scaling. The released trainer replaces it by a statistic of the batch unless told otherwise.
    The paper's likelihood term is another term of the objective.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        reward_gap: ``[B]``, reward of the chosen response less that of the rejected one.
        beta: strength of the KL constraint for pairs without a gap, > 0.
        w: how far beta rises, >= 0; 0 is DPO.
        k: how fast it rises with the gap, >= 0.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    domains.nonnegative(w=w, k=k)
    margin = scores.pair_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    check_shape(margin.shape, reward_gap=reward_gap)
    scaled = beta * (1 + w * (1 - links.capped_exp(-k * floating(reward_gap))))
    return links.logistic(jax.lax.stop_gradient(jnp.maximum(scaled, SMALLEST_BETA)) * margin)


def reward_aware_rpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    gt_rewards_chosen: Array,
    gt_rewards_rejected: Array,
    *,
    beta: float = 0.1,
    gt_reward_scale: float = 1.0,
    distance: str = "rpo_bwd_kl",
) -> jax.Array:
    r"""Reward-aware preference optimisation: the implicit margin is drawn to the margin of given rewards.

    .. math:: L = d(z, g), \quad g = \eta (r_w - r_l)

    with z as in :func:`dpo_loss` and one of three distances: ``rpo_bwd_kl``
    :math:`KL(\sigma(g) \| \sigma(z))`, ``rpo_fwd_kl`` :math:`KL(\sigma(z) \| \sigma(g))`, both of two coins, and
    ``rpo_sq`` :math:`(z - g)^2`. With the first, a reward gap without bound is DPO.

    See *Reward-aware Preference Optimization: A Unified Mathematical Framework for Model Alignment*
    (https://arxiv.org/abs/2502.00203).

    Variant: the authors' names of the two divergences, who call the one with the target first *backward*. Other methods
    named RPO (relative, and DPO with a likelihood term) are other losses.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        gt_rewards_chosen, gt_rewards_rejected: ``[B]``, rewards from elsewhere.
        beta: strength of the KL constraint, > 0.
        gt_reward_scale: eta > 0.
        distance: ``rpo_bwd_kl``, ``rpo_fwd_kl`` or ``rpo_sq``.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta, gt_reward_scale=gt_reward_scale)
    domains.choice(DISTANCES, distance=distance)
    margin = beta * scores.pair_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    check_shape(margin.shape, gt_rewards_chosen=gt_rewards_chosen, gt_rewards_rejected=gt_rewards_rejected)
    target = gt_reward_scale * (floating(gt_rewards_chosen) - floating(gt_rewards_rejected))
    if distance == "rpo_sq":
        return links.squared(margin, target)
    first, second = (target, margin) if distance == "rpo_bwd_kl" else (margin, target)
    return links.bernoulli_kl(first, jax.nn.log_sigmoid(second), jax.nn.log_sigmoid(-second))
