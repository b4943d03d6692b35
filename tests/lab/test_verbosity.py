"""The world of length bias: what is exact agrees with samples, and annotators like what they are said to like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses
from jaxpref.lab import verbosity

WORTH = jnp.array([[1.0, -2.0, 0.5, 3.0, 0.0, -1.0, 2.0, -0.5]])
POLICY = jax.nn.log_softmax(jnp.array([[0.3, 0.1, -0.4, 0.8, 0.0, 0.2, -0.6, 0.5, -0.2]]))


def test_exact_quality_and_length_are_those_of_samples():
    counts = verbosity.draw(jax.random.key(0), POLICY, jnp.zeros(20_000, jnp.int32))
    found, exact = verbosity.quality(counts, WORTH), verbosity.judge(POLICY, WORTH)
    assert float(jnp.mean(found)) == pytest.approx(float(exact["quality"]), abs=0.04)
    content = jnp.sum(counts[:, : verbosity.TOKENS], axis=1)
    assert float(jnp.mean(content)) == pytest.approx(float(exact["length"]), abs=0.2)
    assert jnp.max(counts[:, verbosity.TOKENS]) == 1 and jnp.max(jnp.sum(counts, axis=1)) <= verbosity.LONGEST


def test_annotators_with_a_bias_choose_longer_responses_and_the_best_is_monotone_in_the_limit(monkeypatch):
    monkeypatch.setattr(verbosity, "STEPS", 20)

    def dpo(logps, lengths, beta, bias):
        return losses.dpo_loss(*logps, beta=beta)

    keys = jax.random.split(jax.random.key(1), 3)
    fair, biased = (verbosity.sweep(keys, bias, dpo, (0.5, 1.0)) for bias in (0.0, 1.0))
    assert np.all(biased[0.5]["length of chosen"] > fair[0.5]["length of chosen"])
    assert fair["best"].shape == (3, len(verbosity.LIMITS)) and np.all(np.diff(fair["best"], axis=1) >= 0)
    check = verbosity.more_quality({"DPO": fair, "itself": fair}, "itself", 10, "fair")
    np.testing.assert_array_equal(check.values, 0)
    rows = verbosity.table({"DPO": fair}, "fair")
    assert list(rows) == ["fair: DPO, beta 0.5", "fair: DPO, beta 1", "fair: DPO, best"]
