"""Channels do not depend on how examples lie in rows: padded, packed, shared and packed+shared give the same values."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import models
from jaxpref.batch import Layout, Rows, gather, gather_last
from jaxpref.data import layouts
from jaxpref.errors import ModelError
from tests.models.families import FAMILIES, build, tree_close

NEEDS = frozenset({"logps", "entropy", "sum_p2", "kl", "ref_logps", "score/reward", "score/parts"})
CONFIGS = {
    "windows, two ropes, soft caps": dataclasses.replace(
        FAMILIES["gemma3"], attention_soft_cap=2.0, final_soft_cap=3.0
    ),
    "learned positions": FAMILIES["gpt2"],
}


class Example(NamedTuple):
    prompt: np.ndarray
    responses: tuple
    masks: tuple
    side: dict
    origin: str = "toy:1"


def examples(count: int) -> list[Example]:
    random = np.random.default_rng(0)
    draw = lambda low, high: random.integers(1, 37, random.integers(low, high)).astype(np.int32)  # noqa: E731
    drawn = []
    for n in range(count):
        responses = (draw(1, 9), draw(1, 9) if n != 2 else np.zeros(0, np.int32))
        drawn.append(Example(draw(1, 11), responses, tuple(np.ones(len(r), bool) for r in responses), {}))
    return drawn


def plan(layout: str):
    drawn = examples(5)
    stream = layouts.StreamShape(5, 2, max(len(e.prompt) for e in drawn), 8)
    shape = layouts.batch_shape({"pairs": stream}, layout=layout, final=True)
    return shape.layout, layouts.plan({"pairs": drawn}, shape)


def in_example_order(model, params, reference, layout: Layout, batch):
    examples = batch.examples["pairs"]
    micro_batches = [
        models.channels(model, params, Rows(*(x[m] for x in batch.rows)), layout, NEEDS, reference=reference)
        for m in range(int(batch.count))
    ]
    channels = {name: jnp.stack([c[name] for c in micro_batches]) for name in NEEDS}
    return {
        name: gather_last(value, examples) if name.startswith("score") else gather(value, examples)
        for name, value in channels.items()
    }


def values_and_gradients(name: str, layout: str):
    """Channels in example order, and the gradients (policy's, reference's) of their sum weighted by random numbers."""
    config = CONFIGS[name]
    model, tree = build(config, dtype=jnp.float64, chunk=7)
    _, reference = build(config, dtype=jnp.float64, seed=1)
    heads = {"reward": {"kernel": jnp.ones((16, 1)) / 7}, "parts": {"kernel": jnp.ones((16, 2)) / 9}}
    regions, batch = plan(layout)

    def weighted(params, reference):
        outputs = in_example_order(model, params, reference, regions, batch)
        weights = {n: np.random.default_rng(len(n)).normal(size=v.shape) for n, v in sorted(outputs.items())}
        return sum(jnp.sum(weights[name] * outputs[name]) for name in outputs), outputs

    step = jax.jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))
    gradients, outputs = step({"model": tree, "heads": heads}, reference)
    return outputs, *gradients


@pytest.fixture(scope="module", params=CONFIGS)
def padded(request):
    """A config's name, and its channels and gradients in the padded layout."""
    with jax.enable_x64(True):
        return request.param, values_and_gradients(request.param, "padded")


@pytest.mark.parametrize("layout", ["packed", "shared", "packed+shared"])
def test_channels_and_gradients_are_those_of_the_padded_layout(padded, layout):
    name, expected = padded
    with jax.enable_x64(True):
        for actual, other in zip(values_and_gradients(name, layout), expected, strict=True):
            tree_close(actual, other, 1e-10)


def test_every_channel_is_finite_and_only_the_policy_gets_a_gradient(padded):
    _, (outputs, of_policy, of_reference) = padded
    assert all(v.dtype == jnp.float64 and jnp.all(jnp.isfinite(v)) for v in outputs.values())
    assert all(leaf.any() for leaf in jax.tree.leaves(of_policy["heads"]))
    assert all(not leaf.any() for leaf in jax.tree.leaves(of_reference))


@pytest.mark.parametrize("family", ["gpt2", "llama3"])
def test_trap_47_packed_positions_start_again(family):
    model, params = build(FAMILIES[family])
    alone = jnp.asarray([[3, 1, 4, 1, 5]])
    segments = jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 2, 0, 0]])
    positions = jnp.asarray([[0, 1, 2, 0, 1, 2, 3, 4, 0, 0]])
    tokens = jnp.concatenate([jnp.asarray([[9, 8, 7]]), alone, jnp.zeros((1, 2), int)], axis=1)
    packed = models.hidden(model, params, Rows(tokens, tokens, positions, segments), Layout(0, 1, 10))
    ones = jnp.ones_like(alone)
    single = models.hidden(model, params, Rows(alone, alone, jnp.arange(5)[None], ones), Layout(0, 1, 5))
    np.testing.assert_allclose(packed[:, 3:8], single, atol=2e-5)


@pytest.mark.parametrize("layout", ["packed", "packed+shared"])
def test_trap_48_another_document_changes_no_bit(layout):
    """Every token and position of document 1 is changed; document 2's hidden states keep their bits."""
    model, params = build(CONFIGS["windows, two ropes, soft caps"])
    regions, batch = plan(layout)
    rows = Rows(*(jnp.asarray(x[0]) for x in batch.rows))
    first = rows.segments == 1
    disturbed = rows._replace(
        tokens=jnp.where(first, (rows.tokens + 5) % 37, rows.tokens),
        positions=jnp.where(first, rows.positions + 3, rows.positions),
    )
    hidden = jax.jit(lambda rows: models.hidden(model, params, rows, regions))
    before, after = hidden(rows), hidden(disturbed)
    assert bool((rows.segments == 2).any())
    assert not np.array_equal(before[first], after[first])
    np.testing.assert_array_equal(before[~first], after[~first])


def test_rows_of_another_length_are_refused():
    model, params = build(FAMILIES["gpt2"])
    rows = Rows(*(jnp.zeros((1, 5), int),) * 4)
    with pytest.raises(ModelError, match="expected \\[R, 6\\]"):
        models.hidden(model, params, rows, Layout(2, 2, 2))
