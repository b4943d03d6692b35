"""Losses on several responses of a prompt."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxpref import losses
from tests.losses.strategies import ROWS, betas, close, logps, pairs

K = 4
lists = arrays(float, (ROWS, K), elements=st.floats(-50, -0.01))
averages = arrays(float, (ROWS, K), elements=st.floats(-8, -0.01))
scored = arrays(float, (ROWS, K), elements=st.floats(-3, 3))
masks = arrays(bool, (ROWS, K))
shares = st.floats(0.05, 1)


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


@given(pairs, logps, logps, betas)
def test_vpo_and_hypo_without_their_second_term_are_dpo(pair, policy, reference, beta):
    expected = losses.dpo_loss(*pair, beta=beta)
    values, calibration = losses.vpo_loss(*pair, policy, reference, beta=beta, alpha=0.0)
    close(values, expected)
    close(calibration, 0.0)
    values, online, _ = losses.hypo_loss(*pair, policy[:, None], reference[:, None], beta=beta, lam=0.0)
    close(values, expected)
    close(online, 0.0)


@given(pairs, betas, st.floats(0, 2))
def test_vpo_offline_adds_the_likelihood_of_the_chosen(pair, beta, alpha):
    _, calibration = losses.vpo_loss(*pair, pair[0], pair[2], beta=beta, alpha=alpha)
    close(calibration, alpha * beta * (-pair[0] + pair[2]))


@given(pairs, logps, logps, betas, st.floats(0, 2))
def test_vpo_signs_are_optimism_and_pessimism(pair, policy, reference, beta, alpha):
    options = dict(beta=beta, alpha=alpha)
    offline, online = [losses.vpo_loss(*pair, policy, reference, sign=s, **options)[1] for s in (-1, 1)]
    close(online, alpha * beta * (policy - reference))
    close(offline, -online)


@pytest.mark.parametrize("sign", [0, 0.5, 2])
def test_vpo_refuses_another_sign(sign):
    with pytest.raises(ValueError, match="sign is .* but must be -1 or 1"):
        losses.vpo_loss(*[np.zeros(2)] * 6, sign=sign)


@pytest.mark.parametrize(("rloo", "size"), [(True, 2), (True, 3), (False, 2), (True, 1)])
def test_hypo_gradient_is_that_of_the_divergence(rloo, size):
    """In expectation over all draws of the policy's own samples, exactly."""
    reference, logits, zero = jnp.log(jnp.array([0.2, 0.5, 0.3])), jnp.array([0.4, -0.3, 0.1]), jnp.zeros(1)
    draws = np.array(list(itertools.product(range(3), repeat=size)))
    chances = jnp.prod(jax.nn.softmax(logits)[draws], axis=1)

    def expected_surrogate(logits):
        policy = jax.nn.log_softmax(logits)[draws]
        options = dict(lam=1.0, rloo=rloo)
        _, online, aux = losses.hypo_loss(zero, zero, zero, zero, policy, reference[draws], **options)
        return jnp.sum(chances * jnp.mean(online, axis=1))

    def divergence(logits):
        policy = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(policy) * (policy - reference))

    close(jax.grad(expected_surrogate)(logits), jax.grad(divergence)(logits))


def test_hypo_reports_the_divergence_and_not_the_surrogate():
    online = np.array([[-3.0, -5.0], [-2.0, -4.0]])
    aux = losses.hypo_loss(*[np.zeros(1)] * 4, online, online - 1.5)[2]
    close(aux.kl_estimate, 1.5)


@functools.partial(jax.jit, static_argnames="rloo")
def online_gradient(policy, reference, mask=None, **options):
    """``(sum of the online values, all outputs), its gradient`` of HyPO on these samples."""

    def total(policy):
        outputs = losses.hypo_loss(*[jnp.zeros(1)] * 4, policy, reference, mask, **options)
        return jnp.sum(outputs[1]), outputs

    return jax.value_and_grad(total, has_aux=True)(policy)


