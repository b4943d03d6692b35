"""Intervals against numbers from books, closed forms, and their own coverage."""

import math

import numpy as np
import pytest

from jaxpref.errors import DataError
from jaxpref.evaluation import statistics


@pytest.mark.parametrize(
    "successes, count, low, high",
    [  # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes, count, low, high):
    interval = statistics.wilson(successes, count)
    assert interval.value == successes / count and interval.count == count
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric_and_holds_its_estimate():
    for successes, count in [(0, 3), (3, 3), (2.5, 7), (1, 1)]:
        interval = statistics.wilson(successes, count)
        mirror = statistics.wilson(count - successes, count)
        assert 0 <= interval.low <= interval.value <= interval.high <= 1
        assert (mirror.low, mirror.high) == pytest.approx((1 - interval.high, 1 - interval.low))
    assert statistics.wilson(5, 10, confidence=0.99).low < statistics.wilson(5, 10, confidence=0.9).low


def test_normal_by_hand():
    interval = statistics.normal(np.array([1.0, 2.0, 3.0, 4.0]))
    half = 1.959963985 * math.sqrt(5 / 3) / 2
    assert (interval.value, interval.low, interval.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))


def test_bootstrap_of_many_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).exponential(size=2000)
    resampled, normal = statistics.bootstrap(values, draws=4000), statistics.normal(values)
    assert resampled.value == pytest.approx(values.mean())
    assert (resampled.low, resampled.high) == pytest.approx(
        (normal.low, normal.high), abs=0.1 * (normal.high - normal.low)
    )


def test_bootstrap_of_two_examples_has_three_outcomes():
    """Means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4."""
    interval = statistics.bootstrap(np.array([0.0, 1.0]), confidence=0.4, draws=4000)
    assert (interval.low, interval.high) == (0.5, 0.5)
    interval = statistics.bootstrap(np.array([0.0, 1.0]), confidence=0.6, draws=4000)
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_bootstrap_does_not_depend_on_its_blocks(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = statistics.bootstrap(values)
    assert whole == statistics.bootstrap(values) != statistics.bootstrap(values, seed=1)
    monkeypatch.setattr(statistics, "CHUNK", 50 * 7)
    assert statistics.bootstrap(values) == pytest.approx(whole)


def coverage(make, truth, trials=200):
    """Share of intervals that hold the truth."""
    return np.mean([not make(np.random.default_rng(trial)).excludes(truth) for trial in range(trials)])


def test_bootstrap_covers():
    assert 0.9 <= coverage(lambda g: statistics.bootstrap(g.normal(size=60), draws=500), 0.0) <= 0.99


def test_paired_is_narrower_than_separate():
    generator = np.random.default_rng(1)
    difficulty = 10 * generator.normal(size=400)
    first, second = difficulty + generator.normal(size=400) + 0.5, difficulty + generator.normal(size=400)
    interval = statistics.paired(first, second)
    assert interval.value == pytest.approx(np.mean(first) - np.mean(second)) and interval.low > 0.2
    assert interval.high - interval.low < 0.3 * (statistics.bootstrap(first).high - statistics.bootstrap(first).low)
    assert "paired" in interval.method


def test_clustered_sees_that_copies_are_no_new_examples():
    values = np.random.default_rng(0).normal(size=100)
    copied = np.repeat(values, 9)
    once = statistics.bootstrap(values)
    many = statistics.clustered(copied, np.repeat(np.arange(100), 9))
    assert many.count == 100 and tuple(many[:3]) == pytest.approx(tuple(once[:3]))
    naive = statistics.bootstrap(copied)
    assert naive.high - naive.low == pytest.approx((many.high - many.low) / 3, rel=0.15)


def test_clustered_takes_any_labels_and_unequal_sizes():
    values, names = np.array([1.0, 1.0, 1.0, 5.0]), np.array(["a", "a", "a", "b"])
    interval = statistics.clustered(values, names, confidence=0.4)
    assert interval.value == 2.0 and interval.count == 2 and 1.0 <= interval.low <= interval.high <= 5.0


def test_ratio_weighs_units_by_their_denominators():
    interval = statistics.ratio(np.array([2.0, 9.0]), np.array([1.0, 9.0]), confidence=0.9)
    assert interval.value == 1.1 and (interval.low, interval.high) == (1.0, 2.0)
    equal = statistics.ratio(np.arange(50.0), np.full(50, 2.0))
    assert tuple(equal[:3]) == pytest.approx(tuple(np.array(statistics.bootstrap(np.arange(50.0))[:3]) / 2))


def test_pooled_with_fixed_seeds_is_a_bootstrap_of_their_means():
    values = np.random.default_rng(0).normal(size=(3, 80))
    interval = statistics.pooled(values, random_seeds=False)
    assert tuple(interval[:3]) == pytest.approx(tuple(statistics.bootstrap(values.mean(0))[:3]))
    assert "3 seeds together" in interval.method


def test_pooled_covers_when_seeds_differ():
    """Runs with a quality of their own: resampling examples alone is overconfident, resampling both is not."""

    def data(generator):
        return generator.normal(size=(6, 1)) + generator.normal(size=(1, 50)) + generator.normal(size=(6, 50))

    both = coverage(lambda g: statistics.pooled(data(g), draws=400), 0.0)
    fixed = coverage(lambda g: statistics.pooled(data(g), draws=400, random_seeds=False), 0.0)
    assert fixed < 0.7 < 0.85 <= both


def test_pooled_counts_weigh_examples():
    values, counts = np.array([[2.0, 9.0], [4.0, 9.0]]), np.array([1.0, 9.0])
    assert statistics.pooled(values, counts).value == pytest.approx(24 / 20)


def test_excludes():
    interval = statistics.Interval(0.6, 0.51, 0.69, 10, "")
    assert interval.excludes(0.5) and not interval.excludes(0.51) and not interval.excludes(0.6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: statistics.wilson(0, 0), "at least one example"),
        (lambda: statistics.wilson(4, 3), "found 4"),
        (lambda: statistics.wilson(1, 3, confidence=95), "between 0 and 1"),
        (lambda: statistics.normal(np.ones(1)), "at least two"),
        (lambda: statistics.bootstrap(np.ones(0)), r"found shape \[0\]"),
        (lambda: statistics.bootstrap(np.ones((2, 1))), r"found shape \[2, 1\]"),
        (lambda: statistics.bootstrap(np.array([1.0, np.nan])), "1 of 2 values are not finite"),
        (lambda: statistics.paired(np.ones(3), np.ones(2)), "found 3 and 2"),
        (lambda: statistics.clustered(np.ones(3), np.ones(2)), "3 examples and 2 clusters"),
        (lambda: statistics.ratio(np.ones(2), np.zeros(2)), "positive"),
        (lambda: statistics.pooled(np.ones(3)), r"\[seeds, examples\]"),
        (lambda: statistics.pooled(np.ones((2, 3)), np.ones(2)), "each of the 3 examples"),
    ],
)
def test_impossible_requests_raise(call, message):
    with pytest.raises(DataError, match=message):
        call()
