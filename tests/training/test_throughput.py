"""What a step costs, counted; how long it takes, by a clock that the test winds."""

import math
import time
import types

import jax
import numpy as np
import pytest

from jaxpref import models
from jaxpref.training import throughput
from tests.invariance import cases

LAYOUTS = ("padded", "packed", "shared", "packed+shared")


def test_flops_are_two_for_every_weight_that_a_token_meets_plus_attention():
    config = models.BUILTIN["nano"]
    params = jax.eval_shape(lambda: models.init(models.Transformer(config), jax.random.key(0)))
    kernels = [leaf for path, leaf in jax.tree.leaves_with_path(params["layers"]) if "kernel" in str(path)]
    weights = sum(leaf.size for leaf in kernels) + config.width * config.vocab_size
    attention = 4 * config.layers * config.heads * config.head_dim * 16.5
    assert throughput.flops_per_token(config, 16.5) == 2 * weights + attention
    without = throughput.flops_per_token(config, 16.5, vocabulary=False)
    assert without == 2 * (weights - config.width * config.vocab_size) + attention


def test_a_local_layer_attends_to_its_window_at_most():
    fields = models.BUILTIN["nano"].to_dict()
    layers = fields["layers"]
    local = models.ModelConfig.from_dict(fields | {"window": 8, "local_layers": [True] + [False] * (layers - 1)})
    difference = throughput.flops_per_token(models.BUILTIN["nano"], 100.0) - throughput.flops_per_token(local, 100.0)
    assert difference == 4 * local.heads * local.head_dim * (100 - 8)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GB200", 2500e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
        ("Some new device", None),
    ],
)
def test_trap_74_peaks_are_dense(kind, peak):
    """H100 is 989 TFLOP/s; the 1979 of its data sheet need structured sparsity."""
    assert throughput.peak_flops(kind) == peak


# ------------------------------------------------------------------------------------------------ what a batch asks


def by_hand(streams, layout: str, final: bool, window: float) -> dict[str, float]:
    """Tokens, keys and keys inside a window, of what is read and of what is read for the first time."""
    found = dict.fromkeys(("read", "unique", "keys", "near", "unique keys", "unique near"), 0.0)

    def read(positions, again):
        positions = np.asarray(positions)
        for prefix, counts in (("", True), ("unique ", not again)):
            if counts:
                found["unique" if prefix else "read"] += len(positions)
                found[f"{prefix}keys"] += np.sum(positions + 1)
                found[f"{prefix}near"] += np.sum(np.minimum(positions + 1, window))

    for name, examples in streams.items():
        shared = "shared" in layout and name != "unpaired"  # a mismatched response has its own copy of the prompt
        for example in examples:
            prompt, seen = len(example.prompt), False
            if shared:
                read(range(prompt - 1), False)
            for response in example.responses:
                if len(response):
                    read(range(prompt - 1 if shared else 0, prompt), seen)
                    read(range(prompt, prompt + len(response) - 1 + final), False)
                    seen = True
    return found


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_is_counted_token_by_token(layout, final):
    fields = models.BUILTIN["nano"].to_dict()
    local = [True] + [False] * (fields["layers"] - 1)
    config = models.ModelConfig.from_dict(fields | {"window": 3, "local_layers": local})
    streams = {"pairs": cases.pairs(6), "demonstrations": cases.demonstrations(5), "unpaired": cases.unpaired(4)}
    shape, batch = cases.plan(streams, cases.Case(layout, several=True), final=final)
    found = {name: (float(s), float(n)) for name, (s, n) in throughput.workload(
        jax.tree.map(jax.numpy.asarray, batch), shape.layout, config, vocabulary=True).items()}  # fmt: skip
    expected = by_hand(streams, layout, final, 3)
    assert found["tokens/read"] == (expected["read"], 1)
    assert found["tokens/unique"] == (expected["unique"], 1)
    assert found["tokens/scored"][0] == sum(m.sum() for examples in streams.values() for e in examples for m in e.masks)
    assert found["tokens/context"] == (expected["keys"], expected["read"])
    computed = int(batch.count) * batch.rows.tokens[0].size
    assert found["tokens/padding_share"] == (computed - expected["read"], computed)
    for kind, keys, near in (("read", "keys", "near"), ("unique", "unique keys", "unique near")):
        flops = throughput.forward_flops(config, expected[kind], expected[keys], expected[near])
        assert found[f"flops/{kind}"][0] == pytest.approx(flops, rel=1e-6)


