"""Properties of every registered objective, on arrays in example order: a new method is found and tested by itself."""

import functools
import inspect
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.errors import ConfigError
from jaxpref.objectives import inputs, registry
from tests.objectives.example_batches import NAMES, batch, build, ratios, responses, restrict, scored, select, state_of

every_objective = pytest.mark.parametrize("name", NAMES)
every_referenced = pytest.mark.parametrize("name", [n for n in NAMES if "ref_logps" in registry.METHODS[n].needs])


@pytest.fixture(autouse=True)
def float64(request):
    with jax.enable_x64("float32" not in request.node.name):
        yield


@functools.cache
def default(name, x64=True):
    """The objective with its defaults, and its jitted loss; one compile for each shape of batch."""
    objective = build(name)
    return objective, scored(objective)


def run(name, outputs, examples, denominators=None):
    objective, score = default(name, jax.config.jax_enable_x64)
    denominators = objective.denominators(examples) if denominators is None else denominators
    return score(outputs, examples, denominators, state_of(name, objective))


def assert_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), actual, expected)


def numbers(name):
    """Numeric hyperparameters, and what else each may be."""
    parameters = inspect.signature(registry.METHODS[name].loss).parameters
    for field, value in registry.METHODS[name].defaults.items():
        if value is None:
            if "str" not in str(parameters[field].annotation):
                yield field, 0.3
        elif isinstance(value, bool):
            yield field, not value
        elif isinstance(value, int | float):
            yield field, next(other for other in others(value) if allowed(name, field, other))


def others(value):
    """Other values of a number: a negative one is a sign, a whole one may be a number of things."""
    if value <= 0:
        return [-value if value else 0.2]
    return [value + 1 if value == int(value) else value * 1.7, value / 2, -value]


def allowed(name, field, value):
    """Whether a value lies in the domain of a hyperparameter."""
    try:
        return bool(build(name, **{field: value}))
    except ConfigError:
        return False


@every_objective
def test_padding_changes_nothing(name):
    outputs, examples = batch(name, padding=2)
    expected = run(name, outputs, examples)
    broken = {n: v.at[-2:].set(jnp.nan) for n, v in outputs.items()}
    junk = {n: jnp.nan if jnp.issubdtype(v.dtype, jnp.floating) else v[0] - 7 for n, v in examples.side.items()}
    side = {n: v if v.dtype == bool else v.at[-2:].set(junk[n]) for n, v in examples.side.items()}
    result, gradients = run(name, broken, examples._replace(side=side))
    assert_close(result, expected[0])
    assert_close(select(gradients, slice(-2)), select(expected[1], slice(-2)))
    assert all(not np.any(g[-2:]) for g in gradients.values())
    short, short_gradients = run(name, *select((outputs, examples), slice(-2)))
    assert_close(short, expected[0])
    assert_close(short_gradients, select(expected[1], slice(-2)))


@every_objective
def test_order_of_examples_changes_nothing(name):
    outputs, examples = batch(name, padding=1, seed=1)
    (result, gradients), order = run(name, outputs, examples), np.array([3, 5, 0, 4, 2, 1])
    moved, moved_gradients = run(name, *select((outputs, examples), order))
    assert_close(moved, result)
    assert_close(moved_gradients, select(gradients, order))


@every_objective
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_trap_03_trap_04_any_partition_gives_the_same_gradient(name, seed):
    """Separable objectives add up over micro-batches; coupled ones do not, and say so."""
    outputs, examples = batch(name, padding=1, seed=seed)
    whole = run(name, outputs, examples)
    denominators = default(name)[0].denominators(examples)
    micro = np.random.default_rng(seed).integers(0, 3, 6)
    partnered = default(name)[0].partnered
    parts = [run(name, outputs, restrict(examples, micro == m, partnered=partnered), denominators) for m in range(3)]
    if default(name)[0].coupled:
        assert registry.METHODS[name].coupled
        return
    sums = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    assert_close(sums[0][:2], whole[0][:2])
    assert_close(sums[1], whole[1])


