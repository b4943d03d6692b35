"""Tier (c): whole train steps of the sentinels do not depend on layout, micro-batches, mesh or kind of reference.

A case takes two SGD steps, the second on a ragged batch: SGD because Adam turns rounding noise in a zero gradient into
a step of full size.
"""

import functools
import itertools
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpref import configuration, objectives
from jaxpref.data import layouts
from jaxpref.objectives import objective, registry
from jaxpref.training import mesh, precompute, state
from jaxpref.training.assembly import Assembly
from jaxpref.training.digest import digest
from jaxpref.training.reference import ReferenceCache
from tests import compilations
from tests.invariance.cases import (
    BASE,
    STREAMS,
    Case,
    assert_close,
    assert_close_by_norm,
    mesh_of,
    parameters,
    plan,
    shard,
)

SIZES = {"pairs": 8, "unweighted": 8, "judged": 8, "demonstrations": 12, "unpaired": 9}
RAGGED = {"pairs": 5, "unweighted": 5, "judged": 5, "demonstrations": 9, "unpaired": 3}
# These say how examples lie in rows; flops/unique whether mismatched responses lie where they get a gradient.
LAYOUT_METRICS = ("tokens/read", "tokens/context", "tokens/padding_share", "flops/read", "flops/unique")


def moving_target_loss(chosen_logps, rejected_logps, state, where=None, *, decay=0.5):
    """A stateful loss: the margin has to beat a moving average of the batch's margins."""
    margins = chosen_logps - rejected_logps
    where = jnp.ones(margins.shape, bool) if where is None else where
    mean = jnp.sum(jnp.where(where, margins, 0)) / jnp.maximum(jnp.sum(where), 1)
    state = decay * state + (1 - decay) * mean
    return jax.nn.softplus(state - margins), state


def stateful() -> objectives.Total:
    method = registry.Method(
        name="moving_target", loss=moving_target_loss, feedback="pairs", title="", url="", formula="", disagreements="",
        coupled=True, reward_scale="beta", at_reference=None, reduction=None, init_state=lambda _: jnp.zeros(()),
        aux_metrics={},
    )  # fmt: skip
    return objectives.Total({"moving_target": objective.bind("moving_target", method, "pairs", 1.0, {"decay": 0.5})})


def terms(**overrides):
    return lambda: objectives.build({n: objectives.config(n, **fields) for n, fields in overrides.items()})


OBJECTIVES = {
    "sft": terms(sft={}),
    "dpo": terms(dpo=dict(label_smoothing=0.1)),
    "simpo, ipo, orpo": terms(simpo={}, ipo={}, orpo={}),
    "kto": terms(kto=dict(desirable_weight=1.5)),
    "bradley_terry": terms(bradley_terry={}),
    "dpo + sft": terms(dpo=dict(weight=0.7), sft=dict(weight=dict(schedule="linear", start=0.5, end=0.1, steps=2))),
    "stateful": stateful,
    "bco": terms(bco={}),
    "aot, mpo": terms(aot=dict(data="unweighted"), mpo=dict(data="unweighted")),
    "raco": terms(raco=dict(data="judged", weights=(0.3, 0.7), beta=0.5)),
    "raco + bco_pair + sft": terms(raco=dict(data="judged", weight=0.6), bco_pair=dict(data="judged"), sft={}),
}
WHOLE_MATRIX = ("dpo + sft", "kto", "bradley_terry")  # one pass, two passes, a head
CASES = [Case(*case) for case in itertools.product(layouts.LAYOUTS, (False, True), (1, 8))]
HALF = [case for case in CASES if case.several == (case.devices == 8)]
MATRIX = [(name, case) for name in OBJECTIVES for case in (CASES if name in WHOLE_MATRIX else HALF) if case != BASE]
MATRIX += [
    (name, Case(layout, True, 8, short=True))
    for name, layout in (
        ("kto", "packed"),
        ("bradley_terry", "packed+shared"),
        ("dpo + sft", "packed+shared"),
        ("raco + bco_pair + sft", "packed"),
    )
]


class Outcome(NamedTuple):
    """What two steps did; numpy."""

    metrics: list[dict[str, Any]]
    movement: Any
    objective: Any


def case_name(value):
    return str(value)


def examples(total: objectives.Total, sizes: dict[str, int], seed: int):
    streams = dict.fromkeys(term.stream for term in total.terms.values())
    return {name: STREAMS[name](sizes[name], seed) for name in streams}


