"""Special cases of the methods: identities that hold for all inputs, and cases where one method is another."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxpref import losses
from tests.losses.strategies import ROWS, betas, close, lengths, logps, margin, pairs, rewards, smoothing


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


@given(pairs, betas)
def test_dpo_equals_log_two_at_the_reference_with_gradient_half_beta(pair, beta):
    chosen, rejected = pair[:2]
    loss = lambda w, l: jnp.sum(losses.dpo_loss(w, l, chosen, rejected, beta=beta))  # noqa: E731, E741
    close(losses.dpo_loss(chosen, rejected, chosen, rejected, beta=beta), math.log(2))
    gradients = jax.grad(loss, argnums=(0, 1))(chosen, rejected)
    close(gradients[0], -beta / 2)
    close(gradients[1], beta / 2)


@given(pairs, betas)
def test_dpo_swapped_differs_by_the_margin(pair, beta):
    swapped = pair[1], pair[0], pair[3], pair[2]
    close(losses.dpo_loss(*pair, beta=beta) - losses.dpo_loss(*swapped, beta=beta), -beta * margin(pair))


@given(pairs, betas, smoothing, st.floats(-50, 50))
def test_dpo_cdpo_ipo_ignore_a_shift_of_both_responses(pair, beta, epsilon, shift):
    for first in (0, 2):
        moved = list(pair)
        moved[first], moved[first + 1] = pair[first] + shift, pair[first + 1] + shift
        close(losses.dpo_loss(*moved, beta=beta), losses.dpo_loss(*pair, beta=beta))
        cdpo = [losses.cdpo_loss(*p, beta=beta, label_smoothing=epsilon) for p in (moved, pair)]
        close(*cdpo)
        close(*[losses.ipo_loss(*p, tau=beta, normalize="sum") for p in (moved, pair)], rtol=1e-6)


@given(pairs, betas, smoothing)
def test_cdpo_is_a_mixture_of_dpo_and_swapped_dpo(pair, beta, epsilon):
    swapped = pair[1], pair[0], pair[3], pair[2]
    mixture = (1 - epsilon) * losses.dpo_loss(*pair, beta=beta) + epsilon * losses.dpo_loss(*swapped, beta=beta)
    close(losses.cdpo_loss(*pair, beta=beta, label_smoothing=epsilon), mixture)
    close(losses.cdpo_loss(*pair, beta=beta, label_smoothing=0), losses.dpo_loss(*pair, beta=beta))
    close(losses.dpo_loss(*pair, beta=beta, label_smoothing=epsilon), mixture)


@given(st.floats(0.01, 0.5))
def test_cdpo_has_its_minimum_at_a_finite_margin(epsilon):
    best = np.array([math.log((1 - epsilon) / epsilon)])
    zeros = np.zeros(1)
    slope = jax.grad(lambda z: losses.cdpo_loss(z, zeros, zeros, zeros, beta=1.0, label_smoothing=epsilon)[0])
    close(slope(best), 0)


@given(pairs, betas)
def test_dpo_reference_free_ignores_the_reference(pair, beta):
    constant = np.zeros(ROWS)
    expected = losses.dpo_loss(*pair[:2], constant, constant, beta=beta)
    close(losses.dpo_loss(*pair, beta=beta, reference_free=True), expected)


@given(pairs, lengths, st.floats(0.02, 2))
def test_ipo_draws_the_margin_to_its_target_from_both_sides(pair, sizes, tau):
    target, zeros = 1 / (2 * tau), np.zeros(ROWS)
    ratios = pair[0] - pair[2], pair[1] - pair[3]
    per_token = losses.ipo_loss(*pair, *sizes, tau=tau)
    close(per_token, (ratios[0] / sizes[0] - ratios[1] / sizes[1] - target) ** 2)
    close(losses.ipo_loss(zeros + target, zeros, zeros, zeros, tau=tau, normalize="sum"), 0)
    slope = jax.grad(lambda m: jnp.sum(losses.ipo_loss(m, zeros, zeros, zeros, tau=tau, normalize="sum")))
    assert np.all(slope(zeros + 1.5 * target) > 0) and np.all(slope(zeros + 0.5 * target) < 0)


@given(pairs, st.floats(0.02, 2))
def test_trap_27_ipo_at_the_reference_is_finite_and_known(pair, tau):
    """Lengths come from masks: equal policy and reference leave no zeros to be counted as missing tokens."""
    sizes = np.array([3, 1, 7])
    close(losses.ipo_loss(*pair[:2], *pair[:2], sizes, sizes, tau=tau), 1 / (4 * tau**2))


@given(pairs, st.integers(1, 40), betas)
def test_per_token_ipo_is_summed_ipo_for_equal_lengths(pair, size, tau):
    sizes = np.full(ROWS, size)
    summed = losses.ipo_loss(*pair, tau=tau / size, normalize="sum") / size**2
    close(losses.ipo_loss(*pair, sizes, sizes, tau=tau), summed, rtol=1e-6)


@given(pairs, lengths, betas, st.integers(2, 5))
def test_simpo_reward_ignores_repetition(pair, sizes, beta, times):
    repeated = losses.simpo_loss(pair[0] * times, pair[1], sizes[0] * times, sizes[1], beta=beta)
    close(repeated, losses.simpo_loss(*pair[:2], *sizes, beta=beta))


@given(pairs, lengths, betas, st.floats(0, 2), smoothing)
def test_simpo_gamma_and_ratio_agree(pair, sizes, beta, ratio, epsilon):
    options = dict(beta=beta, label_smoothing=epsilon)
    by_ratio = losses.simpo_loss(*pair[:2], *sizes, gamma_beta_ratio=ratio, **options)
    close(losses.simpo_loss(*pair[:2], *sizes, gamma=beta * ratio, gamma_beta_ratio=9.0, **options), by_ratio)


@given(pairs, st.integers(1, 40), betas)
def test_simpo_without_margin_is_reference_free_dpo_per_token(pair, size, beta):
    sizes = np.full(ROWS, size)
    expected = losses.dpo_loss(*pair, beta=beta / size, reference_free=True)
    close(losses.simpo_loss(*pair[:2], sizes, sizes, beta=beta, gamma=0.0), expected)


@given(pairs, lengths, st.floats(0, 2))
def test_orpo_special_cases(pair, sizes, lam):
    chosen = pair[0] / sizes[0]
    close(losses.orpo_loss(*pair[:2], *sizes, lam=0.0)[0], -chosen)
    close(losses.orpo_loss(pair[0], pair[0], sizes[0], sizes[0], lam=lam)[0], -chosen + lam * math.log(2))


def test_orpo_of_improbable_responses_is_a_logistic_loss_of_averages():
    chosen, rejected, one = np.array([-40.0]), np.array([-41.5]), np.ones(1)
    values, aux = losses.orpo_loss(chosen, rejected, one, one, 0.0, lam=1.0)
    close(aux.log_odds, 1.5)
    close(values, losses.simpo_loss(chosen, rejected, one, one, beta=1.0, gamma=0.0))


@pytest.mark.parametrize("x", [0.0, -1e-8, -1e-4, -50.0])
@pytest.mark.parametrize("precision", [jnp.float32, jnp.float64])
def test_trap_10_log1mexp_near_probability_one(x, precision):
    with jax.enable_x64(precision == jnp.float64):
        value, slope = jax.value_and_grad(losses.log1mexp)(jnp.asarray(x, precision))
        assert value.dtype == precision
        assert np.isfinite(value) and np.isfinite(slope)
        if x:
            expected = math.log(-math.expm1(float(jnp.asarray(x, precision))))
            assert float(value) == pytest.approx(expected, rel=1e-6)
        one, half = jnp.ones(1), jnp.full(1, -0.5)
        for loss in (
            lambda x: losses.orpo_loss(x[None], half, one, one)[0][0],
            lambda x: losses.orpo_loss(half, x[None], one, one)[0][0],
        ):
            assert all(np.isfinite(v) for v in jax.value_and_grad(loss)(jnp.asarray(x, precision)))


def test_log1mexp_keeps_nan_and_minus_infinity():
    close(losses.log1mexp(np.array([-np.inf])), 0)
    assert np.isnan(losses.log1mexp(np.nan))


@given(logps, logps, betas, st.floats(0, 3), st.floats(0, 3))
def test_kto_at_the_reference_is_half_the_weight(policy, other, beta, desirable, undesirable):
    labels = np.array([True, False, True])
    weights = dict(beta=beta, desirable_weight=desirable, undesirable_weight=undesirable)
    values, aux = losses.kto_loss(policy, policy, labels, other, other, **weights)
    close(aux.kl, 0)
    close(values, np.where(labels, desirable, undesirable) / 2)


@given(logps, logps, logps, logps, betas)
def test_kto_values_are_bounded_and_labels_swap_the_sign(policy, reference, kl, kl_reference, beta):
    labels = np.array([True, False, True])
    values, _ = losses.kto_loss(policy, reference, labels, kl, kl_reference, beta=beta)
    swapped, _ = losses.kto_loss(policy, reference, ~labels, kl, kl_reference, beta=beta)
    assert np.all((values >= 0) & (values <= 1))
    close(values + swapped, 1)


@pytest.mark.parametrize("label", [True, False])
def test_trap_15_kto_with_one_label(label):
    policy, reference = np.array([-1.0, -2.0]), np.array([-1.5, -1.5])
    labels = np.full(2, label)
    options = dict(desirable_weight=2.0, undesirable_weight=3.0)
    values, _ = losses.kto_loss(policy, reference, labels, reference, reference, **options)
    sign = 1 if label else -1
    close(values, (2.0 if label else 3.0) * jax.nn.sigmoid(-0.1 * sign * (policy - reference)))


def test_trap_13_kto_drift_is_of_the_whole_batch():
    policy, zeros, labels = np.array([1.0, -2.0]), np.zeros(2), np.array([True, False])
    drift = np.array([3.0, -1.0])
    whole, aux = losses.kto_loss(policy, zeros, labels, drift, zeros)
    halves = [losses.kto_loss(policy[i:][:1], zeros[:1], labels[i:][:1], drift[i:][:1], zeros[:1])[0] for i in (0, 1)]
    assert float(aux.kl) == 1
    assert not np.allclose(whole, np.concatenate(halves))


def test_kto_drift_is_clamped_after_averaging_and_carries_no_gradient():
    zeros, labels = np.zeros(3), np.ones(3, bool)
    assert float(losses.kto_loss(zeros, zeros, labels, np.array([4.0, -1.0, 0.0]), zeros)[1].kl) == 1
    assert float(losses.kto_loss(zeros, zeros, labels, np.array([-4.0, 1.0, 0.0]), zeros)[1].kl) == 0
    drift = lambda kl: jnp.sum(losses.kto_loss(zeros, zeros, labels, kl, zeros)[0])  # noqa: E731
    assert not np.any(jax.grad(drift)(np.array([4.0, -1.0, 0.0])))


@given(rewards, rewards, rewards, smoothing)
def test_bradley_terry_special_cases(chosen, rejected, shift, epsilon):
    plain = losses.bradley_terry_loss(chosen, rejected)
    ones = np.ones(ROWS)
    close(losses.bradley_terry_loss(chosen, rejected, 0 * ones), plain)
    close(losses.bradley_terry_loss(chosen, rejected, None, ones), plain)
    close(losses.bradley_terry_loss(chosen + shift, rejected + shift), plain)
    smoothed = losses.bradley_terry_loss(chosen, rejected, label_smoothing=epsilon)
    close(losses.bradley_terry_loss(chosen, rejected, None, (1 - epsilon) * ones), smoothed)
    undecided = losses.bradley_terry_loss(chosen, rejected, label_smoothing=0.5)
    close(losses.bradley_terry_loss(rejected, chosen, label_smoothing=0.5), undecided)
    zeros = np.zeros(ROWS)
    close(losses.dpo_loss(chosen, rejected, zeros, zeros, beta=1.0), plain)


@given(rewards, rewards, rewards)
def test_bradley_terry_tie_is_decided_by_the_margin(chosen, rejected, margin):
    half = np.full(ROWS, 0.5)
    slope = jax.grad(lambda r: jnp.sum(losses.bradley_terry_loss(r, rejected, margin, half)))
    close(slope(rejected + margin), 0)


def test_sft_of_uniform_logits_is_log_of_the_vocabulary():
    ids, mask = np.ones((2, 4), int), np.array([[0, 1, 1, 1], [0, 0, 1, 0]])
    token_logps, scored = losses.token_logps(np.zeros((2, 4, 7)), ids, mask)
    close(losses.sft_loss(token_logps, scored), math.log(7))
    close(losses.sft_loss(token_logps, scored, normalize="sequence_mean"), math.log(7))


@given(arrays(float, (3, 4), elements=st.floats(-30, 0)), arrays(bool, (3, 4)), st.integers(1, 5))
def test_sft_ignores_added_padding(token_logps, mask, extra):
    pad = ((0, extra), (0, extra))
    for normalize in ("batch_token_mean", "sequence_mean", "sequence_sum"):
        padded = losses.sft_loss(np.pad(token_logps, pad), np.pad(mask, pad), normalize=normalize)
        close(padded[:3] if padded.ndim else padded, losses.sft_loss(token_logps, mask, normalize=normalize))
