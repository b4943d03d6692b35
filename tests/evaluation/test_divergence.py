"""KL estimators: definitions, exact expectations, masks."""

import jax
import numpy as np
import pytest

from jaxpref.errors import ConfigError, DataError
from jaxpref.evaluation import divergence


def test_estimators_by_hand():
    with jax.enable_x64(True):
        found = {
            name: np.asarray(divergence.kl_estimators(np.array([-1.0, -2.0]), np.array([-1.5, -1.0]), estimator=name))
            for name in divergence.ESTIMATORS
        }
    assert found["k1"] == pytest.approx([0.5, -1.0])
    assert found["k2"] == pytest.approx([0.125, 0.5])
    assert found["k3"] == pytest.approx([np.exp(-0.5) - 1 + 0.5, np.e - 1 - 1])
    assert found["abs"] == pytest.approx([0.5, 1.0])


def test_k1_and_k3_have_the_kl_as_expectation():
    """Exactly: every outcome of a categorical policy, weighted by its probability."""
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    kl = float(policy @ np.log(policy / reference))
    for name in ("k1", "k3"):
        terms = divergence.kl_estimators(np.log(policy), np.log(reference), estimator=name)
        assert float(policy @ np.asarray(terms)) == pytest.approx(kl, rel=1e-5)


def test_k3_of_nearly_equal_models_is_small_and_positive():
    term = float(divergence.kl_estimators(np.float32(-1.0), np.float32(-1.001), estimator="k3"))
    assert 0 <= term < 1e-6


def test_sequence_kl_sums_tokens_and_ignores_the_masked():
    logps, ref = np.array([[-1.0, -2.0, 0.0], [-3.0, np.nan, -np.inf]]), np.array([[-2.0, -4.0, 9.0], [-2.0, 0.0, 1.0]])
    mask = np.array([[True, True, False], [True, False, False]])
    interval = divergence.sequence_kl(logps, ref, mask)
    assert interval.value == pytest.approx((3 - 1) / 2) and interval.count == 2
    assert (interval.low, interval.high) == pytest.approx((-1, 3))
    assert interval.method.startswith("k1, bootstrap")


def test_equal_models_have_no_divergence():
    logps = np.random.default_rng(0).normal(size=(4, 3))
    for name in divergence.ESTIMATORS:
        assert divergence.sequence_kl(logps, logps, np.ones((4, 3), bool), estimator=name)[:3] == (0, 0, 0)


def test_bad_use_raises():
    with pytest.raises(ConfigError, match="'k4'"):
        divergence.kl_estimators(np.ones(2), np.ones(2), estimator="k4")
    with pytest.raises(ValueError, match="one shape"):
        divergence.kl_estimators(np.ones((2, 1)), np.ones(2))
    with pytest.raises(DataError, match=r"\[samples, tokens\]"):
        divergence.sequence_kl(np.ones(2), np.ones(2), np.ones(2))
