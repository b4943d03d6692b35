import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpref.configuration import schema
from jaxpref.errors import ConfigError
from jaxpref.training import optimizers, trees
from tests import compilations

OPTIMIZERS = sorted(optimizers.HYPERPARAMETERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """The fields that the optimizer reads, as a config's section has them."""

    name: str = "adamw"
    learning_rate: float = 0.1
    schedule: str = "constant"
    warmup_steps: int = 0
    end_factor: float | None = None
    clip_norm: float = 0.0
    weight_decay: float = 0.0
    b1: float | None = None
    b2: float | None = None
    eps: float | None = None
    momentum: float | None = None
    moment_dtype: str = "float32"


section = Section


def parameters(dtype=jnp.float32, seed=0):
    shapes = {
        "embed": {"tokens": (5, 4), "positions": (3, 4)},
        "layers": {
            "attention_norm": {"scale": (2, 4)},
            "attention": {
                "query": {"kernel": (2, 4, 2, 3), "bias": (2, 2, 3)},
                "out": {"kernel": (2, 2, 3, 4)},
                "query_norm": {"scale": (2, 6)},
            },
            "mlp": {"up": {"kernel": (2, 4, 6)}},
        },
        "norm": {"scale": (4,)},
    }
    tree = {"model": shapes, "heads": {"reward": {"kernel": (4, 1)}}}
    keys = iter(jax.random.split(jax.random.key(seed), 20))
    make = lambda shape: jax.random.normal(next(keys), shape).astype(dtype)  # noqa: E731
    return jax.tree.map(make, tree, is_leaf=lambda shape: isinstance(shape, tuple))


def one_layer(tree, layer):
    """The same tree with one of its layers."""
    layers = jax.tree.map(lambda leaf: leaf[layer : layer + 1], tree["model"]["layers"])
    return tree | {"model": tree["model"] | {"layers": layers}}


def trained(config, params, gradients, groups=(), steps=100, updates=1):
    """Parameters after some updates with the same gradients."""
    transformation, _ = optimizers.make(config, groups, params, steps=steps)
    state = jax.jit(transformation.init)(params)

    @jax.jit
    def step(params, state):
        changes, state = transformation.update(gradients, state, params)
        return optax.apply_updates(params, changes), state

    for _ in range(updates):
        params, state = step(params, state)
    return params, state


# ------------------------------------------------------------------------------------------------ directions


def test_adamw_equals_optax():
    params, gradients = parameters(), parameters(seed=1)
    got, _ = trained(section(b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.01), params, gradients, updates=3)
    decayed = trees.map_paths(lambda path, _: "kernel" in path or path.endswith("tokens"), params)
    reference = optax.adamw(0.1, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.01, mask=decayed)

    @jax.jit
    def three_steps(expected):
        state = reference.init(expected)
        for _ in range(3):
            changes, state = reference.update(gradients, state, expected)
            expected = optax.apply_updates(expected, changes)
        return expected

    expected = three_steps(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


def test_sgd_with_momentum_by_hand():
    params, gradients = {"a": jnp.array([1.0, 2.0])}, {"a": jnp.array([1.0, -1.0])}
    got, _ = trained(section(name="sgd", momentum=0.5), params, gradients, updates=2)
    np.testing.assert_allclose(got["a"], params["a"] - 0.1 * (1 + 1.5) * gradients["a"], rtol=1e-6)


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_stacked_layers_are_updated_as_if_each_stood_alone(name):
    params, gradients = parameters(), parameters(seed=1)
    gradients["model"]["layers"]["mlp"]["up"]["kernel"] *= jnp.array([1.0, 100.0])[:, None, None]
    got, _ = trained(section(name=name), params, gradients, updates=2)
    for layer in range(2):
        pick = functools.partial(one_layer, layer=layer)
        alone, _ = trained(section(name=name), pick(params), pick(gradients), updates=2)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), pick(got), alone)


