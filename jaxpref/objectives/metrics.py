"""Metrics of a term as global (sum, count) pairs, which add over micro-batches, batches and devices."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxpref.batch import FIRST_SAMPLE, PROMPT_LENGTHS, lengths
from jaxpref.losses import scores
from jaxpref.objectives.inputs import View, scored
from jaxpref.objectives.registry import Method

Metrics = dict[str, tuple[jax.Array, jax.Array]]
SIDES = ("chosen", "rejected")
RESPONSES = {"pairs": SIDES, "joint": SIDES, "crossed": ("hi_chosen", "hi_rejected", "lo_chosen", "lo_rejected")}


def collect(
    method: Method, view: View, arrays: dict[str, jax.Array], hyperparameters: dict[str, Any], aux: Any, state: Any
) -> Metrics:
    """Everything worth logging about a term but its loss.

    Rewards are the implicit ones of the loss: scale x log-ratio (per token where the loss is reference-free and reads
    lengths), or a reward head's scores. ``accuracy`` compares rewards, ``ranking_accuracy`` raw log-probabilities, both
    strictly; of a classifier's head, ``accuracy`` says how often the right class has the highest output.
    ``displacement`` is the shift of summed log-probabilities against the reference; ``kl_estimate`` half the squared
    token log-ratio summed over a response, which is zero only where policy and reference agree. Tokens of the
    responses' own prompts count in all of this where the loss reads them. Where a loss reads samples of the policy,
    ``kl_estimate`` is their mean log-ratio instead. Of a state, what the method names is logged as the batch leaves it.
    """
    count = jnp.sum(view.valid)
    if PROMPT_LENGTHS in method.sides and not any(name.endswith("prompt_logps") for name in arrays):
        view = scored(view, prompts=False)
    metrics = _by_response(method, view)
    if "online_logps" in arrays:
        metrics["kl_estimate"] = metrics["displacement_sample"]
    arrays = {name.replace("token_logps", "logps"): _summed(name, array) for name, array in arrays.items()}
    of_prompts = {name.replace("prompt_", ""): array for name, array in arrays.items() if name.endswith("prompt_logps")}
    arrays |= {name: arrays[name] + array for name, array in of_prompts.items()}
    if method.feedback in ("pairs", "joint"):
        metrics |= _pairs(method, arrays, hyperparameters, view.valid)
    if method.feedback == "crossed":
        metrics |= _crossed(method, arrays, hyperparameters, view.valid)
    if "degree_labels" in arrays:
        right = jnp.argmax(arrays["degree_logits"], axis=-1) == arrays["degree_labels"]
        metrics["accuracy"] = _sum(right, view.valid), count
    if "labels" in arrays:
        metrics |= _by_label(method, arrays, hyperparameters, view.valid)
    if method.feedback == "ranked":
        metrics |= _ranked(method, view, arrays, hyperparameters)
    for field, value in aux._asdict().items() if aux is not None else ():
        name = method.aux_metrics.get(field, field)
        for column, each in (_numbered(name, value) if value.ndim == 2 else {name: value}).items():
            metrics[column] = (each * count, count) if each.ndim == 0 else (_sum(each, view.valid), count)
    for name, each in _scalars({field: getattr(state, field) for field in method.state_metrics}).items():
        metrics[name] = each * count, count
    return {name: (jax.lax.stop_gradient(s), jnp.asarray(n, jnp.result_type(s))) for name, (s, n) in metrics.items()}


def of_step(measured: dict[str, jax.Array]) -> Metrics:
    """Numbers of a whole step; the entries of a vector have numbered names."""
    return {name: (value, jnp.ones(())) for name, value in _scalars(measured).items()}


def _scalars(measured: dict[str, jax.Array]) -> dict[str, jax.Array]:
    numbers: dict[str, jax.Array] = {}
    for name, value in measured.items():
        numbers |= _numbered(name, value) if value.ndim else {name: value}
    return numbers


def _numbered(name: str, vectors: jax.Array) -> dict[str, jax.Array]:
    """The entries of the last axis: ``name_0``, ``name_1``, ..."""
    return {f"{name}_{n}": vectors[..., n] for n in range(vectors.shape[-1])}


def _sum(values: jax.Array, where: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(where, values, 0), dtype=jnp.result_type(float))


def _summed(name: str, array: jax.Array) -> jax.Array:
    """Log-probabilities per token, which are 0 where masked, as their sums; other arguments as they are."""
    return jnp.sum(array, axis=-1) if name.endswith("token_logps") else array


def _by_response(method: Method, view: View) -> Metrics:
    """Lengths, empty responses, and what the token channels say about each response, or about all of a ranked list."""
    where, tokens = view.valid, lengths(view.examples)
    empty = view.examples.where & ~where
    metrics = {"dropped_empty": (jnp.sum(empty, dtype=tokens.dtype), jnp.sum(view.examples.where))}
    names = RESPONSES.get(method.feedback, ("response",))
    columns = {name: slice(response, response + 1) for response, name in enumerate(names)}
    if method.feedback == "ranked":
        columns = {"response": slice(None)}
    if method.sampled:
        columns["sample"] = slice(FIRST_SAMPLE[method.feedback], None)
    logps, ref_logps = view.outputs.get("logps"), view.outputs.get("ref_logps")
    squares, read = 0.0, 0
    for name, place in columns.items():
        present = where[:, None] & (tokens[:, place] > 0)
        count = jnp.sum(present)
        metrics[f"length_{name}"] = _sum(tokens[:, place], present), count
        if logps is not None:
            total = jnp.sum(logps[:, place], axis=-1)
            metrics[f"logps_{name}"] = _sum(total, present), count
            metrics[f"token_logps_{name}"] = _sum(total, present), _sum(tokens[:, place], present)
        if ref_logps is not None:
            shift = logps[:, place] - ref_logps[:, place]
            metrics[f"displacement_{name}"] = _sum(jnp.sum(shift, axis=-1), present), count
            squares, read = squares + _sum(jnp.sum(shift**2, axis=-1) / 2, present), read + count
    if ref_logps is not None:
        metrics["kl_estimate"] = squares, read
    return metrics


def _ranked(method: Method, view: View, arrays, hyperparameters) -> Metrics:
    """Rewards of all responses, and how often the better of two has the higher one."""
    present = view.valid[:, None] & (lengths(view.examples) > 0)
    values = arrays["avg_logps"] if "avg_logps" in arrays else arrays["logps"] - arrays["ref_logps"]
    values = hyperparameters.get(method.reward_scale, 1.0) * values
    two = jnp.triu(jnp.ones((values.shape[1],) * 2, bool), 1) & present[:, :, None] & present[:, None, :]
    if "rewards" in arrays:
        two &= arrays["rewards"][:, :, None] > arrays["rewards"][:, None, :]
    agree = values[:, :, None] > values[:, None, :]
    return {
        "reward": (_sum(values, present), jnp.sum(present)),
        "ranking_accuracy": (_sum(agree, two), jnp.sum(two)),
    }


def rewards(method: Method, arrays: dict[str, jax.Array], hyperparameters: dict[str, Any], side: str) -> jax.Array:
    """Rewards ``[N]`` of one side of the pairs; ``side`` is empty for unpaired examples."""
    name = f"{side}_" if side else ""
    if f"{name}rewards" in arrays:
        return arrays[f"{name}rewards"]
    logps = arrays[f"{name}logps"]
    if f"ref_{name}logps" in arrays and not method.reference_free(hyperparameters):
        logps = scores.log_ratio(logps, arrays[f"ref_{name}logps"])
    elif method.reward is not None:
        return method.reward(logps, arrays.get(f"{name}lengths"), hyperparameters)
    elif f"{name}lengths" in arrays:
        logps = scores.average(logps, arrays[f"{name}lengths"])
    return hyperparameters.get(method.reward_scale, 1.0) * logps


def _pairs(method: Method, arrays, hyperparameters, where) -> Metrics:
    count = jnp.sum(where)
    chosen, rejected = (rewards(method, arrays, hyperparameters, side) for side in SIDES)
    metrics = {
        "reward_chosen": (_sum(chosen, where), count),
        "reward_rejected": (_sum(rejected, where), count),
        "margin": (_sum(chosen - rejected, where), count),
        "accuracy": (_sum(chosen > rejected, where), count),
    }
    if "chosen_rewards" in arrays:  # of a head: their spread shows a reward model that saturates
        metrics["reward"] = _sum(chosen + rejected, where), 2 * count
        metrics["reward_square"] = _sum(chosen**2 + rejected**2, where), 2 * count
    else:
        metrics["ranking_accuracy"] = _sum(arrays["chosen_logps"] > arrays["rejected_logps"], where), count
    return metrics


def _crossed(method: Method, arrays, hyperparameters, where) -> Metrics:
    """The margins of a pair under two prompts, and how often the one that should be larger is."""
    arrays = {name.replace("hi_ref_", "ref_hi_").replace("lo_ref_", "ref_lo_"): v for name, v in arrays.items()}
    each = {name: rewards(method, arrays, hyperparameters, name) for name in RESPONSES["crossed"]}
    high, low = (each[f"{prompt}_chosen"] - each[f"{prompt}_rejected"] for prompt in ("hi", "lo"))
    raw = [arrays[f"{prompt}_chosen_logps"] - arrays[f"{prompt}_rejected_logps"] for prompt in ("hi", "lo")]
    values = {f"reward_{name}": reward for name, reward in each.items()}
    values |= {"margin_hi": high, "margin_lo": low, "margin": high - low}
    values |= {"accuracy": high > low, "ranking_accuracy": raw[0] > raw[1]}
    return {name: (_sum(value, where), jnp.sum(where)) for name, value in values.items()}


def _by_label(method: Method, arrays, hyperparameters, where) -> Metrics:
    values = rewards(method, arrays, hyperparameters, "")
    good, bad = where & arrays["labels"], where & ~arrays["labels"]
    return {
        "reward_desirable": (_sum(values, good), jnp.sum(good)),
        "reward_undesirable": (_sum(values, bad), jnp.sum(bad)),
        "logps_desirable": (_sum(arrays["logps"], good), jnp.sum(good)),
        "logps_undesirable": (_sum(arrays["logps"], bad), jnp.sum(bad)),
    }
