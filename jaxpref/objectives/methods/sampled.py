"""Methods that read other responses than those of the pair."""

import functools
import math

import jax
import jax.numpy as jnp

from jaxpref import losses
from jaxpref.losses.arrays import Array, check_shape
from jaxpref.objectives.registry import register


@functools.wraps(losses.vpo_loss)
def _offline_vpo(*arrays, **bound):
    """Offline there is one calibration response, the chosen one, for every pair: both means are over pairs."""
    pairs, calibration = losses.vpo_loss(*arrays, **bound)
    return pairs + calibration


def _vpo_samples(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    sample_logps: Array,
    ref_sample_logps: Array,
    *,
    beta: float = 0.1,
    alpha: float = 0.1,
    sign: int = 1,
):
    """Each pair with the sum over its samples, of which those that are absent have a log-ratio of 0."""
    shape = *jnp.shape(chosen_logps), jnp.shape(sample_logps)[-1]
    check_shape(shape, sample_logps=sample_logps, ref_sample_logps=ref_sample_logps)
    pair = chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    flat = (sample_logps.ravel(), ref_sample_logps.ravel())
    pairs, calibration = losses.vpo_loss(*pair, *flat, beta=beta, alpha=alpha, sign=sign)
    return pairs + jnp.sum(calibration.reshape(shape), axis=-1)


@functools.wraps(losses.hypo_loss)
def _hypo(*arrays, **bound):
    """Each pair with the sum over its samples."""
    pairs, online, _ = losses.hypo_loss(*arrays, **bound)
    return pairs + jnp.sum(online, axis=-1)


def _mean_over_samples(weight: str):
    """A term that is a mean over the samples of the batch, as sums over those of each example."""
    reduction = {weight: lambda value, counts: value * counts["examples"] / counts["samples"]}
    return lambda hyperparameters: (reduction, "examples")


def _dft1(
    positive_logps: Array,
    negative_logps: Array,
    ref_negative_logps: Array,
    sample_mask: Array,
    state: dict[str, Array],
    ids: Array | None = None,
    where: Array | None = None,
    *,
    tau: float = 1.0,
    gamma: float = 0.85,
):
    arrays = {"ref_negative_logps": ref_negative_logps, "sample_mask": sample_mask, "where": where}
    options = {"variant": "dft1", "tau": tau, "gamma": gamma}
    return _dft(positive_logps, positive_logps, negative_logps, ids, state, **arrays, **options)


def _dft2(
    positive_logps: Array,
    negative_logps: Array,
    positive_lengths: Array,
    negative_lengths: Array,
    sample_mask: Array,
    state: dict[str, Array],
    ids: Array | None = None,
    where: Array | None = None,
    *,
    tau: float = 0.3,
    gamma: float = 0.9,
):
    arrays = {"positive_lengths": positive_lengths, "negative_lengths": negative_lengths}
    options = {"variant": "dft2", "tau": tau, "gamma": gamma, "sample_mask": sample_mask, "where": where}
    score = losses.scores.average(positive_logps, positive_lengths)
    return _dft(score, positive_logps, negative_logps, ids, state, **arrays, **options)


def _dft(score, positive_logps, negative_logps, ids, state, *, sample_mask, gamma, **bound):
    """The aim, with the gradient of its surrogate. Examples that are not trained on have no average but the batch's."""
    log_u, places = state["log_u"], ids
    if ids is None:
        log_u, places, gamma = jnp.zeros(score.size), jnp.arange(score.size), 1.0
    arrays = positive_logps, negative_logps, places, log_u
    surrogate, log_u = losses.dft_loss(*arrays, sample_mask=sample_mask, gamma=gamma, **bound)
    aim = bound["tau"] * jnp.where(jnp.any(sample_mask, axis=-1), log_u[places], 0) - score
    values = surrogate + jax.lax.stop_gradient(aim - surrogate)
    return values, state if ids is None else {"log_u": log_u}


