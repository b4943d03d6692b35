"""What every loss promises: shapes, precision, domains, transformations, and nothing leaking out of what is masked."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

B, T = 4, 5
# Axes of other lengths than B, and hyperparameters that have no default: one number for each earlier round.
SIZES = {"2B": 2 * B, "T": T, "K": 3, "m": 2, "J + 1": 3, "n - 1": 2}
REQUIRED = {"alphas": np.array([0.3, 0.7])}
UNIFORM = ("margin", "target_prob", "nll", "preference_strength", "reward_gap", "reward_1", "reward_2")
UNIFORM += ("gt_rewards_chosen", "gt_rewards_rejected", "chosen_probs_win", "chosen_probs_lose", "prob_desirable")


def axes(name, argument):
    """Names of the axes that the docstring of a loss gives one of its arrays; ``[B]`` where it gives none."""
    found = re.search(rf"\b{argument}\b[\w, ]*: ``\[([^\]]*)\]", getattr(losses, name).__doc__)
    tokens = argument.endswith(("mask", "token_logps"))
    return tuple(found[1].split(", ")) if found else ("B", "T") if tokens else ("B",)


def example(name, argument, seed):
    """A random argument of a loss: its content by its name, its shape by the docstring."""
    rng, shape = np.random.default_rng(seed), tuple(SIZES.get(axis, B) for axis in axes(name, argument))
    if argument in ("labels", "tie", "selection_mask") or argument.endswith("where"):
        return np.arange(B) % 2 == 0
    if argument.endswith("mask"):
        return np.arange(shape[1]) < rng.integers(1, shape[1], (B, 1))
    if argument in ("ids", "annotator_ids"):
        return np.arange(B)
    if argument.endswith("lengths") or argument == "degree_labels":
        return rng.integers(1, 9 if argument.endswith("lengths") else SIZES["J + 1"], shape)
    if argument.endswith("rewards") or argument in UNIFORM:
        return rng.uniform(size=shape)
    return -rng.gamma(*((1.0, 1.0) if argument.endswith("token_logps") else (2.0, 3.0)), shape)


def arguments(name, keyword_only=False):
    """Names and defaults of a loss's arrays, or of its hyperparameters."""
    parameters = inspect.signature(getattr(losses, name)).parameters.values()
    defaults = {p.name: p.default for p in parameters if (p.kind is p.KEYWORD_ONLY) == keyword_only}
    return {n: default for n, default in defaults.items() if n not in ("state", "key")}


def provided(name):
    """Fresh state (by its type) and key of the losses that take them."""
    parameters = inspect.signature(getattr(losses, name)).parameters
    makers = [getattr(losses, maker) for maker in losses.__all__ if maker.endswith("_state")]
    fresh = {inspect.signature(maker).return_annotation: maker for maker in makers}
    state = {"state": fresh[parameters["state"].annotation]()} if "state" in parameters else {}
    return state | ({"key": jax.random.key(0)} if "key" in parameters else {})


def is_number(name, field):
    """Whether a hyperparameter is one, by its default and its annotation."""
    parameter = inspect.signature(getattr(losses, name)).parameters[field]
    return not isinstance(parameter.default, bool | str | tuple) and "str" not in str(parameter.annotation)


NAMES = sorted(name for name in losses.__all__ if name.endswith("_loss"))
LOSSES = {name: {a: example(name, a, seed) for seed, a in enumerate(arguments(name))} for name in NAMES}
every_loss = pytest.mark.parametrize("name", NAMES)


def values(name, changes=None, **hyperparameters):
    given = {n: v for n, v in REQUIRED.items() if n in arguments(name, keyword_only=True)} | hyperparameters
    result = getattr(losses, name)(**(LOSSES[name] | (changes or {})), **provided(name), **given)
    return result[0] if isinstance(result, tuple) else result


@every_loss
def test_hyperparameters_are_keyword_only_with_defaults(name):
    hyperparameters = arguments(name, keyword_only=True)
    assert {n for n, default in hyperparameters.items() if default is inspect.Parameter.empty} <= REQUIRED.keys()
    assert set(arguments(name).values()) <= {inspect.Parameter.empty, None}


@every_loss
def test_values_are_unreduced(name):
    batch_level = "*batch-level*" in getattr(losses, name).__doc__
    assert values(name).shape in [(B,), ()] if batch_level else values(name).shape == (B,)