def test_muon_makes_matrices_orthogonal_and_gives_them_the_size_of_adams_updates():
    params, gradients = parameters(), parameters(seed=1)
    got, _ = trained(section(name="muon", learning_rate=1.0, momentum=0.0), params, gradients)
    change = jax.tree.map(jnp.subtract, params, got)["model"]["layers"]
    up = np.asarray(change["mlp"]["up"]["kernel"]) / (0.2 * np.sqrt(6))
    query = np.asarray(change["attention"]["query"]["kernel"]).reshape(2, 4, 6) / (0.2 * np.sqrt(6))
    for matrix in (*up, *query):
        singular = np.linalg.svd(matrix, compute_uv=False)
        assert 0.5 < singular.min() and singular.max() < 1.3
    np.testing.assert_allclose(jnp.abs(change["attention_norm"]["scale"]), 1.0, rtol=1e-4)  # Adam's first update is ±1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_moves_every_leaf_downhill_and_compiles_once(name):
    params = parameters()
    transformation, _ = optimizers.make(section(name=name, learning_rate=0.01), (), params, steps=10)

    @jax.jit
    def step(params, state):
        gradients = jax.grad(lambda p: optax.tree.norm(p, squared=True))(params)
        changes, state = transformation.update(gradients, state, params)
        return optax.apply_updates(params, changes), state

    state = jax.jit(transformation.init)(params)
    with compilations.counted() as counts:
        moved, state = step(params, state)
        moved, _ = step(moved, state)
    assert counts["jit(step)"] == 1
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), params, moved)))
    assert optax.tree.norm(moved) < optax.tree.norm(params)


# ------------------------------------------------------------------------------------------------ moments


def moments(state, params):
    return {path: leaf for path, leaf in trees.leaves(state).items() if trees.parameter_of(path, trees.leaves(params))}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_moments_have_their_dtype_and_keep_it_whatever_the_parameters_are(name, dtype):
    params, gradients = parameters(jnp.bfloat16), parameters(jnp.float32, seed=1)
    momentum = {} if name in ("adamw", "lion") else {"momentum": 0.9}
    config = section(name=name, moment_dtype=dtype, **momentum)
    transformation, _ = optimizers.make(config, (), params, steps=10)
    before = jax.eval_shape(transformation.init, params)
    changes, after = jax.eval_shape(transformation.update, gradients, before, params)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
    assert {str(leaf.dtype) for leaf in moments(after, params).values()} == {dtype}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(changes)} == {"float32"}


def test_adams_second_moment_is_bfloat16_too():
    params = parameters()
    transformation, _ = optimizers.make(section(moment_dtype="bfloat16"), (), params, steps=10)
    stored = moments(jax.eval_shape(transformation.init, params), params)
    assert {path.split("/model/")[0].split("/")[-1] for path in stored if "/model/" in path} == {"mu", "nu"}
    assert {leaf.dtype.name for leaf in stored.values()} == {"bfloat16"}


def test_a_bfloat16_second_moment_falls_when_gradients_do():
    """Rounded to nearest it would stay where it is for ever, since 0.001 of it is less than half a spacing."""
    params = {"kernel": jnp.zeros((64, 64))}
    transformation, _ = optimizers.make(section(moment_dtype="bfloat16"), (), params, steps=2000)

    @jax.jit
    def run(state):
        nothing = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.fori_loop(0, 500, lambda _, s: transformation.update(nothing, s, params)[1], state)

    start = transformation.init(params)
    start = trees.map_paths(lambda path, leaf: jnp.full_like(leaf, 1.0) if "nu" in path.split("/") else leaf, start)
    nu = next(leaf for path, leaf in trees.leaves(run(start)).items() if "nu" in path.split("/"))
    assert nu.dtype == jnp.bfloat16
    assert float(jnp.mean(nu.astype(jnp.float32))) == pytest.approx(0.999**500, rel=0.01)


def test_rounding_is_unbiased_and_keeps_what_bfloat16_can_hold():
    values = jnp.array([1.0, -0.75, 0.0, jnp.inf, -jnp.inf])
    rounded = optimizers.round_stochastically(values, jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(rounded, np.float32), np.asarray(values))
    assert jnp.isnan(optimizers.round_stochastically(jnp.array([jnp.nan]), jax.random.key(0)))[0]
    many = optimizers.round_stochastically(jnp.full(20000, 1.001), jax.random.key(1)).astype(jnp.float32)
    assert set(np.unique(many)) == {1.0, 1.0078125}
    assert float(many.mean()) == pytest.approx(1.001, abs=1e-4)


def test_moments_are_float64_under_x64():
    with jax.enable_x64(True):
        params = {"kernel": jnp.ones((2, 2), jnp.float64)}
        transformation, _ = optimizers.make(section(), (), params, steps=10)
        assert {leaf.dtype.name for leaf in moments(transformation.init(params), params).values()} == {"float64"}


