"""Gold rewards and win rates of generated text."""

import numpy as np
import pytest

from jaxpref.data import worlds
from jaxpref.errors import DataError
from jaxpref.evaluation import gold

PROMPTS = ["Ann on film: ", "Bob on meal: ", "Ann on film: "]


def test_rewards_and_win_rate_by_hand():
    good, bad = ["epic cast.", "dull soup.", "xyzzy"], ["dull cast.", "dull wine.", "very vile end."]
    result = gold.evaluate(worlds.sentiment, PROMPTS, good, opponent=bad)
    assert result.rewards.tolist() == [2.0, -1.0, 0.0]
    assert result.reward.value == pytest.approx(1 / 3) and result.reward.count == 2
    assert result.win_rate.value == pytest.approx(2.5 / 3)
    assert result.well_formed == pytest.approx(2 / 3) and result.length == pytest.approx(5 / 3)


def test_against_oneself_is_one_half():
    responses = [record["completion"] for record in worlds.sentiment.records("demonstrations", size=40, split="test")]
    prompts = [record["prompt"] for record in worlds.sentiment.records("demonstrations", size=40, split="test")]
    result = gold.evaluate(worlds.sentiment, prompts, responses, opponent=responses)
    assert result.win_rate[:3] == (0.5, 0.5, 0.5) and result.well_formed == 1.0
    assert gold.evaluate(worlds.sentiment, prompts, responses).win_rate is None


def test_interval_of_the_grammar_holds_its_known_mean():
    records = worlds.sentiment.records("demonstrations", size=600, seed=1)
    result = gold.evaluate(
        worlds.sentiment, [r["prompt"] for r in records], [r["completion"] for r in records], confidence=0.999
    )
    assert not result.reward.excludes(0.0)


def test_the_bandit_has_gold_rewards_too():
    world = worlds.get("bandit", table=((0.0, 1.0),))
    result = gold.evaluate(world, ["state 0: "] * 2, ["b", "?"], opponent=["a", "a"])
    assert np.array_equal(result.rewards, [1.0, 0.0]) and result.win_rate.value == 0.75 and result.well_formed == 0.5


def test_unequal_counts_raise():
    with pytest.raises(DataError, match="3 prompts and 1 responses"):
        gold.rewards(worlds.sentiment, PROMPTS, ["good cast."])
