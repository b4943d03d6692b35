"""Every attention kernel computes the same function, in every layout and on every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxpref.models.attention import cudnn, splash, xla
from tests.models.attention_rows import HEAD_DIM, LAYOUTS, draw, mesh_of, plain, rows_of, seen_alone

SCALE = HEAD_DIM**-0.5
ONE, EIGHT = {"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}
SEQUENCE = {"fsdp": 2, "tensor": 2, "sequence": 2}
KERNELS = {
    "xla": xla.over_rows,
    "splash": splash.over_rows,
    # The same arguments as on a GPU, given to JAX's own form of the call.
    "cudnn": functools.partial(cudnn.over_rows, implementation="xla"),
}


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """Rows of 160 tokens are several blocks of every kernel."""
    monkeypatch.setattr(splash, "LARGEST_BLOCK", 128)


def weighted(attend, case, dtype):
    """``(output, gradients by query, key and value)`` of an attention whose output's real tokens are weighted."""
    query, key, value, weights = (jnp.asarray(x, dtype) for x in draw(case))

    def total(*arrays):
        out = attend(*arrays)
        return jnp.sum(weights * out), jnp.where(weights == 0, 0, out)

    run = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    return run, (query, key, value)


@functools.cache
def expected(layout: str, window: int | None = None, soft_cap: float | None = None, length: int = 160):
    """The same of :func:`plain`, in float64."""
    case = rows_of(layout, length=length)
    seen = seen_alone(case, window)
    with jax.enable_x64(True):
        run, arrays = weighted(functools.partial(plain, seen=seen, scale=SCALE, soft_cap=soft_cap), case, jnp.float64)
        return jax.tree.map(np.asarray, run(*arrays))


def actual(kernel: str, layout: str, axes: dict, *, dtype=jnp.float32, length: int = 160, **options):
    case, mesh = rows_of(layout, length=length), mesh_of(**axes)
    rows = tuple(axis for axis in ("data", "fsdp") if axis in axes)

    def attend(*arrays):
        return KERNELS[kernel](*arrays, case.segments, case.positions, case.layout, scale=SCALE, **options)

    run, arrays = weighted(attend, case, dtype)
    spec = PartitionSpec(rows, "sequence" if "sequence" in axes else None, "tensor" if "tensor" in axes else None)
    with jax.set_mesh(mesh):
        return run(*(jax.device_put(x, NamedSharding(mesh, spec)) for x in arrays))


def assert_close(results, references, tolerance):
    for result, reference in zip(jax.tree.leaves(results), jax.tree.leaves(references), strict=True):
        largest = np.abs(reference).max()
        assert largest > 0
        np.testing.assert_allclose(result, reference, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axes", [ONE, EIGHT], ids=["1 device", "8 devices"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_sees_each_example_alone(kernel, axes, layout):
    assert_close(actual(kernel, layout, axes), expected(layout), 1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_xla_is_exact(layout):
    with jax.enable_x64(True):
        options = {"window": 30, "soft_cap": 2.0}
        assert_close(actual("xla", layout, ONE, dtype=jnp.float64, **options), expected(layout, **options), 1e-12)


@pytest.mark.parametrize("kernel", ["xla", "splash"])
@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_soft_caps(kernel, layout):
    assert_close(actual(kernel, layout, ONE, soft_cap=1.5), expected(layout, soft_cap=1.5), 1e-5)


@pytest.mark.parametrize(
    ("kernel", "layout"),
    [
        ("xla", "packed+shared"),
        ("cudnn", "packed+shared"),
        ("cudnn", "packed"),
        ("splash", "padded"),
        ("splash", "packed"),
    ],
)
def test_windows_go_by_position(kernel, layout):
    assert_close(actual(kernel, layout, ONE, window=25), expected(layout, window=25), 1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("local", [False, True])
def test_a_layer_that_is_local_at_run_time(kernel, local):
    results = actual(kernel, "packed", ONE, window=25, local=jnp.asarray(local))
    assert_close(results, expected("packed", window=25 if local else None), 1e-5)


@pytest.mark.parametrize("length", [160, 256])
@pytest.mark.parametrize(("kernel", "window"), [("xla", None), ("splash", None), ("splash", 60)])
def test_queries_divided_over_devices(kernel, window, length):
    results = actual(kernel, "packed", SEQUENCE, length=length, window=window)
    assert_close(results, expected("packed", window=window, length=length), 1e-5)


@pytest.mark.parametrize("axes", [{"data": 8}, {"fsdp": 2, "tensor": 4}], ids=["rows", "heads"])
def test_axes_that_do_not_divide_are_left_out(axes):
    """Four rows on eight devices, two heads of keys on four."""
    case, mesh = rows_of("padded"), mesh_of(**axes)

    def attend(*arrays):
        return splash.over_rows(*arrays, case.segments, case.positions, case.layout, scale=SCALE)

    run, arrays = weighted(attend, case, jnp.float32)
    with jax.set_mesh(mesh):
        results = run(*(jax.device_put(x, NamedSharding(mesh, PartitionSpec())) for x in arrays))
    assert_close(results, expected("padded"), 1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16(kernel):
    results = actual(kernel, "packed", ONE, dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(results))
    assert_close(jax.tree.map(lambda x: np.asarray(x, np.float32), results), expected("packed"), 0.03)


@pytest.mark.parametrize(
    ("length", "block"), [(128, 128), (256, 256), (384, 384), (640, 128), (768, 384), (1024, 512), (4096, 512)]
)
def test_blocks_divide_a_length(length, block, monkeypatch):
    monkeypatch.setattr(splash, "LARGEST_BLOCK", 512)
    assert splash.block_size(length) == block
