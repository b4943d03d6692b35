"""The chunked vocabulary scan against the plain formulas on full logits."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxpref.errors import ModelError
from jaxpref.models import vocabulary

TOKENS, WIDTH, VOCABULARY = 23, 6, 31


def arrays(dtype=jnp.float64):
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), dtype)  # noqa: E731
    targets = jnp.asarray(random.integers(0, VOCABULARY, TOKENS))
    return draw(TOKENS, WIDTH), draw(WIDTH, VOCABULARY), targets, (draw(TOKENS, WIDTH), draw(WIDTH, VOCABULARY))


def scan(hidden, kernel, targets, reference, **options):
    settings = dict(chunk=5, soft_cap=2.0, temperature=0.7) | options
    return vocabulary.scan(hidden, kernel, targets, vocabulary.FUNCTIONS, reference=reference, **settings)


def plain(hidden, kernel, targets, reference, *, soft_cap=2.0, temperature=0.7):
    """The textbook formulas in numpy."""

    def log_probabilities(hidden, kernel):
        logits = soft_cap * np.tanh(np.asarray(hidden) @ np.asarray(kernel) / soft_cap) / temperature
        return logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))

    policy, other = log_probabilities(hidden, kernel), log_probabilities(*reference)
    at = (np.arange(TOKENS), np.asarray(targets))
    return {
        "logps": policy[at],
        "entropy": -np.sum(np.exp(policy) * policy, -1),
        "sum_p2": np.sum(np.exp(policy) ** 2, -1),
        "kl": np.sum(np.exp(other) * (other - policy), -1),
        "ref_logps": other[at],
    }


def test_values_are_the_formulas_in_double_precision():
    with jax.enable_x64(True):
        values, expected = scan(*arrays()), plain(*arrays())
        assert values.keys() == expected.keys()
        for name, value in values.items():
            assert value.dtype == jnp.float64
            np.testing.assert_allclose(value, expected[name], atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 8, 23, 1000])
def test_chunk_size_changes_neither_values_nor_gradients(chunk):
    with jax.enable_x64(True):
        weights = jnp.asarray(np.random.default_rng(1).normal(size=(len(vocabulary.FUNCTIONS), TOKENS)))
        hidden, kernel, targets, reference = arrays()

        def weighted(hidden, kernel, chunk):
            values = scan(hidden, kernel, targets, reference, chunk=chunk)
            return jnp.sum(weights * jnp.stack([values[name] for name in vocabulary.FUNCTIONS]))

        step = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1)), static_argnums=2)
        for a, b in zip(*map(jax.tree.leaves, (step(hidden, kernel, chunk), step(hidden, kernel, 5))), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("name", ["logps", "entropy", "sum_p2", "kl"])
def test_gradients_are_right(name):
    with jax.enable_x64(True):
        hidden, kernel, targets, reference = arrays()
        function = {name: vocabulary.FUNCTIONS[name]}
        value = jax.jit(
            lambda h, k: vocabulary.scan(h, k, targets, function, chunk=9, soft_cap=2.0, reference=reference)[name]
        )
        check_grads(value, (hidden, kernel), order=1, modes=["rev"])


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 5e-3)])
@pytest.mark.parametrize("name", vocabulary.FUNCTIONS)
def test_trap_20_gradients_under_random_cotangents_are_those_of_full_logits_in_float64(name, dtype, tolerance):
    """Also where log-probs are far apart; errors are relative to the norm of each gradient."""
    hidden, kernel, targets, reference = (jax.tree.map(lambda x: x * 2, a) for a in arrays(dtype))
    targets, cotangents = targets // 2, np.random.default_rng(3).normal(size=TOKENS).astype(np.float32)

    def chunked(hidden, kernel):
        function = {name: vocabulary.FUNCTIONS[name]}
        values = vocabulary.scan(hidden, kernel, targets, function, chunk=5, soft_cap=9.0, reference=reference)[name]
        return jnp.sum(values * cotangents)

    def whole(hidden, kernel, reference):
        policy, other = (jax.nn.log_softmax(9.0 * jnp.tanh(h @ k / 9.0)) for h, k in ((hidden, kernel), reference))
        at = (np.arange(TOKENS), np.asarray(targets))
        values = {
            "logps": policy[at],
            "entropy": -jnp.sum(jnp.exp(policy) * policy, -1),
            "sum_p2": jnp.sum(jnp.exp(2 * policy), -1),
            "kl": jnp.sum(jnp.exp(other) * (other - policy), -1),
            "ref_logps": other[at],
        }[name]
        return jnp.sum(values * cotangents)

    found = jax.jit(jax.grad(chunked, argnums=(0, 1)))(hidden, kernel)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), (hidden, kernel, reference))
        expected = jax.grad(whole, argnums=(0, 1))(*wide)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert np.linalg.norm(np.asarray(a, np.float64) - b) <= tolerance * np.linalg.norm(b)
        assert b.any() or name == "ref_logps"


def test_no_gradient_flows_into_the_reference():
    hidden, kernel, targets, reference = arrays(jnp.float32)
    gradient = jax.grad(lambda r: jnp.sum(scan(hidden, kernel, targets, r)["kl"]))(reference)
    assert not any(leaf.any() for leaf in gradient)


def test_functions_of_a_reference_need_one():
    hidden, kernel, targets, _ = arrays(jnp.float32)
    with pytest.raises(ModelError, match="reference"):
        scan(hidden, kernel, targets, None)


def test_trap_21_bfloat16_gradients_are_exact_for_confident_tokens():
    """The gradient of a token of probability 0.9999 is tiny; bfloat16 logits would lose it to cancellation."""
    for gap in (2.0, 6.0, 9.5):
        hidden = jnp.asarray([[1.0, 0.0]], jnp.bfloat16)
        kernel = jnp.asarray([[gap, 0.0], [0.0, 0.0]], jnp.float32)
        gradient = jax.grad(
            lambda k, h=hidden: vocabulary.scan(h, k, jnp.zeros(1, int), {"f": vocabulary.logps}, chunk=1)["f"].sum()
        )(kernel)
        expected = 1 - 1 / (1 + np.exp(-float(jnp.bfloat16(gap))))
        np.testing.assert_allclose(gradient[0, 0], expected, rtol=5e-3)


def test_trap_22_log_probs_of_bfloat16_models_are_float32():
    hidden, kernel, targets, reference = arrays(jnp.bfloat16)
    values = scan(hidden, kernel, targets, reference)
    assert all(value.dtype == jnp.float32 for value in values.values())
    expected = plain(*(np.asarray(x, np.float64) for x in (hidden, kernel)), targets, reference)
    np.testing.assert_allclose(values["logps"], expected["logps"], atol=1e-5)


def test_the_kernel_gradient_is_summed_over_chunks_in_float32():
    """Of 4096 chunks that each add 1/4096 a bfloat16 sum stops growing at 1/16; a float32 sum reaches 1."""
    count = 4096
    hidden = jnp.full((count, 1), 1 / count, jnp.bfloat16)

    def total(kernel):
        first = {"logit": lambda policy, _: policy.logits[..., 0]}
        return jnp.sum(vocabulary.scan(hidden, kernel, jnp.zeros(count, int), first, chunk=1)["logit"])

    gradient = jax.jit(jax.grad(total))(jnp.zeros((1, 2), jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient.astype(jnp.float32), [[1.0, 0.0]])


@pytest.mark.parametrize("kernel_dtype", [jnp.float32, jnp.bfloat16])
def test_the_kernel_gradient_of_bfloat16_models_over_128_chunks(kernel_dtype):
    """Within 0.3 % of float64; most of the difference is the cotangents' rounding to bfloat16."""
    chunks, chunk, width, size = 128, 8, 32, 256
    random = np.random.default_rng(0)
    hidden = jnp.asarray(random.normal(size=(chunks * chunk, width)), jnp.bfloat16)
    kernel = jnp.asarray(random.normal(size=(width, size)) * 0.3, jnp.bfloat16).astype(kernel_dtype)
    targets, weights = jnp.asarray(random.integers(0, size, chunks * chunk)), random.normal(size=chunks * chunk)

    def loss(kernel):
        function = {"logps": vocabulary.logps}
        return jnp.sum(weights * vocabulary.scan(hidden, kernel, targets, function, chunk=chunk)["logps"])

    found = np.asarray(jax.jit(jax.grad(loss))(kernel), np.float64)
    wide = np.asarray(hidden, np.float64)
    logits = wide @ np.asarray(kernel, np.float64)
    probabilities = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
    expected = wide.T @ (weights[:, None] * (np.eye(size)[np.asarray(targets)] - probabilities))
    assert np.linalg.norm(found - expected) < 3e-3 * np.linalg.norm(expected)
    if kernel_dtype == jnp.float32:  # half a step of bfloat16 is more than that
        assert np.abs(found - expected).max() < 3e-3 * np.abs(expected).max()


