"""Worlds of log-linear policies: the reference gains nothing, the optimum gains all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.lab import loglinear, tabular

SEEN, UNSEEN, WEIGHTS = loglinear.make_worlds(jax.random.key(0), unseen=2_000)


def test_shapes_and_scales():
    assert SEEN.features.shape == (64, 8, 16) and UNSEEN.rewards.shape == UNSEEN.reference.shape == (2_000, 8)
    np.testing.assert_allclose(jnp.sum(jnp.exp(UNSEEN.reference), axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(loglinear.log_policy(WEIGHTS, SEEN.features), SEEN.reference, rtol=1e-4)
    twice = loglinear.make_worlds(jax.random.key(0), unseen=2_000, scale=6.0)[1]
    np.testing.assert_allclose(twice.rewards, 2 * UNSEEN.rewards, rtol=1e-5)


def test_the_reference_gains_nothing_and_the_optimum_gains_all():
    assert loglinear.judge(UNSEEN.reference, UNSEEN, 0.5)["gain"] == 0
    best = loglinear.judge(tabular.optimum(UNSEEN.reference, UNSEEN.rewards, 0.5), UNSEEN, 0.5)
    assert best["gain"] == pytest.approx(1, abs=1e-5) and best["accuracy"] == 1


def test_accuracy_is_that_of_log_ratios_or_of_log_probabilities():
    policy = jax.nn.log_softmax(UNSEEN.rewards)
    assert loglinear.judge(policy, UNSEEN, 0.5, reference_free=True)["accuracy"] == 1
    assert loglinear.judge(policy, UNSEEN, 0.5)["accuracy"] < 1
