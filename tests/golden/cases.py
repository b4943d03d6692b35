"""What the adapters of all groups share: reading a case, and calling a loss by the names of its arguments."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpref import losses

TEXT = ("note", "notes", "layout", "grad_note")
NUMBERS = ("inf", "-inf", "nan")


def parse(value: Any) -> Any:
    """Turns the strings "inf", "-inf" and "nan" into floats, nested lists into arrays, and leaves the rest.

    The batches of a stateful method stay a list, and names a tuple.
    """
    if isinstance(value, dict):
        return {name: parse(item) for name, item in value.items() if name not in TEXT}
    if isinstance(value, list) and any(isinstance(item, str) and item not in NUMBERS for item in value):
        return tuple(value)
    if isinstance(value, list):
        return [parse(item) for item in value] if _of_dicts(value) else jnp.asarray(_numbers(value))
    return float(value) if value in NUMBERS else value


def _of_dicts(value: list) -> bool:
    return bool(value) and isinstance(value[0], dict)


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) else value


def arguments(loss: Callable, arrays: dict[str, jax.Array], params: dict[str, Any]) -> tuple[dict, dict]:
    """The arrays and the hyperparameters of a case that the loss has arguments for."""
    parameters = inspect.signature(loss).parameters.values()
    keyword = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    positional = {p.name for p in parameters} - keyword
    return (
        {name: value for name, value in arrays.items() if name in positional},
        {name: value for name, value in params.items() if name in keyword},
    )


def evaluate(loss: Callable, arrays: dict[str, jax.Array], params: dict[str, Any], **provided: Any) -> dict[str, Any]:
    """Values, their mean, the fields of new state and aux, and the gradient of the values' sum by every float array.

    ``provided`` is what is no array: a state.
    """
    arrays, hyperparameters = arguments(loss, arrays, params)
    floats = {name: value for name, value in arrays.items() if jnp.issubdtype(value.dtype, jnp.floating)}

    def total(floats):
        result = loss(**{**arrays, **floats}, **provided, **hyperparameters)
        values, *parts = result if isinstance(result, tuple) else (result,)
        return jnp.sum(values), (values, parts)

    gradients, (values, parts) = jax.grad(total, has_aux=True)(floats)
    return {
        "loss": values,
        "mean_loss": jnp.mean(values),
        **{name: value for part in parts for name, value in part._asdict().items()},
        **{f"grad_sum_{name}": value for name, value in gradients.items()},
    }


def pair_arrays(inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Sums and lengths of a case that gives logits (chosen rows first) or token log-probabilities."""
    arrays = dict(inputs)
    for prefix in ("", "ref_"):
        if f"{prefix}logits" in inputs:
            tokens = inputs["input_ids"], inputs["completion_mask"]
            sums, lengths = losses.sequence_logps(inputs[f"{prefix}logits"], *tokens)
            arrays[f"{prefix}chosen_logps"], arrays[f"{prefix}rejected_logps"] = jnp.split(sums, 2)
            arrays["chosen_lengths"], arrays["rejected_lengths"] = jnp.split(lengths, 2)
    for name, value in inputs.items():
        if name.endswith("_token_logps"):
            side = name.removesuffix("_token_logps")
            mask = inputs.get(f"{side.removeprefix('ref_')}_mask", jnp.ones_like(value)).astype(bool)
            arrays[f"{side}_logps"] = losses.arrays.masked_sum(value, mask)
            arrays[f"{side.removeprefix('ref_')}_lengths"] = jnp.sum(mask, axis=-1)
    return arrays


def logits_outputs(mean_loss: Callable[[jax.Array], jax.Array], inputs: dict[str, jax.Array]) -> dict[str, Any]:
    """What a case from logits expects beside ``loss``; ``mean_loss`` maps logits to the batch's loss."""
    value, gradient = jax.value_and_grad(mean_loss)(inputs["logits"])
    arrays = pair_arrays(inputs)
    names = [f"{prefix}{side}_logps" for prefix in ("", "ref_") for side in ("chosen", "rejected")]
    return {
        "mean_loss": value,
        "grad_mean_wrt_logits": gradient,
        "grad_mean_wrt_logits_norm": jnp.linalg.norm(gradient),
        "derived_sequence_quantities": {
            name: arrays[name] for name in (*names, "chosen_lengths", "rejected_lengths") if name in arrays
        },
    }
