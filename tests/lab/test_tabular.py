"""Tables: what is drawn follows the model, what is exact is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.data.worlds.bandit import Bandit
from jaxpref.lab import tabular

REWARDS = jnp.array([[0.0, 1.0, 2.0], [1.0, -1.0, 0.5]])
REFERENCE = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]))


def test_optimum_reward_and_divergence_are_those_of_the_bandit_world():
    world = Bandit(
        table=REWARDS.tolist(),
        reference=np.exp(np.float64(REFERENCE)) / np.exp(np.float64(REFERENCE)).sum(1, keepdims=True),
    )
    policy = tabular.optimum(REFERENCE, REWARDS, 0.7)
    np.testing.assert_allclose(policy, world.optimal_policy(0.7), atol=1e-5)
    reached = tabular.expected_reward(policy, REWARDS), tabular.divergence(policy, REFERENCE)
    np.testing.assert_allclose(reached, world.optimum(0.7), atol=1e-5)


def test_no_policy_is_better_than_the_optimum():
    aim = lambda policy: tabular.expected_reward(policy, REWARDS) - 0.7 * tabular.divergence(policy, REFERENCE)  # noqa: E731
    logits, _ = tabular.descend(lambda x: -aim(jax.nn.log_softmax(x)), REFERENCE, steps=800)
    np.testing.assert_allclose(jax.nn.log_softmax(logits), tabular.optimum(REFERENCE, REWARDS, 0.7), atol=2e-3)


@pytest.mark.parametrize(("flipped", "temperature"), [(0.0, 1.0), (0.3, 1.0), (0.0, 0.5), (0.2, 0.0)])
def test_pairs_follow_the_model(flipped, temperature):
    pairs = tabular.draw_pairs(jax.random.key(0), REWARDS, REFERENCE, 200_000, flipped=flipped, temperature=temperature)
    assert not np.any(pairs.chosen == pairs.rejected)
    here = (pairs.state == 0) & (jnp.minimum(pairs.chosen, pairs.rejected) == 0)
    here &= jnp.maximum(pairs.chosen, pairs.rejected) == 2
    kept = 1.0 if temperature == 0 else 1 / (1 + np.exp(-2 / temperature))
    share = float(jnp.mean(pairs.chosen[here] == 2))
    assert share == pytest.approx(kept * (1 - flipped) + (1 - kept) * flipped, abs=0.01)
    reference = np.exp(REFERENCE[0])
    drawn = sum(reference[a] * reference[b] / (1 - reference[a]) for a, b in ((0, 2), (2, 0)))
    assert float(jnp.sum(here) / jnp.sum(pairs.state == 0)) == pytest.approx(drawn, abs=0.01)


def test_descent_is_watched_after_every_step():
    params, records = tabular.descend(lambda x: jnp.sum(x**2), jnp.ones(2), steps=50, watch=lambda x: x[0])
    assert records.shape == (50,) and records[-1] == params[0] and records[0] == pytest.approx(0.9, abs=1e-5)
    _, values = tabular.descend(lambda x: jnp.sum(x**2), jnp.ones(2), steps=3)
    assert values[0] == 2.0


def test_a_running_state_is_handed_from_step_to_step():
    loss = lambda x, count: (jnp.sum(x**2) + count, count + 1)  # noqa: E731
    params, count, values = tabular.descend_with_state(loss, jnp.ones(2), 0, steps=3)
    assert count == 3 and values[0] == 2.0
    stateless, _ = tabular.descend(lambda x: jnp.sum(x**2), jnp.ones(2), steps=3)
    np.testing.assert_array_equal(params, stateless)