def test_trap_74_unique_tokens_do_not_depend_on_the_layout():
    streams = {"pairs": cases.pairs(8), "unpaired": cases.unpaired(5)}
    counts = [by_hand(streams, layout, True, 3) for layout in LAYOUTS]
    for name in ("unique", "unique keys", "unique near"):
        assert len({count[name] for count in counts}) == 1
    assert len({count["read"] for count in counts}) == 2


def test_a_response_without_a_gradient_counts_for_less():
    """As the last test counts with a weight of 1; with 0, what has no gradient is not there at all."""
    config, case = models.BUILTIN["nano"], cases.Case("packed", several=True)
    streams = {"unpaired": cases.unpaired(5)}
    shape, batch = cases.plan(streams, case)
    batch = jax.tree.map(jax.numpy.asarray, batch)
    flops = {
        share: throughput.workload(batch, shape.layout, config, vocabulary=True, apart={"unpaired": share})
        for share in (0.0, 0.5, 1.0)
    }
    own = {"unpaired": [e._replace(responses=e.responses[:1]) for e in streams["unpaired"]]}
    expected = by_hand(own, "packed", False, math.inf)
    least, half, whole = (float(flops[share]["flops/read"][0]) for share in sorted(flops))
    assert least == pytest.approx(throughput.forward_flops(config, expected["read"], expected["keys"], 0.0))
    assert half == pytest.approx((least + whole) / 2)
    assert flops[0.0]["tokens/read"] == flops[1.0]["tokens/read"]


def test_a_step_is_worth_three_forward_passes_less_the_frozen_weights_gradients():
    params = {"model": {"a": np.zeros((3, 4)), "b": np.zeros((4, 1))}, "adapter": np.zeros(2)}
    everything, part, none = ({"model": {"a": a, "b": b}, "adapter": True} for a, b in ((1, 1), (1, 0), (0, 0)))
    assert throughput.passes(params, everything, reference=False) == 3
    assert throughput.passes(params, part, reference=True) == 2 + 12 / 16 + 1
    assert throughput.passes(params, none, reference=False) == 2


# ------------------------------------------------------------------------------------------------ the clock


@pytest.fixture
def now(monkeypatch):
    """The time, in a list, for the test to move."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def devices(kind: str):
    return types.SimpleNamespace(devices=np.array([types.SimpleNamespace(device_kind=kind)] * 2))


def measured(scale: float = 1.0) -> dict[str, float]:
    counts = {"tokens/read": 100.0, "tokens/unique": 60.0, "flops/read": 1e12, "flops/unique": 7e11}
    return {name: scale * value for name, value in counts.items()}


def test_trap_74_processed_and_unique_tokens_are_reported_apart(now):
    clock = throughput.Clock(devices("TPU v4"), examples=4, passes=3)
    now[0] = 30.0
    clock.arrived(measured())
    assert clock.lap() == {"time/first_step_seconds": 30.0}
    with clock.preparing_input(lambda: False):
        now[0] += 0.5
    with clock.preparing_input(lambda: True):
        now[0] += 0.5  # the devices were busy meanwhile
    now[0] += 1.0
    clock.arrived(measured())
    clock.arrived(measured(3.0))
    peak = 2 * 275e12
    assert clock.lap() == pytest.approx({
        "time/seconds_per_step": 1.0, "time/input_share": 0.25, "time/examples_per_second": 4.0,
        "time/tokens_per_second": 200.0, "time/mfu": 3 * 4e12 / 2 / peak,
        "time/unique_tokens_per_second": 120.0, "time/unique_mfu": 3 * 2.8e12 / 2 / peak,
    })  # fmt: skip
    now[0] += 99.0
    clock.restart()
    now[0] += 2.0
    clock.arrived(measured())
    assert clock.lap()["time/seconds_per_step"] == 2.0


def test_the_first_step_is_never_counted_among_others(now):
    clock = throughput.Clock(devices("cpu"))
    for _ in range(4):
        now[0] += 10.0 if now[0] == 0 else 1.0
        clock.arrived(measured())
    assert clock.lap() == pytest.approx({
        "time/first_step_seconds": 10.0, "time/seconds_per_step": 1.0, "time/input_share": 0.0,
        "time/tokens_per_second": 100.0, "time/unique_tokens_per_second": 60.0,
    })  # fmt: skip
    assert clock.lap() == {}
