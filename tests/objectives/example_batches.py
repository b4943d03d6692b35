"""Batches in example order without a model: what an objective sees, for any registered method."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxpref import objectives
from jaxpref.batch import Examples
from jaxpref.data.layouts import PER_RESPONSE
from jaxpref.objectives import registry
from jaxpref.objectives.inputs import OTHERS

NAMES = [row.name for row in objectives.catalogue()]
TOKENS, SAMPLES, DATA_SET = 5, 2, 12
RESPONSES = {"demonstrations": 1, "pairs": 2, "unpaired": 2, "ranked": 3, "joint": 2, "crossed": 4, "graded": 1}


def responses(name):
    """Responses of an example that the method reads."""
    return RESPONSES[registry.METHODS[name].feedback] + SAMPLES * registry.METHODS[name].sampled


def build(name, /, **overrides):
    """The objective of one term with defaults but for the overrides."""
    return objectives.build(ConfigDict({"term": objectives.config(name, **overrides)})).terms["term"]


def batch(name, *, examples=6, padding=2, seed=0, needs=None):
    """Random ``(outputs, examples)`` of which the last ``padding`` examples pad; labels are mixed, lengths ragged."""
    rng = np.random.default_rng(seed)
    method = registry.METHODS[name]
    where = np.arange(examples) < examples - padding
    sizes = rng.integers(1, TOKENS + 1, (examples, responses(name))) * where[:, None]
    if method.feedback == "ranked":
        sizes[0, -1] = 0  # lists may be of different lengths
    if method.sampled:  # some have fewer than others, and some none
        sizes[0, -1], sizes[1, -SAMPLES:] = 0, 0
    mask = np.arange(TOKENS) < sizes[..., None]
    outputs = {}
    for channel in sorted(method.needs if needs is None else needs):
        if channel == "score":
            classes = (method.defaults[method.classes[1]],) if method.classes else ()
            values = rng.normal(size=(examples, responses(name), *classes))
            outputs[channel] = values * where.reshape(-1, *(1,) * (values.ndim - 1))
        else:
            outputs[channel] = -rng.gamma(1.0, 1.0, mask.shape) * mask
        if channel == OTHERS:
            outputs[channel] = -rng.gamma(1.0, 1.0, (*mask.shape, 2)) * mask[..., None]
        if channel == "sum_p2":
            outputs[channel] = rng.uniform(0.1, 1.0, mask.shape) * mask
    side = {"weight": np.ones(examples)} if method.per_example else {}
    for argument in method.arguments:
        for column in method.inputs[argument].sides if argument in method.inputs else ():
            whole = {bool: np.arange(examples) % 2 == 0, int: np.arange(examples) % 2}
            side[column] = whole.get(method.inputs[argument].dtype, rng.uniform(size=examples))
            if column in PER_RESPONSE:
                side[column] = -np.sort(-rng.uniform(size=(examples, responses(name))), axis=-1)
    if "ids" in side:
        side["ids"] = rng.permutation(DATA_SET)[:examples]
    if "prompt_lengths" in side:  # 0, up to the whole response
        side["prompt_lengths"] = np.floor(rng.uniform(size=sizes.shape) * (sizes + 1))
    if "prefers" in side:
        side["prefers"] = rng.choice([-1.0, 1.0], (examples, 2))
    if "prompt_embedding" in side:
        side["prompt_embedding"] = rng.normal(size=(examples, 3))
    if "prob_desirable" in side:  # odds on both sides of any bound, for either label
        side["prob_desirable"] = np.linspace(0.02, 0.98, examples)
    index = np.zeros(mask.shape, np.int32)
    zeros = np.zeros(examples, np.int32)
    made = Examples(index, mask, np.zeros(mask.shape[:2], np.int32), zeros, where, side)
    return jax.tree.map(jnp.asarray, (outputs, made))


def state_of(name, objective):
    """A fresh running state, for a data set of a few more examples than a batch has."""
    return objective.init(jax.random.key(0), Model, examples=DATA_SET)[1]


class Model:
    """What an objective's ``init`` needs to know of a model."""

    param_dtype = jnp.float32

    class config:
        width = 8


def select(tree, rows):
    """Takes examples out of ``(outputs, examples)`` by index."""
    return jax.tree.map(lambda x: x[rows], tree)


def restrict(examples, rows, *, partnered=False):
    """The examples as one micro-batch sees them: the others are not there, but for their mismatched responses."""
    where = examples.where & rows
    return examples._replace(where=where, mask=examples.mask if partnered else examples.mask & where[:, None, None])


def scored(objective):
    """Jitted ``(outputs, examples, denominators, state) -> ((value, metrics, state), gradients of the outputs)``."""

    def loss(outputs, examples, denominators, state, step):
        value, metrics, state = objective.loss(outputs, examples, denominators, state, jax.random.key(1), step)
        return value, (value, metrics, state)

    @jax.jit
    def run(outputs, examples, denominators, state, step=0):
        gradients, result = jax.grad(loss, has_aux=True)(outputs, examples, denominators, state, step)
        return result, gradients

    return run


def ratios(metrics):
    """Metrics as numbers: sum / count."""
    return {name: float(total) / float(count) for name, (total, count) in metrics.items() if float(count)}
