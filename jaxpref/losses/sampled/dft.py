"""Discriminative fine-tuning."""

import chex
import jax
import jax.numpy as jnp

from jaxpref.losses import domains
from jaxpref.losses.arrays import Array, at_least_one, check_shape, floating, per_example, selection

# Of the two variants: temperature and moving average, and the optional arrays that they read.
DEFAULTS = {"dft1": (1.0, 0.85), "dft2": (0.3, 0.9)}
REQUIRED = {"dft1": ("ref_negative_logps",), "dft2": ("positive_lengths", "negative_lengths")}


def dft_loss(
    positive_logps: Array,
    negative_logps: Array,
    ids: Array,
    log_u: Array,
    ref_negative_logps: Array | None = None,
    positive_lengths: Array | None = None,
    negative_lengths: Array | None = None,
    sample_mask: Array | None = None,
    where: Array | None = None,
    *,
    variant: str = "dft1",
    tau: float | None = None,
    gamma: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""Discriminative fine-tuning: a demonstration against everything else that the model might have said.

    The aim is :math:`-s(y) + \tau \log E_{y'} e^{s(y') / \tau}`, the expectation estimated by a moving average u for
    each demonstration. With m negatives,

    .. math::
        \log u \leftarrow \log\!\left[ (1 - \gamma) u + \frac{\gamma}{m} \sum_j e^{q_j} \right], \quad
        L = -s(y) + \frac1m \sum_j \mathrm{sg}\!\left( e^{q_j - \log u} \right) s(y'_j)

    The value is a surrogate that has the gradient of the aim; to report the aim take :math:`-s + \tau \log u`.

    See *Discriminative Finetuning of Generative Large Language Models without Reward Models and Human Preference Data*
    (https://arxiv.org/abs/2502.18679).

    Variant: ``dft1`` scores by the sum of log-probabilities and corrects for the generator of the negatives,
    :math:`q = s / \tau - \log p_0(y')`; ``dft2`` scores by the average and does not, :math:`q = s / \tau`. Dynamic
    fine-tuning, also DFT, is :func:`dynamic_ft_loss`.

    Args:
        positive_logps: ``[B]``, summed log-probabilities of the demonstrations under the policy.
        negative_logps: ``[B, m]``, of the negatives, samples of the initial model.
        ids: ``[B]`` integers, which entry of ``log_u`` belongs to each example. Where a demonstration comes twice, with
            the same negatives, its average moves once.
        log_u: ``[N]``, the moving averages of all N demonstrations; starts at 0. It is the running ``state`` of a run,
            and part of its checkpoints.
        ref_negative_logps: ``[B, m]``, ``dft1``: of the negatives under the model that made them, with the same plain
            prompt; constants.
        positive_lengths: ``[B]``, ``dft2``: tokens of the demonstrations.
        negative_lengths: ``[B, m]``, ``dft2``: tokens of the negatives.
        sample_mask: ``[B, m]``, negatives that are there, where rows have different numbers of them.
        where: ``[B]``, rows that count; excluded rows have value 0 and leave their moving average as it is.
        variant: ``dft1`` or ``dft2``.
        tau: temperature > 0, or None for 1.0 (``dft1``) or 0.3 (``dft2``).
        gamma: share of the batch in the moving average, above 0 and at most 1, or None for 0.85 or 0.9.

    Returns:
        ``(values [B], new log_u [N])``. Without negatives the values are negative log-likelihoods (per token: ``dft2``)
        and averages stay as they are.
    """
    domains.choice(DEFAULTS, variant=variant)
    tau = DEFAULTS[variant][0] if tau is None else tau
    gamma = DEFAULTS[variant][1] if gamma is None else gamma
    domains.positive(tau=tau)
    domains.above_zero_to_one(gamma=gamma)
    (positive,) = per_example(positive_logps=positive_logps)
    chex.assert_rank(negative_logps, 2, custom_message="argument negative_logps")
    chex.assert_rank(log_u, 1, custom_message="argument log_u")
    check_shape((positive.size, jnp.shape(negative_logps)[1]), negative_logps=negative_logps)
    check_shape(positive.shape, ids=ids)
    rows, log_u = selection(where, positive.size), floating(log_u)
    present = jnp.ones(jnp.shape(negative_logps), bool) if sample_mask is None else sample_mask
    check_shape(jnp.shape(negative_logps), sample_mask=present)
    present = rows[:, None] & jnp.asarray(present).astype(bool)
    positive = jnp.where(rows, positive, 0)
    negative = jnp.where(present, floating(negative_logps), 0)
    generator, lengths, negative_lengths = _optional(
        variant,
        ref_negative_logps=(ref_negative_logps, present),
        positive_lengths=(positive_lengths, rows),
        negative_lengths=(negative_lengths, present),
    )
    if variant == "dft2":
        positive, negative, generator = positive / at_least_one(lengths), negative / at_least_one(negative_lengths), 0.0
    if not negative.shape[1]:
        return -positive, log_u

    count = jnp.sum(present, axis=-1)
    moving = count > 0
    exponents = jax.lax.stop_gradient(negative / tau - generator)
    # Rows without negatives, or that do not count, point past the end: nothing is read or written there.
    place = jnp.where(moving, jnp.asarray(ids), log_u.size)
    before = jnp.where(moving, log_u.at[place].get(mode="fill", fill_value=jnp.nan), 0)
    batch = jax.nn.logsumexp(exponents, axis=-1, where=present | ~moving[:, None]) - jnp.log(at_least_one(count))
    after = jax.lax.stop_gradient(jnp.logaddexp(jnp.log1p(-gamma) + before, jnp.log(gamma) + batch))
    weights = jnp.where(present, jnp.exp(jnp.where(present, exponents - after[:, None], 0)), 0)
    values = jnp.where(rows, jnp.sum(weights * negative, axis=-1) / at_least_one(count) - positive, 0)
    # A maximum, which is the same in any order, for entries that come twice.
    moved = jnp.full_like(log_u, -jnp.inf).at[place].max(after, mode="drop")
    return values, jnp.where(jnp.isneginf(moved), log_u, moved)


def _optional(variant: str, **arrays: tuple[Array | None, jax.Array]) -> list[jax.Array | None]:
    """Arrays that a variant may do without, each with a mask of what counts: checked where given, zero elsewhere."""
    made = []
    for name, (value, mask) in arrays.items():
        if value is None and name in REQUIRED[variant]:
            raise ValueError(f"variant is {variant!r}, which needs {name}.")
        if value is not None:
            check_shape(mask.shape, **{name: value})
            value = jnp.where(mask, floating(value), 0)
        made.append(value)
    return made
