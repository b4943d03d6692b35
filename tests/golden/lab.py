"""Vectors of displacement, ranking accuracy, and the didactic bandit."""

import jax.numpy as jnp

from jaxpref import analysis, evaluation, losses
from jaxpref.lab import didactic, tabular

NAMES = ("data_ches", "data_ches_masked", "data_displacement_toy", "eval_ranking_accuracy", "online_bandit_setup")


def evaluate(name, inputs, params):
    functions = {"eval_ranking_accuracy": ranking, "online_bandit_setup": bandit}
    if name in functions:
        return functions[name](inputs, params)
    if name == "data_displacement_toy":
        params = {key: value for key, value in params.items() if key != "tokens"}
        return analysis.displacement_toy(**inputs, **params)
    return {"ches": ches(dict(inputs), params)}


def ches(inputs, params):
    """Masks as they are, or all positions from the last of the prompt to the last but one of the row."""
    positions = jnp.arange(inputs["preferred_hidden"].shape[1])
    for side, index in (("preferred", "pref"), ("dispreferred", "dispref")):
        if f"{side}_mask" not in inputs:
            first = inputs.pop(f"{index}_last_prompt_index")[:, None]
            inputs[f"{side}_mask"] = (positions >= first) & (positions < positions[-1])
    return analysis.ches_score(**inputs, **params)


def ranking(inputs, params):
    pair = [inputs[key] for key in ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")]
    lengths = inputs["chosen_lengths"], inputs["rejected_lengths"]
    correct, accuracy = evaluation.ranking_accuracy(*pair[:2])
    log_ratio, idealized = evaluation.idealized_ranking_accuracy(*pair[2:], inputs["alpha"], **params)
    values, threshold = losses.dpo_loss(*pair, **params), evaluation.dpo_loss_threshold(*pair[2:], **params)
    return {
        "ranking_correct": correct,
        "ranking_accuracy": accuracy,
        "ranking_accuracy_length_norm": evaluation.ranking_accuracy(*pair[:2], *lengths)[1],
        "idealized_log_ratio": log_ratio,
        "idealized_accuracy": idealized,
        "reward_accuracy": jnp.asarray(evaluation.preference_metrics(*pair, *lengths)["accuracy"], float),
        "dpo_loss": values,
        "c_ref_log_ratio": pair[3] - pair[2],
        "loss_threshold": threshold,
        "iff_holds": correct == (values <= threshold),
    }


def bandit(inputs, params):
    made = didactic.make_bandit(**params)
    probabilities = made["pi_data"]
    expected = {f"R{n}": jnp.sum(probabilities * made[f"reward{n}"]) for n in (4, 5, 8, 9)}
    best = {
        f"R{n}": jnp.sum(tabular.best_of(probabilities, made[f"reward{n}"], 10) * made[f"reward{n}"]) for n in (4, 5)
    }
    return made | {
        "E_pi_data": expected,
        "E_best_of_10": best,
        "entropy": -jnp.sum(probabilities * jnp.log(probabilities)),
        "argmax_pi_data": jnp.argmax(probabilities),
        "max_pi": jnp.max(probabilities),
    }
