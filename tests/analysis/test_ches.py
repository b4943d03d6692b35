"""Scores of displacement: their special cases, what a mask excludes, and the toy whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import analysis

HIDDEN = jax.random.normal(jax.random.key(0), (4, 6, 3))
MASK = jnp.arange(6) < jnp.array([6, 3, 1, 4])[:, None]


@pytest.mark.parametrize("normalize", [False, True])
def test_equal_responses_score_zero_and_opposite_ones_minus_twice_the_square(normalize):
    options = {"length_normalize": normalize}
    np.testing.assert_allclose(analysis.ches_score(HIDDEN, HIDDEN, MASK, MASK, **options), 0, atol=1e-6)
    sums = jnp.sum(jnp.where(MASK[..., None], HIDDEN, 0), axis=1) / (MASK.sum(1, keepdims=True) if normalize else 1)
    opposite = analysis.ches_score(HIDDEN, -HIDDEN, MASK, MASK, **options)
    np.testing.assert_allclose(opposite, -2 * jnp.sum(sums**2, -1), rtol=1e-5)


def test_trap_right_padding_counts_for_nothing():
    other = jax.random.normal(jax.random.key(1), HIDDEN.shape)
    scores = analysis.ches_score(HIDDEN, other, MASK, MASK)
    broken = [jnp.where(MASK[..., None], hidden, jnp.nan) for hidden in (HIDDEN, other)]
    np.testing.assert_array_equal(analysis.ches_score(*broken, MASK, MASK), scores)
    with pytest.raises(AssertionError, match="dispreferred_mask"):
        analysis.ches_score(HIDDEN, other, MASK, MASK[:, :-1])


def test_the_lowest_scores_are_kept():
    assert analysis.ches_filter([3.0, -1.0, 2.0, -5.0], keep_frac=0.5).tolist() == [3, 1]
    assert analysis.ches_filter(np.arange(30.0), keep_frac=0.3).tolist() == list(range(9))
    assert analysis.ches_filter([3.0, 1.0]).tolist() == [1]
    with pytest.raises(ValueError, match="keep_frac"):
        analysis.ches_filter([1.0], keep_frac=0.0)


def test_the_preferred_token_loses_to_a_third_while_the_margin_rises():
    found = analysis.displacement_toy([[1.0, 0.0], [1.0, -0.5], [0.6, 3.0], [-1.0, -1.0]], [1.0, 0.2])
    margins = found["logps"][:, 0] - found["logps"][:, 1]
    assert np.all(np.diff(margins) > 0) and np.all(np.diff(found["logps"][:, 0]) < 0)
    assert float(jnp.exp(found["logp_step100"][2])) == pytest.approx(0.970, abs=1e-3)
