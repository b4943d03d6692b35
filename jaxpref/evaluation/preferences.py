"""Held-out preference metrics, from one array entry per example.

An evaluation collects arrays over its batches (:func:`collect`) and computes every number once at the end, from all
examples: no mean of means, no padding counted, no tail lost, the same whatever the evaluation's batch size.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from jaxpref.errors import DataError
from jaxpref.evaluation import statistics, wins


def collect(batches: Iterable[tuple[Mapping[str, np.ndarray], np.ndarray]], *, expected: int | None = None) -> dict:
    """Joins the batches of an evaluation into arrays over all examples ``[N, ...]``, without padding rows.

    Args:
        batches: of (name -> array with a leading batch axis, bool array of rows that are examples).
        expected: number of examples of the data set.

    Raises:
        DataError: when the batches hold another number of examples than expected, or none.
    """
    parts: dict[str, list[np.ndarray]] = {}
    count = 0
    for arrays, where in batches:
        where = np.asarray(where, bool)
        count += int(where.sum())
        for name, array in arrays.items():
            parts.setdefault(name, []).append(np.asarray(array)[where])
    if not count or expected not in (None, count):
        raise DataError(
            f"The evaluation scored {count} examples; expected {expected if expected is not None else 'some'}."
        )
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def preference_metrics(
    chosen_logps: np.ndarray,
    rejected_logps: np.ndarray,
    ref_chosen_logps: np.ndarray,
    ref_rejected_logps: np.ndarray,
    chosen_lengths: np.ndarray,
    rejected_lengths: np.ndarray,
    *,
    beta: float = 0.1,
) -> dict[str, float]:
    """Implicit rewards and likelihood displacement of held-out pairs, means over ``[N]`` examples.

    A falling chosen log-probability under a rising margin is ordinary for log-ratio losses, so both are shown. See
    *Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization*
    (https://arxiv.org/abs/2410.08847).

    Args:
        chosen_logps, rejected_logps: summed over response tokens under the policy, ``[N]``.
        ref_chosen_logps, ref_rejected_logps: the same under the reference.
        chosen_lengths, rejected_lengths: response tokens, ``[N]``.
        beta: scale of the implicit rewards ``beta * (logps - ref_logps)``.

    Returns:
        ``chosen_reward``, ``rejected_reward``, ``margin``; ``accuracy`` of implicit rewards (strict) and
        ``accuracy_ties_half``, which is 1/2 where policy and reference agree; ``ranking_accuracy`` of raw
        log-probabilities, ``ranking_accuracy_len_norm`` of their token means, ``ref_ranking_accuracy``;
        ``chosen_displacement`` and ``rejected_displacement`` (nats, without beta); ``frac_chosen_decreased`` and
        ``frac_both_decreased``.
    """
    given = (chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, chosen_lengths, rejected_lengths)
    chosen, rejected, ref_chosen, ref_rejected, chosen_tokens, rejected_tokens = _vectors(*given)
    shift_chosen, shift_rejected = chosen - ref_chosen, rejected - ref_rejected
    average_chosen, average_rejected = chosen / np.maximum(chosen_tokens, 1), rejected / np.maximum(rejected_tokens, 1)
    values = {
        "chosen_reward": beta * shift_chosen,
        "rejected_reward": beta * shift_rejected,
        "margin": beta * (shift_chosen - shift_rejected),
        "accuracy": shift_chosen > shift_rejected,
        "accuracy_ties_half": wins.outcomes(shift_chosen, shift_rejected),
        "ranking_accuracy": chosen > rejected,
        "ranking_accuracy_len_norm": average_chosen > average_rejected,
        "ref_ranking_accuracy": ref_chosen > ref_rejected,
        "chosen_displacement": shift_chosen,
        "rejected_displacement": shift_rejected,
        "frac_chosen_decreased": shift_chosen < 0,
        "frac_both_decreased": (shift_chosen < 0) & (shift_rejected < 0),
    }
    return {name: float(np.mean(value)) for name, value in values.items()}


def accuracy(margins: np.ndarray, *, confidence: float = 0.95) -> statistics.Interval:
    """Share of pairs with a positive margin (ties 1/2), Wilson interval over the pairs ``[N]``."""
    right = wins.outcomes(*_vectors(margins, np.zeros(np.shape(margins))))
    return statistics.wilson(float(right.sum()), len(right), confidence=confidence)


def longer_wins(chosen_lengths: np.ndarray, rejected_lengths: np.ndarray) -> np.ndarray:
    """The baseline that prefers the longer response: 1 if right, 0 if wrong, 1/2 at equal lengths, ``[N]``."""
    return wins.outcomes(chosen_lengths, rejected_lengths)


def against_length(margins: np.ndarray, chosen_lengths: np.ndarray, rejected_lengths: np.ndarray, **options) -> dict:
    """A scorer's accuracy next to "the longer one wins" on the same pairs ``[N]``.

    Returns:
        ``accuracy`` and ``longer_wins`` (Wilson intervals), ``difference`` (paired bootstrap), and
        ``accuracy_shorter``: the scorer's accuracy where the shorter response was chosen (None where it never was).
    """
    right = wins.outcomes(*_vectors(margins, np.zeros(np.shape(margins))))
    baseline = longer_wins(chosen_lengths, rejected_lengths)
    shorter = right[baseline == 0]
    return {
        "accuracy": statistics.wilson(float(right.sum()), len(right)),
        "longer_wins": statistics.wilson(float(baseline.sum()), len(baseline)),
        "difference": statistics.paired(right, baseline, **options),
        "accuracy_shorter": statistics.wilson(float(shorter.sum()), len(shorter)) if len(shorter) else None,
    }


def likelihood(logps: np.ndarray, lengths: np.ndarray, **options) -> dict[str, statistics.Interval]:
    """Held-out negative log-likelihood in nats: ``per_token`` (all tokens weigh the same) and ``per_response``.

    Args:
        logps: summed log-probability of each response, ``[N]``.
        lengths: its number of target tokens, ``[N]``.
        **options: of the bootstrap over responses.
    """
    logps, lengths = _vectors(logps, lengths)
    return {
        "per_token": statistics.ratio(-logps, lengths, **options),
        "per_response": statistics.bootstrap(-logps, **options),
    }


def reward_metrics(chosen_rewards: np.ndarray, rejected_rewards: np.ndarray) -> dict[str, float]:
    """A reward model on held-out pairs ``[N]``: accuracy (strict; ties 1/2), margin, Bradley-Terry loss in nats."""
    chosen, rejected = _vectors(chosen_rewards, rejected_rewards)
    margins = chosen - rejected
    return {
        "accuracy": float(np.mean(margins > 0)),
        "accuracy_ties_half": float(np.mean(wins.outcomes(chosen, rejected))),
        "margin": float(np.mean(margins)),
        "loss": float(np.mean(np.logaddexp(0, -margins))),
    }


def _vectors(*arrays: np.ndarray) -> list[np.ndarray]:
    arrays = [np.asarray(array, np.float64) for array in arrays]
    if any(array.shape != arrays[0].shape or array.ndim != 1 for array in arrays) or not arrays[0].size:
        raise DataError(
            f"Every array needs one entry per example; found shapes {[list(array.shape) for array in arrays]}."
        )
    if not all(math.isfinite(array.sum()) for array in arrays):
        raise DataError(
            "A log-probability, reward or length of the evaluation is not finite; look at the model's outputs."
        )
    return arrays
