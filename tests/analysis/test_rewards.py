"""Calibration and heat maps: what they show, read back."""

import numpy as np
import pytest

from jaxpref.analysis import rewards
from jaxpref.errors import DataError


def points(figure):
    (container,) = figure.axes[0].containers
    return np.array(container.lines[0].get_xydata())


def test_a_calibrated_model_lies_on_the_diagonal_and_one_that_is_too_sure_below():
    random = np.random.default_rng(0)
    sizes = random.exponential(1.0, 20_000)
    right = random.uniform(size=sizes.size) < 1 / (1 + np.exp(-sizes))
    margins = np.where(right, sizes, -sizes)
    honest, boastful = (points(rewards.calibration(scale * margins)) for scale in (1, 3))
    np.testing.assert_allclose(honest[:, 0], honest[:, 1], atol=0.03)
    assert (boastful[3:, 1] < boastful[3:, 0] - 0.05).all()


def test_ties_count_one_half():
    assert points(rewards.calibration(np.zeros(10), bins=1)).tolist() == [[0.5, 0.5]]


def test_too_few_pairs_are_refused():
    with pytest.raises(DataError, match="needs margins of as many pairs"):
        rewards.calibration(np.ones(3), bins=10)


def test_a_heat_map_escapes_and_says_its_numbers():
    page = rewards.token_heat_map(["<b>", " good", " bad"], [0.0, 2.0, -1.0], title="a & b")
    assert "&lt;b&gt;" in page and "a &amp; b" in page
    assert 'title="+2" style="background:rgba(46, 125, 50, 1.0)"' in page
    assert 'title="-1" style="background:rgba(198, 40, 40, 0.5)"' in page
    with pytest.raises(DataError, match="a finite number for each of 2 tokens"):
        rewards.token_heat_map(["a", "b"], [1.0])