@every_objective
def test_coupled_objectives_are_coupled(name):
    """The gradient of an example, now or through the state, depends on the others where the registration says so."""
    outputs, examples = batch(name, padding=0, seed=3)
    # Raise the policy's log-probabilities everywhere, so that statistics of the batch (z0) are not at a clamp.
    outputs = {n: v * 0.2 if n == "logps" else v for n, v in outputs.items()}
    (_, _, state), gradients = run(name, outputs, examples)
    halved = {n: v.at[3:].multiply(0.5) for n, v in outputs.items()}
    side = {n: v.at[3:].set(~v[3:]) if v.dtype == bool else v for n, v in examples.side.items()}
    (_, _, other_state), moved = run(name, halved, examples._replace(side=side))
    same = all(np.allclose(gradients[n][:3], moved[n][:3], rtol=1e-12, atol=0) for n in outputs)
    same &= all(map(np.array_equal, jax.tree.leaves(state), jax.tree.leaves(other_state)))
    row = next(row for row in registry.catalogue() if row.name == name)
    assert same != row.coupled


@every_objective
@pytest.mark.parametrize("size", [1e4, -1e4, 0.0])
def test_extremes_are_finite_float32(name, size):
    outputs, examples = batch(name)
    for channel in outputs.keys() - {"sum_p2"}:  # a probability, which is never large
        shift = size * examples.mask if channel in ("logps", "ref_logps") else size
        sign = -1 if channel == "ref_logps" else 1
        first = jnp.asarray(shift if np.ndim(shift) else shift * jnp.ones_like(outputs[channel]))
        outputs[channel] = (sign * first).at[:, 1:].multiply(-1)
    (value, metrics, _), gradients = run(name, outputs, examples)
    assert value.dtype == jnp.float32
    for leaf in jax.tree.leaves((value, metrics, gradients)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize(("name", "response"), [(n, k) for n in NAMES for k in range(responses(n))])
def test_trap_07_empty_response_counts_for_nothing(name, response):
    outputs, examples = batch(name, padding=1)
    empty = examples._replace(mask=examples.mask.at[2, response].set(False))
    outputs = {n: v.at[2, response].set(0) for n, v in outputs.items()}
    (value, metrics, _), gradients = run(name, outputs, empty)
    required = response in registry.FEEDBACK[registry.METHODS[name].feedback]
    assert np.isfinite(value)
    assert float(metrics["dropped_empty"][0]) == required
    assert all(np.all(np.isfinite(g)) for g in gradients.values())
    if required:
        assert all(not np.any(g[2]) for g in gradients.values())
        assert_close(value, run(name, outputs, restrict(examples, jnp.arange(6) != 2))[0][0])


@every_objective
def test_all_rows_padding(name):
    outputs, examples = batch(name)
    (value, metrics, _), gradients = run(name, outputs, restrict(examples, jnp.zeros(6, bool)))
    assert float(value) == 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((metrics, gradients)))


@every_objective
def test_trap_19_every_hyperparameter_matters(name):
    """Where the registration says when it does; a running state shows itself in the second batch."""
    method = registry.METHODS[name]
    batches = [batch(name, padding=0, seed=seed) for seed in range(1 if method.init_state is None else 2)]

    def loss(**overrides):
        objective = build(name, **overrides)
        state, total = state_of(name, objective), 0.0
        for outputs, examples in batches:
            kept = {n: outputs[n] for n in objective.needs}
            denominators = objective.denominators(examples)
            value, _, state = objective.loss(kept, examples, denominators, state, jax.random.key(1), 0)
            total += float(value)
        if objective.gradients:  # what the gradients of the objectives become
            total += float(jnp.sum(objective.combine(jnp.array([[1.0, 0.5], [-1.0, 0.7]]), 0)[0]))
        return total

    expected = loss()
    for field, value in numbers(name):
        if method.classes and field == method.classes[1]:  # it shapes the head, whose outputs are given here
            continue
        others = method.relevant.get(field, {})
        before = loss(**others) if others else expected
        assert abs(loss(**others, **{field: value}) - before) > 1e-9, field


@every_objective
def test_hyperparameters_outside_their_domain_raise(name):
    for field, value in numbers(name):
        if isinstance(value, bool):
            continue
        for wrong in (math.nan, math.inf, -math.inf, "much"):
            with pytest.raises(ConfigError, match=field):
                build(name, **{field: wrong})
        with pytest.raises(ConfigError, match=field):
            build(name, **{field: dict(schedule="linear", start=value, end=math.nan, steps=3)})


@pytest.mark.parametrize("name", [n for n in NAMES if registry.METHODS[n].at_reference is not None])
def test_trap_01_closed_form_at_the_reference(name):
    objective, _ = default(name)
    outputs, examples = batch(name)
    (value, metrics, _), _ = run(name, outputs | {"ref_logps": outputs["logps"]}, examples)
    assert float(value) == pytest.approx(objective.at_reference(examples), rel=1e-12)
    for metric, number in ratios(metrics).items():
        if metric.startswith(("reward", "margin", "displacement", "kl_estimate")):
            assert number == 0, metric


