"""Vectors of demonstrations, pairs and unpaired data."""

import inspect
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
        scale: hyperparameter and its default that multiply the logged rewards; None where none are logged, or the
            sources of the vector's cases disagree about them.
        fixed: hyperparameters that the vector's name implies.
        renamed: the vector's parameter or input -> the function's.
        average: whether rewards are logged per token.
        score: what is logged of a log-ratio.
        halos_scale: whether cases from token log-probs log rewards with the scale.
        halos_average: whether these log rewards per token.
    """

    loss: Callable
    scale: tuple[str, float] | None = ("beta", 0.1)
    fixed: dict[str, Any] = {}
    renamed: dict[str, str] = {"epsilon": "label_smoothing"}
    average: bool = False
    score: Callable[[jax.Array], jax.Array] = lambda ratio: ratio
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
    "rdpo": Pair(losses.rdpo_loss),
    "osp_soft_preference": Pair(losses.soft_preference_loss),
    "dno": Pair(losses.dno_loss, scale=("eta", 0.1)),
    "mm_dpo": Pair(losses.mm_dpo_loss),
    "reward_aware_rpo": Pair(losses.reward_aware_rpo_loss),
    "todo": Pair(losses.todo_loss, scale=("beta", 0.01)),
    "dpo_hinge": Pair(losses.dpo_hinge_loss, scale=("beta", 0.05)),
    "slic_hf": Pair(losses.slic_loss, scale=None),
    "f_dpo_js": Pair(losses.f_dpo_loss, scale=None, fixed={"divergence": "js"}),
    "f_dpo_alpha": Pair(losses.f_dpo_loss, scale=None, fixed={"divergence": "alpha"}),
    "f_dpo_forward_kl": Pair(
        losses.f_dpo_loss, fixed={"divergence": "forward_kl"}, score=lambda ratio: -losses.links.capped_exp(-ratio)
    ),
    "exo_pair": Pair(losses.exo_pair_loss, renamed={"beta_pi": "beta"}),
    "discopop": Pair(losses.discopop_loss, scale=("beta", 0.05)),
    "ln_dpo": Pair(losses.ln_dpo_loss, scale=("beta", 5.0), average=True),
    "sigmoid_norm": Pair(losses.ln_dpo_loss, scale=("beta", 5.0), average=True),
    "r_dpo": Pair(losses.r_dpo_loss),
    "apo_zero": Pair(losses.apo_loss, fixed={"kind": "zero"}),
    "apo_down": Pair(losses.apo_loss, fixed={"kind": "down"}),
    "nca_pair": Pair(losses.nca_pair_loss, scale=("beta", 0.01)),
    "dpop": Pair(losses.dpop_loss, scale=("beta", 0.3)),
    "flex_dpo": Pair(losses.flex_dpo_loss, scale=("beta_plus", 0.1)),
    "cal_dpo": Pair(losses.cal_dpo_loss, scale=("beta", 1e-3), fixed={"batch_mean": True}),
    "cal_dpo_per_example": Pair(losses.cal_dpo_loss, scale=("beta", 1e-3)),
    "sppo": Pair(losses.sppo_loss, scale=("beta", 1e-3), renamed={"chosen_probs": "chosen_probs_win"}),
    "sppo_hard_trl": Pair(losses.sppo_hard_loss, scale=("beta", 1e-3)),
}
TRL_DIVERGENCES = {"reverse_kl": "reverse_kl", "forward_kl": "forward_kl", "js_divergence": "js"}


def evaluate(name: str, inputs: dict[str, jax.Array], params: dict[str, Any]) -> dict[str, Any]:
    if name not in PAIRS:
        return SPECIAL[name](inputs, params)
    outputs = pair(PAIRS[name], inputs, params)
    if name == "orpo":
        return outputs | orpo_parts(inputs, params, outputs)
    if name == "cal_dpo":
        arrays, _ = cases.arguments(losses.cal_dpo_loss, inputs, {})
        per_example = losses.cal_dpo_loss(**arrays, beta=params["beta"], cal_weight=1.0)
        return outputs | {"loss_per_example_paper_unit_weight": per_example}
    return outputs


def pair(entry: Pair, inputs: dict[str, jax.Array], params: dict[str, Any]) -> dict[str, Any]:
    inputs = {entry.renamed.get(name, name): value for name, value in inputs.items()}
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
    if entry.scale is None:
        return {}
    scale = 1.0 if halos and not entry.halos_scale else params.get(*entry.scale)
    per_token = entry.halos_average if halos else entry.average
    reference_free = "ref_chosen_logps" not in inspect.signature(entry.loss).parameters

    def reward(side):
        values = arrays[f"{side}_logps"]
        values = values if reference_free else losses.scores.log_ratio(values, arrays[f"ref_{side}_logps"])
        values = losses.scores.average(values, arrays[f"{side}_lengths"]) if per_token else values
        return scale * entry.score(values)

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


def f_dpo_trl_head(inputs, params):
    """This framework's names of the divergences, and its coefficient of the alpha-divergence."""
    divergence = TRL_DIVERGENCES.get(params["f_divergence_type"], "alpha")
    fixed = {"divergence": divergence, "alpha": 1 - params.get("f_alpha_divergence_coef", 0.5)}
    return pair(Pair(losses.f_dpo_loss, fixed=fixed), inputs, params)


def ld_dpo(inputs, params):
    if "logits" not in inputs:
        return cases.evaluate(losses.ld_dpo_loss, inputs, params)

    def arrays(logits):
        split = {}
        for prefix, values in (("", logits), ("ref_", inputs["ref_logits"])):
            logps, mask = losses.token_logps(values, inputs["input_ids"], inputs["completion_mask"])
            split[f"{prefix}chosen_token_logps"], split[f"{prefix}rejected_token_logps"] = jnp.split(logps, 2)
            split["chosen_mask"], split["rejected_mask"] = jnp.split(mask, 2)
        return split

    def mean_loss(logits):
        return cases.evaluate(losses.ld_dpo_loss, arrays(logits), params)["mean_loss"]

    each = cases.evaluate(losses.ld_dpo_loss, arrays(inputs["logits"]), params)
    return each | cases.logits_outputs(mean_loss, inputs)


def wpo(inputs, params):
    """Every product of weights in the vector is below 1, where the clamped and the other convention agree."""
    if "logits" not in inputs:
        return cases.evaluate(losses.wpo_loss, cases.pair_arrays(inputs), params)

    def arrays(logits):
        logps, mask = losses.token_logps(logits, inputs["input_ids"], inputs["completion_mask"])
        log_squares = jax.nn.logsumexp(2 * jax.nn.log_softmax(logits), axis=-1)
        weights = losses.wpo_weights(logps, jnp.roll(log_squares, 1, axis=1), mask)
        moved = cases.pair_arrays(inputs | {"logits": logits})
        moved["chosen_weights"], moved["rejected_weights"] = jnp.split(weights, 2)
        return moved

    def mean_loss(logits):
        return cases.evaluate(losses.wpo_loss, arrays(logits), params)["mean_loss"]

    made = arrays(inputs["logits"])
    return {
        **cases.evaluate(losses.wpo_loss, made, params),
        **cases.logits_outputs(mean_loss, inputs),
        "weight": jnp.minimum(made["chosen_weights"] * made["rejected_weights"], 1),
        "chosen_logps": made["chosen_logps"],
        "rejected_logps": made["rejected_logps"],
    }


SPECIAL = {"sft": sft, "kto": kto, "f_dpo_trl_head": f_dpo_trl_head, "ld_dpo": ld_dpo, "wpo": wpo}
