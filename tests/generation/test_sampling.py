"""Decoding rules on logits that can be checked by hand, and against their definitions."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.errors import ConfigError
from jaxpref.generation import sampling
from jaxpref.generation.sampling import Rule

NONE = -np.inf


def logits_of(*probabilities):
    return jnp.log(jnp.array([probabilities], jnp.float32))


def kept(logits):
    return [tuple(np.flatnonzero(np.isfinite(row))) for row in np.asarray(logits)]


def test_top_k_keeps_exactly_k_and_of_equal_logits_the_lowest_ids():
    logits = jnp.array([[1.0, 3.0, 3.0, 3.0], [4.0, 1.0, 2.0, 3.0]])
    assert np.array_equal(sampling.top_k(logits, 2), [[NONE, 3, 3, NONE], [4, NONE, NONE, 3]])


@pytest.mark.parametrize("k", [0, 4, 9])
def test_top_k_of_everything_changes_nothing(k):
    logits = jnp.array([[1.0, 3.0, 2.0, 0.0]])
    assert np.array_equal(sampling.top_k(logits, k), logits)


@pytest.mark.parametrize(
    "p, expected", [(1e-9, (2,)), (0.4, (2,)), (0.55, (0, 2)), (0.75, (0, 2)), (0.8, (0, 2, 3)), (1.0, (0, 1, 2, 3))]
)
def test_top_p_keeps_the_smallest_set_with_that_mass(p, expected):
    assert kept(sampling.top_p(logits_of(0.25, 0.1, 0.5, 0.15), p)) == [expected]


def test_top_p_of_equal_tokens_keeps_the_lowest_ids():
    assert kept(sampling.top_p(jnp.zeros((2, 8)), 0.5)) == [(0, 1, 2, 3)] * 2


def test_top_p_measures_the_mass_of_what_top_k_left():
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    assert kept(sampling.top_p(logits, 0.5)) == [(0, 1)]
    assert kept(sampling.top_p(sampling.top_k(logits, 2), 0.5)) == [(0,)]  # 0.4 / 0.7 > 0.5


@hypothesis.given(st.lists(st.floats(-20, 20), min_size=1, max_size=7), st.floats(0.001, 0.999))
def test_top_p_is_minimal_and_reaches_its_mass(values, p):
    logits = jnp.full((1, 7), -1e30, jnp.float32).at[0, : len(values)].set(jnp.array(values, jnp.float32))
    (chosen,) = kept(sampling.top_p(logits, p))
    probabilities = np.asarray(jax.nn.softmax(logits.astype(jnp.float32)), np.float64)[0]
    masses = sorted(probabilities[list(chosen)])
    assert sum(masses) >= p - 1e-5
    assert sum(masses[1:]) < p + 1e-5
    assert masses[0] >= max(np.delete(probabilities, list(chosen)), default=0)


def test_temperature_zero_takes_the_lowest_of_the_most_likely_tokens():
    logits = jnp.array([[0.0, 2.0, 2.0, 1.0], [5.0, 1.0, 5.0, 5.0]])
    assert sampling.choose(jax.random.split(jax.random.key(0), 2), logits, Rule(0.0)).tolist() == [1, 0]


@pytest.mark.parametrize(
    "rule, expected",
    [
        (Rule(), [0.5, 0.25, 0.15, 0.1]),
        (Rule(temperature=0.5), [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        (Rule(top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (Rule(top_p=0.8), [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
    ],
    ids=["all", "temperature", "top_k", "top_p"],
)
def test_frequencies_match_the_distribution(rule, expected):
    draws = 20_000
    logits = jnp.tile(logits_of(0.5, 0.25, 0.15, 0.1), (draws, 1))
    tokens = sampling.choose(jax.random.split(jax.random.key(1), draws), logits, rule)
    counts, wanted = np.bincount(tokens, minlength=4), np.array(expected) * draws
    assert counts[wanted == 0].sum() == 0
    possible = wanted > 0
    statistic = ((counts - wanted)[possible] ** 2 / wanted[possible]).sum()
    assert statistic < 16.3  # the 99.9 % quantile of chi-square with 3 degrees of freedom


@pytest.mark.parametrize(
    "rule",
    [Rule(temperature=-1), Rule(temperature=np.nan), Rule(temperature=np.inf), Rule(top_k=-1), Rule(top_k=1.5)]
    + [Rule(top_p=0.0), Rule(top_p=1.1), Rule(top_p=np.nan), Rule(temperature="1")],
    ids=str,
)
def test_rules_outside_their_domain_are_refused(rule):
    with pytest.raises(ConfigError, match="expected"):
        sampling.check(rule)
