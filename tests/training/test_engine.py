"""The engine's three ways to a gradient agree, and a micro-batch that holds nothing adds nothing."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.batch import lengths
from jaxpref.data import layouts
from jaxpref.training import engine

VOCABULARY, WIDTH = 17, 5


class Example(NamedTuple):
    prompt: np.ndarray
    responses: tuple
    masks: tuple
    side: dict
    origin: str = "toy:1"


class Term(NamedTuple):
    stream: str
    needs: frozenset


class Toy(NamedTuple):
    """Two terms on one stream: a pairwise loss on sums, and a score read at the last token."""

    coupled: bool
    terms: dict
    partnered: frozenset = frozenset()

    def denominators(self, examples):
        return {"pairs": jnp.maximum(jnp.sum(examples["pairs"].where), 1)}

    def loss(self, outputs, examples, denominators, state, key, step):
        where = examples["pairs"].where
        sums = jnp.sum(outputs["pair"]["logps"], -1) / jnp.maximum(lengths(examples["pairs"]), 1)
        margin = sums[:, 0] - sums[:, 1] + outputs["reward"]["score"][:, 0] ** 2
        if self.coupled:
            margin = margin - jnp.sum(jnp.where(where, margin, 0)) / denominators["pairs"]
            margin = margin**2
        values = jnp.where(where, jax.nn.softplus(-margin), 0)
        return jnp.sum(values) / denominators["pairs"], {"margin": (jnp.sum(margin * where), jnp.sum(where))}, state


def forward(params, rows):
    """A model without attention: each position sees its own token."""
    hidden = jnp.tanh(params["embedding"][rows.tokens] + rows.positions[..., None] * 0.01)
    logps = jax.nn.log_softmax(hidden @ params["head"])
    return {
        "logps": jnp.take_along_axis(logps, rows.targets[..., None], -1)[..., 0],
        "score/reward": hidden @ params["score"],
    }


@pytest.fixture(scope="module")
def params():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"embedding": (VOCABULARY, WIDTH), "head": (WIDTH, VOCABULARY), "score": (WIDTH,)}
    return {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    made = []
    for _ in range(7):
        answers = tuple(rng.integers(1, VOCABULARY, rng.integers(0, 6)) for _ in range(2))
        prompt = rng.integers(1, VOCABULARY, rng.integers(1, 5))
        made.append(Example(prompt, answers, tuple(np.ones(len(a), bool) for a in answers), {}))
    return made


def result(params, examples, layout, rows, coupled):
    terms = {"pair": Term("pairs", frozenset({"logps"})), "reward": Term("pairs", frozenset({"score"}))}
    stream = {"pairs": layouts.StreamShape(8, 2, 4, 5)}
    batch = layouts.plan({"pairs": examples}, layouts.batch_shape(stream, layout=layout, rows=rows, final=True))
    step = partial(engine.gradient, Toy(coupled, terms), forward)
    evaluation, gradients = jax.jit(step)(params, batch, (), jax.random.key(0), 0)
    return jax.tree.map(np.asarray, (evaluation.loss, evaluation.metrics, gradients))


@pytest.mark.parametrize("coupled", [False, True], ids=["separable", "coupled"])
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_trap_03_micro_batches_do_not_change_the_gradient(params, examples, layout, coupled):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        whole = result(params, examples, "padded", 0, coupled)
        split = result(params, examples, layout, 2, coupled)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), whole, split)


def test_trap_13_a_coupled_loss_sees_the_global_batch(params, examples):
    """Evaluated per micro-batch, the coupled toy would give another value: the two passes are not idle."""
    coupled, separable = (result(params, examples, "packed", 2, coupled)[0] for coupled in (True, False))
    assert abs(coupled - separable) > 1e-3


def test_channel_names_name_the_heads_of_each_term():
    toy = Toy(False, {"a": Term("s", frozenset({"logps", "ref_logps"})), "b": Term("s", frozenset({"score"}))})
    assert engine.channel_names(toy) == {"logps", "ref_logps", "score/b"}
    assert engine.channel_names(toy, frozenset({"ref_logps"})) == {"logps", "score/b"}
