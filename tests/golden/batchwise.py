"""Vectors of losses that see the whole batch or carry a running state."""

from typing import Any

import cases
import jax
import jax.numpy as jnp
import reference_free

from jaxpref import losses

Arrays = dict[str, jax.Array]


def evaluate(name: str, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    return VECTORS[name](inputs, params)


def rewards(arrays: Arrays, scale: float) -> Arrays:
    """Logged rewards; no side depends on the other, of which there may be more."""
    return {
        f"{side}_rewards": scale * losses.scores.log_ratio(arrays[f"{side}_logps"], arrays[f"ref_{side}_logps"])
        for side in ("chosen", "rejected")
    }


def in_order(step, state, batches: list[Arrays]) -> dict[str, Any]:
    """Runs ``step(batch, state) -> outputs``, which hold the new state's fields, over the batches in order."""
    collected = []
    for batch in batches:
        outputs = step(batch, state)
        state = type(state)(*(outputs[field] for field in state._fields))
        collected.append(outputs)
    return {"batches": collected}


def several(step, state, inputs: dict[str, Any]) -> dict[str, Any]:
    """Cases of several batches, and of one that stands alone."""
    if "batches" in inputs:
        return in_order(step, state, inputs["batches"])
    return step(inputs, state)


def bco_start(params: dict[str, Any]) -> losses.BcoState:
    state = losses.bco_state()
    return state._replace(delta=jnp.asarray(params.get("delta_init", 0.0), state.delta.dtype))


def bco(inputs, params, delta_mode="running_mean"):
    bounds = [params.get("min_density_ratio", 0.5), params.get("max_density_ratio", 10.0)]

    def step(batch, state):
        kept = {name: value for name, value in batch.items() if params.get("udm", True) or name != "prob_desirable"}
        outputs = cases.evaluate(losses.bco_loss, kept, params | {"delta_mode": delta_mode}, state=state)
        weights = jnp.ones_like(outputs["loss"])
        if "prob_desirable" in kept:
            weights = losses.density_ratio(kept["prob_desirable"], kept["labels"], *bounds)
        return outputs | {"weights": weights}

    return several(step, bco_start(params), inputs)


def bco_paper_delta(inputs, params):
    """The first batch in the paper's mode, and the other mode's shift of the same batch."""
    other = bco(inputs, params)
    return bco(inputs, params, "class_balanced_ema") | {"delta_trl": other["delta"]}


def bco_pair(inputs, params):
    def step(batch, state):
        outputs = cases.evaluate(losses.bco_pair_loss, batch, params, state=state)
        return outputs | rewards(batch, params.get("beta", 0.1))

    return several(step, bco_start(params), inputs)


def dpo_nll(inputs, params):
    outputs = cases.evaluate(losses.dpo_nll_loss, inputs, params)
    return outputs | rewards(inputs, params.get("beta", 0.1))


def mpo_mixed(inputs, params):
    token_mean = params | {"nll": "batch_token_mean"}
    outputs = cases.evaluate(losses.mpo_loss, inputs, token_mean, state=losses.bco_state())
    return outputs | {"nll_token_mean": reference_free.token_mean(inputs)}


def mpo_mixed_trl_head(inputs, params):
    """Values are of each pair alone, where the mean over the batch's tokens is that over its own."""
    state = losses.bco_state()
    weights = dict(zip(("w_p", "w_q", "w_g"), params["weights"], strict=True))
    options = {"beta": params.get("beta", 0.1), "use_delta": False, **weights}

    def whole(logits, nll):
        arrays = cases.pair_arrays(inputs | {"logits": logits})
        return cases.evaluate(losses.mpo_loss, arrays, options | {"nll": nll}, state=state)

    alone = whole(inputs["logits"], "per_sequence_mean")["loss"]
    mean_loss = lambda logits: whole(logits, "batch_token_mean")["mean_loss"]  # noqa: E731
    return {"loss": alone, **cases.logits_outputs(mean_loss, inputs)}


def aot(paired):
    def evaluate(inputs, params):
        outputs = cases.evaluate(losses.aot_loss, inputs, params | {"paired": paired})
        return outputs | rewards(inputs, params.get("beta", 0.01))

    return evaluate


def relative_rpo(inputs, params):
    arrays = dict(inputs)
    if "prompt_embeddings" in arrays:
        shared = arrays.pop("prompt_embeddings")
        arrays |= {"chosen_prompt_embeddings": shared, "rejected_prompt_embeddings": shared}
    outputs = cases.evaluate(losses.relative_rpo_loss, arrays, params)
    return outputs | rewards(arrays, params.get("beta", 0.1))


def beta_dpo(inputs, params):
    """The mean and deviation to use are given, and the selection."""
    state = losses.BetaDpoState(*(losses.arrays.floating(params[name]) for name in ("gap_mean", "gap_std")))
    outputs = cases.evaluate(losses.beta_dpo_loss, inputs, params | {"update": False}, state=state)
    final = losses.arrays.masked_mean(outputs["loss"], outputs["selection_mask"])
    return outputs | {"beta_used": outputs["beta_used"][None], "final_loss": final}


def lcpo(inputs, params):
    state = losses.LcpoState(losses.arrays.floating(params["eta0"]))

    def step(batch, state):
        raw = cases.evaluate(losses.lcpo_loss, batch, params | {"m_step": "raw"}, state=state)["loss"]
        outputs = cases.evaluate(losses.lcpo_loss, batch, params, state=state)
        named = {"p_clean": outputs["p"], "weights": outputs["w"], "eta_after": outputs["eta"]}
        return outputs | named | {"loss_m_step_with_raw_losses": raw}

    return several(step, state, inputs)


VECTORS = {
    "bco": bco,
    "bco_paper_delta": bco_paper_delta,
    "bco_pair": bco_pair,
    "rpo_dpo_nll": dpo_nll,
    "mpo_mixed": mpo_mixed,
    "mpo_mixed_trl_head": mpo_mixed_trl_head,
    "aot_paired": aot(paired=True),
    "aot_unpaired": aot(paired=False),
    "relative_rpo": relative_rpo,
    "beta_dpo": beta_dpo,
    "lcpo": lcpo,
}
