"""Pairs whose two sides need not share a prompt: the prompt itself carries preference."""

import jax

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, check_shape, per_example


def dove_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    chosen_prompt_logps: Array,
    rejected_prompt_logps: Array,
    ref_chosen_prompt_logps: Array,
    ref_rejected_prompt_logps: Array,
    *,
    beta: float = 0.1,
) -> jax.Array:
    r"""Joint preference optimisation (DOVE): DPO on the probability of an instruction together with its response.

    .. math::
        L = -\log \sigma\!\left( \beta \left[
            \log \frac{\pi(x_w, y_w)}{\pi_{ref}(x_w, y_w)} - \log \frac{\pi(x_l, y_l)}{\pi_{ref}(x_l, y_l)}
        \right] \right), \quad \log \pi(x, y) = \log \pi(x) + \log \pi(y|x)

    Where both sides have the same instruction its probability cancels, which leaves DPO.

    See *Comparing Bad Apples to Good Oranges: Aligning Large Language Models via Joint Preference Optimization*
    (https://arxiv.org/abs/2404.00530).

    Variant: the first token of a prompt has no probability, and the tokens of the chat template count as the prompt's,
    as in the official code.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses, each under its own prompt.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        chosen_prompt_logps, rejected_prompt_logps: ``[B]``, summed log-probabilities of the two prompts.
        ref_chosen_prompt_logps, ref_rejected_prompt_logps: ``[B]``, the same under the reference; constants.
        beta: strength of the KL constraint, > 0.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    chosen, rejected = scores.pair_log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    check_shape(
        chosen.shape,
        chosen_prompt_logps=chosen_prompt_logps,
        rejected_prompt_logps=rejected_prompt_logps,
        ref_chosen_prompt_logps=ref_chosen_prompt_logps,
        ref_rejected_prompt_logps=ref_rejected_prompt_logps,
    )
    chosen += scores.log_ratio(chosen_prompt_logps, ref_chosen_prompt_logps)
    rejected += scores.log_ratio(rejected_prompt_logps, ref_rejected_prompt_logps)
    return links.logistic(beta * (chosen - rejected))


def mapl_intra_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    *,
    beta: float = 0.1,
) -> jax.Array:
    r"""Multi-level aware preference learning inside a sample: one response fits one prompt better than another.

    .. math::
        L = -\log \sigma\!\left( \beta \left[
            \log \frac{\pi(y|x_w)}{\pi_{ref}(y|x_w)} - \log \frac{\pi(y|x_l)}{\pi_{ref}(y|x_l)}
        \right] \right)

    See *Multi-Level Aware Preference Learning: Enhancing RLHF for Complex Multi-Instruction Tasks*
    (https://arxiv.org/abs/2505.12845).

    Variant: the form for policies. The partition functions of the two prompts do not cancel and are left out, as the
    paper does; with a reward model the same link is applied to its two scores
    (:func:`jaxpref.losses.bradley_terry_loss`).

    Args:
        chosen_logps: ``[B]``, summed log-probability of the response under the prompt that it fulfils.
        rejected_logps: ``[B]``, of the *same* response under the prompt that it does not.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        beta: strength of the KL constraint, > 0.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    margin = scores.pair_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return links.logistic(beta * margin)


def mapl_inter_loss(
    hi_chosen_logps: Array,
    hi_rejected_logps: Array,
    hi_ref_chosen_logps: Array,
    hi_ref_rejected_logps: Array,
    lo_chosen_logps: Array,
    lo_rejected_logps: Array,
    lo_ref_chosen_logps: Array,
    lo_ref_rejected_logps: Array,
    *,
    beta: float = 0.1,
) -> jax.Array:
    r"""Multi-level aware preference learning between samples: a pair is further apart under one prompt than another.

    .. math::
        L = -\log \sigma(m(x_{hi}) - m(x_{lo})), \quad
        m(x) = \beta \left[
            \log \frac{\pi(y_w|x)}{\pi_{ref}(y_w|x)} - \log \frac{\pi(y_l|x)}{\pi_{ref}(y_l|x)} \right]

    See *Multi-Level Aware Preference Learning: Enhancing RLHF for Complex Multi-Instruction Tasks*
    (https://arxiv.org/abs/2505.12845).

    Variant: a reconstruction from the paper's description, in the form for policies; both margins are of one pair.

    Args:
        hi_chosen_logps, hi_rejected_logps: ``[B]``, summed log-probabilities of the responses under the prompt that
            should tell them apart more.
        hi_ref_chosen_logps, hi_ref_rejected_logps: ``[B]``, the same under the reference; constants.
        lo_chosen_logps, lo_rejected_logps: ``[B]``, of the same responses under the prompt that should do so less.
        lo_ref_chosen_logps, lo_ref_rejected_logps: ``[B]``, the same under the reference; constants.
        beta: strength of the KL constraint, > 0.

    Returns:
        ``[B]``.
    """
    domains.positive(beta=beta)
    values = per_example(
        hi_chosen_logps=hi_chosen_logps,
        hi_rejected_logps=hi_rejected_logps,
        hi_ref_chosen_logps=hi_ref_chosen_logps,
        hi_ref_rejected_logps=hi_ref_rejected_logps,
        lo_chosen_logps=lo_chosen_logps,
        lo_rejected_logps=lo_rejected_logps,
        lo_ref_chosen_logps=lo_ref_chosen_logps,
        lo_ref_rejected_logps=lo_ref_rejected_logps,
    )
    return links.logistic(beta * (scores.pair_margin(*values[:4]) - scores.pair_margin(*values[4:])))
