"""Vectors of evaluation metrics."""

from typing import Any

import jax.numpy as jnp

from jaxpref import evaluation

NAMES = ("eval_displacement_metrics", "eval_kl_estimators", "eval_win_rate")


def evaluate(name: str, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """Computes the metrics of a case."""
    if name == "eval_kl_estimators":
        return {"kl": evaluation.kl_estimators(**inputs, **params)}
    metrics = evaluation.win_rate if name == "eval_win_rate" else evaluation.preference_metrics
    return {metric: jnp.asarray(value, float) for metric, value in metrics(**inputs, **params).items()}
