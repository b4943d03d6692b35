"""Splash attention, forward and backward, compiled for a TPU by libtpu on a host that has none."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxpref.batch import Layout
from jaxpref.models.attention import request, splash

REGIONS = {"rows": Layout(0, 1, 1024), "regions": Layout(512, 2, 256), "odd regions": Layout(500, 2, 200)}
DATA, SEQUENCE = {"data": 2, "fsdp": 2}, {"fsdp": 2, "tensor": 1, "sequence": 2}
FORWARD_AND_BACKWARD = 3  # one kernel forward; one for queries and one for keys and values backward


def compiled(v5p, axes, layout, *, head_dim=128, dtype=jnp.bfloat16, policy=None, mixed=False, **options) -> int:
    """How many TPU kernels the gradient of attention by query, key and value calls."""
    names = tuple(axes)
    mesh = jax.sharding.Mesh(np.array(v5p).reshape(*axes.values()), names, axis_types=(AxisType.Auto,) * len(names))
    rows = tuple(axis for axis in ("data", "fsdp") if axis in axes)
    spec = PartitionSpec(rows, "sequence" if "sequence" in axes else None)
    count = math.prod(axes.values())

    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct((count, layout.length, *sizes), dtype, sharding=NamedSharding(mesh, spec))

    def total(*arrays):
        local = arrays[-1][0, 0] > 0 if mixed else None
        attend = functools.partial(splash.over_rows, scale=head_dim**-0.5, layout=layout, local=local, **options)
        kept = attend if policy is None else jax.checkpoint(attend, policy=policy)
        return jnp.sum(jnp.square(kept(*arrays)), dtype=jnp.float32)

    places = shape(dtype=jnp.int32)
    with jax.set_mesh(mesh):
        assert request.platform() == "tpu"
        gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
        lowered = gradient.lower(*(shape(n, head_dim) for n in (4, 2, 2)), places, places)
        return lowered.compile().as_text().count('custom_call_target="tpu_custom_call"')


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("layout", REGIONS)
def test_every_layout(v5p, layout, head_dim):
    calls = compiled(v5p, DATA, REGIONS[layout], head_dim=head_dim)
    assert calls == FORWARD_AND_BACKWARD * (2 if REGIONS[layout].shared else 1)


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [32, 80, 96, 256])
def test_other_sizes_of_heads(v5p, head_dim):
    assert compiled(v5p, DATA, Layout(0, 1, 512), head_dim=head_dim) == FORWARD_AND_BACKWARD


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axes", "layout", "options"),
    [
        ({"fsdp": 2, "tensor": 2}, REGIONS["regions"], {}),
        (SEQUENCE, REGIONS["rows"], {}),
        (SEQUENCE, Layout(0, 1, 1000), {"window": 300}),
        (DATA, REGIONS["rows"], {"window": 256, "soft_cap": 30.0}),
        (DATA, REGIONS["rows"], {"dtype": jnp.float32}),
    ],
    ids=["tensor", "sequence", "sequence, window", "window, soft cap", "float32"],
)
def test_meshes_and_options(v5p, axes, layout, options):
    calls = compiled(v5p, axes, layout, **options)
    assert calls == FORWARD_AND_BACKWARD * (2 if layout.shared else 1)


@pytest.mark.slow
def test_layers_that_are_local_at_run_time_have_two_kernels(v5p):
    calls = compiled(v5p, DATA, Layout(0, 1, 512), window=128, mixed=True)
    assert calls == 2 * FORWARD_AND_BACKWARD


@pytest.mark.slow
def test_a_policy_may_keep_what_the_forward_kernel_computed(v5p):
    """With the named residuals kept, the backward pass does not run the forward kernel again."""
    keep, recompute = jax.checkpoint_policies.save_only_these_names(splash.RESIDUALS), lambda *_, **__: False
    assert compiled(v5p, DATA, Layout(0, 1, 256), policy=keep) == FORWARD_AND_BACKWARD
    assert compiled(v5p, DATA, Layout(0, 1, 256), policy=recompute) == FORWARD_AND_BACKWARD + 1
