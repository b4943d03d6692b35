"""Tier (a): channels in example order, and their gradients, do not depend on layout, mesh or neighbours.

An objective sees nothing but these arrays, so that this tier and the properties of objectives imply whole steps.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import models
from jaxpref.batch import gather, gather_last
from jaxpref.data import layouts
from jaxpref.training import mesh
from tests.invariance.cases import (
    BASE,
    VOCABULARY,
    Case,
    assert_close,
    assert_close_by_norm,
    mesh_of,
    pairs,
    parameters,
    plan,
    shard,
)

HEADS = (("reward", 1), ("parts", 3))
SETS = {
    "logps": frozenset({"logps"}),
    "ref_logps": frozenset({"logps", "ref_logps"}),
    "kl": frozenset({"kl"}),
    "entropy, sum_p2": frozenset({"entropy", "sum_p2"}),
    "score": frozenset({"score/reward", "score/parts"}),
}
ALL = frozenset().union(*SETS.values())
EXAMPLES = pairs(8)
CASES = [Case(layout, devices=devices) for layout in layouts.LAYOUTS for devices in (1, 8)]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


class Compiled(NamedTuple):
    """A jitted ``(params, reference, batch, weights) -> (channels in example order, gradient of their sum)``."""

    function: object
    params: object
    reference: object
    case: Case

    def __call__(self, weights, examples=EXAMPLES, reference=None):
        devices = mesh_of(self.case)
        _, batch = plan({"pairs": examples}, self.case, final=True)
        assert batch.rows.tokens.shape[0] == 1
        with jax.set_mesh(devices):
            reference = self.reference if reference is None else reference
            outputs, gradient = self.function(self.params, reference, mesh.place_batch(batch, devices), weights)
            return jax.tree.map(np.asarray, (outputs, gradient))


@functools.cache
def compiled(config: str, case: Case, needs: frozenset[str], dtype=jnp.float64) -> Compiled:
    model, params, reference = parameters(config, dtype, heads=HEADS)
    layout = plan({"pairs": EXAMPLES}, case, final=True)[0].layout

    def weighted(params, reference, batch, weights):
        rows = jax.tree.map(lambda x: x[0], batch.rows)
        channels = models.channels(model, params, rows, layout, needs, reference=reference)
        outputs = {
            name: (gather_last if name.startswith("score") else gather)(
                models.replicate(values[None]), batch.examples["pairs"]
            )
            for name, values in channels.items()
        }
        return sum(jnp.sum(weights[name] * outputs[name]) for name in sorted(needs)), outputs

    def run(params, reference, batch, weights):
        gradient, outputs = jax.grad(weighted, has_aux=True)(params, reference, batch, weights)
        return outputs, gradient

    devices = mesh_of(case)
    return Compiled(jax.jit(run), shard(params, model, devices), shard(reference, model, devices), case)


def weights(chosen, needs=ALL, dtype=np.float64, seed=0):
    """Random weights of every channel in example order; zero for those that are not chosen."""
    random = np.random.default_rng(seed)
    shapes = {"score/reward": (8, 2), "score/parts": (8, 2, 3)}
    return {
        name: random.normal(size=shapes.get(name, (8, 2, 6))).astype(dtype) * (name in chosen) for name in sorted(needs)
    }


# ------------------------------------------------------------------------------------------------ values and gradients


@every_case
@pytest.mark.parametrize("config", ["everything", pytest.param("plain", marks=pytest.mark.slow)])
def test_channels_and_gradients_are_those_of_one_padded_device(config, case):
    """One compile for all channels; the gradient of each channel set by itself, through zero weights of the others."""
    with jax.enable_x64(True):
        for name, chosen in SETS.items():
            expected = compiled(config, BASE, ALL)(weights(chosen))
            actual = compiled(config, case, ALL)(weights(chosen))
            assert_close(actual[0], expected[0], 1e-10, name)
            assert_close(actual[1], expected[1], 1e-10, f"gradient of {name}")
            assert any(leaf.any() for leaf in jax.tree.leaves(actual[1]))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[1::2], ids=str)
@pytest.mark.parametrize("channels", SETS)
def test_channel_sets_compiled_alone(channels, case):
    """The forward computes less when fewer channels are asked for, and the same."""
    needs = SETS[channels]
    with jax.enable_x64(True):
        expected = compiled("everything", BASE, ALL)(weights(needs))
        outputs, gradient = compiled("everything", case, needs)(
            {name: value for name, value in weights(needs).items() if name in needs}
        )
        assert outputs.keys() == needs
        assert_close(outputs, {name: expected[0][name] for name in needs}, 1e-10)
        assert_close(gradient, expected[1], 1e-10)


@pytest.mark.slow
@every_case
def test_float32(case):
    expected = compiled("everything", BASE, ALL, jnp.float32)(weights(ALL, dtype=np.float32))
    actual = compiled("everything", case, ALL, jnp.float32)(weights(ALL, dtype=np.float32))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(actual))
    for name in sorted(ALL):
        assert_close_by_norm(actual[0][name], expected[0][name], 1e-5, name)
    assert_close_by_norm(actual[1], expected[1], 1e-5, "gradient")


# ------------------------------------------------------------------------------------------------ neighbours


@every_case
def test_trap_48_another_example_changes_no_bit(case):
    """One example gets other tokens of the same lengths: the channels of the others keep their bits."""
    disturbed = 4
    example = EXAMPLES[disturbed]
    prompt, *responses = ((tokens + 7) % VOCABULARY for tokens in (example.prompt, *example.responses))
    examples = [*EXAMPLES]
    examples[disturbed] = example._replace(prompt=prompt, responses=tuple(responses))
    others = np.arange(len(EXAMPLES)) != disturbed
    chosen = {n: value * others.reshape(-1, *(1,) * (value.ndim - 1)) for n, value in weights(ALL).items()}
    with jax.enable_x64(True):
        run = compiled("everything", case, ALL)
        (before, before_gradient), (after, after_gradient) = run(chosen), run(chosen, examples)
    for name in ALL:
        assert not np.array_equal(before[name][disturbed], after[name][disturbed])
        np.testing.assert_array_equal(before[name][others], after[name][others], err_msg=name)
    assert_close(after_gradient, before_gradient, 1e-14, "gradient of the others")
    if case.layout.startswith("packed"):
        assert _shares_its_row(disturbed, case)


def _shares_its_row(example: int, case: Case) -> bool:
    shape, batch = plan({"pairs": EXAMPLES}, case, final=True)
    rows = np.where(batch.examples["pairs"].mask, batch.examples["pairs"].index, -1) // shape.layout.length
    mine = set(rows[example].ravel()) - {-1}
    return bool(mine & set(np.delete(rows, example, axis=0).ravel()))


# ------------------------------------------------------------------------------------------------ the reference


@every_case
def test_trap_01_trap_02_policy_and_reference_agree(case):
    """With the same parameters, log-probs are those of the reference, and the divergence is zero."""
    with jax.enable_x64(True):
        run = compiled("everything", case, ALL)
        outputs, _ = run(weights(ALL), reference=run.params["model"])
    np.testing.assert_allclose(outputs["logps"], outputs["ref_logps"], rtol=1e-12)
    np.testing.assert_allclose(outputs["kl"], 0, atol=1e-12)
