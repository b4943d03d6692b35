"""Win rates with ties: who is preferred to whom, how often."""

import math
from collections.abc import Sequence

import numpy as np

from jaxpref.errors import DataError


def outcomes(scores: np.ndarray, opponent_scores: np.ndarray, *, tie: float = 0.0) -> np.ndarray:
    """1 for a win, 0 for a loss, 1/2 for a tie (scores that differ by at most ``tie``), ``[N]``.

    Their mean is the win rate; see :mod:`jaxpref.evaluation.statistics` for its interval.
    """
    scores, opponent_scores = np.asarray(scores, np.float64), np.asarray(opponent_scores, np.float64)
    if scores.shape != opponent_scores.shape:
        raise DataError(f"Both sides need a score per example; found {scores.shape} and {opponent_scores.shape}.")
    difference = scores - opponent_scores
    if np.isnan(difference).any():
        raise DataError(
            f"{np.isnan(difference).sum()} of {difference.size} comparisons have no score; drop and count them."
        )
    return np.where(np.abs(difference) <= tie, 0.5, difference > 0)


def win_rate(preference: Sequence[float | None]) -> dict[str, float]:
    """Win rate in the convention of AlpacaEval: 1 the baseline wins, 2 the model wins, 0 or 1.5 a tie.

    Values between 1 and 2 are probabilities plus one. Missing verdicts (None, nan) are dropped and counted.
    See *AlpacaEval: An Automatic Evaluator of Instruction-following Models* (https://github.com/tatsu-lab/alpaca_eval).

    Returns:
        ``win_rate``: 100 x mean of (preference - 1), ties 1/2; ``standard_error``: 100 x standard deviation
        (``ddof=1``) / sqrt(n), nan for one example; ``n_wins``, ``n_wins_base``, ``n_draws``: after rounding all but
        exact ties to 1 or 2; ``n_total``, ``n_missing``; ``discrete_win_rate``: 100 x (wins + draws / 2) / n.
    """
    verdicts = np.array([math.nan if verdict is None else verdict for verdict in preference], np.float64)
    missing = np.isnan(verdicts)
    verdicts = verdicts[~missing]
    if not len(verdicts):
        raise DataError(f"A win rate needs at least one verdict; all {len(missing)} are missing.")
    wrong = (verdicts != 0) & ((verdicts < 1) | (verdicts > 2))
    if wrong.any():
        raise DataError(f"A verdict is 0 or lies in [1, 2]; found {verdicts[wrong][0]}.")
    verdicts = np.where(verdicts == 0, 1.5, verdicts)
    draws = int(np.sum(verdicts == 1.5))
    wins = int(np.sum(verdicts > 1.5))
    total = len(verdicts)
    return {
        "win_rate": 100 * float(np.mean(verdicts - 1)),
        "standard_error": 100 * float(verdicts.std(ddof=1)) / math.sqrt(total) if total > 1 else math.nan,
        "n_wins": wins,
        "n_wins_base": total - wins - draws,
        "n_draws": draws,
        "n_total": total,
        "n_missing": int(missing.sum()),
        "discrete_win_rate": 100 * (wins + draws / 2) / total,
    }


def head_to_head(preference_ab: Sequence[float], preference_ba: Sequence[float]) -> dict[str, float]:
    """Win rate of A over B from a judge that saw each pair in both orders.

    The two probabilities of an example are averaged before anything else, which removes a judge's taste for a position.

    Args:
        preference_ab: ``[N]`` verdicts of :func:`win_rate` with B as baseline and A as model, A shown first.
        preference_ba: the same pairs judged with A as baseline and B as model, B shown first.
    """
    first, second = (np.array(verdicts, np.float64) for verdicts in (preference_ab, preference_ba))
    if first.shape != second.shape:
        raise DataError(f"Both orders must judge the same pairs; found {first.size} and {second.size} verdicts.")
    first, second = np.where(first == 0, 1.5, first), np.where(second == 0, 1.5, second)
    return win_rate(((first + (3 - second)) / 2).tolist())
