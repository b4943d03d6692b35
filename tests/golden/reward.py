"""Vectors of reward models."""

import cases
import jax.numpy as jnp

from jaxpref import losses


def evaluate(name, inputs, params):
    inputs = dict(inputs)
    if not params.get("use_margin", False):
        inputs.pop("margin", None)
    outputs = cases.evaluate(losses.bradley_terry_loss, inputs, params)
    wins = losses.arrays.floating(inputs["chosen_rewards"] > inputs["rejected_rewards"])
    return outputs | {"accuracy": jnp.mean(wins)}
