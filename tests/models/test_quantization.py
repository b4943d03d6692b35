"""Quantised kernels: their error, their memory, and the same numbers as the restored weights wherever they are used."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("qwix")

from jaxpref import models  # noqa: E402
from jaxpref.errors import ModelError  # noqa: E402
from jaxpref.models import adapters, quantization  # noqa: E402
from tests.models.families import FAMILIES, LLAMA, build, tree_close  # noqa: E402
from tests.models.test_adapters import FEW, PADDED, attached_loss, channels, example, make_mesh  # noqa: E402

KINDS = ("int8", "nf4")


def kernel(*shape):
    drawn = np.random.default_rng(0).normal(size=shape) * np.linspace(0.1, 3.0, shape[-1])
    return jnp.asarray(drawn, jnp.float32)


def quantized(params, kind):
    return params | {"model": quantization.quantize_layers(params["model"], kind)}


def restored(params):
    return params | {"model": quantization.restore_layers(params["model"])}


@pytest.mark.parametrize(("kind", "bits", "error"), [("int8", 8.5, 0.01), ("nf4", 4.5, 0.13)])
def test_a_kernel_comes_back_up_to_the_rounding_of_its_tile(kind, bits, error):
    """The error is relative to a tile's root mean square, so that outputs of different size lose alike."""
    whole = kernel(3, 128, 32)
    stored = quantization.quantize_layers({"layers": {"attention": {}, "mlp": {"up": {"kernel": whole}}}}, kind)
    stored = stored["layers"]["mlp"]["up"]["kernel"]
    assert sum(leaf.nbytes for leaf in stored.values()) * 8 / whole.size == bits
    assert stored["scale"].shape == (3, 2, 32)
    back = jax.vmap(lambda one: quantization.dequantize(one, jnp.float32))(stored)
    tiles = (np.asarray(part).reshape(3, 2, 64, 32) for part in (whole, back - whole))
    size, wrong = (np.sqrt(np.mean(np.square(part), axis=2)) for part in tiles)
    assert np.all(wrong < error * size) and np.all(wrong > 0)


def test_nf4_has_the_levels_of_its_paper():
    levels = np.asarray(quantization._levels())
    np.testing.assert_allclose(levels[[0, 1, 7, 8, 15]], [-1, -0.6961928, 0, 0.0795803, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("family", "kind"), [("llama3", "nf4"), *(pytest.param("gpt2", kind, marks=pytest.mark.slow) for kind in KINDS)]
)
def test_a_forward_computes_with_the_restored_weights(family, kind):
    model, params, rows = example(FAMILIES[family])
    params = quantized(params, kind)
    ours, theirs = (channels(model, tree, rows, PADDED, FEW) for tree in (params, restored(params)))
    tree_close(ours, theirs, 1e-6)


def test_the_gradient_is_that_of_the_restored_weights():
    model, params, rows = example(LLAMA)
    params = quantized(params, "nf4")
    gradient = jax.jit(jax.grad(attached_loss(model, rows, PADDED)))
    tree_close(gradient(params["adapter"], params), gradient(params["adapter"], restored(params)), 1e-5)


def test_the_backward_pass_keeps_no_restored_kernel():
    """A stack of restored kernels among the residuals would take what quantising had saved."""
    model, params, rows = example(LLAMA)
    params = quantized(params, "int8")
    text = str(jax.make_jaxpr(jax.grad(attached_loss(model, rows, PADDED)))(params["adapter"], params))
    assert "i8[2,16,24]" in text and "f32[16,24]" in text
    assert "f32[2,16,24]" not in text and "f32[2,24,16]" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_merging_adds_to_the_restored_weights(kind):
    _, params, _ = example(LLAMA, targets=("up", "out"))
    params = quantized(params, kind)
    merged = adapters.merge(params["model"], params["adapter"])
    expected = adapters.merge(restored(params)["model"], params["adapter"])
    assert jax.tree.structure(merged) == jax.tree.structure(expected)
    tree_close(merged, expected, 1e-6)


def test_quantised_kernels_lie_as_kernels_do():
    model, params, _ = example(LLAMA)
    layers = {"model": {"layers": quantized(params, "int8")["model"]["layers"]}}
    specs = models.shard_specs(models.sharding_rules(model), layers, make_mesh(fsdp=2, tensor=2))["model"]["layers"]
    plain = models.shard_specs(models.sharding_rules(model), {"layers": params["model"]["layers"]},
                               make_mesh(fsdp=2, tensor=2))["layers"]  # fmt: skip
    assert specs["attention"]["query"]["kernel"]["values"] == plain["attention"]["query"]["kernel"]
    assert specs["mlp"]["down"]["kernel"]["values"] == plain["mlp"]["down"]["kernel"]
    assert specs["mlp"]["up"]["kernel"]["scale"][1] is None  # one tile of inputs, which fsdp cannot divide


@pytest.mark.slow
def test_a_mesh_changes_no_gradient():
    model, params, rows = example(dataclasses.replace(LLAMA, vocab_size=500))
    params = quantized(params, "nf4")
    expected = jax.jit(jax.grad(attached_loss(model, rows, PADDED)))(params["adapter"], params)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    specs = models.shard_specs(models.sharding_rules(model), params, mesh)
    with jax.set_mesh(mesh):
        there = jax.device_put(params, jax.tree.map(lambda spec: jax.sharding.NamedSharding(mesh, spec), specs))
        spread = jax.device_put(rows, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(models.BATCH)))
        gradient = jax.jit(jax.grad(lambda adapter, params, rows: attached_loss(model, rows, PADDED)(adapter, params)))
        actual = gradient(there["adapter"], there, spread)
    tree_close(actual, expected, 1e-5)


def test_an_odd_axis_is_named():
    _, params = build(LLAMA)
    wide = {"layers": {"attention": {}, "mlp": {"up": {"kernel": kernel(2, 16, 5)}}}}
    with pytest.raises(ModelError, match="'nf4' packs pairs, but up has a last axis of 5"):
        quantization.quantize_layers(wide, "nf4")


def test_without_qwix_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ModelError, match=r"needs the package qwix; install it with pip install 'jaxpref\[qlora\]'"):
        quantization.quantize_layers(build(LLAMA)[1], "int8")
