"""Losses on pairs without a reference: identities that hold for all inputs, and cases where one method is another."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxpref import losses
from tests.losses.strategies import ROWS, betas, close, lengths, logps, pairs, smoothing

weights = st.floats(0, 3)
errors = arrays(float, ROWS, elements=st.floats(0, 20))
worlds = st.sets(st.sampled_from(("TT", "TF", "FT", "FF")), min_size=1)
SIZES = np.array([3, 1, 7])


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


@given(pairs, betas, smoothing)
def test_cpo_without_likelihood_is_reference_free_dpo(pair, beta, epsilon):
    options = dict(beta=beta, label_smoothing=epsilon)
    expected = losses.dpo_loss(*pair, reference_free=True, **options)
    close(losses.cpo_loss(*pair[:2], cpo_alpha=0.0, **options), expected)
    close(losses.cpo_loss(*pair[:2], SIZES, cpo_alpha=0.0, **options), expected)


@given(pairs, lengths, betas)
def test_cpo_on_averages_is_simpo_without_margin(pair, sizes, beta):
    averages = pair[0] / sizes[0], pair[1] / sizes[1]
    expected = losses.simpo_loss(*pair[:2], *sizes, beta=beta, gamma=0.0)
    close(losses.cpo_loss(*averages, beta=beta, cpo_alpha=0.0), expected)


@given(pairs, lengths, weights)
def test_cpo_adds_the_likelihood_that_it_is_told_to(pair, sizes, alpha):
    contrast = losses.cpo_loss(*pair[:2], cpo_alpha=0.0)
    terms = {
        "batch_token_mean": -np.sum(pair[0]) / np.sum(sizes[0]),
        "per_sequence_mean": -pair[0] / sizes[0],
        "sequence_sum": -pair[0],
    }
    for nll, term in terms.items():
        close(losses.cpo_loss(*pair[:2], sizes[0], cpo_alpha=alpha, nll=nll) - contrast, alpha * term, rtol=1e-6)


@given(pairs, betas, smoothing)
def test_cpo_hinge(pair, beta, epsilon):
    margin = beta * (pair[0] - pair[1])
    expected = (1 - epsilon) * np.maximum(0, 1 - margin) + epsilon * np.maximum(0, 1 + margin)
    values = losses.cpo_loss(*pair[:2], beta=beta, label_smoothing=epsilon, cpo_alpha=0.0, loss="hinge")
    close(values, expected)


def test_cpo_needs_lengths_for_a_mean():
    pair = np.zeros(2), np.zeros(2)
    assert losses.cpo_loss(*pair, nll="sequence_sum").shape == (2,)
    for wrong in (lambda: losses.cpo_loss(*pair), lambda: jax.jit(lambda a: losses.cpo_loss(*pair, cpo_alpha=a))(0.0)):
        with pytest.raises(ValueError, match="must be 0 where chosen_lengths is None"):
            wrong()


@given(pairs, lengths, betas, weights)
def test_arpo_that_rejects_in_full_is_cpo(pair, sizes, beta, alpha):
    options = dict(beta=beta, cpo_alpha=alpha)
    values = losses.arpo_loss(*pair[:2], *sizes, eta1=2.0, **options)
    close(values, losses.cpo_loss(*pair[:2], sizes[0], **options))


@given(logps, st.integers(1, 30), betas)
def test_arpo_of_equal_averages_rewards_the_rejected_response(policy, size, beta):
    """At eta1 = 0.9 the rejected response enters with the factor -0.1, the sign of the official code."""
    sizes = np.full(ROWS, size)
    values = losses.arpo_loss(policy, policy, sizes, sizes, beta=beta, cpo_alpha=0.0)
    close(values, np.logaddexp(0, -beta * 1.1 * policy))


def test_arpo_gradients_flow_through_the_rejection():
    chosen, rejected, sizes = np.array([-10.0]), np.array([-12.0]), np.array([10])

    def loss(chosen):
        return losses.arpo_loss(chosen, rejected, sizes, sizes, cpo_alpha=0.0)[0]

    factor = 0.9 * math.exp(0.4 * 0.2) - 1
    slope = 1 + 12.0 * 0.9 * math.exp(0.4 * 0.2) * 0.4 / 10  # of lw - factor * ll by lw
    margin = 0.1 * (chosen[0] - factor * rejected[0])
    close(jax.grad(loss)(chosen)[0], -0.1 * slope / (1 + math.exp(margin)))


@given(pairs, lengths, betas, st.floats(0, 2))
def test_alphapo_tends_to_simpo(pair, sizes, beta, gamma):
    options = dict(beta=beta, gamma=gamma)
    simpo = losses.simpo_loss(*pair[:2], *sizes, **options)
    close(losses.alphapo_loss(*pair[:2], *sizes, alpha=0.0, **options), simpo)
    for alpha in (1e-7, -1e-7):
        np.testing.assert_allclose(
            losses.alphapo_loss(*pair[:2], *sizes, alpha=alpha, **options), simpo, rtol=1e-2, atol=1e-2
        )


@given(arrays(float, ROWS, elements=st.floats(-15, -0.01)), st.floats(0.05, 3))
def test_alphapo_rewards_rise_with_the_likelihood_and_bend_with_alpha(average, alpha):
    slope = jax.grad(lambda x, alpha: jnp.sum(losses.alphapo_reward(x, alpha)))
    close(slope(average, alpha), np.exp(-alpha * average), rtol=1e-6)
    close(losses.alphapo_reward(average, -1.0), np.exp(average) - 1)
    assert np.all(losses.alphapo_reward(average, alpha) <= average + 1e-12)
    assert np.all(losses.alphapo_reward(average, -alpha) >= average - 1e-12)


@given(st.floats(-300, 300))
def test_mapo_score_is_exact_everywhere(error):
    expected = error / math.expm1(error) if error else 1.0
    close(losses.mapo_score(error), expected, rtol=1e-12)
    close(losses.mapo_score(-error), error + losses.mapo_score(error))
    assert float(jax.grad(losses.mapo_score)(error)) <= 0


@pytest.mark.parametrize("error", [0.0, 1e-12, 0.0999, 0.1001, 3.0])
@pytest.mark.parametrize("precision", [jnp.float32, jnp.float64])
def test_mapo_score_has_an_exact_slope(error, precision):
    with jax.enable_x64(precision == jnp.float64):
        slope = float(jax.grad(losses.mapo_score)(jnp.asarray(error, precision)))
    grown = math.expm1(error)
    expected = (grown - error * math.exp(error)) / grown**2 if error > 1e-3 else -0.5 + error / 6
    assert slope == pytest.approx(expected, rel=1e-5 if precision == jnp.float32 else 1e-9)


@given(pairs, lengths, st.floats(0, 2), st.floats(0.1, 5), st.floats(0.1, 5))
def test_mapo_special_cases(pair, sizes, beta, scale, inner):
    chosen = -pair[0] / sizes[0]
    options = dict(beta=beta, T=scale, w=inner)
    close(losses.mapo_lm_loss(*pair[:2], *sizes, beta=0.0), chosen)
    equal = losses.mapo_lm_loss(pair[0], pair[0], sizes[0], sizes[0], **options)
    close(equal, chosen + beta * math.log(2))


@given(errors, errors, st.floats(0.01, 1), st.floats(0.1, 2), st.floats(1, 1000))
def test_mapo_of_images_and_of_tokens_are_one_loss(chosen, rejected, beta, inner, scale):
    """One pixel whose squared error is the average negative log-likelihood."""
    pixels = np.sqrt(np.concatenate([chosen, rejected]))[:, None, None]
    options = dict(beta=beta, T=scale)
    values, aux = losses.mapo_diffusion_loss(pixels, np.zeros_like(pixels), snr_value=inner, **options)
    ones = np.ones(ROWS)
    close(values, losses.mapo_lm_loss(-chosen, -rejected, ones, ones, w=inner, **options), rtol=1e-6)
    close(aux.mse_w, chosen)
    close(aux.mse_l, rejected)
    close(values, aux.mse_w - aux.ratio_losses)


def test_mapo_diffusion_needs_pairs():
    with pytest.raises(AssertionError, match="model_pred"):
        losses.mapo_diffusion_loss(np.zeros((3, 2)), np.zeros((3, 2)))


@given(pairs, lengths, betas)
def test_semantic_losses_contain_cpo_and_orpo(pair, sizes, beta):
    averages = pair[0] / sizes[0], pair[1] / sizes[1]
    cpo, _ = losses.semantic_preference_loss(*pair[:2], *sizes, name="CPO", beta=beta)
    close(cpo, losses.cpo_loss(*averages, beta=beta, cpo_alpha=0.0), rtol=1e-6)
    orpo, aux = losses.semantic_preference_loss(*pair[:2], *sizes, name="ORPO")
    ratio, expected = losses.orpo_loss(*pair[:2], *sizes, nll=np.zeros(ROWS), lam=1.0)
    close(orpo, ratio, rtol=1e-6)
    close(aux.rho, expected.log_odds, rtol=1e-6)


@given(pairs, lengths)
def test_semantic_cross_entropy_is_the_likelihood(pair, sizes):
    values, _ = losses.semantic_preference_loss(*pair[:2], *sizes, name="CE")
    close(values, -pair[0] / sizes[0], rtol=1e-6)
    unlikely, _ = losses.semantic_preference_loss(*pair[:2], *sizes, name="fUNL")
    close(unlikely, -losses.log1mexp(pair[1] / sizes[1]), rtol=1e-6)


@given(pairs, lengths, worlds, worlds, worlds, worlds, betas)
def test_semantic_entailment_orders_the_losses(pair, sizes, numerator, denominator, more, fewer, beta):
    """What holds in fewer worlds, and is broken in more, is never the easier preference."""

    def loss(rows, others):
        rows = dict(numerator_rows=sorted(rows), denominator_rows=sorted(others))
        return losses.semantic_preference_loss(*pair[:2], *sizes, beta=beta, **rows)[0]

    assert np.all(loss(numerator, denominator | fewer) >= loss(numerator | more, denominator) - 1e-9)


def test_semantic_named_losses_are_ordered():
    pair = np.array([-3.0, -8.0]), np.array([-5.0, -2.0]), np.array([4, 3]), np.array([2, 6])

    def loss(name):
        return losses.semantic_preference_loss(*pair, name=name)[1].rho

    for stronger, weaker in (
        ("ORPO", "cCPO"),
        ("cCPO", "unCPO"),
        ("CEUnl", "ORPO"),
        ("CEUnl", "CE"),
        ("cfUNL", "fUNL"),
    ):
        assert np.all(loss(stronger) <= loss(weaker)), (stronger, weaker)


def test_semantic_rows_win_over_the_name_and_are_checked():
    pair = np.array([-3.0]), np.array([-5.0]), np.array([4]), np.array([2])
    for name, rows in losses.SEMANTIC_LOSSES.items():
        given_rows = dict(numerator_rows=rows[0], denominator_rows=rows[1])
        named = losses.semantic_preference_loss(*pair, name=name)[0]
        close(losses.semantic_preference_loss(*pair, name="CE", **given_rows)[0], named)
    with pytest.raises(ValueError, match="numerator_rows is empty"):
        losses.semantic_preference_loss(*pair, numerator_rows=[])
    with pytest.raises(ValueError, match="denominator_rows is 'TX', but must be one of 'TT'"):
        losses.semantic_preference_loss(*pair, denominator_rows=("TX",))
    with pytest.raises(ValueError, match="name is 'DPO', but must be one of 'CE'"):
        losses.semantic_preference_loss(*pair, name="DPO")


@pytest.mark.parametrize("name", losses.SEMANTIC_LOSSES)
def test_trap_10_semantic_losses_of_certain_responses_are_finite(name):
    one, half = jnp.ones(1), jnp.full(1, -0.5)
    for logp in (0.0, -1e-9, -1e4):
        for loss in (
            lambda x: losses.semantic_preference_loss(x[None], half, one, one, name=name)[0][0],
            lambda x: losses.semantic_preference_loss(half, x[None], one, one, name=name)[0][0],
        ):
            assert all(np.isfinite(part) for part in jax.value_and_grad(loss)(jnp.asarray(logp)))
