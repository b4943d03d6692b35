"""Direct preference optimisation that accounts for the lengths of responses."""

import chex
import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, check_shape, floating, masked_sum
from jaxpref.losses.pairwise.dpo import dpo_loss


def ln_dpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    chosen_lengths: Array,
    rejected_lengths: Array,
    *,
    beta: float = 5.0,
) -> jax.Array:
    r"""Length-normalised DPO: log-ratios per token.

    .. math::
        L = -\log \sigma\!\left( \beta \left[ \frac{1}{n_w} \log \frac{\pi(y_w|x)}{\pi_{ref}(y_w|x)}
        - \frac{1}{n_l} \log \frac{\pi(y_l|x)}{\pi_{ref}(y_l|x)} \right] \right)

    Of two responses of n tokens it is DPO with beta / n, so beta is some fifty times that of DPO.

    See *The Hitchhiker's Guide to Human Alignment with *PO* (https://arxiv.org/abs/2407.15229).

    Variant: the same as ``dpo_norm`` and ``sigmoid_norm`` of other frameworks. Lengths count response tokens, the
    end-of-sequence token included.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        chosen_lengths, rejected_lengths: ``[B]``, tokens of the responses.
        beta: strength of the KL constraint per token, > 0.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    chosen, rejected = scores.pair_log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    check_shape(chosen.shape, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    margin = scores.average(chosen, chosen_lengths) - scores.average(rejected, rejected_lengths)
    return links.logistic(beta * margin)


def r_dpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    chosen_lengths: Array,
    rejected_lengths: Array,
    *,
    beta: float = 0.1,
    alpha: float = 0.05,
) -> jax.Array:
    r"""Length-regularised DPO: the reward is charged alpha per token, so a long chosen response needs less margin.

    .. math:: L = -\log \sigma(z + \alpha (n_w - n_l))

    with z as in :func:`dpo_loss`. Of equally long responses it is DPO.

    See *Disentangling Length from Quality in Direct Preference Optimization* (https://arxiv.org/abs/2403.19159).

    Variant: the sign is plus, as it follows from the reward :math:`r(y) - \alpha |y|`; copies with a minus favour
    length.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        chosen_lengths, rejected_lengths: ``[B]``, tokens of the responses.
        beta: strength of the KL constraint, > 0.
        alpha: price of a token, >= 0.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    domains.nonnegative(alpha=alpha)
    margin = scores.pair_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    check_shape(margin.shape, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    excess = floating(chosen_lengths) - floating(rejected_lengths)
    return links.logistic(beta * margin + alpha * excess)


def ld_logps(token_logps: Array, mask: Array, other_length: Array, *, ld_alpha: float = 0.5) -> jax.Array:
    r"""Length-desensitised log-probability: tokens beyond the length of the pair's other response count for less.

    .. math:: \sum_{t \le m} \log \pi(y_t) + \alpha \sum_{t > m} \log \pi(y_t), \quad m = \min(n, n_{other})

    See *Length Desensitization in Direct Preference Optimization* (https://arxiv.org/abs/2409.06411).

    Args:
        token_logps: ``[B, T]``; anything where masked.
        mask: ``[B, T]``, 1 on response tokens, the end-of-sequence token included. They are counted by it, so the
            response may start anywhere.
        other_length: ``[B]``, tokens of the other response.
        ld_alpha: weight of the tokens beyond it, in [0, 1]; 1 is the plain sum, 0 cuts the longer response off.

    Returns:
        ``[B]``.
    """
    domains.fraction(ld_alpha=ld_alpha)
    chex.assert_rank(token_logps, 2, custom_message="argument token_logps")
    check_shape(jnp.shape(token_logps), mask=mask)
    check_shape(jnp.shape(token_logps)[:1], other_length=other_length)
    mask = jnp.asarray(mask).astype(bool)
    shared = jnp.cumsum(mask, axis=-1) <= jnp.asarray(other_length)[:, None]
    return masked_sum(jnp.where(shared, 1, ld_alpha) * floating(token_logps), mask)


def ld_dpo_loss(
    chosen_token_logps: Array,
    rejected_token_logps: Array,
    ref_chosen_token_logps: Array,
    ref_rejected_token_logps: Array,
    chosen_mask: Array,
    rejected_mask: Array,
    *,
    beta: float = 0.1,
    ld_alpha: float = 0.5,
) -> jax.Array:
    r"""Length-desensitised DPO: :func:`dpo_loss` on the log-probabilities of :func:`ld_logps`.

    See *Length Desensitization in Direct Preference Optimization* (https://arxiv.org/abs/2409.06411).

    Variant: policy and reference are weighted alike; one framework weights the policy only, which is another loss.

    Args:
        chosen_token_logps, rejected_token_logps: ``[B, T]``, log-probabilities of the response tokens under the policy;
            anything where masked.
        ref_chosen_token_logps, ref_rejected_token_logps: ``[B, T]``, the same under the reference; constants.
        chosen_mask, rejected_mask: ``[B, T]``, 1 on response tokens; the T of the two responses may differ.
        beta: strength of the KL constraint, > 0.
        ld_alpha: weight of tokens beyond the length of the shorter response, in [0, 1]; 1 is DPO.

    Returns:
        ``[B]``.
    """
    chex.assert_rank(chosen_token_logps, 2, custom_message="argument chosen_token_logps")
    chex.assert_rank(rejected_token_logps, 2, custom_message="argument rejected_token_logps")
    chex.assert_equal_shape_prefix(
        [jnp.asarray(chosen_token_logps), jnp.asarray(rejected_token_logps)], 1,
        custom_message="argument rejected_token_logps",
    )  # fmt: skip
    check_shape(jnp.shape(chosen_token_logps), ref_chosen_token_logps=ref_chosen_token_logps, chosen_mask=chosen_mask)
    check_shape(
        jnp.shape(rejected_token_logps), ref_rejected_token_logps=ref_rejected_token_logps, rejected_mask=rejected_mask
    )
    lengths = [jnp.sum(jnp.asarray(mask).astype(bool), axis=-1) for mask in (chosen_mask, rejected_mask)]

    def desensitised(chosen, rejected):
        return (
            ld_logps(chosen, chosen_mask, lengths[1], ld_alpha=ld_alpha),
            ld_logps(rejected, rejected_mask, lengths[0], ld_alpha=ld_alpha),
        )

    policy = desensitised(chosen_token_logps, rejected_token_logps)
    return dpo_loss(*policy, *desensitised(ref_chosen_token_logps, ref_rejected_token_logps), beta=beta)
