"""Which kernel computes a model's attention, and what each kernel refuses."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import models
from jaxpref.batch import Layout, Rows
from jaxpref.errors import ModelError
from jaxpref.models import attention
from jaxpref.models.attention import cudnn, request, splash
from tests.models.attention_rows import draw, mesh_of, rows_of
from tests.models.families import FAMILIES, LLAMA, build, tree_close

PADDED, SHARED = Layout(0, 1, 12), Layout(6, 2, 5)
WIDE = dataclasses.replace(LLAMA, head_dim=64)
WINDOWS = {  # all layers local, none, and both
    "mistral": dataclasses.replace(FAMILIES["mistral"], window=3),
    "gemma2": FAMILIES["gemma2"],
    "llama3": FAMILIES["llama3"],
}


def chosen(name, layout=PADDED, *, config=WIDE, dtype=jnp.bfloat16) -> str:
    return attention.chosen(models.Transformer(config, dtype=dtype, attention=name), layout)


@pytest.fixture
def on(monkeypatch):
    """``on(platform)`` makes the dispatcher see another platform than the CPU."""
    return lambda platform: monkeypatch.setattr(request, "platform", lambda: platform)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ModelError, match="attention is 'flash'; expected one of auto, xla, splash, cudnn"):
        models.Transformer(LLAMA, attention="flash")


@pytest.mark.parametrize(
    ("platform", "name", "settings", "message"),
    [
        ("gpu", "splash", {}, "runs on TPUs .* this is 'gpu'"),
        ("tpu", "splash", {"dtype": jnp.float16}, "float32 or bfloat16, and the compute dtype is float16"),
        ("cpu", "splash", {"dtype": jnp.float64}, "compute dtype is float64"),
        (
            "tpu",
            "splash",
            {"layout": SHARED, "config": dataclasses.replace(WIDE, window=10)},
            "window of 10 is shorter",
        ),
        ("cpu", "cudnn", {}, "NVIDIA GPUs, and this is 'cpu'"),
        ("gpu", "cudnn", {"dtype": jnp.float32}, "bfloat16 or float16, and the compute dtype is float32"),
        ("gpu", "cudnn", {"config": dataclasses.replace(WIDE, attention_soft_cap=50.0)}, "no soft cap, .* at 50"),
        ("gpu", "cudnn", {"config": dataclasses.replace(WIDE, head_dim=36)}, "multiple of 8 up to 128, .* is 36"),
        ("gpu", "cudnn", {"config": dataclasses.replace(WIDE, head_dim=160)}, "multiple of 8 up to 128, .* is 160"),
    ],
)
def test_what_a_kernel_cannot_honour_is_refused(on, platform, name, settings, message):
    on(platform)
    with pytest.raises(ModelError, match=message) as raised:
        chosen(name, **settings)
    assert str(raised.value).startswith(f"attention is '{name}', but") and "use 'auto' or 'xla'" in str(raised.value)


def test_heads_of_256_need_a_hopper(on, monkeypatch):
    on("gpu")
    config = dataclasses.replace(WIDE, head_dim=256)
    with pytest.raises(ModelError, match="up to 128"):
        chosen("cudnn", config=config)
    device = type("Device", (), {"compute_capability": "9.0"})
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert chosen("cudnn", config=config) == "cudnn"


@pytest.mark.parametrize("name", attention.NAMES)
def test_regions_are_not_cut_by_a_sequence_axis(on, name):
    on("gpu" if name == "cudnn" else "tpu")
    with jax.set_mesh(mesh_of(sequence=2)):
        with pytest.raises(ModelError, match="mesh.sequence is 2, but the shared layouts cut rows into regions"):
            chosen(name, SHARED)


def test_cudnn_needs_whole_rows(on):
    on("gpu")
    with jax.set_mesh(mesh_of(sequence=2)), pytest.raises(ModelError, match="whole rows, and mesh.sequence is 2"):
        chosen("cudnn")


def test_a_window_that_no_sequence_reaches_is_none(on):
    """Prompt and response together are shorter than the window, though the whole row is longer."""
    on("tpu")
    assert chosen("splash", SHARED, config=dataclasses.replace(WIDE, window=11)) == "splash"


def test_auto_takes_the_best_kernel_that_serves(on):
    local = dataclasses.replace(WIDE, window=3)
    assert chosen("auto") == "xla"
    on("gpu")
    assert chosen("auto") == "xla"
    on("tpu")
    assert chosen("auto") == "splash"
    assert chosen("auto", SHARED) == "splash"
    assert chosen("auto", config=local) == "splash"
    assert chosen("auto", SHARED, config=local) == "xla"
    assert chosen("auto", dtype=jnp.float16) == "xla"


def test_the_platform_is_the_mesh_s():
    """A mesh of a topology's devices says what they are, also on a host that has none of them."""
    assert request.platform() == jax.default_backend()
    with jax.set_mesh(mesh_of(data=2)):
        assert request.platform() == jax.devices()[0].platform


