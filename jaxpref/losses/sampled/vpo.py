"""Value-incentivised preference optimisation."""

import jax

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array


def vpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    cal_logps: Array,
    ref_cal_logps: Array,
    *,
    beta: float = 0.1,
    alpha: float = 0.1,
    sign: int = -1,
) -> tuple[jax.Array, jax.Array]:
    r"""Value-incentivised preference optimisation: DPO, optimistic or pessimistic about what the pairs do not show.

    .. math::
        L = \frac1B \sum_i -\log \sigma(z_i)
            + s\, \alpha \beta\, \frac1M \sum_j \log \frac{\pi(y^{cal}_j|x_j)}{\pi_{ref}(y^{cal}_j|x_j)}

    with z as in :func:`dpo_loss`. The reward is calibrated to the mean 0 over the responses :math:`y^{cal}`, which
    turns the value of its optimal policy into minus beta times the mean that the second sum weighs.

    See *Value-Incentivized Preference Optimization: A Unified Approach to Online and Offline RLHF*
    (https://arxiv.org/abs/2405.19320).

    Variant: ``sign=-1``, offline, is pessimistic and raises the probability of the calibration responses; with the
    chosen ones as these it adds ``alpha * beta`` times their summed negative log-likelihood to DPO. ``sign=1``, online,
    is optimistic and pushes away from them; there they are samples of the reference. The names of a config calibrate by
    the chosen responses (``vpo``) or by samples (``vpo_samples``, with ``sample_logps`` and ``ref_sample_logps``).

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        cal_logps, ref_cal_logps: ``[M]``, of the calibration responses under policy and reference (a constant).
        beta: strength of the KL constraint, > 0.
        alpha: weight of the value, >= 0, in units of beta.
        sign: -1 offline, 1 online.

    Returns:
        ``(values of the pairs [B], values of the calibration responses [M])``; the loss is the sum of the two means.
    """
    domains.positive(beta=beta)
    domains.nonnegative(alpha=alpha)
    domains.sign(sign=sign)
    margin = scores.pair_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return links.logistic(beta * margin), sign * alpha * beta * scores.log_ratio(cal_logps, ref_cal_logps)