@every_loss
def test_trap_22_computes_in_float32_at_least(name):
    """bfloat16 in, float32 out; float64 under x64."""
    low = {n: jnp.asarray(v, jnp.bfloat16) if v.dtype == float else v for n, v in LOSSES[name].items()}
    assert values(name, low).dtype == jnp.float32
    with jax.enable_x64(True):
        assert values(name).dtype == jnp.float64


def test_trap_22_long_sums_do_not_lose_nats():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 2049, 3)).astype(np.float32)
    ids, mask = rng.integers(0, 3, (1, 2049)), np.ones((1, 2049))
    low = jnp.asarray(logits, jnp.bfloat16)
    exact = np.asarray(low, np.float64)
    exact = exact - np.log(np.sum(np.exp(exact), -1, keepdims=True))
    expected = np.sum(np.take_along_axis(exact[:, :-1], ids[:, 1:, None], -1))
    total, lengths = losses.sequence_logps(low, ids, mask)
    assert abs(float(total[0]) - expected) < 1e-3
    assert float(lengths[0]) == 2048


@every_loss
def test_traced_hyperparameters_pass_and_concrete_ones_are_checked(name):
    for field, default in arguments(name, keyword_only=True).items():
        if not is_number(name, field) or field in REQUIRED:
            continue
        start = 0.2 if default is None else default
        swept = jax.vmap(lambda x, field=field: values(name, **{field: x}))(jnp.array([start, -1.0]))
        expected = values(name, **{field: start})
        assert swept.shape == (2, *expected.shape)
        np.testing.assert_allclose(swept[0], expected, rtol=1e-6)
        signed = re.search(rf"\b{field}: [^:]*(any finite number|-1 )", getattr(losses, name).__doc__)
        for wrong in (np.float32(np.nan), jnp.array(np.inf), "0.1", [0.1], *([] if signed else [-1.0])):
            with pytest.raises(ValueError, match=rf"{field} .*must be"):
                values(name, **{field: wrong})


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("dpo_loss", {"beta": 0}, "beta is 0, but must be a finite number > 0"),
        ("dpo_loss", {"label_smoothing": 0.6}, "label_smoothing is 0.6, but must be between 0 and 0.5"),
        ("ipo_loss", {"normalize": "mean"}, "normalize is 'mean', but must be one of 'length', 'sum'"),
        ("kto_loss", {"undesirable_weight": -0.1}, "undesirable_weight is -0.1, but must be a finite number >= 0"),
        ("simpo_loss", {"gamma": -1}, "gamma is -1, but must be a finite number >= 0"),
        ("simpo_loss", {"loss": "squared"}, "loss is 'squared', but must be one of 'sigmoid', 'hinge'"),
        ("bradley_terry_loss", {"temperature": 0.0}, "temperature is 0.0, but must be a finite number > 0"),
        ("sft_loss", {"normalize": "mean"}, "normalize is 'mean', but must be one of 'batch_token_mean'"),
    ],
)
def test_domain_errors_name_parameter_value_and_domain(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        values(name, **wrong)


def test_ipo_per_token_needs_lengths():
    pair = [np.zeros(3)] * 4
    with pytest.raises(ValueError, match="needs chosen_lengths"):
        losses.ipo_loss(*pair)
    assert losses.ipo_loss(*pair, normalize="sum").shape == (3,)


@every_loss
def test_trap_17_a_wrong_rank_raises(name):
    for argument, value in LOSSES[name].items():
        shapes = [value[:, None], value[0], value[:-1]]
        if argument == "nll":  # ORPO's may be one number for all
            del shapes[1]
        if sum(axes(name, other)[0] == axes(name, argument)[0] for other in LOSSES[name]) == 1:  # any size
            del shapes[-1]
        for wrong in shapes:
            with pytest.raises(AssertionError, match="argument"):
                values(name, {argument: wrong})


@every_loss
def test_trap_30_references_are_constants(name):
    inputs = {n: jnp.asarray(v, float) for n, v in LOSSES[name].items() if "ref_" in n and n.endswith("logps")}
    if inputs:
        gradients = jax.grad(lambda inputs: jnp.sum(values(name, inputs)))(inputs)
        assert not any(np.any(g) for g in gradients.values())


@every_loss
@pytest.mark.parametrize("size", [1e4, -1e4, 0.0])
def test_extremes_are_finite(name, size):
    """Differences of 1e4 in every argument, log-probability 0 included."""
    for argument, value in LOSSES[name].items():
        if value.dtype != float or argument == "target_prob":
            continue
        moved = jnp.full(value.shape, size if argument in ("margin",) or argument.endswith("rewards") else -abs(size))
        value, gradient = jax.value_and_grad(lambda x, a=argument: jnp.sum(values(name, {a: x})))(moved)
        assert np.isfinite(value) and np.all(np.isfinite(gradient)), argument


@pytest.mark.parametrize("loss", [name for name in NAMES if "chosen_lengths" in LOSSES[name]])
def test_trap_07_empty_responses_are_finite(loss):
    empty = np.zeros(B)
    for side in ("chosen", "rejected"):
        none = {name: empty for name in (f"{side}_logps", f"{side}_lengths") if name in LOSSES[loss]}
        gradient = jax.grad(lambda x, none=none, side=side: jnp.sum(values(loss, none | {f"{side}_logps": x})))(empty)
        assert np.all(np.isfinite(values(loss, none))) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize("normalize", ["batch_token_mean", "sequence_mean", "sequence_sum"])
def test_trap_24_trap_25_masked_tokens_reach_nothing(normalize):
    inputs = LOSSES["sft_loss"]
    mask = inputs["mask"].copy()
    mask[1] = False

    def loss(token_logps):
        return jnp.sum(losses.sft_loss(token_logps, mask, normalize=normalize))

    expected = jax.value_and_grad(loss)(jnp.asarray(inputs["token_logps"]))
    for junk in (np.nan, np.inf, -np.inf, 1e4, -1e4):
        value, gradient = jax.value_and_grad(loss)(jnp.where(mask, inputs["token_logps"], junk))
        assert value == expected[0]
        np.testing.assert_array_equal(gradient, expected[1])


def test_trap_24_masked_logits_reach_nothing():
    rng = np.random.default_rng(1)
    logits, ids = rng.normal(size=(3, T, 7)), rng.integers(0, 7, (3, T))
    mask = np.array([[0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    scored = np.pad(mask[:, 1:], ((0, 0), (0, 1))).astype(bool)[..., None]  # logits at t predict token t + 1

    def loss(logits, ids):
        return jnp.sum(losses.sequence_logps(logits, ids, mask)[0])

    expected = jax.value_and_grad(loss)(jnp.asarray(logits), ids)
    for junk in (np.nan, np.inf, -np.inf):
        value, gradient = jax.value_and_grad(loss)(jnp.where(scored, logits, junk), np.where(mask, ids, -100))
        assert value == expected[0]
        np.testing.assert_array_equal(gradient, expected[1])


def test_trap_11_trap_39_only_response_tokens_are_scored():
    """A logit matters exactly where it predicts a response token: prompt and padding do not, the first token does."""
    mask = np.array([[0, 0, 1, 1, 0]])
    gradient = jax.grad(lambda logits: jnp.sum(losses.sequence_logps(logits, np.ones((1, T), int), mask)[0]))(
        jnp.zeros((1, T, 3))
    )
    assert np.any(gradient, axis=-1).tolist() == [[False, True, True, False, False]]


@pytest.mark.parametrize("name", [name for name in NAMES if "where" in LOSSES[name]])
def test_excluded_rows_change_nothing(name):
    where = np.array([True, True, False, True])
    floats = {n: jnp.asarray(v) for n, v in LOSSES[name].items() if v.dtype == float}

    def loss(floats):
        return jnp.sum(values(name, {**floats, "where": where}))

    expected = jax.value_and_grad(loss)(floats)
    broken = jax.value_and_grad(loss)({n: v.at[2].set(jnp.nan) for n, v in floats.items()})
    jax.tree.map(np.testing.assert_array_equal, broken, expected)
    rows = {n: v[where] if axes(name, n)[0] == axes(name, "where")[0] else v for n, v in LOSSES[name].items()}
    del rows["where"]
    result = getattr(losses, name)(**rows, **provided(name))
    np.testing.assert_allclose(jnp.sum(result[0] if isinstance(result, tuple) else result), expected[0], rtol=1e-6)


@every_loss
def test_works_under_jit_and_vmap(name):
    floats = {n: jnp.asarray(v, jnp.float32) for n, v in LOSSES[name].items() if v.dtype == float}
    expected = values(name, floats)
    np.testing.assert_allclose(jax.jit(lambda f: values(name, f))(floats), expected, rtol=1e-5)
    twice = jax.vmap(lambda f: values(name, f))({n: jnp.stack([v, v]) for n, v in floats.items()})
    np.testing.assert_allclose(twice[1], expected, rtol=1e-5)
