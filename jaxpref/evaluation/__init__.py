"""Scores: held-out preference metrics, gold rewards and win rates in a world, KL estimates, and their intervals."""

from jaxpref.evaluation import divergence, gold, preferences, statistics, wins
from jaxpref.evaluation.divergence import kl_estimators, sequence_kl
from jaxpref.evaluation.preferences import preference_metrics
from jaxpref.evaluation.statistics import Interval
from jaxpref.evaluation.wins import head_to_head, win_rate

__all__ = [
    "Interval",
    "divergence",
    "gold",
    "head_to_head",
    "kl_estimators",
    "preference_metrics",
    "preferences",
    "sequence_kl",
    "statistics",
    "win_rate",
    "wins",
]