@every_referenced
def test_trap_01_rewards_are_bitwise_zero_float32(name):
    outputs, examples = batch(name)
    (_, metrics, _), _ = run(name, outputs | {"ref_logps": outputs["logps"]}, examples)
    assert all(not np.any(metrics[m][0]) for m in metrics if m.startswith(("reward", "margin", "displacement")))


@every_objective
def test_trap_17_trap_28_wrong_shapes_raise(name):
    method = registry.METHODS[name]
    shapes = {name: inputs.dummy(argument) for name, argument in method.inputs.items()}
    arrays = {name: jnp.ones(shape.shape, shape.dtype) for name, shape in shapes.items()}
    values = method.defaults | {"examples": 2}
    provided = {"state": method.init_state(values)} if method.init_state is not None else {}
    provided |= {"key": jax.random.key(0)} if "key" in method.arguments else {}
    hyperparameters = method.of_loss(method.defaults)
    for argument in arrays:
        wrong = arrays | {argument: arrays[argument][..., None]}
        with pytest.raises((AssertionError, ValueError, TypeError)):
            method.loss(**wrong, **provided, **hyperparameters)


@every_referenced
def test_reference_gets_no_gradient(name):
    _, gradients = run(name, *batch(name))
    assert not any(np.any(gradients[channel]) for channel in gradients if "ref_logps" in channel)
    assert np.any(gradients["logps"])


@every_objective
def test_trap_26_metrics_agree_with_the_loss_and_each_other(name):
    outputs, examples = batch(name, padding=1, seed=4)
    (value, metrics, _), _ = run(name, outputs, examples)
    for total, count in metrics.values():
        chex.assert_shape([total, count], ())
    numbers = ratios(metrics)
    assert numbers["loss"] == pytest.approx(float(value), rel=1e-12)
    if "margin_hi" in numbers:
        assert numbers["margin"] == pytest.approx(numbers["margin_hi"] - numbers["margin_lo"], rel=1e-9)
    elif "margin" in numbers:
        assert numbers["margin"] == pytest.approx(numbers["reward_chosen"] - numbers["reward_rejected"], rel=1e-9)
    if "accuracy" in numbers and "margin" in numbers:
        alone = [restrict(examples, jnp.arange(6) == row) for row in range(5)]
        margins = [ratios(run(name, outputs, one)[0][1])["margin"] for one in alone]
        assert numbers["accuracy"] == pytest.approx(np.mean(np.array(margins) > 0))


@every_objective
def test_weights_multiply_each_example(name):
    outputs, examples = batch(name, padding=1, seed=5)
    plain = run(name, outputs, examples)
    doubled = examples._replace(side=examples.side | {"weight": jnp.full(6, 2.0).at[-1].set(jnp.nan)})
    if not registry.METHODS[name].per_example:
        with pytest.raises(ConfigError, match="its values do not belong to examples"):
            run(name, outputs, doubled)
        return
    (value, metrics, _), gradients = run(name, outputs, doubled)
    assert float(value) == pytest.approx(2 * float(plain[0][0]))
    assert_close(gradients, jax.tree.map(lambda g: 2 * g, plain[1]))
    assert ratios(metrics)["loss"] == pytest.approx(float(value))


@every_objective
def test_state_survives_a_checkpoint(name):
    """The state keeps its structure and types, and goes through host memory unchanged."""
    objective, score = default(name)
    outputs, examples = batch(name)
    denominators, state = objective.denominators(examples), state_of(name, objective)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers), "a step could not be given the state's buffers: two leaves share one"
    (_, _, first), _ = score(outputs, examples, denominators, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(first, state)
    restored = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), first)
    chex.assert_trees_all_equal(
        score(outputs, examples, denominators, restored), score(outputs, examples, denominators, first)
    )


@every_objective
def test_catalogue_row_and_docstring(name):
    row = next(row for row in (registry.catalogue()) if row.name == name)
    document = registry.METHODS[name].loss.__doc__
    assert row.url in document and f"See *{row.title}*" in " ".join(document.split())
    assert row.formula
    for argument in (*registry.METHODS[name].arguments, *row.defaults):
        assert f"{argument}" in document, f"the docstring does not explain {argument}"
