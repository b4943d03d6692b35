"""Vectors of losses on pairs without a reference."""

from typing import Any

import cases
import jax
import jax.numpy as jnp

from jaxpref import losses

LOSSES = {
    "cpo": losses.cpo_loss,
    "arpo": losses.arpo_loss,
    "alphapo": losses.alphapo_loss,
    "mapo_lm": losses.mapo_lm_loss,
    "logic_losses": losses.semantic_preference_loss,
}
NAMES = (*LOSSES, "mapo_diffusion")


def evaluate(name: str, inputs: dict[str, jax.Array], params: dict[str, Any]) -> dict[str, Any]:
    if name == "mapo_diffusion":
        return mapo_diffusion(inputs, params)
    if name == "arpo":
        params = {"cpo_alpha": 0.0, **params}
    if name == "cpo" and "chosen_lengths" not in inputs:
        params = {"cpo_alpha": 0.0, **params}
    outputs = cases.evaluate(LOSSES[name], inputs, params) | rewards(name, inputs, params)
    return outputs | cpo_parts(inputs, params) if name == "cpo" else outputs


def rewards(name: str, inputs: dict[str, jax.Array], params: dict[str, Any]) -> dict[str, jax.Array]:
    def reward(side):
        logps = inputs[f"{side}_logps"]
        if name == "alphapo":
            averages = losses.scores.average(logps, inputs[f"{side}_lengths"])
            return params.get("beta", 2.5) * losses.alphapo_reward(averages, params.get("alpha", 0.25))
        return params.get("beta", 0.1) * logps

    return {f"{side}_rewards": reward(side) for side in ("chosen", "rejected")}


def cpo_parts(inputs: dict[str, jax.Array], params: dict[str, Any]) -> dict[str, jax.Array]:
    parts = {"preference_term": cases.evaluate(losses.cpo_loss, inputs, params | {"cpo_alpha": 0.0})["loss"]}
    if "chosen_lengths" in inputs:
        parts["nll_token_mean"] = token_mean(inputs)
    return parts


def token_mean(arrays: dict[str, jax.Array]) -> jax.Array:
    """Negative log-likelihood of all chosen tokens of the batch, per token."""
    rows = jnp.ones(arrays["chosen_logps"].shape, bool)
    logps = losses.arrays.floating(arrays["chosen_logps"])
    return losses.scores.negative_log_likelihood(logps, arrays["chosen_lengths"], rows, "batch_token_mean")[0]


def mapo_diffusion(inputs: dict[str, jax.Array], params: dict[str, Any]) -> dict[str, Any]:
    """The vector's loss is the mean, and its gradient is the mean's."""
    outputs = cases.evaluate(losses.mapo_diffusion_loss, inputs, params)
    gradient = outputs["grad_sum_model_pred"] / len(outputs["loss"])
    return outputs | {"loss": outputs["mean_loss"], "grad_model_pred": gradient}
