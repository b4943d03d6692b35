import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxpref.training.digest import digest, leaf_digests


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_one_changed_entry_or_a_swap_changes_the_digest(dtype):
    tree = {"a": jnp.arange(24).reshape(2, 3, 4).astype(dtype), "b": {"c": jnp.ones(5, dtype)}}
    changed = tree | {"a": tree["a"].at[1, 2, 3].add(1)}
    swapped = tree | {"a": tree["a"].at[0, 0].set(tree["a"][0, 1]).at[0, 1].set(tree["a"][0, 0])}
    assert len({digest(tree), digest(changed), digest(swapped)}) == 3
    assert digest(tree) == digest(jax.tree.map(jnp.copy, tree))
    before, after = leaf_digests(tree), leaf_digests(changed)
    assert before.keys() == {"a", "b/c"} and before["b/c"] == after["b/c"] and before["a"] != after["a"]


def test_dtype_and_shape_are_part_of_the_digest():
    zeros = jnp.zeros((2, 3))
    assert len({digest({"a": x}) for x in (zeros, zeros.reshape(3, 2), zeros.astype(jnp.bfloat16))}) == 3


def test_sharding_does_not_change_the_digest():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    value = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)
    sharded = jax.device_put(value, NamedSharding(mesh, PartitionSpec("fsdp")))
    assert digest({"a": value}) == digest({"a": sharded})
