"""Vectors of demonstrations, pairs and unpaired data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import cases
import jax
import jax.numpy as jnp

from jaxpref import losses


class Pair(NamedTuple):
    """How a pairwise vector is evaluated.

    Attributes:
        loss: the function.
        scale: hyperparameter and its default that multiply the logged rewards.
        fixed: hyperparameters that the vector's name implies.
        renamed: the vector's parameter -> the function's.
        average: whether rewards are logged per token.
        halos_scale: whether cases from token log-probs log rewards with the scale.
        halos_average: whether these log rewards per token.
    """

    loss: Callable
    scale: tuple[str, float] = ("beta", 0.1)
    fixed: dict[str, Any] = {}
    renamed: dict[str, str] = {"epsilon": "label_smoothing"}
    average: bool = False
    halos_scale: bool = True
    halos_average: bool = False


PAIRS = {
    "dpo": Pair(losses.dpo_loss),
    "cdpo": Pair(losses.cdpo_loss),
    "ipo_sum": Pair(losses.ipo_loss, scale=("tau", 0.1), fixed={"normalize": "sum"}, renamed={"beta": "tau"}),
    "ipo_avg": Pair(
        losses.ipo_loss,
        scale=("tau", 0.1),
        fixed={"normalize": "length"},
        renamed={"beta": "tau"},
        halos_scale=False,
        halos_average=True,
    ),
    "simpo": Pair(losses.simpo_loss, scale=("beta", 2.0), average=True, halos_scale=False, halos_average=True),
    "orpo": Pair(losses.orpo_loss, scale=("lam", 0.1), average=True),
}


def evaluate(name: str, inputs: dict[str, jax.Array], params: dict[str, Any]) -> dict[str, Any]:
    if name in PAIRS:
        outputs = pair(PAIRS[name], inputs, params)
        return outputs | orpo_parts(inputs, params, outputs) if name == "orpo" else outputs
    return {"sft": sft, "kto": kto}[name](inputs, params)


def pair(entry: Pair, inputs: dict[str, jax.Array], params: dict[str, Any]) -> dict[str, Any]:
    arrays = cases.pair_arrays(inputs)
    params = {entry.renamed.get(name, name): value for name, value in params.items()} | entry.fixed
    outputs = cases.evaluate(entry.loss, arrays, params)
    if "logits" in inputs:

        def mean_loss(logits):
            moved = cases.pair_arrays(inputs | {"logits": logits})
            return cases.evaluate(entry.loss, moved, params)["mean_loss"]

        outputs |= cases.logits_outputs(mean_loss, inputs)
    return outputs | rewards(entry, arrays, params, "chosen_token_logps" in inputs)


def rewards(entry: Pair, arrays: dict[str, jax.Array], params: dict[str, Any], halos: bool) -> dict[str, jax.Array]:
    scale = 1.0 if halos and not entry.halos_scale else params.get(*entry.scale)
    per_token = entry.halos_average if halos else entry.average
    reference_free = entry.loss in (losses.simpo_loss, losses.orpo_loss)

    def reward(side):
        values = arrays[f"{side}_logps"]
        values = values if reference_free else losses.scores.log_ratio(values, arrays[f"ref_{side}_logps"])
        return scale * (losses.scores.average(values, arrays[f"{side}_lengths"]) if per_token else values)

    return {"chosen_rewards": reward("chosen"), "rejected_rewards": reward("rejected")}


def orpo_parts(inputs, params, outputs):
    """The odds ratio term alone, to which the vector's gradients belong."""
    arrays = cases.pair_arrays(inputs)
    alone = cases.evaluate(losses.orpo_loss, arrays | {"nll": jnp.zeros(())}, params)
    token_mean = -jnp.sum(arrays["chosen_logps"]) / jnp.sum(arrays["chosen_lengths"])
    with_token_mean = cases.evaluate(losses.orpo_loss, arrays | {"nll": token_mean}, params)
    log_odds = outputs["log_odds"]
    return {
        "or_term": alone["loss"],
        "mean_log_odds": jnp.mean(log_odds),
        "mean_log_sigmoid_log_odds": -jnp.mean(losses.links.logistic(log_odds)),
        "loss_with_batch_token_mean_nll": with_token_mean["mean_loss"],
        "grad_sum_chosen_logps": alone["grad_sum_chosen_logps"],
        "grad_sum_rejected_logps": alone["grad_sum_rejected_logps"],
    }


def sft(inputs, params):
    if "logits" not in inputs:
        return cases.evaluate(losses.sft_loss, inputs, params)

    def chosen_rows(logits):
        token_logps, mask = losses.token_logps(logits, inputs["input_ids"], inputs["completion_mask"])
        rows = len(mask) // 2
        return token_logps[:rows], mask[:rows]

    def mean_loss(logits):
        return losses.sft_loss(*chosen_rows(logits), normalize="batch_token_mean")

    each = losses.sft_loss(*chosen_rows(inputs["logits"]), normalize="sequence_mean")
    return {"loss": each, **cases.logits_outputs(mean_loss, inputs)}


def kto(inputs, params):
    if "chosen_token_logps" not in inputs:
        return cases.evaluate(losses.kto_loss, inputs, params)
    arrays = cases.pair_arrays(inputs)
    rows = len(arrays["chosen_logps"])
    stacked = {
        "logps": jnp.concatenate([arrays["chosen_logps"], arrays["rejected_logps"]]),
        "ref_logps": jnp.concatenate([arrays["ref_chosen_logps"], arrays["ref_rejected_logps"]]),
        "labels": jnp.arange(2 * rows) < rows,
        "kl_logps": arrays["kl_logps"],
        "kl_ref_logps": arrays["ref_kl_logps"],
    }
    chosen, rejected = jnp.split(losses.scores.log_ratio(stacked["logps"], stacked["ref_logps"]), 2)
    return cases.evaluate(losses.kto_loss, stacked, params) | {"chosen_rewards": chosen, "rejected_rewards": rejected}