@given(lists, lists, masks, st.booleans())
def test_hypo_absent_samples_change_nothing(policy, reference, mask, rloo):
    options = dict(lam=0.5, rloo=rloo)
    broken = np.where(mask, policy, np.nan), np.where(mask, reference, np.nan)

    (_, (_, online, aux)), gradient = online_gradient(*broken, mask, **options)
    assert not np.any(online[~mask]) and not np.any(gradient[~mask]) and np.all(np.isfinite(gradient))
    for row in range(ROWS):
        kept = [x[row, mask[row]][None] for x in (policy, reference)]
        if kept[0].size:
            close(online[row, mask[row]], online_gradient(*kept, **options)[0][1][1][0])
    close(aux.kl_estimate, np.sum((policy - reference)[mask]) / max(mask.sum(), 1))


@given(pairs, betas)
def test_copg_of_a_quarter_is_scaled_ipo(pair, beta):
    sides = [np.stack(side, axis=1) for side in (pair[:2], pair[2:])]
    quarter = np.tile([0.25, -0.25], (ROWS, 1))
    expected = beta**2 / 2 * losses.ipo_loss(*pair, tau=beta, normalize="sum")
    close(losses.copg_loss(*sides, quarter, beta=beta), expected)


@given(lists, lists, scored, masks, betas)
def test_copg_sums_over_present_pairs(policy, reference, rewards, mask, beta):
    regularized = rewards - beta * (policy - reference)
    expected = np.zeros(ROWS)
    for row in range(ROWS):
        present = regularized[row, mask[row]]
        gaps = [0.5 * (a - b) ** 2 for a, b in itertools.combinations(present, 2)]
        expected[row] = sum(gaps) / max(len(present) - 1, 1)
    broken = [np.where(mask, x, np.nan) for x in (policy, reference, rewards)]
    close(losses.copg_loss(*broken, mask, beta=beta), expected)
    gradient = jax.grad(lambda x: jnp.sum(losses.copg_loss(x, *broken[1:], mask, beta=beta)))(broken[0])
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[~mask])


@given(lists, lists, scored, betas)
def test_copg_gradient_has_the_other_response_as_baseline(policy, reference, rewards, beta):
    two = [x[:, :2] for x in (policy, reference, rewards)]
    gradient = jax.grad(lambda x: jnp.sum(losses.copg_loss(x, *two[1:], beta=beta)))(two[0])
    regularized = two[2] - beta * (two[0] - two[1])
    close(gradient[:, 0], -beta * (regularized[:, 0] - regularized[:, 1]))
    close(gradient[:, 1], -gradient[:, 0])


@given(lists, scored, betas)
def test_copg_vanishes_at_the_optimal_policy_whoever_sampled(reference, rewards, beta):
    """That policy is the reference tilted by the rewards; its normaliser is one number a prompt."""
    policy = reference + rewards / beta - np.arange(ROWS)[:, None]
    close(losses.copg_loss(policy, reference, rewards, beta=beta), 0.0)


def knowpat_by_hand(scores, divisor=None):
    """The alignment of one prompt, term by term."""
    count, spread = len(scores), max(scores, default=0) - min(scores, default=0)
    total = 0.0
    for i in range(count - 1):
        weight = (scores[i] - min(scores)) / spread if spread else 0.0
        below = [math.log1p(math.exp(s)) for s in scores[i + 1 :]]
        total += weight * (math.log1p(math.exp(-scores[i])) + sum(below) / len(below))
    return total / (divisor or max(count - 1, 1))


@given(averages, masks, st.sampled_from([None, 3.0]))
def test_knowpat_by_hand_with_absent_answers(avg_logps, mask, divisor):
    broken = np.where(mask, avg_logps, np.nan)
    align = losses.knowpat_align_loss(broken, mask, divisor=divisor)
    close(align, [knowpat_by_hand(list(row[m]), divisor) for row, m in zip(avg_logps, mask, strict=True)])
    gradient = jax.grad(lambda s: jnp.sum(losses.knowpat_loss(s, mask, divisor=divisor)))(broken)
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[~mask])