DFT_TITLE = (
    "Discriminative Finetuning of Generative Large Language Models without Reward Models and Human Preference Data"
)

for _function, _loss in ((_vpo_samples, losses.vpo_loss), (_dft1, losses.dft_loss), (_dft2, losses.dft_loss)):
    _function.__name__, _function.__doc__ = _loss.__name__, _loss.__doc__

register(
    "vpo",
    _offline_vpo,
    feedback="pairs",
    title="Value-Incentivized Preference Optimization: A Unified Approach to Online and Offline RLHF",
    url="https://arxiv.org/abs/2405.19320",
    formula="dpo + sign alpha beta (log-ratio of the chosen response)",
    disagreements="Calibrates by the chosen responses, as offline (sign -1); vpo_samples by samples, as online.",
    at_reference=lambda hyperparameters, side: math.log(2),
)
register(
    "vpo_samples",
    _vpo_samples,
    feedback="pairs",
    title="Value-Incentivized Preference Optimization: A Unified Approach to Online and Offline RLHF",
    url="https://arxiv.org/abs/2405.19320",
    formula="dpo + sign alpha beta (mean log-ratio of the samples)",
    disagreements="The samples come with the data: online (sign 1, away from them) those of the reference.",
    at_reference=lambda hyperparameters, side: math.log(2),
    reduction=_mean_over_samples("alpha"),
)
register(
    "hypo",
    _hypo,
    feedback="pairs",
    title="The Importance of Online Data: Understanding Preference Fine-tuning via Coverage",
    url="https://arxiv.org/abs/2406.01462",
    formula="dpo + lam mean over samples of (log-ratio - baseline) log p(sample), the factor constant",
    disagreements="The samples come with the data. To stay the policy's own they have to be drawn again between stages "
    "(jaxpref generate --samples). Clipping the reference's margin, also called HyPO, is hybrid_dpo.",
    surrogate=True,
    at_reference=lambda hyperparameters, side: math.log(2),
    reduction=_mean_over_samples("lam"),
)
register(
    "dft1",
    _dft1,
    feedback="demonstrations",
    title=DFT_TITLE,
    url="https://arxiv.org/abs/2502.18679",
    formula="-s + tau log u, s = log p; u each example's moving average of mean over samples of exp(s / tau) / p_ref",
    disagreements="The samples, which the reference drew, come with the data, and all of them are read in every epoch "
    "(official: 2 of 8 in turn). The value is the aim, the gradient its surrogate's. dynamic_ft is also called DFT.",
    coupled=True,
    init_state=lambda hyperparameters: {"log_u": jnp.zeros(hyperparameters["examples"])},
)
register(
    "dft2",
    _dft2,
    feedback="demonstrations",
    title=DFT_TITLE,
    url="https://arxiv.org/abs/2502.18679",
    formula="-s + tau log u, s = average log p; u each example's moving average of mean over samples of exp(s / tau)",
    disagreements="dft1 with averages and without a reference: it does not correct for who drew the samples.",
    coupled=True,
    init_state=lambda hyperparameters: {"log_u": jnp.zeros(hyperparameters["examples"])},
)
register(
    "copg",
    losses.copg_loss,
    feedback="ranked",
    title="Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in a supervised-friendly fashion",
    url="https://arxiv.org/abs/2406.19185",
    formula="sum over pairs of responses of (difference of (score - beta log-ratio))^2 / 2 / (responses - 1)",
    disagreements="The paper ascends the direction without the factor beta; a technical report leaves out the half.",
)
register(
    "knowpat",
    losses.knowpat_loss,
    feedback="ranked",
    title="Knowledgeable Preference Alignment for LLMs in Domain-specific Question Answering",
    url="https://arxiv.org/abs/2311.06503",
    formula="lam alignment + average NLL(best), the alignment of each response with all that rank below it",
    disagreements="The alignment is divided by the number of responses - 1; the official code divides by 3 always.",
    reward_scale="",
)
