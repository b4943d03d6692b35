"""Adapters: nothing at the start, the dense parametrisation's gradient, the same on a mesh, and merged as attached."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxpref import models
from jaxpref.batch import Layout, Rows
from jaxpref.errors import ModelError
from jaxpref.models import adapters, parameters
from tests.models.families import FAMILIES, LLAMA, build, tree_close

PADDED, SHARED = Layout(0, 1, 12), Layout(4, 2, 4)
NEEDS = frozenset({"logps", "entropy", "hidden", "score/reward"})
FEW = frozenset({"logps", "score/reward"})
KERNEL = r"\[(2,)?(22,26|26,22|22,4,4|4,4,22)\]"  # of a width of 22
FEW_FAMILIES = (
    "llama3",
    "gemma2",
    "gpt2",
    "olmo2",
)  # GQA; tied, capped; biases, no gate; norms after


def example(config, *, dtype=jnp.float32, rank=3, alpha=6.0, drawn=True, **options):
    """``(model, params, rows)``; ``drawn`` gives ``b`` random values, as after some training."""
    model, tree = build(config, dtype=dtype, chunk=5)
    adapter = adapters.init(model, jax.random.key(1), rank=rank, alpha=alpha, **options)
    random = np.random.default_rng(3)
    if drawn:
        adapter = jax.tree.map(lambda leaf: jnp.asarray(0.3 * random.normal(size=leaf.shape), leaf.dtype), adapter)
    heads = {"reward": {"kernel": jnp.asarray(random.normal(size=(config.width, 1)), dtype)}}
    tokens = jnp.asarray(random.integers(0, config.vocab_size, (4, 12)))
    positions = jnp.broadcast_to(jnp.arange(12), tokens.shape)
    rows = Rows(tokens, jnp.roll(tokens, -1, 1), positions, jnp.ones_like(tokens))
    return model, {"model": tree, "heads": heads, "adapter": adapter}, rows


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def channels(model, params, rows, layout=PADDED, needs=NEEDS, reference=None):
    return models.channels(model, params, rows, layout, needs, reference)


def without(params):
    return {name: part for name, part in params.items() if name != "adapter"}


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def make_mesh(**sizes: int):
    axes = dict.fromkeys(("data", "fsdp", "tensor", "sequence"), 1) | sizes
    devices = jax.devices()[: int(np.prod(list(axes.values())))]
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * 4, devices=devices)


# ------------------------------------------------------------------------------------------------ the start


@pytest.mark.parametrize("family", FEW_FAMILIES)
def test_an_adapter_starts_as_the_base_bit_for_bit(family):
    model, params, rows = example(FAMILIES[family], drawn=False)
    equal(channels(model, params, rows, SHARED), channels(model, without(params), rows, SHARED))


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_one_factor_of_every_linear_layer_starts_at_zero(family):
    model, params, _ = example(FAMILIES[family], drawn=False)
    paths = [path.split("/") for path in parameters.table(model.config)]
    kernels = {path[2] for path in paths if path[0] == "layers" and path[-1] == "kernel"}
    pairs = [pair for block in params["adapter"].layers.values() for pair in block.values()]
    assert {name for block in params["adapter"].layers.values() for name in block} == kernels
    for pair in pairs:
        assert np.count_nonzero(pair["a"]) == pair["a"].size
        assert np.count_nonzero(pair["b"]) == 0


def test_factors_have_the_axes_of_their_kernels():
    model, params, _ = example(LLAMA, rank=2)
    shapes = jax.tree.map(jnp.shape, params["adapter"].layers, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    assert shapes["attention"]["query"] == {"a": (2, 16, 2), "b": (2, 2, 4, 4)}
    assert shapes["attention"]["key"] == {"a": (2, 16, 2), "b": (2, 2, 2, 4)}
    assert shapes["attention"]["out"] == {"a": (2, 4, 4, 2), "b": (2, 2, 16)}
    assert shapes["mlp"]["down"] == {"a": (2, 24, 2), "b": (2, 2, 16)}


def test_a_draw_is_uniform_and_depends_on_its_path_only():
    model, _ = build(LLAMA, dtype=jnp.bfloat16)
    draw = functools.partial(adapters.init, model, jax.random.key(0), rank=8, alpha=1.0)
    every, one = draw().layers, draw(targets=("down",)).layers
    assert list(one) == ["mlp"] and list(one["mlp"]) == ["down"]
    equal(one["mlp"]["down"], every["mlp"]["down"])
    a = np.asarray(every["mlp"]["down"]["a"])
    assert a.dtype == np.float32 and 0.95 * 24**-0.5 < np.abs(a).max() <= 24**-0.5
    assert abs(a.std() - (24 * 3) ** -0.5) < 0.02
    assert not np.array_equal(every["mlp"]["up"]["a"], every["mlp"]["gate"]["a"])


@pytest.mark.parametrize(("scaling", "scale"), [("lora", 2.0), ("rslora", 4.0)])
def test_the_scale(scaling, scale):
    model, params, _ = example(LLAMA, rank=4, alpha=8.0, scaling=scaling)
    assert params["adapter"].scale == scale


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rank=0), "adapter.rank is 0; expected at least 1"),
        (dict(rank=9), r"adapter.rank is 9, but attention/key maps 16 numbers to 8"),
        (dict(alpha=0.0), "adapter.alpha is 0.0; expected a positive number"),
        (dict(alpha=float("nan")), "adapter.alpha is nan"),
        (dict(targets=("query", "quary")), "'quary', which is no linear layer.*query, key, value, out, gate, up, down"),
        (dict(scaling="half"), "adapter.scaling is 'half'; expected one of lora, rslora"),
    ],
)
def test_a_value_outside_its_domain_is_named(options, message):
    with pytest.raises(ModelError, match=message):
        example(LLAMA, **options)


def test_a_target_that_the_architecture_lacks_is_named():
    with pytest.raises(ModelError, match="'gate', which is no linear layer of this architecture; it has .*, up, down"):
        example(FAMILIES["gpt2"], targets=("gate",))
    example(LLAMA, rank=9, targets=("query", "out"))  # a rank that only the key is too narrow for


# ------------------------------------------------------------------------------------------------ the product


@pytest.mark.parametrize("family", FEW_FAMILIES)
def test_merged_weights_compute_what_attached_factors_do(family):
    model, params, rows = example(FAMILIES[family])
    merged = {"model": adapters.merge(params["model"], params["adapter"]), "heads": params["heads"]}
    assert jax.tree.structure(merged["model"]) == jax.tree.structure(params["model"])
    attached = channels(model, params, rows)
    tree_close(channels(model, merged, rows), attached, 1e-5)
    assert np.abs(attached["logps"] - channels(model, without(params), rows)["logps"]).max() > 0.01


def test_merging_rounds_once():
    model, params, _ = example(LLAMA, dtype=jnp.bfloat16)
    merged = adapters.merge(params["model"], params["adapter"])["layers"]["mlp"]["up"]["kernel"]
    up = params["adapter"].layers["mlp"]["up"]
    exact = np.einsum("ndr,nrf->ndf", *(np.asarray(up[name], np.float64) for name in "ab")) * 2.0
    exact += np.asarray(params["model"]["layers"]["mlp"]["up"]["kernel"], np.float64)
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(merged, np.float64), exact, rtol=2**-8)


def test_detaching_undoes_attaching():
    _, params, _ = example(FAMILIES["gpt2"])
    attached = adapters.attach(params["model"], params["adapter"])
    assert "a" in attached["layers"]["mlp"]["up"]
    equal(adapters.detach(attached), params["model"])
    equal(adapters.detach(params["model"]), params["model"])


def test_a_cache_reads_attached_factors():
    model, params, rows = example(LLAMA)
    policy = adapters.policy(params)
    cache = models.init_cache(model, 4, 12)
    states = models.extend(model, policy, rows.tokens, rows.positions, jnp.ones((4, 12), bool), cache)[0]
    np.testing.assert_allclose(states, channels(model, params, rows)["hidden"], atol=1e-5)


def dense_loss(model, rows, layout):
    """A loss of the dense parametrisation W + s A B, which autodiff differentiates through the product."""

    def loss(adapter, params):
        kernels = params["model"]["layers"]
        layers = {name: dict(block) for name, block in kernels.items()}
        for block, targets in adapter.layers.items():
            for name, pair in targets.items():
                product = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))(pair["a"], pair["b"])
                kernel = kernels[block][name]["kernel"] + adapter.scale * product
                layers[block][name] = kernels[block][name] | {"kernel": kernel}
        return mean(models.channels(model, without(params) | {"model": params["model"] | {"layers": layers}}, rows,
                                    layout, FEW))  # fmt: skip

    return loss


def attached_loss(model, rows, layout):
    return lambda adapter, params: mean(models.channels(model, params | {"adapter": adapter}, rows, layout, FEW))


def mean(values):
    return sum(jnp.mean(jnp.sin(values[name])) for name in sorted(values))


@pytest.mark.parametrize(
    ("family", "remat"),
    [("llama3", "none"), pytest.param("gemma2", "full", marks=pytest.mark.slow),
     pytest.param("gpt2", "none", marks=pytest.mark.slow), pytest.param("olmo2", "none", marks=pytest.mark.slow)],
)  # fmt: skip
def test_the_gradient_is_that_of_the_dense_parametrisation(family, remat):
    with jax.enable_x64(True):
        model, params, rows = example(FAMILIES[family], dtype=jnp.float64)
        model = dataclasses.replace(model, remat=remat)
        losses = [make(model, rows, PADDED) for make in (dense_loss, attached_loss)]
        dense, attached = (jax.jit(jax.grad(loss))(params["adapter"], params) for loss in losses)
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(dense))
        tree_close(attached, dense, 1e-10)


@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2}], ids=str)
def test_the_gradient_forms_nothing_of_a_kernels_size(sizes):
    """Sizes are such that a kernel's shape, stacked or not, is nothing else's; what forms it is the cast at most."""
    model, params, rows = example(dataclasses.replace(LLAMA, mlp_width=26, width=22))
    gradient = jax.grad(attached_loss(dataclasses.replace(model, chunk=6), rows, PADDED))
    with jax.set_mesh(make_mesh(**sizes)):
        made = [line for line in str(jax.make_jaxpr(gradient)(params["adapter"], params)).splitlines() if " = " in line]
    names = [line.split(" = ")[1].split("[")[0].split()[0] for line in made if re.search(KERNEL, line.split(" = ")[0])]
    assert len(made) > 200
    assert set(names) <= {"convert_element_type", "sharding_constraint", "custom_vjp_call"}


def test_a_reference_without_the_adapter_is_the_base_bit_for_bit():
    model, params, rows = example(FAMILIES["qwen2"])
    needs = frozenset({"logps", "ref_logps"})
    off, frozen = (channels(model, params, rows, PADDED, needs, r) for r in (adapters.OFF, params["model"]))
    equal(off, frozen)
    assert np.abs(off["ref_logps"] - off["logps"]).max() > 0.01
    through = adapters.attach(params["model"], params["adapter"])
    equal(channels(model, {"model": through}, rows, PADDED, needs, adapters.OFF), off)


def test_no_gradient_reaches_the_adapter_through_its_reference():
    model, params, rows = example(LLAMA)

    def loss(adapter):
        needs = frozenset({"ref_logps"})
        return jnp.sum(channels(model, params | {"adapter": adapter}, rows, PADDED, needs, adapters.OFF)["ref_logps"])

    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.grad(loss)(params["adapter"])))


# ------------------------------------------------------------------------------------------------ the mesh


def test_factors_lie_beside_their_kernels():
    model, params, _ = example(dataclasses.replace(LLAMA, vocab_size=500))
    specs = models.shard_specs(models.sharding_rules(model), params, make_mesh(fsdp=2, tensor=2))
    assert specs["adapter"].layers["attention"] == {
        "query": {"a": PartitionSpec(None, "fsdp", None), "b": PartitionSpec(None, None, "tensor", "fsdp")},
        "key": {"a": PartitionSpec(None, "fsdp", None), "b": PartitionSpec(None, None, "tensor", "fsdp")},
        "value": {"a": PartitionSpec(None, "fsdp", None), "b": PartitionSpec(None, None, "tensor", "fsdp")},
        "out": {"a": PartitionSpec(None, "tensor", "fsdp", None), "b": PartitionSpec(None, None, "fsdp")},
    }
    assert specs["adapter"].layers["mlp"]["up"]["b"] == PartitionSpec(None, None, ("tensor", "fsdp"))
    wide = models.shard_specs(models.sharding_rules(model), params["adapter"], make_mesh(fsdp=8))
    assert wide.layers["attention"]["query"]["b"] == PartitionSpec(None, None, "tensor", None)  # heads of width 4


@pytest.mark.parametrize("family", ["llama3", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_a_mesh_changes_no_value_and_no_gradient(family):
    config = dataclasses.replace(FAMILIES[family], vocab_size=500)
    model, params, rows = example(config)
    trained = {name: params[name] for name in ("adapter", "heads")}

    def loss(trained, base, rows):
        return mean(models.channels(model, trained | {"model": base}, rows, PADDED, FEW))

    def place(tree, mesh):
        specs = models.shard_specs(models.sharding_rules(model), tree, mesh)
        return jax.device_put(tree, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))

    step = jax.value_and_grad(loss)
    value, gradient = jax.jit(step)(trained, params["model"], rows)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    spread = NamedSharding(mesh, PartitionSpec(models.BATCH))
    with jax.set_mesh(mesh):
        there = place(trained, mesh), place(params["model"], mesh), jax.device_put(rows, spread)
        sharded_value, sharded_gradient = jax.jit(step)(*there)
    np.testing.assert_allclose(sharded_value, value, rtol=1e-5)
    tree_close(sharded_gradient, gradient, 1e-5)
