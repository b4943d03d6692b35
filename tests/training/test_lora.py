"""Training an adapter: whole steps, what they move and remember, and the reference that leaves the adapter out."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import configuration, models, objectives
from jaxpref.configuration import schema
from jaxpref.data import layouts
from jaxpref.errors import ConfigError, TrainingError
from jaxpref.training import assembly, blueprint, mesh, precompute, selfcheck, starting, state, trees
from jaxpref.training.digest import digest, leaf_digests
from jaxpref.training.reference import CHANNEL, ReferenceCache
from tests.invariance.cases import (
    BASE,
    Case,
    assert_close,
    assert_close_by_norm,
    batch_shape,
    mesh_of,
    pairs,
    parameters,
    plan,
    shard,
)

SIZE, STEPS = 14, 3


class Outcome(NamedTuple):
    """What a few steps did; numpy."""

    drawn: blueprint.Blueprint
    before: Any
    after: state.TrainState
    metrics: list[dict[str, Any]]


def section(kind="adapter_off", *, groups=(), **options) -> configuration.Sections:
    optimizer = dict(name="sgd", learning_rate=0.5, clip_norm=0.0) | options
    return configuration.Sections(
        adapter=schema.Adapter(kind="lora", rank=2, alpha=3.0),
        reference=schema.Reference(kind=kind),
        optimizer=schema.Optimizer(**optimizer),
        groups=groups,
    )


def draw(sections, case: Case = BASE, dtype=jnp.float32, config="plain"):
    """``(blueprint, parameters of the base, objective)``."""
    model, params, _ = parameters(config, dtype)
    total = objectives.build({"dpo": objectives.config("dpo")})
    return blueprint.draw(sections, mesh_of(case), model, total, steps=STEPS), params["model"], total


def take_steps(kind: str, case: Case, dtype=jnp.float64, *, cache=None, config="plain", **options) -> Outcome:
    """Three steps of DPO on different batches, from a fresh adapter."""
    sections = section(kind, **options)
    drawn, base, total = draw(sections, case, dtype, config)
    shape = batch_shape({"pairs": SIZE}, case)
    heads, objective_state = total.init(jax.random.key(0), drawn.model)
    measured = []
    with jax.set_mesh(drawn.mesh):
        params = {"model": shard(base, drawn.model, drawn.mesh), "heads": heads}
        params |= starting.draw_adapter(sections.adapter, drawn.model, drawn.mesh, seed=0)
        current = blueprint.create(drawn, params, objective_state)
        before = jax.tree.map(np.array, current.params)
        reference, cached = assembly.load_reference(sections, drawn, current.params["model"], None), frozenset()
        if kind == "cached":
            cache = ReferenceCache(cache, parameters=digest(reference), dtype=drawn.model.dtype.name)
            cached = frozenset({CHANNEL})
        step = blueprint.compile_step(drawn, shape.layout, sections, cached=cached)
        for number in range(STEPS):
            streams = {"pairs": pairs(SIZE, number)}
            batch = layouts.plan(streams, shape)
            if kind == "cached":
                found = [("pairs", example) for example in streams["pairs"]]
                precompute.fill(cache, found, drawn.model, reference, shape, drawn.mesh, lambda _: None)
                batch = cache.attach(batch, streams, shape)
            given = None if kind == "cached" else reference
            assert batch.count > 1 or not case.several
            current, metrics = step(current, given, jax.random.key(0), mesh.place_batch(batch, drawn.mesh))
            measured.append(jax.tree.map(np.array, metrics))
    return Outcome(drawn, before, jax.tree.map(np.array, current), measured)


@functools.cache
def expected(dtype=jnp.float64, config="plain") -> Outcome:
    return take_steps("adapter_off", BASE, dtype, config=config)


def assert_same(actual: Outcome, wanted: Outcome, tolerance: float):
    for one, other in zip(actual.metrics, wanted.metrics, strict=True):
        for name in ("loss", "loss/dpo", "gradient_norm"):
            assert_close(one[name], other[name], tolerance, name)
    movements = [jax.tree.map(np.subtract, outcome.after.params, outcome.before) for outcome in (actual, wanted)]
    (assert_close if tolerance < 1e-6 else assert_close_by_norm)(*movements, tolerance, "parameters")


# ------------------------------------------------------------------------------------------------ steps


def test_a_run_starts_at_its_reference_and_leaves_it():
    with jax.enable_x64(True):
        outcome = expected()
        for number, metrics in enumerate(outcome.metrics):
            _, batch = plan({"pairs": pairs(SIZE, number)}, BASE)
            start = outcome.drawn.objective.closed_forms(batch.examples)["dpo"]
            total, count = metrics["loss/dpo"]
            assert (abs(total / count - start) < 1e-12) == (number == 0)
            assert number == 0 or abs(total / count - start) > 1e-4


def test_only_the_adapter_moves_and_both_factors_do():
    outcome = expected()
    before, after = trees.leaves(outcome.before), trees.leaves(outcome.after.params)
    assert {path for path in before if not np.array_equal(before[path], after[path])} == {
        path for path in before if path.startswith("adapter/")
    }


@pytest.mark.parametrize(
    "case",
    [
        Case("shared", True),
        *(pytest.param(case, marks=pytest.mark.slow) for case in (
            Case("padded", True), Case("packed", False, 8), Case("packed+shared", True, 8), Case("shared", False, 8)
        )),
    ],
    ids=str,
)  # fmt: skip
def test_steps_do_not_depend_on_layout_micro_batches_or_mesh(case):
    with jax.enable_x64(True):
        assert_same(take_steps("adapter_off", case), expected(), 1e-10)


def test_trap_64_the_base_without_its_adapter_is_the_frozen_copy():
    with jax.enable_x64(True):
        assert_same(take_steps("frozen", BASE), expected(), 1e-12)


def test_trap_64_the_base_without_its_adapter_is_what_the_cache_holds(tmp_path):
    """Entries are float32 whatever the model computes in."""
    with jax.enable_x64(True):
        assert_same(take_steps("cached", BASE, cache=str(tmp_path)), expected(), 1e-6)


@pytest.mark.slow
def test_float32_steps_on_a_mesh():
    assert_same(take_steps("adapter_off", Case("packed+shared", True, 8), jnp.float32), expected(jnp.float32), 1e-5)


# ------------------------------------------------------------------------------------------------ what is trained


def test_the_optimizer_remembers_the_adapter_only():
    drawn, _, _ = draw(section(name="adamw", learning_rate=1e-3))
    names = trees.leaves(drawn.shapes.params)
    moments = [path for path in trees.leaves(drawn.shapes.optimizer) if trees.parameter_of(path, names)]
    of = {trees.parameter_of(path, names) for path in moments}
    assert of == {path for path in names if path.startswith("adapter/")} and len(moments) == 2 * len(of)


def test_a_group_may_train_weights_beside_the_adapter():
    groups = (("norm/scale$", dict(frozen=False, lr_scale=0.5)), ("adapter/.*/b$", dict(lr_scale=16.0)))
    drawn, _, _ = draw(section("frozen", groups=groups))
    trained = {path for path, keep in trees.leaves(drawn.trainable).items() if keep}
    assert {"model/norm/scale", "model/layers/mlp_norm/scale", "adapter/layers/mlp/up/a"} <= trained
    assert not any(path.endswith("kernel") for path in trained)
    with pytest.raises(ConfigError, match="'adapter_off', but config.groups train model/layers/attention_norm/scale"):
        assembly.load_reference(section(groups=groups), drawn, None, None)


def test_a_group_that_would_change_nothing_is_an_error():
    with pytest.raises(ConfigError, match=r"groups\[0\].*matches only weights that stay as they are.*frozen=False"):
        draw(section(groups=(("^model/norm", dict(lr_scale=2.0)),)))
    draw(section(groups=((".*", dict(weight_decay=0.1)),)))


def test_a_group_may_hold_a_factor_still():
    drawn, _, _ = draw(section(groups=(("/a$", dict(frozen=True)),)))
    assert {path[-1] for path, keep in trees.leaves(drawn.trainable).items() if keep} == {"b"}


@pytest.mark.slow
def test_muon_takes_each_factor_as_a_matrix():
    drawn, base, _ = draw(section(name="muon", learning_rate=0.1))
    adapter = models.adapters.init(drawn.model, jax.random.key(0), rank=2, alpha=1.0)
    params = {"model": None, "heads": {}, "adapter": adapter}
    gradient = jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(0).normal(size=leaf.shape)), params)
    update, _ = drawn.optimizer.update(gradient, drawn.optimizer.init(params), params)
    for block, targets in update["adapter"].layers.items():
        for name, factors in targets.items():
            inputs = math.prod(adapter.layers[block][name]["a"].shape[1:-1])
            for matrix in (factors["a"][0].reshape(inputs, 2), factors["b"][0].reshape(2, -1)):
                values = np.linalg.svd(matrix, compute_uv=False)
                assert values[1] > 0.5 * values[0], name  # orthogonal up to Muon's few iterations


def test_trap_65_a_factor_that_stays_is_noticed():
    outcome = take_steps("adapter_off", BASE, jnp.float32, name="adamw", learning_rate=1e-3)
    digests = [leaf_digests(params) for params in (outcome.before, outcome.after.params)]
    trainable = trees.leaves(outcome.drawn.trainable)
    selfcheck.check_movement(*digests, trainable, [])
    stuck = "adapter/layers/mlp/up/a"
    with pytest.raises(TrainingError, match=f"1 trainable parameters have not moved.*{stuck}"):
        selfcheck.check_movement(digests[0], digests[1] | {stuck: digests[0][stuck]}, trainable, [])


def test_averages_are_of_the_adapter_and_are_evaluated_attached():
    with jax.enable_x64(True):
        outcome = expected()
        check_averages(outcome)


def check_averages(outcome: Outcome):
    mask, optimizer = outcome.drawn.trainable, outcome.drawn.optimizer
    current = state.create(outcome.after.params, mask, optimizer, {}, average=True)
    assert all(path.startswith("adapter/") for path in trees.leaves(current.average))
    average = jax.tree.map(lambda leaf: leaf + 1, current.average)
    policy = state.averaged(current._replace(average=average), mask)["model"]["layers"]["mlp"]["up"]
    up = outcome.after.params["adapter"].layers["mlp"]["up"]
    np.testing.assert_allclose(policy["b"], 1.5 * (up["b"] + 1), rtol=1e-6)
    np.testing.assert_array_equal(policy["a"], up["a"] + 1)


# ------------------------------------------------------------------------------------------------ configs


def config(**fields):
    given = configuration.default()
    given.model.name, given.objectives = "nano", {"dpo": objectives.config("dpo")}
    for name, value in fields.items():
        given[name].update(value)
    return configuration.sections(given)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(reference={"kind": "adapter_off"}), "'adapter_off', but config.adapter.kind is 'none'"),
        (dict(adapter={"rank": 4}), "config.adapter.rank is set, but nothing reads it with kind='none'"),
        (dict(adapter={"targets": ("query",)}), "config.adapter.targets is set, but nothing reads it"),
        (dict(adapter={"kind": "lora", "rank": 0}), "config.adapter.rank is 0; expected at least 1"),
        (
            dict(adapter={"kind": "lora"}, reference={"kind": "adapter_off", "path": "runs/x"}),
            "config.reference.path is set, but nothing reads it with kind='adapter_off'",
        ),
    ],
)
def test_a_config_that_contradicts_itself_is_one_clear_sentence(fields, message):
    with pytest.raises(ConfigError, match=message):
        config(**fields)


def test_an_adapter_in_a_config():
    adapter = config(adapter={"kind": "lora", "targets": ["query", "value"]}, reference={"kind": "adapter_off"}).adapter
    assert adapter.targets == ("query", "value")
