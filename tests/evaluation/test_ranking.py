"""Ranking accuracy: its limits, and the loss at which a ranking flips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import evaluation, losses

PAIR = [-20 * jax.random.uniform(key, (200,)) for key in jax.random.split(jax.random.key(0), 4)]
ALPHA = jnp.full(200, 0.7)


def test_a_pair_is_ranked_correctly_where_its_loss_is_below_the_threshold():
    below = losses.dpo_loss(*PAIR, beta=0.3) <= evaluation.dpo_loss_threshold(*PAIR[2:], beta=0.3)
    np.testing.assert_array_equal(evaluation.ranking_accuracy(*PAIR[:2])[0], below)


def test_the_idealized_accuracy_goes_from_that_of_the_labels_to_that_of_the_reference():
    assert evaluation.idealized_ranking_accuracy(*PAIR[2:], ALPHA, beta=1e-6)[1] == 1
    reference = evaluation.ranking_accuracy(*PAIR[2:])[1]
    assert evaluation.idealized_ranking_accuracy(*PAIR[2:], ALPHA, beta=1e6)[1] == reference


def test_the_minimiser_of_dpo_has_the_idealized_log_ratio():
    ideal = evaluation.idealized_ranking_accuracy(*PAIR[2:], ALPHA, beta=0.3)[0]

    def expected(ratio):
        here, zero = jnp.zeros(200), ratio
        right = losses.dpo_loss(zero, here, *PAIR[2:], beta=0.3)
        return jnp.sum(ALPHA * right + (1 - ALPHA) * losses.dpo_loss(here, zero, *PAIR[3:1:-1], beta=0.3))

    np.testing.assert_allclose(jax.grad(expected)(ideal), 0, atol=1e-6)


def test_lengths_go_together():
    lengths = jnp.ones(200)
    with pytest.raises(ValueError, match="together"):
        evaluation.ranking_accuracy(*PAIR[:2], lengths)
    tie = evaluation.ranking_accuracy(PAIR[0], PAIR[0], lengths, lengths)
    assert tie[1] == 1 and tie[0].dtype == bool
