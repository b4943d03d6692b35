"""Rematerialisation changes memory and no number, on one device and on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import models
from jaxpref.models.config import REMATS
from tests.models.families import FAMILIES, LLAMA, build, tree_close
from tests.models.test_sharding import PADDED, SHARED, compiled_on, example, loss_of, make_mesh, wide

RECOMPUTING = [remat for remat in REMATS if remat != "none"]


@pytest.mark.parametrize("remat", RECOMPUTING)
def test_remat_changes_no_value_and_no_gradient(remat):
    model, params, rows = example(wide(FAMILIES["gemma2"]))
    found, expected = (
        jax.jit(loss_of(dataclasses.replace(model, remat=name), SHARED))(params, rows) for name in (remat, "none")
    )
    np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-6)
    tree_close(found[1], expected[1], 1e-5)


@pytest.mark.parametrize("remat", ["offload", pytest.param("attention", marks=pytest.mark.slow)])
def test_remat_changes_no_gradient_on_a_mesh(remat):
    model, params, rows = example(wide(LLAMA))
    _, expected = jax.jit(loss_of(model, PADDED))(params, rows)
    compiled, arguments = compiled_on(make_mesh(2, 2, 2, 1), dataclasses.replace(model, remat=remat), params, rows)
    _, found = compiled(*arguments)
    tree_close(found, expected, 1e-5)


def test_each_policy_keeps_less_than_the_one_before():
    """A gradient's temporaries by the compiler's count; in a deep, narrow model most are what is kept."""
    config = dataclasses.replace(LLAMA, layers=24)
    _, params = build(config)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    rows, layout = example(wide(LLAMA))[2], PADDED
    sizes = []
    for remat in ("none", "dots", "attention", "full"):
        model, _ = build(config, remat=remat)
        gradient = jax.grad(lambda p, m=model: jnp.sum(models.hidden(m, p, rows, layout)))
        sizes.append(jax.jit(gradient).lower(shapes).compile().memory_analysis().temp_size_in_bytes)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)


@pytest.mark.slow
def test_offloading_moves_the_layers_inputs_to_the_host_of_a_tpu(v5p):
    """Compiled by libtpu, which needs no TPU; the CPU compiles the same program without moving anything."""
    place = jax.sharding.SingleDeviceSharding(v5p[0])
    model, params, rows = example(dataclasses.replace(LLAMA, vocab_size=500))
    arguments = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), (params, rows))
    moved = {}
    for remat in ("full", "offload"):
        compiled = jax.jit(loss_of(dataclasses.replace(model, remat=remat), PADDED)).lower(*arguments).compile()
        moved[remat] = compiled.memory_analysis().host_temp_size_in_bytes
    assert moved["full"] == 0 and moved["offload"] > 0
