"""The small language model: probabilities sum to one, samples follow them, a fit makes its corpus likely."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.lab import language

CORPUS, PROMPTS = jnp.array([[0, 1], [2, 2], [0, 1], [2, 0]]), jnp.array([0, 1, 0, 1])
MODEL = language.fitted(jax.random.key(0), CORPUS, PROMPTS, prompts=2, vocabulary=3, hidden=4)
ALL = jnp.array(list(itertools.product(range(3), repeat=2)))


def test_probabilities_sum_to_one_and_the_corpus_is_likely():
    one = jnp.exp(language.logps(MODEL, jnp.zeros(9, jnp.int32), ALL))
    np.testing.assert_allclose(jnp.sum(one), 1, rtol=1e-5)
    other = jnp.exp(language.logps(MODEL, jnp.ones(9, jnp.int32), ALL))
    assert one[1] > 0.9 and other[6] + other[8] > 0.9  # (0, 1); (2, 0) and (2, 2)


def test_samples_follow_the_model():
    drawn = language.sample(jax.random.key(1), MODEL, jnp.ones(20_000, jnp.int32), 2)
    shares = jnp.bincount(drawn @ jnp.array([3, 1]), length=9) / len(drawn)
    np.testing.assert_allclose(shares, jnp.exp(language.logps(MODEL, jnp.ones(9, jnp.int32), ALL)), atol=0.015)


def test_a_state_is_the_prompt_and_the_faded_words_before():
    states = language.hidden_states(MODEL, jnp.array([1]), jnp.array([[2, 0]]))[0]
    np.testing.assert_array_equal(states[0], MODEL["prompts"][1])
    np.testing.assert_allclose(states[1], language.DECAY * states[0] + MODEL["words"][2], rtol=1e-6)
