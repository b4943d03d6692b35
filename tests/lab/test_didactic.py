"""The didactic bandit improves, and what cannot be asked for is refused. Its numbers are golden vectors."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.lab import didactic, tabular


@pytest.mark.parametrize("algorithm", didactic.ALGORITHMS)
def test_every_algorithm_improves_on_the_reference(algorithm):
    bandit = didactic.make_bandit()
    found = didactic.run_bandit(bandit, algorithm=algorithm, reward="reward5", rounds=3)
    assert found["reward"].shape == (4,) and found["reward"][-1] > found["reward"][0] + 0.1
    np.testing.assert_allclose(jnp.sum(jnp.exp(found["logps"]), axis=-1), 1, rtol=1e-5)


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(ValueError, match="best_of_n"):
        didactic.run_bandit(didactic.make_bandit(), algorithm="ppo")


def test_the_best_of_some_draws():
    np.testing.assert_allclose(
        tabular.best_of(jnp.array([0.2, 0.5, 0.3]), jnp.array([1.0, 0.0, 2.0]), 2), [0.24, 0.25, 0.51], rtol=1e-6
    )