@given(averages, st.floats(0, 2))
def test_knowpat_adds_the_likelihood_of_the_best(avg_logps, lam):
    expected = lam * losses.knowpat_align_loss(avg_logps) - avg_logps[:, 0]
    close(losses.knowpat_loss(avg_logps, lam=lam), expected)


def test_knowpat_of_two_answers_counts_only_what_is_ranked_right():
    wrong, right = np.array([[-2.0, -1.0]]), np.array([[-1.0, -2.0]])
    close(losses.knowpat_align_loss(wrong), 0.0)
    close(losses.knowpat_align_loss(right), math.log1p(math.e) + math.log1p(math.exp(-2)))


def test_knowpat_of_equal_scores_is_zero_with_gradient_zero():
    value, gradient = jax.value_and_grad(lambda s: losses.knowpat_align_loss(s)[0])(jnp.full((1, K), -1.5))
    assert value == 0 and not np.any(gradient)


def test_knowpat_weights_are_constants():
    scores = jnp.array([[-0.5, -1.0, -2.0]])
    gradient = jax.grad(lambda s: losses.knowpat_align_loss(s)[0])(scores)[0]
    weights, falling = np.array([1, 2 / 3]), jax.nn.sigmoid(scores[0])
    first = -weights[0] * (1 - falling[0])
    second = weights[0] * falling[1] / 2 - weights[1] * (1 - falling[1])
    third = (weights[0] / 2 + weights[1]) * falling[2]
    close(gradient, np.array([first, second, third]) / 2)


def dft(variant, positive, negative, generator, log_u=None, ids=None, where=None, mask=None, **options):
    """A batch of either variant; lengths are 2 for the demonstrations and 4 for the negatives."""
    ids, log_u = np.arange(ROWS) if ids is None else ids, np.zeros(ROWS) if log_u is None else log_u
    lengths = np.full(positive.shape, 2), np.full(negative.shape, 4)
    arrays = dict(positive_lengths=lengths[0], negative_lengths=lengths[1], sample_mask=mask, where=where)
    return losses.dft_loss(positive, negative, ids, log_u, generator, **arrays, variant=variant, **options)


def dft_scores(variant, positive, negative):
    return (positive, negative) if variant == "dft1" else (positive / 2, negative / 4)


@pytest.mark.parametrize("variant", ["dft1", "dft2"])
@given(positive=logps, negative=lists, generator=lists, before=logps, gamma=shares, tau=st.floats(0.5, 5))
def test_dft_updates_a_moving_average_before_it_uses_it(variant, positive, negative, generator, before, gamma, tau):
    before = before / 20
    score, scores = dft_scores(variant, positive, negative)
    q = scores / tau - (generator if variant == "dft1" else 0)
    u = (1 - gamma) * np.exp(before) + gamma * np.mean(np.exp(q), axis=1)
    values, log_u = dft(variant, positive, negative, generator, before, gamma=gamma, tau=tau)
    close(log_u, np.log(u), rtol=1e-7)
    close(values, -score + np.mean(np.exp(q) / u[:, None] * scores, axis=1), rtol=1e-7)


@pytest.mark.parametrize("variant", ["dft1", "dft2"])
@given(positive=logps, negative=lists, generator=lists, tau=st.floats(0.5, 5))
def test_dft_without_memory_has_the_gradient_of_its_aim(variant, positive, negative, generator, tau):
    def aim(logps):
        score, scores = dft_scores(variant, *logps)
        q = scores / tau - (generator if variant == "dft1" else 0)
        return jnp.sum(-score + tau * jax.nn.logsumexp(q, axis=1))

    def surrogate(logps):
        return jnp.sum(dft(variant, *logps, generator, gamma=1.0, tau=tau)[0])

    jax.tree.map(close, jax.grad(surrogate)((positive, negative)), jax.grad(aim)((positive, negative)))


