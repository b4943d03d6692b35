"""Vectors of losses on several responses of a prompt."""

import cases
import jax
import jax.numpy as jnp

from jaxpref import losses

NAMES = ("vpo", "online_vpo", "hypo", "online_hypo", "copg", "knowpat_align", "dft1", "dft2")


def evaluate(name, inputs, params):
    functions = {"knowpat_align": knowpat_align, "copg": copg, "online_vpo": online_vpo, "online_hypo": online_hypo}
    if name in functions:
        return functions[name](inputs, params)
    if name in ("dft1", "dft2"):
        return dft(name, inputs, params)
    return summed_means({"vpo": losses.vpo_loss, "hypo": losses.hypo_loss}[name], inputs, params)


def summed_means(loss, inputs, params):
    """A loss of two sets of values, which is the sum of their means; gradients are of that."""
    arrays, hyperparameters = cases.arguments(loss, inputs, params)

    def total(arrays):
        pairs, others, *aux = loss(**arrays, **hyperparameters)
        return jnp.mean(pairs) + jnp.mean(others), (pairs, others, aux)

    (value, (pairs, others, aux)), gradients = jax.value_and_grad(total, has_aux=True)(arrays)
    return {
        "loss": value,
        "mean_loss": value,
        "pairs": pairs,
        "others": others,
        **{field: part for record in aux for field, part in record._asdict().items()},
        **{f"grad_{name}": gradient for name, gradient in gradients.items()},
    }


def online_vpo(inputs, params):
    outputs = summed_means(losses.vpo_loss, inputs, params | {"sign": {"online": 1, "offline": -1}[params["mode"]]})
    return {"loss": outputs["pairs"] + outputs["others"]}


def online_hypo(inputs, params):
    sums = {
        name: losses.arrays.masked_sum(inputs[tokens], inputs["online_mask"].astype(bool))
        for name, tokens in (("online_logps", "online_token_logps"), ("ref_online_logps", "online_ref_token_logps"))
    }
    outputs = summed_means(losses.hypo_loss, inputs | sums, params)
    return outputs | {
        "dpo_loss": jnp.mean(outputs["pairs"]),
        "kl_surrogate": jnp.mean(outputs["others"]) / params["lam"],
        "total": outputs["loss"],
        "grad_wrt_online_seq_logp": outputs["grad_online_logps"],
    }


def copg(inputs, params):
    """Responses 1, 2, ... side by side; the gradients of the first two go by the names of a pair."""

    def stacked(prefix):
        names = sorted(name for name in inputs if name.removeprefix(prefix).isdigit() and name.startswith(prefix))
        return jnp.stack([inputs[name] for name in names], axis=-1)

    arrays = {name: stacked(f"{name}_") for name in ("logps", "ref_logps")} | {"rewards": stacked("reward_")}
    outputs = cases.evaluate(losses.copg_loss, arrays, params)
    gradient = outputs["grad_sum_logps"]
    parts = {f"grad_sum_logps_{n + 1}": gradient[:, n] for n in range(gradient.shape[1])}
    return outputs | parts | {"grad_sum_chosen_logps": gradient[:, 0], "grad_sum_rejected_logps": gradient[:, 1]}


def knowpat_align(inputs, params):
    arrays, hyperparameters = cases.arguments(losses.knowpat_align_loss, {}, params)

    def loss(scores):
        return losses.knowpat_align_loss(scores[None], **arrays, **hyperparameters)[0]

    value, gradient = jax.value_and_grad(loss)(inputs["scores"])
    return {"loss": value, "mean_loss": value, "grad_scores": gradient}


def dft(variant, inputs, params):
    """Batches in order, from the same moving average for all demonstrations."""
    log_u = jnp.full(params["n_data"], float(params["u_init_log"]))
    options = {"variant": variant, "tau": params["tau"], "gamma": params["gamma"]}
    steps = []
    for batch in inputs["batches"]:

        def total(logps, batch=batch, log_u=log_u):
            values, new = losses.dft_loss(**{**batch, **logps}, log_u=log_u, **options)
            return jnp.sum(values), (values, new)

        floats = {name: batch[name] for name in ("positive_logps", "negative_logps")}
        gradients, (values, log_u) = jax.grad(total, has_aux=True)(floats)
        steps.append(
            {
                "loss": values,
                "mean_loss": jnp.mean(values),
                "u_log_after": log_u,
                "grad_sum_positive": gradients["positive_logps"],
                "grad_sum_negative": gradients["negative_logps"],
            }
        )
    return {"batches": steps}