# ------------------------------------------------------------------------------------------------ decay, groups


def test_weight_decay_spares_norms_biases_and_positions():
    params = parameters()
    zeros = jax.tree.map(jnp.zeros_like, params)
    got, _ = trained(section(name="sgd", weight_decay=0.5), params, zeros)
    ratio = trees.leaves(jax.tree.map(lambda a, b: a / b, got, params))
    assert {path for path, values in ratio.items() if values.ravel()[0] < 0.99} == {
        "model/embed/tokens", "model/layers/attention/query/kernel", "model/layers/attention/out/kernel",
        "model/layers/mlp/up/kernel", "heads/reward/kernel",
    }  # fmt: skip
    np.testing.assert_allclose(ratio["model/embed/tokens"], 1 - 0.1 * 0.5, rtol=1e-6)


def test_the_first_matching_group_sets_learning_rate_and_decay():
    params = parameters()
    ones = jax.tree.map(jnp.ones_like, params)
    groups = [
        ("norm", dict(weight_decay=1.0)),
        ("query", dict(lr_scale=0.5)),
        ("attention", dict(lr_scale=2.0, weight_decay=0)),
    ]
    got, _ = trained(section(name="sgd", weight_decay=0.5), params, ones, groups)
    change = trees.leaves(jax.tree.map(jnp.subtract, params, got))
    old = trees.leaves(params)
    expect = lambda path, scale, decay: np.testing.assert_allclose(  # noqa: E731
        change[path], 0.1 * scale * (1 + decay * old[path]), rtol=1e-4, atol=1e-6
    )
    expect("model/norm/scale", 1, 1.0)
    expect("model/layers/attention/query_norm/scale", 1, 1.0)
    expect("model/layers/attention/query/kernel", 0.5, 0.5)
    expect("model/layers/attention/query/bias", 0.5, 0)
    expect("model/layers/attention/out/kernel", 2, 0)
    expect("model/layers/mlp/up/kernel", 1, 0.5)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_frozen_leaves_have_no_gradient_and_no_moments(name, dtype):
    params, groups = parameters(), [("^model/", dict(frozen=True))]
    mask = optimizers.trainable_mask(params, groups)
    assert {path for path, keep in trees.leaves(mask).items() if keep} == {"heads/reward/kernel"}
    trainable = jax.tree.map(lambda leaf, keep: leaf if keep else None, params, mask)
    transformation, _ = optimizers.make(section(name=name, clip_norm=1.0, moment_dtype=dtype), groups, params, steps=10)
    state = jax.eval_shape(transformation.init, trainable)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 20
    changes, _ = jax.eval_shape(transformation.update, trainable, state, trainable)
    assert jax.tree.structure(changes) == jax.tree.structure(trainable)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([("atention", dict(frozen=True))], r"groups\[0\]: it matches no parameter: 'atention'; parameters are heads"),
        ([("layers", dict(frozen=True)), ("mlp", dict(lr_scale=2.0))], r"groups\[1\]: an earlier group has taken"),
        ([("mlp", dict(lr=2.0))], "unknown option 'lr'"),
        ([("mlp", dict(frosen=True))], "did you mean 'frozen'"),
        ([("mlp", dict(frozen=True, lr_scale=2.0))], "a frozen group reads no other option"),
        ([("mlp", {})], "has no option"),
        ([("mlp", dict(lr_scale=0))], "above 0.*use frozen=True"),
        ([("mlp", dict(weight_decay=-1))], "at least 0"),
        ([("mlp", dict(frozen="yes"))], "True or False"),
        ([("(mlp", dict(frozen=True))], "not a regular expression"),
        ([("", dict(frozen=True))], "freeze every parameter"),
    ],
)
def test_bad_groups_are_refused(groups, message):
    with pytest.raises(ConfigError, match=message):
        optimizers.trainable_mask(parameters(), groups)


# ------------------------------------------------------------------------------------------------ clipping


