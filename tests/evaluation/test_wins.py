"""Win rates with ties."""

import math

import numpy as np
import pytest

from jaxpref.errors import DataError
from jaxpref.evaluation import wins


def test_win_rate_in_the_convention_of_alpaca_eval():
    assert wins.win_rate([1, 2, 2, 2, 0, 1.5, 1, 2]) == pytest.approx(
        {
            "win_rate": 62.5,
            "standard_error": 15.669579263200218,
            "n_wins": 4,
            "n_wins_base": 2,
            "n_draws": 2,
            "n_total": 8,
            "n_missing": 0,
            "discrete_win_rate": 62.5,
        }
    )
    soft = wins.win_rate([1.2, 1.9, 1.5, 1.05, 2, 1.7])
    assert soft["win_rate"] == pytest.approx(55.8333333) and soft["standard_error"] == pytest.approx(15.5143303)
    assert (soft["n_wins"], soft["n_wins_base"], soft["n_draws"]) == (3, 2, 1)
    assert soft["discrete_win_rate"] == pytest.approx(58.3333333)


def test_win_rate_of_ties_and_missing_verdicts():
    ties = wins.win_rate([0, 1.5, 0])
    assert ties["win_rate"] == 50 and ties["standard_error"] == 0 and ties["n_draws"] == 3
    missing = wins.win_rate([2, None, math.nan, 1])
    assert (missing["n_total"], missing["n_missing"], missing["win_rate"]) == (2, 2, 50)
    assert math.isnan(wins.win_rate([2])["standard_error"])
    with pytest.raises(DataError, match="all 2 are missing"):
        wins.win_rate([None, None])
    with pytest.raises(DataError, match="found 3.0"):
        wins.win_rate([1, 3])


def test_head_to_head_removes_a_taste_for_the_first_place():
    """A judge that always likes what it sees first: verdicts contradict each other, the rate is one half."""
    assert wins.head_to_head([2, 2, 2], [2, 2, 2])["win_rate"] == 50
    assert wins.head_to_head([2, 2, 1], [1, 1, 2])["n_wins"] == 2
    assert wins.head_to_head([0, 1.5], [1, 1])["win_rate"] == 75
    with pytest.raises(DataError, match="same pairs"):
        wins.head_to_head([1], [1, 2])


def test_outcomes():
    assert wins.outcomes([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]).tolist() == [0.0, 0.5, 1.0]
    assert wins.outcomes([1.0, 2.0, 3.1], [2.0, 2.5, 2.0], tie=1.0).tolist() == [0.5, 0.5, 1.0]
    with pytest.raises(DataError, match="score per example"):
        wins.outcomes(np.ones(2), np.ones(3))
    with pytest.raises(DataError, match="1 of 2"):
        wins.outcomes([1.0, np.nan], [0.0, 0.0])