@pytest.mark.parametrize("axes", [(1, 8, 1), (2, 2, 2)])
def test_the_kernel_gradient_is_reduce_scattered_once(axes):
    """Not once per chunk, and nothing of the kernel's size is all-reduced, only the parts of a device."""
    tokens, width, size = 64, 16, 48
    mesh = jax.make_mesh(axes, ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    places = [
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        for spec in ((("data", "fsdp"), None), ("fsdp", "tensor"), (("data", "fsdp"),))
    ]

    def loss(hidden, kernel, targets):
        return jnp.sum(vocabulary.scan(hidden, kernel, targets, {"f": vocabulary.logps}, chunk=2)["f"])

    kinds = ((tokens, width), jnp.float32), ((width, size), jnp.float32), ((tokens,), jnp.int32)
    shapes = [jax.ShapeDtypeStruct(*kind, sharding=place) for kind, place in zip(kinds, places, strict=True)]
    with jax.set_mesh(mesh):
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1)), out_shardings=tuple(places[:2]))
        text = gradients.lower(*shapes).compile().as_text()
    data, fsdp, tensor = axes
    reduced = re.findall(r"= \w+\[([\d,]*)\]\S* (all-reduce|reduce-scatter)(?:-start)?\(", text)
    sizes = {
        kind: [math.prod(map(int, filter(None, s.split(",")))) for s, k in reduced if k == kind] for _, kind in reduced
    }
    part = width * size // (fsdp * tensor)
    assert sizes["reduce-scatter"] == [part]
    assert max(sizes.get("all-reduce", [0])) <= part
    assert sizes.get("all-reduce", []).count(part) == (data > 1)