# ------------------------------------------------------------------------------------------------ through the model


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("gemma2", "packed"),
        pytest.param("mistral", "packed", marks=pytest.mark.slow),
        pytest.param("llama3", "packed+shared", marks=pytest.mark.slow),
    ],
)
def test_a_model_computes_the_same_with_splash(family, layout):
    """Hidden states and gradients: windows in all layers, in some layers, and regions; soft caps; shared heads."""
    case = rows_of(layout, count=2, length=20, prompt=12, response=9)
    tokens = np.random.default_rng(0).integers(1, 37, case.segments.shape).astype(np.int32)
    rows = Rows(tokens, tokens, case.positions, case.segments)
    weights = (case.segments > 0)[..., None] * np.random.default_rng(1).normal(size=(*tokens.shape, 16))

    def run(name):
        model, params = build(WINDOWS[family], attention=name)
        total = lambda params: jnp.sum(weights * models.hidden(model, params, rows, case.layout))  # noqa: E731
        return jax.jit(jax.grad(total))(params)

    tree_close(run("splash"), run("xla"), 1e-5)


# ------------------------------------------------------------------------------------------------ without a GPU


@pytest.mark.parametrize("layout", ["packed", "packed+shared"])
def test_cudnn_is_lowered_for_cuda(layout, monkeypatch):
    """JAX asks for cuDNN's version while it traces; everything else of the lowering works on any host."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    case = rows_of(layout, length=161, prompt=101, response=53)
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in draw(case)[:3]]
    bound = functools.partial(cudnn.over_rows, scale=0.1, window=20)

    def total(*arrays):
        return jnp.sum(bound(*arrays, case.segments, case.positions, case.layout))

    lowered = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(*arrays).lower(lowering_platforms=("cuda",))
    calls = re.findall(r"custom_call @(__cudnn\$\w+)", lowered.as_text())
    regions = 2 if case.layout.shared else 1
    assert calls.count("__cudnn$fmhaScaleBiasSoftmax") == regions
    assert calls.count("__cudnn$fmhaScaleBiasSoftmaxBackward") == regions
    # Only equal lengths are told to be causal: cuDNN counts a rectangle's diagonal from its first key.
    masks = re.findall(r"mask_type\\22: \\22(\w+)\\22", lowered.as_text())
    assert masks.count("CAUSAL") == 2 and masks.count("NO_MASK") == 2 * (regions - 1)


@pytest.mark.device
@pytest.mark.parametrize("layout", ["packed", "packed+shared"])
def test_the_platform_s_own_kernel(layout):
    """On an accelerator: the kernel that was written for it, against xla, in bfloat16."""
    case = rows_of(layout, length=256, prompt=128, response=128)
    query, key, value, weights = (jnp.asarray(x, jnp.bfloat16) for x in draw(case))
    query, key, value = (jnp.tile(x, (1, 1, 1, 8)) for x in (query, key, value))
    name = {"gpu": "cudnn", "tpu": "splash"}[jax.default_backend()]

    def run(name):
        def total(*arrays):
            attend = attention.KERNELS[name].over_rows
            out = attend(*arrays, case.segments, case.positions, case.layout, scale=0.125)
            return jnp.sum(jnp.tile(weights, (1, 1, 1, 8)) * out, dtype=jnp.float32)

        return jax.tree.map(
            lambda x: np.asarray(x, np.float32), jax.jit(jax.grad(total, argnums=(0, 1, 2)))(query, key, value)
        )

    tree_close(run(name), run("xla"), 0.03)


def test_splash_is_interpreted_on_a_cpu_only(monkeypatch):
    """What is made for a TPU is never the interpreted form."""
    seen = []
    monkeypatch.setattr(splash, "_kernel", lambda *_, interpret, **__: seen.append(interpret) or (lambda q, *_: q))
    case = rows_of("packed", count=1)
    for platform, interpreted in (("tpu", False), ("cpu", True)):
        monkeypatch.setattr(splash, "platform", lambda platform=platform: platform)
        splash.over_rows(*draw(case)[:3], case.segments, case.positions, case.layout, scale=1.0)
        assert seen.pop() is interpreted
