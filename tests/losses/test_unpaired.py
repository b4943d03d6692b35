"""Losses on single responses with a binary label."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxpref import losses
from tests.losses.strategies import ROWS, betas, close, logps

labels = arrays(bool, ROWS)
weights = st.tuples(st.floats(0, 3), st.floats(0, 3))
divergences = arrays(float, ROWS, elements=st.floats(0, 30))


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


@given(logps, logps, labels, betas, weights)
def test_apo_zero_unpaired_is_kto_without_drift(policy, reference, good, beta, weight):
    options = dict(beta=beta, desirable_weight=weight[0], undesirable_weight=weight[1])
    still = np.zeros(ROWS)
    expected = losses.kto_loss(policy, reference, good, still, still, **options)[0]
    close(losses.apo_zero_unpaired_loss(policy, reference, good, **options), expected)


@given(logps, logps, labels, betas)
def test_apo_zero_unpaired_of_both_labels_sums_to_one(policy, reference, good, beta):
    both = [losses.apo_zero_unpaired_loss(policy, reference, label, beta=beta) for label in (good, ~good)]
    close(both[0] + both[1], 1.0)
    assert np.all((both[0] >= 0) & (both[0] <= 1))


@given(logps, labels, betas)
def test_apo_zero_unpaired_at_the_reference(policy, good, beta):
    loss = lambda x: jnp.sum(losses.apo_zero_unpaired_loss(x, policy, good, beta=beta))  # noqa: E731
    close(losses.apo_zero_unpaired_loss(policy, policy, good, beta=beta), 0.5)
    close(jax.grad(loss)(policy), np.where(good, -beta / 4, beta / 4))


@given(logps, labels, divergences)
def test_pmpo_of_good_responses_alone_is_their_likelihood(policy, good, kl):
    expected = -np.mean(policy[good]) if good.any() else 0.0
    close(losses.pmpo_loss(policy, good, kl, alpha=1.0, beta=0.0), expected)
    close(losses.pmpo_loss(policy, good, kl, alpha=0.0, beta=0.0), np.mean(policy[~good]) if not good.all() else 0.0)


@given(logps, labels, divergences, st.floats(0, 1), st.floats(0, 3))
def test_pmpo_is_linear_in_its_three_parts(policy, good, kl, alpha, beta):
    parts = [losses.pmpo_loss(policy, good, 0 * kl, alpha=a, beta=0.0) for a in (1.0, 0.0)]
    expected = alpha * parts[0] + (1 - alpha) * parts[1] + beta * np.mean(kl)
    close(losses.pmpo_loss(policy, good, kl, alpha=alpha, beta=beta), expected)


@given(logps, labels, divergences, st.floats(0, 1), st.floats(0, 3), arrays(bool, ROWS))
def test_pmpo_is_the_mean_of_its_values(policy, good, kl, alpha, beta, where):
    broken = np.where(where, policy, np.nan), np.where(where, kl, np.nan)
    options = dict(alpha=alpha, beta=beta)
    values = losses.pmpo_values(broken[0], good, broken[1], where, **options)
    assert not np.any(values[~where])
    loss, gradient = jax.value_and_grad(lambda x: losses.pmpo_loss(x, good, broken[1], where, **options))(broken[0])
    close(loss, np.sum(values) / max(where.sum(), 1))
    close(loss, losses.pmpo_loss(policy[where], good[where], kl[where], **options))
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[~where])


def test_pmpo_at_the_reference_moves_by_half_the_difference_of_mean_scores():
    """The divergence is stationary there, and with alpha of a half the two sets pull alike."""
    reference = jnp.array([0.5, 0.3, 0.2])
    arms, good = jnp.array([0, 0, 1, 2]), np.array([True, True, False, False])

    def loss(logits):
        policy = jax.nn.log_softmax(logits)
        kl = jnp.full(4, jnp.sum(reference * (jnp.log(reference) - policy)))
        return losses.pmpo_loss(policy[arms], good, kl)

    gradient = jax.grad(loss)(jnp.log(reference))
    scores = np.eye(3)[arms] - np.asarray(reference)
    close(gradient, -0.5 * (np.mean(scores[:2], axis=0) - np.mean(scores[2:], axis=0)))


def test_pmpo_of_bad_responses_alone_has_a_finite_optimum_with_the_divergence():
    """Of three equally likely arms one is bad; minimising log p + b KL by hand gives (b/3 - 1, b/3, b/3) / (b - 1)."""
    best = jnp.log(jnp.array([1.0, 2.0, 2.0]) / 5)

    def loss(logits, beta):
        policy = jax.nn.log_softmax(logits)
        kl = jnp.array([math.log(1 / 3) - jnp.mean(policy)])
        return losses.pmpo_loss(policy[:1], np.array([False]), kl, alpha=0.0, beta=beta)

    close(jax.grad(loss)(best, 6.0), 0.0)
    downhill = best.at[0].add(-50.0)
    assert loss(downhill, 6.0) > loss(best, 6.0)
    assert loss(downhill, 0.0) < loss(best, 0.0) - 40
