"""Identity preference optimisation."""

import jax

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array


def ipo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    chosen_lengths: Array | None = None,
    rejected_lengths: Array | None = None,
    *,
    tau: float = 0.1,
    normalize: str = "length",
) -> jax.Array:
    r"""Identity preference optimisation: regress the margin to a target instead of pushing it for ever.

    .. math:: L = \left( h_w - h_l - \frac{1}{2 \tau} \right)^2, \quad
        h = \frac{1}{n} \log \frac{\pi(y|x)}{\pi_{ref}(y|x)}

    See *A General Theoretical Paradigm to Understand Learning from Human Preferences* (https://arxiv.org/abs/2310.12036).

    Variant: ``normalize="length"`` divides each log-ratio by its number n of response tokens, as the authors have said
    their results do; ``normalize="sum"`` is the paper's equation as printed (n = 1), for which tau has to be smaller by
    about the length. Some frameworks call tau beta.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        chosen_lengths, rejected_lengths: ``[B]``, tokens of the responses; only ``normalize="length"`` needs them.
        tau: regularisation, > 0; the margin is drawn to 1 / (2 tau).
        normalize: ``length`` or ``sum``.

    Returns:
        ``[B]``.
    """
    domains.positive(tau=tau)
    domains.choice(("length", "sum"), normalize=normalize)
    chosen, rejected = scores.pair_log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    if normalize == "length":
        if chosen_lengths is None or rejected_lengths is None:
            raise ValueError("normalize is 'length', which needs chosen_lengths and rejected_lengths.")
        chosen, rejected = scores.average(chosen, chosen_lengths), scores.average(rejected, rejected_lengths)
    return links.squared(chosen - rejected, 1 / (2 * tau))