@pytest.mark.slow
def test_log_probs_and_gradients_on_a_tpu_fit_in_3_7_gibibytes(v5p):
    """4 x 4096 tokens, width 4096, a vocabulary of 128,256, compiled for one v5p chip by libtpu, which needs none.

    The gradients alone take 2.08 GiB, and a bfloat16 copy of the kernel 0.98 GiB.
    """
    tokens, width, size = 4 * 4096, 4096, 128_256
    place = jax.sharding.SingleDeviceSharding(v5p[0])

    def loss(hidden, kernel, targets, cotangents):
        return jnp.sum(cotangents * vocabulary.scan(hidden, kernel, targets, {"f": vocabulary.logps}, chunk=1024)["f"])

    kinds = (
        ((tokens, width), jnp.bfloat16),
        ((width, size), jnp.float32),
        ((tokens,), jnp.int32),
        ((tokens,), jnp.float32),
    )
    shapes = [jax.ShapeDtypeStruct(*kind, sharding=place) for kind in kinds]
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes <= 3.7 * 2**30
    assert max(buffer_sizes(compiled.as_text())) < tokens * size // 2


def test_trap_72_no_buffer_holds_tokens_times_vocabulary():
    tokens, width, vocabulary_size, chunk = 512, 8, 1024, 64

    def loss(hidden, kernel):
        targets = jnp.zeros(tokens, int)
        return jnp.sum(vocabulary.scan(hidden, kernel, targets, {"f": vocabulary.logps}, chunk=chunk)["f"])

    shapes = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((tokens, width), (width, vocabulary_size)))
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    sizes = buffer_sizes(compiled.as_text())
    assert chunk * vocabulary_size in sizes
    assert max(sizes) < tokens * vocabulary_size


def buffer_sizes(text: str) -> set[int]:
    """Numbers of elements of all floating-point arrays that an optimized HLO module names."""
    shapes = re.findall(r"\b(?:f64|f32|f16|bf16)\[([\d,]+)\]", text)
    return {math.prod(map(int, shape.split(","))) for shape in shapes}