def assemble(total, case: Case, dtype, *, cache=None, config="plain") -> Assembly:
    """The parts of a run that its step reads, at step 0."""
    model, params, reference = parameters(config, dtype)
    heads, objective_state = total.init(jax.random.key(0), model)
    needed = any("ref_logps" in term.needs for term in total.terms.values())
    params = {"model": params["model"], "heads": heads}
    final = any("score" in term.needs for term in total.terms.values())
    shape, _ = plan(examples(total, SIZES, 0), case, final=final)
    devices, optimizer = mesh_of(case), optax.sgd(0.5)
    trainable = jax.tree.map(lambda _: True, params)
    with jax.set_mesh(devices):
        fresh = state.create(params, trainable, optimizer, objective_state, average=False)
        fresh = jax.device_put(fresh, mesh.state_shardings(fresh, model, devices))
    given = dict(
        sections=configuration.Sections(),
        mesh=devices,
        model=model,
        inputs=types.SimpleNamespace(shape=shape),
        objective=total,
        optimizer=optimizer,
        trainable=trainable,
        shapes=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), fresh),
        state=fresh,
        reference=shard(reference, model, devices) if needed else None,
    )
    if cache is not None:
        given["cache"] = ReferenceCache(cache, parameters=digest(given["reference"]), dtype=model.dtype.name)
    return Assembly(**(dict.fromkeys(Assembly._fields) | given))


def take_steps(name: str, case: Case, dtype, **options) -> Outcome:
    """Two steps on batches of different content, the second ragged; one compile serves both."""
    parts = assemble(OBJECTIVES[name](), case, dtype, **options)
    assert (parts.inputs.shape.micro_batches > 1) == case.several
    before, measured = jax.tree.map(np.array, parts.state.params), []
    step, current, shape = parts.compile_step(), parts.state, parts.inputs.shape
    reference = None if parts.cache is not None else parts.reference
    with jax.set_mesh(parts.mesh), compilations.counted() as counts:
        for number, sizes in enumerate((SIZES, RAGGED)):
            streams = examples(parts.objective, sizes, number)
            batch = layouts.plan(streams, shape)
            if parts.cache is not None:
                given = [(name, example) for name, found in streams.items() for example in found]
                precompute.fill(parts.cache, given, parts.model, parts.reference, shape, parts.mesh, lambda _: None)
                batch = parts.cache.attach(batch, streams, shape)
            assert batch.count > 1 or number == 1 or not case.several
            if case.short:
                lengths = batch.row_lengths[: int(batch.count)]
                assert min(lengths) < max(lengths) or number == 1
            current, metrics = step(current, reference, jax.random.key(0), mesh.place_batch(batch, parts.mesh))
            measured.append(jax.tree.map(np.array, metrics))
    assert counts["jit(step)"] == 1
    assert int(current.step) == 2
    movement = jax.tree.map(lambda after, before: np.array(after) - before, current.params, before)
    return Outcome(measured, movement, jax.tree.map(np.array, current.objective))


@functools.cache
def base(name: str, dtype, config: str = "plain") -> Outcome:
    return take_steps(name, BASE, dtype, config=config)


def assert_same(actual: Outcome, expected: Outcome, tolerance: float):
    for step, (measured, wanted) in enumerate(zip(actual.metrics, expected.metrics, strict=True)):
        assert measured.keys() == wanted.keys()
        for metric in wanted.keys() - set(LAYOUT_METRICS):
            assert_close(measured[metric], wanted[metric], tolerance, f"step {step}, {metric}")
    compare = assert_close if tolerance < 1e-6 else assert_close_by_norm
    compare(actual.movement, expected.movement, tolerance, "parameters")
    if jax.tree.leaves(expected.objective):
        assert_close(actual.objective, expected.objective, tolerance, "objective state")


# ------------------------------------------------------------------------------------------------ the matrix


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), MATRIX, ids=case_name)
def test_steps_are_those_of_one_padded_device(name, case):
    with jax.enable_x64(True):
        assert_same(take_steps(name, case, jnp.float64), base(name, jnp.float64), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("case", [HALF[-1], Case("packed", True, 1), Case("packed", True, 8, sequence=True)], ids=str)
def test_steps_of_a_model_with_every_feature(case):
    with jax.enable_x64(True):
        actual = take_steps("dpo + sft", case, jnp.float64, config="everything")
        assert_same(actual, base("dpo + sft", jnp.float64, "everything"), 1e-10)


@pytest.fixture
def expected(name):
    return base(name, jnp.float32)


@pytest.mark.parametrize("name", ["kto", pytest.param("dpo + sft", marks=pytest.mark.slow)])
def test_trap_03_float32_micro_batches_on_a_mesh(name, expected):
    """The sentinel of the fast stage: packed and shared, several micro-batches, eight devices."""
    assert_same(take_steps(name, Case("packed+shared", True, 8), jnp.float32), expected, 1e-5)


# ------------------------------------------------------------------------------------------------ the reference


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "kto", "dpo + sft"])
@pytest.mark.parametrize("case", HALF, ids=str)
def test_trap_55_a_cached_reference_gives_the_same_numbers(name, case, tmp_path):
    """The step gets no reference parameters at all. Entries are float32 whatever the model computes in."""
    with jax.enable_x64(True):
        cached = take_steps(name, case, jnp.float64, cache=str(tmp_path))
        assert_same(cached, base(name, jnp.float64), 1e-6)
