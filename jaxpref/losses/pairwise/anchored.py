"""Losses on pairs in which each response's own log-ratio matters, not only their difference."""

import jax

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, check_shape


def apo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    *,
    beta: float = 0.1,
    kind: str = "zero",
    offset: bool = True,
) -> jax.Array:
    r"""Anchored preference optimisation: says whether the chosen response's likelihood is to rise or to fall.

    .. math::
        L_{zero} = -\sigma(R_w) + \sigma(R_l), \quad L_{down} = \sigma(R_w) - \sigma(R_w - R_l), \quad
        R = \beta \log \frac{\pi(y|x)}{\pi_{ref}(y|x)}

    ``zero`` raises the chosen and lowers the rejected response: for chosen responses better than the model's own.
    ``down`` lowers both, the rejected one more: for a model that is already better than its data.

    See *Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment*
    (https://arxiv.org/abs/2408.06266).

    Variant: ``offset`` adds the constant 1 that trainers have, after which values lie in [0, 2] and are 1 at the
    reference; gradients are the same without it.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        beta: strength of the KL constraint, > 0.
        kind: ``zero`` or ``down``.
        offset: whether 1 is added.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    domains.choice(("zero", "down"), kind=kind)
    chosen, rejected = scores.pair_log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    # 1 - sigmoid(x) as sigmoid(-x): no cancellation once it is small.
    if kind == "zero":
        shifted = jax.nn.sigmoid(-beta * chosen) + jax.nn.sigmoid(beta * rejected)
    else:
        shifted = jax.nn.sigmoid(beta * chosen) + jax.nn.sigmoid(-beta * (chosen - rejected))
    return shifted if offset else shifted - 1


def nca_pair_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    *,
    beta: float = 0.01,
    loss_type: str = "NCA",
) -> jax.Array:
    r"""Noise contrastive alignment on pairs: each response is told apart from the reference by itself.

    .. math::
        L = -\log \sigma(R_w) - \tfrac12 \log \sigma(-R_w) - \tfrac12 \log \sigma(-R_l), \quad
        R = \beta \log \frac{\pi(y|x)}{\pi_{ref}(y|x)}

    Absolute rewards keep the chosen response's likelihood from falling with the rejected one's.

    See *Noise Contrastive Alignment of Language Models with Explicit Rewards* (https://arxiv.org/abs/2402.05369).

    Variant: ``biasedNCA`` is :math:`-\log \sigma(R_w) - \log \sigma(-R_l)`, which is the pairwise binary classifier
    loss without its shift. The paper's InfoNCA on pairs is :func:`dpo_loss`.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        beta: strength of the KL constraint, > 0.
        loss_type: ``NCA`` or ``biasedNCA``.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    domains.choice(("NCA", "biasedNCA"), loss_type=loss_type)
    ratios = scores.pair_log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    chosen, rejected = (beta * ratio for ratio in ratios)
    if loss_type == "biasedNCA":
        return links.logistic(chosen) + links.logistic(-rejected)
    return links.logistic(chosen) + (links.logistic(-chosen) + links.logistic(-rejected)) / 2


def dpop_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    *,
    beta: float = 0.3,
    lam: float = 50.0,
) -> jax.Array:
    r"""DPO-Positive: a chosen response that falls below its reference likelihood costs margin.

    .. math::
        L = -\log \sigma\!\left( z - \beta \lambda \max\!\left(0, \log \frac{\pi_{ref}(y_w|x)}{\pi(y_w|x)} \right)
        \right)

    with z as in :func:`dpo_loss`. Without a fall it is DPO.

    See *Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive* (https://arxiv.org/abs/2402.13228).

    Variant: the penalty stands inside the sigmoid and is scaled by beta.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        beta: strength of the KL constraint, > 0.
        lam: weight of the penalty, >= 0.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    domains.nonnegative(lam=lam)
    chosen, rejected = scores.pair_log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return links.logistic(beta * (chosen - rejected - lam * jax.nn.relu(-chosen)))


def flex_dpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    chosen_lengths: Array | None = None,
    *,
    beta_plus: float = 0.1,
    beta_minus: float = 0.05,
    sft_weight: float = 0.0,
) -> jax.Array:
    r"""Flex-DPO: a smaller beta for the rejected response, whose likelihood would otherwise fall first and furthest.

    .. math::
        L = -\log \sigma(\beta_+ a - \beta_- b) - \frac{c}{n_w} \log \pi(y_w|x), \quad
        a = \log \frac{\pi(y_w|x)}{\pi_{ref}(y_w|x)}, \quad b = \log \frac{\pi(y_l|x)}{\pi_{ref}(y_l|x)}

    Equal betas without the likelihood term are DPO.

    See *3D-Properties: Identifying Challenges in DPO and Charting a Path Forward* (https://arxiv.org/abs/2406.07327).

    Variant: the likelihood term is the chosen response's token mean, not its sum.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        chosen_lengths: ``[B]``, tokens of the chosen responses; only a ``sft_weight`` other than 0 needs them.
        beta_plus: scale of the chosen response's log-ratio, > 0.
        beta_minus: scale of the rejected response's log-ratio, >= 0, and below ``beta_plus`` to be of use.
        sft_weight: weight c >= 0 of the likelihood term.

    Returns:
        ``[B]``.
    """
    domains.positive(beta_plus=beta_plus)
    domains.nonnegative(beta_minus=beta_minus, sft_weight=sft_weight)
    domains.zero_without("chosen_lengths", chosen_lengths, sft_weight=sft_weight)
    chosen, rejected = scores.pair_log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    values = links.logistic(beta_plus * chosen - beta_minus * rejected)
    if chosen_lengths is None:
        return values
    check_shape(chosen.shape, chosen_lengths=chosen_lengths)
    return values - sft_weight * scores.average(chosen_logps, chosen_lengths)
