"""Values and gradients on a mesh are those of one device, and rules for parameters cover every family."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxpref import models
from jaxpref.batch import Layout, Rows
from jaxpref.errors import ModelError
from tests.models.families import FAMILIES, LLAMA, build, tree_close

AXES = ("data", "fsdp", "tensor", "sequence")
VOCABULARY = 500
PADDED, SHARED = Layout(0, 1, 12), Layout(4, 2, 4)
NEEDS = frozenset({"logps", "score/reward"})


def make_mesh(*sizes: int):
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[: int(np.prod(sizes))])


def wide(config, **changes):
    """A family with sizes that no other axis has, so that they can be recognised in compiled text."""
    return dataclasses.replace(config, vocab_size=VOCABULARY, **changes)


def loss_of(model, layout):
    def loss(params, rows):
        channels = models.channels(model, params, rows, layout, NEEDS)
        return sum(jnp.mean(jnp.sin(channels[name])) for name in sorted(channels)), channels

    return jax.value_and_grad(loss, has_aux=True)


def example(config):
    model, tree = build(config, chunk=4)
    params = {"model": tree, "heads": {"reward": {"kernel": jnp.ones((16, 1)) / 4}}}
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (8, 12)))
    positions = jnp.broadcast_to(jnp.arange(12), tokens.shape)
    rows = Rows(tokens, jnp.roll(tokens, -1, 1), positions, jnp.ones_like(tokens))
    return model, params, rows


def compiled_on(mesh, model, params, rows, layout=PADDED):
    """The compiled gradient with everything placed by the rules, and its arguments."""
    specs = models.shard_specs(models.sharding_rules(model), params, mesh)
    place = lambda tree, specs: jax.device_put(tree, jax.tree.map(lambda s: NamedSharding(mesh, s), specs))  # noqa: E731
    arguments = place(params, specs), place(rows, jax.tree.map(lambda _: PartitionSpec(models.BATCH), rows))
    with jax.set_mesh(mesh):
        return jax.jit(loss_of(model, layout)).lower(*arguments).compile(), arguments


@pytest.fixture(
    params=[("gemma2", (1, 8, 1, 1), SHARED), ("gemma2", (2, 2, 2, 1), PADDED), ("gpt2", (1, 2, 2, 2), PADDED)], ids=str
)
def on_one_device(request):
    """A family's example, a mesh for it, and what one device computes."""
    family, sizes, layout = request.param
    parts = example(wide(FAMILIES[family]))
    model, *arguments = parts
    return make_mesh(*sizes), (*parts, layout), jax.jit(loss_of(model, layout))(*arguments)


def test_a_mesh_changes_no_value_and_no_gradient(on_one_device):
    mesh, parts, ((value, channels), gradient) = on_one_device
    compiled, arguments = compiled_on(mesh, *parts)
    (sharded_value, sharded_channels), sharded_gradient = compiled(*arguments)
    np.testing.assert_allclose(sharded_value, value, rtol=1e-5)
    tree_close(sharded_channels, channels, 1e-5)
    tree_close(sharded_gradient, gradient, 1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_the_tensor_axis_never_gathers_the_vocabulary(tied):
    model, *arguments = example(wide(LLAMA, tied_embeddings=tied))
    compiled, _ = compiled_on(make_mesh(1, 2, 2, 1), model, *arguments)
    shapes = re.findall(r"\b(?:f32|bf16|pred|s32)\[([\d,]+)\]", compiled.as_text())
    sizes = {int(size) for shape in shapes for size in shape.split(",")}
    assert VOCABULARY // 2 in sizes and VOCABULARY not in sizes


def test_the_kernel_gradient_is_added_over_devices_once_and_not_in_every_chunk():
    model, *arguments = example(wide(LLAMA))
    compiled, _ = compiled_on(make_mesh(1, 8, 1, 1), model, *arguments)
    entry = compiled.as_text().split("\nENTRY ")
    reductions = [re.findall(rf"= .*\b{VOCABULARY}\b.*(?:all-reduce|reduce-scatter)\(", part) for part in entry]
    assert len(reductions[1]) == 1 and not reductions[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_every_family_has_a_rule(family):
    model, params = build(FAMILIES[family])
    rules = models.sharding_rules(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path({"model": params}):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        matches = [spec for pattern, spec in rules if re.search(pattern, name)]
        assert matches and len(matches[0]) <= leaf.ndim, name


def test_optimizer_moments_lie_where_their_parameters_do():
    model, params = build(wide(FAMILIES["qwen3"]))
    mesh = make_mesh(1, 2, 2, 1)
    rules = models.sharding_rules(model)
    state = {"params": {"model": params}, "optimizer": ({"mu": {"model": params}, "count": jnp.zeros((), int)},)}
    specs = models.shard_specs(rules, state, mesh)
    assert specs["optimizer"][0]["mu"] == specs["params"]
    assert specs["optimizer"][0]["count"] == PartitionSpec()
    assert specs["params"]["model"]["layers"]["mlp"]["down"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")


def test_an_axis_that_does_not_divide_is_named():
    model, params = build(wide(LLAMA, mlp_width=25))
    with pytest.raises(ModelError, match=r"mlp/down/kernel'.*'tensor' of size 2.*\(2, 25, 16\)"):
        models.shard_specs(models.sharding_rules(model), params, make_mesh(1, 1, 2, 1))


def test_a_big_leaf_without_a_rule_is_named():
    big = jax.ShapeDtypeStruct((512, 513), jnp.float32)
    with pytest.raises(ModelError, match="heads/value/lookup.*no sharding rule"):
        models.shard_specs(models.sharding_rules(None), {"heads": {"value": {"lookup": big}}}, make_mesh(1, 1, 1, 1))


def test_shared_layouts_refuse_a_divided_sequence():
    with pytest.raises(ModelError, match="sequence"):
        compiled_on(make_mesh(1, 1, 1, 2), *example(wide(LLAMA)), SHARED)


def test_constrain_without_a_mesh_is_the_identity():
    x = jnp.ones((3, 2))
    assert models.constrain(x, "data", "tensor") is x
