"""Scores: held-out preference metrics, gold rewards and win rates in a world, KL estimates, and their intervals."""

from jaxpref.evaluation import divergence, gold, preferences, ranking, statistics, wins
from jaxpref.evaluation.divergence import kl_estimators, sequence_kl
from jaxpref.evaluation.preferences import preference_metrics
from jaxpref.evaluation.ranking import dpo_loss_threshold, idealized_ranking_accuracy, ranking_accuracy
from jaxpref.evaluation.statistics import Interval
from jaxpref.evaluation.wins import head_to_head, win_rate

__all__ = [
    "Interval",
    "divergence",
    "dpo_loss_threshold",
    "gold",
    "head_to_head",
    "idealized_ranking_accuracy",
    "kl_estimators",
    "preference_metrics",
    "preferences",
    "ranking",
    "ranking_accuracy",
    "sequence_kl",
    "statistics",
    "win_rate",
    "wins",
]
