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
