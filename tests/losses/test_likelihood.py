"""Losses on demonstrations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxpref import losses
from jaxpref.losses.likelihood.f_sft import DIVERGENCES
from tests.losses.strategies import ROWS, betas, close, logps

TOKENS = 4
token_logps = arrays(float, (ROWS, TOKENS), elements=st.floats(-20, -0.001))
masks = arrays(bool, (ROWS, TOKENS))
rewards = arrays(float, ROWS, elements=st.floats(-0.6, 3))


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


def slope(x, divergence, beta=0.2):
    """Gradient with respect to log-probabilities at the implicit rewards x."""
    zeros = jnp.zeros(ROWS)
    loss = lambda logps: jnp.sum(losses.f_sft_loss(logps, zeros, beta=beta, divergence=divergence))  # noqa: E731
    return jax.grad(loss)(x / beta)


@given(logps, logps, betas)
def test_f_sft_of_total_variation_has_the_gradient_of_sft(policy, reference, beta):
    close(losses.f_sft_loss(policy, reference, beta=beta), reference - policy)
    gradient = jax.grad(lambda logps: jnp.sum(losses.f_sft_loss(logps, reference, beta=beta)))(policy)
    close(gradient, -1.0)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_f_sft_at_the_reference(divergence):
    reverse = divergence == "reverse_kl"
    close(slope(jnp.zeros(ROWS), divergence), -math.exp(-1) if reverse else -1.0)
    value = losses.f_sft_loss(np.full(ROWS, -3.0), np.full(ROWS, -3.0), beta=0.2, divergence=divergence)
    close(value, math.exp(-1) / 0.2 if reverse else 0.0)


@given(rewards)
def test_f_sft_weights_examples_by_the_slope(x):
    close(slope(x, "pearson_chi2"), -(1 - x / 2))
    close(slope(x, "squared_hellinger"), -1 / (1 + x) ** 2)
    close(slope(x, "jensen_shannon"), -np.exp(-x) / (2 - np.exp(-x)))
    close(slope(x, "reverse_kl"), -np.exp(-x - 1))


@pytest.mark.parametrize("divergence", ["squared_hellinger", "jensen_shannon", "reverse_kl"])
def test_f_sft_weights_fall_with_the_reward(divergence):
    weights = -slope(jnp.array([-0.6, 0.0, 2.0]), divergence)
    assert np.all(np.diff(weights) < 0)


def test_f_sft_has_no_gradient_beyond_its_clips():
    far = jnp.array([-0.95, -5.0, -100.0])
    assert not np.any(slope(far, "squared_hellinger")) and not np.any(slope(far, "jensen_shannon"))
    assert not np.any(slope(jnp.full(ROWS, -90.0), "reverse_kl"))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_f_sft_is_finite_at_extremes(divergence, size):
    with jax.enable_x64(False):
        loss = lambda x: jnp.sum(losses.f_sft_loss(x, jnp.zeros(ROWS), divergence=divergence))  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(jnp.full(ROWS, size))
        assert np.isfinite(value) and np.all(np.isfinite(gradient))


def weighted(logps, mask):
    """Dynamic fine-tuning written out: sums of each row and its tokens."""
    return np.sum(np.where(mask, -np.exp(logps) * logps, 0), axis=-1), np.sum(mask, axis=-1)


@given(token_logps, masks)
def test_dynamic_ft_normalizes_as_sft_does(logps, mask):
    sums, counts = weighted(logps, mask)
    close(losses.dynamic_ft_loss(logps, mask), np.sum(sums) / max(np.sum(counts), 1))
    close(losses.dynamic_ft_loss(logps, mask, normalize="sequence_sum"), sums)
    close(losses.dynamic_ft_loss(logps, mask, normalize="sequence_mean"), sums / np.maximum(counts, 1))


@given(token_logps, masks, arrays(bool, ROWS))
def test_dynamic_ft_gradient_is_the_token_probability(logps, mask, where):
    broken = np.where(mask & where[:, None], logps, np.nan)
    gradient = jax.grad(lambda x: losses.dynamic_ft_loss(x, mask, where))(broken)
    counted = mask & where[:, None]
    close(gradient, np.where(counted, -np.exp(logps), 0) / max(np.sum(counted), 1))


@given(st.floats(0.01, 1.0), masks)
def test_dynamic_ft_of_equally_likely_tokens_is_scaled_sft(probability, mask):
    logps = np.full(mask.shape, math.log(probability))
    close(losses.dynamic_ft_loss(logps, mask), probability * losses.sft_loss(logps, mask))


@given(st.integers(1, 6), arrays(int, ROWS, elements=st.integers(0, 1)))
def test_degree_of_a_head_that_knows_nothing(levels, labels):
    close(losses.preference_degree_loss(np.full((ROWS, levels + 1), 0.7), labels), math.log(levels + 1))


@given(arrays(float, (ROWS, 3), elements=st.floats(-5, 5)), arrays(int, ROWS, elements=st.integers(0, 2)))
def test_degree_gradient_reaches_the_logits(logits, labels):
    gradient = jax.grad(lambda x: jnp.sum(losses.preference_degree_loss(x, labels)))(logits)
    close(gradient, jax.nn.softmax(logits) - np.eye(3)[labels])


def test_degree_of_a_level_that_does_not_exist_is_not_a_number():
    assert np.isnan(losses.preference_degree_loss(np.zeros((1, 3)), np.array([3]))[0])
