"""The engine's three ways to a gradient agree, and a micro-batch that holds nothing adds nothing."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.batch import Rows, lengths
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


def forward(layout, params, rows, short):
    """A model without attention: each position sees its own token; of short rows only the beginning is computed."""
    length = layout.shortened.length if short else layout.length
    rows, rest = Rows(*(field[:, :length] for field in rows)), ((0, 0), (0, layout.length - length))
    hidden = jnp.tanh(params["embedding"][rows.tokens] + rows.positions[..., None] * 0.01)
    logps = jax.nn.log_softmax(hidden @ params["head"])
    logps = jnp.take_along_axis(logps, rows.targets[..., None], -1)[..., 0]
    return {"logps": jnp.pad(logps, rest), "score/reward": jnp.pad(hidden @ params["score"], rest)}


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


def result(params, examples, layout, rows, coupled, **sizes):
    terms = {"pair": Term("pairs", frozenset({"logps"})), "reward": Term("pairs", frozenset({"score"}))}
    stream = {"pairs": layouts.StreamShape(8, 2, 4, 5)}
    shape = layouts.batch_shape(stream, layout=layout, rows=rows, final=True, **sizes)
    batch = layouts.plan({"pairs": examples}, shape)
    if "short_length" in sizes:
        lengths = batch.row_lengths[: int(batch.count)]
        assert min(lengths) == shape.layout.shortened.length and (rows == 0 or max(lengths) == shape.layout.length)
    step = partial(engine.gradient, Toy(coupled, terms), partial(forward, shape.layout))
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


@pytest.mark.parametrize("coupled", [False, True], ids=["separable", "coupled"])
@pytest.mark.parametrize(
    ("layout", "sizes"),
    [
        ("packed", dict(rows=2, length=9, short_length=7)),
        ("packed+shared", dict(rows=1, prompt_length=4, response_length=6, short_length=4)),
        ("packed", dict(rows=0, length=30, short_length=20)),
    ],
)
def test_short_rows_do_not_change_the_gradient(params, examples, layout, sizes, coupled):
    """Among others, or as the only micro-batch of a batch that fits them."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        whole = result(params, examples, "padded", 0, coupled)
        mixed = result(params, examples, layout, coupled=coupled, **sizes)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), whole, mixed)


def test_trap_13_a_coupled_loss_sees_the_global_batch(params, examples):
    """Evaluated per micro-batch, the coupled toy would give another value: the two passes are not idle."""
    coupled, separable = (result(params, examples, "packed", 2, coupled)[0] for coupled in (True, False))
    assert abs(coupled - separable) > 1e-3


def test_channel_names_name_the_heads_of_each_term():
    toy = Toy(False, {"a": Term("s", frozenset({"logps", "ref_logps"})), "b": Term("s", frozenset({"score"}))})
    assert engine.channel_names(toy) == {"logps", "ref_logps", "score/b"}
    assert engine.channel_names(toy, frozenset({"ref_logps"})) == {"logps", "score/b"}