def test_clipping_uses_the_global_norm_summed_in_float32():
    params = {"a": jnp.zeros(4096, jnp.bfloat16), "b": jnp.zeros(1, jnp.bfloat16)}
    gradients = {"a": jnp.full(4096, 0.125, jnp.bfloat16), "b": jnp.full(1, 6.0, jnp.bfloat16)}  # norm 10
    got, _ = optimizers.clip_by_global_norm(1.0).update(gradients, optax.EmptyState())
    np.testing.assert_allclose(got["b"], 0.6, rtol=1e-6)
    unclipped, _ = optimizers.clip_by_global_norm(100.0).update(gradients, optax.EmptyState())
    np.testing.assert_allclose(unclipped["a"], 0.125)
    nothing = jax.tree.map(jnp.zeros_like, params)
    assert optax.tree.norm(optimizers.clip_by_global_norm(1.0).update(nothing, optax.EmptyState())[0]) == 0


# ------------------------------------------------------------------------------------------------ schedules


def test_schedules_by_hand():
    rates = lambda **changes: [  # noqa: E731
        float(optimizers.schedule(section(learning_rate=1.0, **changes), 10)(step)) for step in range(11)
    ]
    np.testing.assert_allclose(rates(schedule="constant", warmup_steps=4), [0.25, 0.5, 0.75] + [1] * 8)
    np.testing.assert_allclose(rates(schedule="linear"), np.linspace(1, 0, 11), atol=1e-6)
    linear = rates(schedule="linear", warmup_steps=5, end_factor=0.5)
    np.testing.assert_allclose(linear, [0.2, 0.4, 0.6, 0.8, 1, 1, 0.9, 0.8, 0.7, 0.6, 0.5], atol=1e-6)
    cosine = rates(schedule="cosine", end_factor=0.1)
    np.testing.assert_allclose(cosine, 0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(11) / 10)) / 2, rtol=1e-5)
    root = rates(schedule="inverse_sqrt", warmup_steps=4)
    np.testing.assert_allclose(root, [0.25, 0.5, 0.75, 1] + [np.sqrt(4 / (s + 1)) for s in range(4, 11)], rtol=1e-6)


def test_the_logged_learning_rate_is_the_one_applied():
    params, gradients = {"a": jnp.zeros(1)}, {"a": jnp.ones(1)}
    config = section(name="sgd", schedule="cosine", warmup_steps=2)
    transformation, learning_rate = optimizers.make(config, (), params, steps=6)
    state = transformation.init(params)
    for step in range(6):
        changes, state = transformation.update(gradients, state, params)
        assert float(-changes["a"][0]) == float(learning_rate(step)) > 0


# ------------------------------------------------------------------------------------------------ every field is read


def test_trap_60_every_field_of_the_section_is_read():
    read = set()

    class Recorder(section):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    optimizers.make(Recorder(), (), parameters(), steps=10)
    assert read >= {field.name for field in dataclasses.fields(section)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_section_of_the_schema_serves_every_optimizer(name):
    optimizers.make(schema.Optimizer(name=name), (), parameters(), steps=10)
    fields = [{field.name for field in dataclasses.fields(kind)} for kind in (schema.Optimizer, section)]
    assert fields[0] - {"offload"} == fields[1]  # where the state lies, which the blueprint reads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(name="adam"), "optimizer.name is 'adam' .did you mean 'adamw'"),
        (dict(momentum=0.9), "optimizer.momentum is 0.9, but adamw does not read it"),
        (dict(name="sgd", b1=0.9), "optimizer.b1 is 0.9, but sgd does not read it"),
        (dict(name="lion", eps=1e-6), "lion does not read it"),
        (dict(name="adafactor", b2=0.9), "adafactor does not read it"),
        (dict(b2=1.0), "optimizer.b2 is 1.0 but must be a number at least 0 and below 1"),
        (dict(eps=0.0), "above 0"),
        (dict(learning_rate=-1.0), "optimizer.learning_rate"),
        (dict(learning_rate=float("nan")), "optimizer.learning_rate"),
        (dict(schedule="cosin"), "did you mean 'cosine'"),
        (dict(end_factor=0.1), "end_factor is read by linear and cosine only"),
        (dict(schedule="linear", end_factor=2.0), "at most 1"),
        (dict(warmup_steps=10), "below 10 .the run has 10 steps"),
        (dict(clip_norm=-1.0), "optimizer.clip_norm"),
        (dict(weight_decay=-0.1), "optimizer.weight_decay"),
        (dict(moment_dtype="float16"), "optimizer.moment_dtype is 'float16'"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        optimizers.make(section(**changes), (), parameters(), steps=10)
