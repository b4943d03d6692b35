"""Vectors of losses on single responses: demonstrations, good and bad ones, graded ones."""

import cases
import jax
import jax.numpy as jnp

from jaxpref import losses

NAMES = ("f_sft", "dynamic_ft", "apo_zero_unpaired", "pmpo", "spo_selfsup")


def evaluate(name, inputs, params):
    functions = {"apo_zero_unpaired": apo_zero_unpaired, "spo_selfsup": spo_selfsup}
    if name in functions:
        return functions[name](inputs, params)
    loss = {"f_sft": losses.f_sft_loss, "dynamic_ft": losses.dynamic_ft_loss, "pmpo": losses.pmpo_loss}[name]
    outputs = cases.evaluate(loss, inputs, params)
    if name == "f_sft":
        return outputs
    gradients = {key.replace("grad_sum_", "grad_"): value for key, value in outputs.items()}
    return gradients | ({"grad_kl": outputs["grad_sum_kl_ref_to_policy"]} if name == "pmpo" else {})


def apo_zero_unpaired(inputs, params):
    """KTO with its z0 at 0: the mismatched pairs of the case are not read."""
    outputs = cases.evaluate(losses.apo_zero_unpaired_loss, inputs, params)
    nothing = jnp.zeros_like(outputs["loss"])
    return outputs | {"kl": nothing[0], "grad_sum_kl_logps": nothing, "grad_sum_kl_ref_logps": nothing}


def spo_selfsup(inputs, params):
    """DPO and the weighted degree loss; the gradients are of both."""

    def total(pair, logits):
        degree = losses.preference_degree_loss(logits, inputs["degree_labels"])
        values = losses.dpo_loss(*pair, beta=params["beta"]) + params["gamma"] * degree
        return jnp.sum(values), (values, degree)

    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    pair = [inputs[name] for name in names]
    differentiated = jax.grad(total, argnums=(0, 1), has_aux=True)
    gradients, (values, degree) = differentiated(pair, inputs["degree_logits"])
    return {
        "loss": values,
        "mean_loss": jnp.mean(values),
        "degree_ce": degree,
        "grad_sum_degree_logits": gradients[1],
        **{f"grad_sum_{name}": value for name, value in zip(names, gradients[0], strict=True)},
    }
