"""The tabular bandit: rewards, optimum, expected reward and KL by hand."""

import math

import numpy as np
import pytest

from jaxpref.data.worlds import Bandit
from jaxpref.errors import DataError


def test_table_by_hand():
    world = Bandit(table=((0.0, math.log(3.0)), (1.0, 1.0)))
    assert (world.states, world.arms, world.responses()) == (2, 2, ["a", "b"])
    assert world.reward("state 0: ", "b") == pytest.approx(math.log(3.0))
    assert np.exp(world.optimal_policy(1.0)) == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5]]))
    reward, kl = world.optimum(1.0)
    assert reward == pytest.approx((0.75 * math.log(3.0) + 1.0) / 2)
    assert kl == pytest.approx((0.25 * math.log(0.5) + 0.75 * math.log(1.5)) / 2)


def test_reference_by_hand():
    world = Bandit(table=((0.0, 0.0, 1.0),), reference=(0.5, 0.25, 0.25))
    assert world.evaluate(world.reference_log_probs) == pytest.approx((0.25, 0.0))
    deterministic = np.array([[-np.inf, -np.inf, 0.0]])
    assert world.evaluate(deterministic) == pytest.approx((1.0, math.log(4)))
    arms = [record["completion"] for record in world.records("demonstrations", size=4000)]
    for letter, share in zip("abc", (0.5, 0.25, 0.25), strict=True):
        assert abs(np.mean([arm == letter for arm in arms]) - share) < 4 * math.sqrt(share * (1 - share) / 4000)


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_optimal_policy_beats_its_neighbours(beta):
    world = Bandit(states=3, arms=5, seed=2)
    best = world.optimal_policy(beta)
    reward, kl = world.evaluate(best)
    generator = np.random.default_rng(0)
    for _ in range(50):
        logits = best + 0.3 * generator.normal(size=best.shape)
        other = world.evaluate(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
        assert other[0] - beta * other[1] < reward - beta * kl


def test_population_dpo_recovers_the_optimum():
    """Bradley-Terry pairs, counted, and a tabular policy fitted by gradient descent on the logistic loss."""
    world, beta = Bandit(states=2, arms=4, seed=1), 0.5
    wins = np.zeros((2, 4, 4))
    for record in world.records("pairs", size=40_000):
        state = int(record["prompt"].split()[1].removesuffix(":"))
        wins[state, ord(record["chosen"]) - 97, ord(record["rejected"]) - 97] += 1
    margins = np.zeros((2, 4))
    for _ in range(3000):
        gap = 1 / (1 + np.exp(margins[:, :, None] - margins[:, None, :]))
        pull = wins * gap
        margins += 1e-4 * (pull.sum(2) - pull.sum(1))
    logits = world.reference_log_probs + margins / beta
    policy = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
    assert 0.5 * np.abs(policy - np.exp(world.optimal_policy(beta))).sum(-1).max() < 0.05


def test_shown_arms_alone_appear():
    records = Bandit(arms=6).records("pairs", size=500, shown=3)
    assert {record[side] for record in records for side in ("chosen", "rejected")} == {"a", "b", "c"}


def test_rewards_are_normal_and_fixed_by_the_seed():
    rewards = Bandit(states=200, arms=20, spread=2.0, seed=4).rewards
    assert abs(rewards.mean()) < 4 * 2 / math.sqrt(4000) and abs(rewards.std() - 2) < 0.1
    assert np.array_equal(rewards, Bandit(states=200, arms=20, spread=2.0, seed=4).rewards)
    assert Bandit().rewards[0, :3] == pytest.approx([-1.048923, -1.85826, -0.312149], abs=1e-5)


def test_other_text_has_no_reward():
    world = Bandit(arms=3)
    assert not world.well_formed("d") and world.reward("state 0: ", "d") == 0.0
    assert not world.well_formed("") and not world.well_formed("ab")


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(arms=1), "2 to 26"),
        (dict(arms=27), "2 to 26"),
        (dict(arms=3, reference=(0.5, 0.5)), "sum to 1"),
        (dict(arms=2, reference=(0.9, 0.2)), "sum to 1"),
    ],
)
def test_impossible_worlds_raise(options, message):
    with pytest.raises(DataError, match=message):
        Bandit(**options)


def test_bad_use_raises():
    world = Bandit(states=2, arms=2)
    with pytest.raises(DataError, match="no prompt 'state 5: '"):
        world.reward("state 5: ", "a")
    with pytest.raises(DataError, match=r"table of shape \[2, 2\]"):
        world.evaluate(np.zeros((2, 3)))
    with pytest.raises(DataError, match="no tastes"):
        world.records("pairs", size=1, annotators=dict(a=dict(tastes=dict(a=2.0))))
    with pytest.raises(DataError, match="fewer than 3 different responses"):
        world.records("ranked", size=1, responses=3)