@pytest.mark.parametrize("variant", ["dft1", "dft2"])
@given(positive=logps, negative=lists, generator=lists)
def test_dft_special_cases(variant, positive, negative, generator):
    score, scores = dft_scores(variant, positive, negative)
    none, log_u = dft(variant, positive, negative[:, :0], generator[:, :0])
    close(none, -score)
    close(log_u, 0.0)
    one = dft("dft2", positive, negative[:, :1], None, gamma=1.0)[0]
    close(one, -positive / 2 + negative[:, 0] / 4)
    if variant == "dft2":
        close(dft("dft2", positive, negative, None, gamma=1.0, tau=1e12)[0], -score + np.mean(scores, axis=1))


@given(logps, lists, lists, arrays(bool, ROWS))
def test_dft_rows_that_do_not_count_leave_their_average(positive, negative, generator, where):
    ids, before = np.array([4, 0, 2]), np.linspace(-1, 1, 6)
    broken = [np.where(where.reshape(-1, *[1] * (x.ndim - 1)), x, np.nan) for x in (positive, negative, generator)]
    strange = np.where(where, ids, 10**6)
    values, after = dft("dft1", *broken, before, strange, where)
    expected, moved = dft("dft1", positive, negative, generator, before, ids)
    close(values, np.where(where, expected, 0))
    kept = np.ones(6, bool)
    kept[ids[where]] = False
    close(after, np.where(kept, before, moved))
    total = lambda p, n: jnp.sum(dft("dft1", p, n, broken[2], before, strange, where)[0])  # noqa: E731
    gradients = jax.grad(total, argnums=(0, 1))(*broken[:2])
    assert all(np.all(np.isfinite(g)) and not np.any(g[~where]) for g in gradients)


def test_dft_names_what_is_missing_and_shows_a_wrong_id():
    one, two = np.zeros(2), np.zeros((2, 3))
    with pytest.raises(ValueError, match="variant is 'dft1', which needs ref_negative_logps"):
        losses.dft_loss(one, two, np.arange(2), one)
    with pytest.raises(ValueError, match="variant is 'dft2', which needs positive_lengths"):
        losses.dft_loss(one, two, np.arange(2), one, variant="dft2")
    with pytest.raises(ValueError, match="gamma is 0.0, but must be between 0 and 1, 0 excluded"):
        losses.dft_loss(one, two, np.arange(2), one, two, gamma=0.0)
    assert np.isnan(losses.dft_loss(one, two, np.array([0, 7]), one, two)[0]).tolist() == [False, True]


@pytest.mark.parametrize("variant", ["dft1", "dft2"])
@given(positive=logps, negative=lists, generator=lists, mask=masks, gamma=shares)
def test_dft_absent_negatives_change_nothing(variant, positive, negative, generator, mask, gamma):
    broken = [np.where(mask, x, np.nan) for x in (negative, generator)]
    before, counts = np.linspace(-1, 1, ROWS), np.maximum(mask.sum(axis=1), 1)
    values, after = dft(variant, positive, *broken, before, mask=mask, gamma=gamma)
    score, scores = dft_scores(variant, positive, negative)
    tilted = mask * np.exp(scores / (1 if variant == "dft1" else 0.3) - (generator if variant == "dft1" else 0))
    u = np.where(mask.any(axis=1), (1 - gamma) * np.exp(before) + gamma * tilted.sum(axis=1) / counts, np.exp(before))
    close(after, np.log(u), rtol=1e-7)
    close(values, -score + (tilted / u[:, None] * scores).sum(axis=1) / counts, rtol=1e-7)
    total = lambda p, n: jnp.sum(dft(variant, p, n, broken[1], before, mask=mask, gamma=gamma)[0])  # noqa: E731
    gradients = jax.grad(total, argnums=(0, 1))(positive, broken[0])
    assert all(np.all(np.isfinite(g)) for g in gradients) and not np.any(gradients[1][~mask])


@given(logps, lists, lists)
def test_dft_a_demonstration_that_comes_twice_moves_its_average_once(positive, negative, generator):
    before, twice = np.linspace(-1, 1, 5), np.array([0, 1, 2, 1])
    expected, moved = dft("dft1", positive, negative, generator, before)
    values, after = dft("dft1", positive[twice], negative[twice], generator[twice], before, ids=twice)
    close(values, expected[twice])
    close(after, moved)
