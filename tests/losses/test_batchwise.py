"""Losses that see the whole batch or carry a running state: identities, and cases where one method is another."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxpref import losses
from tests.losses.strategies import ROWS, betas, close, lengths, logps, margin, pairs, smoothing

weights = st.floats(0, 3)
shares = st.floats(0, 1)
orders = st.permutations(range(ROWS))
shifts = st.floats(-20, 20)
single = st.tuples(*[arrays(float, 1, elements=st.floats(-200, -0.01))] * 4)
LABELS = np.array([True, False, True])
IDS = np.array([0, 1, 0])


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


def at(delta, count=0.0):
    return losses.bco_state()._replace(delta=jnp.asarray(delta), count=jnp.asarray(count))


def log_ratios(pair):
    return pair[0] - pair[2], pair[1] - pair[3]


def logistic(x):
    return np.logaddexp(0, -x)


# DPO and the likelihood of the chosen response


@given(pairs, lengths, betas, weights)
def test_dpo_nll_is_dpo_and_a_likelihood(pair, sizes, beta, alpha):
    dpo = losses.dpo_loss(*pair, beta=beta)
    close(losses.dpo_nll_loss(*pair, sizes[0], beta=beta, alpha=0.0), dpo)
    options = dict(beta=beta, alpha=alpha)
    close(losses.dpo_nll_loss(*pair, sizes[0], **options), dpo - alpha * pair[0] / sizes[0])
    token_mean = -np.sum(pair[0]) / np.sum(sizes[0])
    close(losses.dpo_nll_loss(*pair, sizes[0], nll="batch_token_mean", **options), dpo + alpha * token_mean)


@given(pairs, lengths, betas, shifts, st.floats(0, 9))
def test_mpo_is_each_of_its_parts(pair, sizes, beta, delta, count):
    def mpo(*weights, **options):
        names = dict(zip(("w_p", "w_q", "w_g"), weights, strict=True))
        return losses.mpo_loss(*pair, sizes[0], at(delta, count), beta=beta, **names, **options)

    close(mpo(1.0, 0.0, 0.0)[0], losses.dpo_loss(*pair, beta=beta))
    quality, state = losses.bco_pair_loss(*pair, at(delta, count), beta=beta)
    values, new_state = mpo(0.0, 1.0, 0.0)
    close(values, quality)
    jax.tree.map(close, new_state, state)
    close(mpo(0.0, 0.0, 1.0)[0], -pair[0] / sizes[0])
    unshifted, same = mpo(0.0, 1.0, 0.0, use_delta=False)
    chosen, rejected = log_ratios(pair)
    close(unshifted, logistic(beta * chosen) + logistic(-beta * rejected))
    jax.tree.map(np.testing.assert_array_equal, same, at(delta, count))


# BCO


@given(pairs, betas, shifts, st.floats(0, 100))
def test_bco_on_pairs_is_above_dpo_for_every_shift(pair, beta, delta, count):
    values, _ = losses.bco_pair_loss(*pair, at(delta, count), beta=beta)
    assert np.all(values >= losses.dpo_loss(*pair, beta=beta) - 1e-9)


def test_bco_pair_shift_is_the_mean_of_the_batches_means():
    state, means = losses.bco_state(), []
    for seed in range(4):
        pair = -np.random.default_rng(seed).gamma(2.0, 3.0, (4, ROWS))
        means.append(0.1 * np.mean(log_ratios(pair)))
        values, state = losses.bco_pair_loss(*pair, state)
        close(state.delta, np.mean(means))
        chosen, rejected = log_ratios(pair)
        close(values, logistic(0.1 * chosen - state.delta) + logistic(state.delta - 0.1 * rejected))
    values, after = losses.bco_pair_loss(*pair, state, np.zeros(ROWS, bool))
    assert not np.any(values)
    jax.tree.map(np.testing.assert_array_equal, after, state)


@given(logps, logps, logps, logps, betas, shares)
def test_bco_shift_of_the_paper_balances_the_labels(first, reference, second, other, beta, ema):
    options = dict(beta=beta, ema=ema)
    ratio = beta * (first - reference)
    values, state = losses.bco_loss(first, reference, LABELS, losses.bco_state(), **options)
    good, bad = np.mean(ratio[LABELS]), ratio[1]
    close(state.delta, (good + bad) / 2)
    close(values, logistic(np.where(LABELS, 1, -1) * (ratio - (good + bad) / 2)))
    # A batch of one label moves that label's average only.
    _, state = losses.bco_loss(second, other, np.ones(ROWS, bool), state, **options)
    good = ema * good + (1 - ema) * np.mean(beta * (second - other))
    close(state.delta, (good + bad) / 2)
    close(state.class_means, [bad, good])


@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("mode", ["class_balanced_ema", "running_mean"])
def test_trap_15_bco_with_one_label(label, mode):
    """A label never seen has the other's mean; nothing is divided by its number."""
    policy, reference = np.array([-1.0, -2.0]), np.array([-1.5, -1.0])
    labels = np.full(2, label)
    values, state = losses.bco_loss(policy, reference, labels, losses.bco_state(), beta=1.0, delta_mode=mode)
    close(state.delta, -0.25)
    close(values, logistic((1 if label else -1) * np.array([0.75, -0.75])))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), betas)
def test_bco_running_mean_counts_every_example_once(sizes, beta):
    rng, state, seen = np.random.default_rng(sum(sizes)), losses.bco_state(), []
    for size in sizes:
        policy, reference = -rng.gamma(2.0, 3.0, (2, size))
        seen.extend(beta * (policy - reference))
        labels = rng.integers(0, 2, size)
        _, state = losses.bco_loss(policy, reference, labels, state, beta=beta, delta_mode="running_mean")
        close(state.delta, np.mean(seen), rtol=1e-6)
    assert float(state.count) == len(seen)


@given(logps, logps, arrays(float, ROWS, elements=shares))
def test_bco_density_ratio_weighs_undesirable_responses_only(policy, reference, prob):
    plain, state = losses.bco_loss(policy, reference, LABELS, losses.bco_state())
    values, same = losses.bco_loss(policy, reference, LABELS, losses.bco_state(), prob)
    ratio = np.clip(prob / (1 - prob + 1e-8), 0.5, 10)
    close(values, np.where(LABELS, 1, ratio) * plain)
    jax.tree.map(close, same, state)


@given(pairs, betas)
def test_bco_shift_carries_no_gradient(pair, beta):
    """The slope of each example is that of a classifier with a constant shift."""
    slope = jax.grad(lambda x: jnp.sum(losses.bco_loss(x, pair[2], LABELS, losses.bco_state(), beta=beta)[0]))(pair[0])
    _, state = losses.bco_loss(pair[0], pair[2], LABELS, losses.bco_state(), beta=beta)
    sign = np.where(LABELS, 1, -1)
    close(slope, -sign * beta * jax.nn.sigmoid(-sign * (beta * (pair[0] - pair[2]) - state.delta)))


# Optimal transport


@given(single, betas, smoothing, st.booleans())
def test_aot_of_one_pair_is_dpo(pair, beta, epsilon, paired):
    options = dict(beta=beta, label_smoothing=epsilon)
    close(losses.aot_loss(*pair, paired=paired, **options), losses.dpo_loss(*pair, **options))


@given(pairs, orders, orders, betas)
def test_aot_forgets_who_was_paired_with_whom(pair, order, other, beta):
    whole = losses.aot_loss(*pair, beta=beta)
    close(losses.aot_loss(*[x[np.array(order)] for x in pair], beta=beta), whole)
    separate = losses.aot_loss(*pair, beta=beta, paired=False)
    chosen, rejected = np.array(order), np.array(other)
    moved = pair[0][chosen], pair[1][rejected], pair[2][chosen], pair[3][rejected]
    close(losses.aot_loss(*moved, beta=beta, paired=False), separate)


@given(pairs, betas, smoothing)
def test_aot_of_sorted_batches_is_dpo(pair, beta, epsilon):
    options = dict(beta=beta, label_smoothing=epsilon)
    sorted_margins = np.sort(pair[0]), np.zeros(ROWS), np.sort(pair[2]), np.zeros(ROWS)
    close(losses.aot_loss(*sorted_margins, **options), losses.dpo_loss(*sorted_margins, **options))
    sorted_rewards = np.sort(pair[0]), np.sort(pair[1]), np.zeros(ROWS), np.zeros(ROWS)
    close(losses.aot_loss(*sorted_rewards, paired=False, **options), losses.dpo_loss(*sorted_rewards, **options))


@given(pairs, betas, st.integers(2, 4))
def test_aot_of_unequal_numbers_compares_quantiles(pair, beta, times):
    expected = losses.aot_loss(*pair, beta=beta, paired=False)
    often = pair[0], np.repeat(pair[1], times), pair[2], np.repeat(pair[3], times)
    close(losses.aot_loss(*often, beta=beta, paired=False), expected)
    padded = [np.append(x, 7.0) for x in often]
    where, others = np.arange(ROWS + 1) < ROWS, np.arange(ROWS * times + 1) < ROWS * times
    close(losses.aot_loss(*padded, where, others, beta=beta, paired=False)[:ROWS], expected)


def test_aot_of_unequal_numbers_interpolates():
    """The median of two responses lies between them, that of one is itself."""
    one, two = np.array([0.0]), np.array([-3.0, -1.0])
    close(losses.aot_loss(one, two, one, 0 * two, beta=1.0, paired=False), logistic(2.0))
    close(losses.aot_loss(two, one, 0 * two, one, beta=1.0, paired=False), logistic(two))


@given(pairs, betas, st.booleans())
def test_aot_values_lie_on_the_rows_that_count(pair, beta, paired):
    where = np.array([False, True, False, True, True])
    spread = [np.full(5, np.nan) for _ in pair]
    for array, values in zip(spread, pair, strict=True):
        array[where] = values
    values = losses.aot_loss(*spread, where, beta=beta, paired=paired)
    close(values[where], losses.aot_loss(*pair, beta=beta, paired=paired))
    assert not np.any(values[~where])


def test_trap_13_aot_sorts_the_whole_batch():
    """As distributions policy and reference are the same; neither half of the batch can see it."""
    policy, reference, zeros = np.array([0.0, 9.0]), np.array([9.0, 0.0]), np.zeros(2)
    close(losses.aot_loss(policy, zeros, reference, zeros, beta=1.0), math.log(2))
    halves = [losses.aot_loss(policy[i:][:1], zeros[:1], reference[i:][:1], zeros[:1], beta=1.0)[0] for i in (0, 1)]
    close(halves, logistic(policy - reference))


# Relative preferences


@given(single, arrays(float, (1, 4), elements=st.floats(-3, 3)), betas)
def test_relative_rpo_of_one_pair_is_dpo(pair, embedding, beta):
    expected = losses.dpo_loss(*pair, beta=beta)
    close(losses.relative_rpo_loss(*pair, embedding, beta=beta), expected)
    close(losses.relative_rpo_loss(*pair, beta=beta, variant="diagonal"), expected)


@given(pairs, betas)
def test_relative_rpo_of_unrelated_prompts_is_dpo_and_ties(pair, beta):
    values = losses.relative_rpo_loss(*pair, np.eye(ROWS), beta=beta, distance_temperature=1e-3)
    close(values, (losses.dpo_loss(*pair, beta=beta) + (ROWS - 1) * math.log(2)) / ROWS)


@given(pairs, betas)
def test_relative_rpo_of_equal_prompts_shares_beta(pair, beta):
    chosen, rejected = log_ratios(pair)
    expected = np.mean(logistic(beta / ROWS * (chosen[:, None] - rejected)), axis=1)
    close(losses.relative_rpo_loss(*pair, np.ones((ROWS, 2)), beta=beta), expected)


@given(
    pairs, arrays(float, (ROWS, 4), elements=st.floats(-3, 3)), orders, betas, st.sampled_from(("paired", "diagonal"))
)
def test_relative_rpo_permutes_with_the_batch(pair, embeddings, order, beta, variant):
    order, options = np.array(order), dict(beta=beta, variant=variant)
    values = losses.relative_rpo_loss(*pair, embeddings, **options)
    close(losses.relative_rpo_loss(*[x[order] for x in pair], embeddings[order], **options), values[order])


@given(pairs, betas, shares)
def test_relative_rpo_diagonal_mixes_the_own_pair_and_the_others(pair, beta, weight):
    options = dict(beta=beta, variant="diagonal")
    close(losses.relative_rpo_loss(*pair, diagonal_weight=1.0, **options), losses.dpo_loss(*pair, beta=beta))
    chosen, rejected = log_ratios(pair)
    matrix = logistic(beta * (chosen[:, None] - rejected))
    others = (np.sum(matrix, axis=1) - np.diag(matrix)) / (ROWS - 1)
    expected = weight * np.diag(matrix) + (1 - weight) * others
    close(losses.relative_rpo_loss(*pair, diagonal_weight=weight, **options), expected, rtol=1e-6)


def test_relative_rpo_without_responses_of_one_side_is_zero():
    chosen, rejected = np.array([-3.0, -2.0]), np.array([-1.0, -4.0, -2.0])
    embeddings = np.ones((2, 4)), np.ones((3, 4))

    def loss(chosen, where, others):
        return jnp.sum(
            losses.relative_rpo_loss(
                chosen, rejected, 0 * chosen, 0 * rejected, *embeddings, where, others, variant="unpaired"
            )
        )

    for where, others in ((np.ones(2, bool), np.zeros(3, bool)), (np.zeros(2, bool), np.ones(3, bool))):
        value, gradient = jax.value_and_grad(loss)(chosen, where, others)
        assert value == 0 and not np.any(gradient)


def test_relative_rpo_needs_embeddings_and_ignores_their_gradient():
    pair = [np.array([-3.0, -2.0]), np.array([-1.0, -4.0]), np.zeros(2), np.zeros(2)]
    with pytest.raises(ValueError, match="needs prompt embeddings"):
        losses.relative_rpo_loss(*pair)
    with pytest.raises(ValueError, match="needs prompt embeddings"):
        losses.relative_rpo_loss(*pair, np.ones((2, 3)), variant="unpaired")
    gradient = jax.grad(lambda e: jnp.sum(losses.relative_rpo_loss(*pair, e)))(np.array([[1.0, 2.0], [2.0, 1.0]]))
    assert not np.any(gradient)


# Dynamic beta


@given(pairs, betas)
def test_beta_dpo_that_neither_adapts_nor_selects_is_dpo(pair, beta):
    values, _, aux = losses.beta_dpo_loss(*pair, losses.beta_dpo_state(), jax.random.key(0), beta0=beta, a=0.0, rho=0.0)
    close(values, losses.dpo_loss(*pair, beta=beta))
    assert np.all(aux.selection_mask)


@given(pairs, st.floats(0, 1), st.floats(0.01, 1), shares, st.booleans())
def test_beta_dpo_follows_the_margin_of_the_selected(pair, a, beta0, momentum, update):
    gaps, selected = margin(pair), np.array([True, False, True])
    state = losses.BetaDpoState(jnp.asarray(0.3), jnp.asarray(2.0))
    options = dict(selection_mask=selected, a=a, beta0=beta0, momentum=momentum, update=update)
    values, after, aux = losses.beta_dpo_loss(*pair, state, **options)
    mean, deviation = 0.3, 2.0
    if update:
        mean = momentum * mean + (1 - momentum) * np.mean(gaps)
        deviation = momentum * deviation + (1 - momentum) * np.std(gaps, ddof=1)
    close(after.gap_mean, mean)
    close(after.gap_std, deviation)
    beta = max(beta0 * (1 + a * (np.mean(gaps[selected]) - mean)), 1e-3)
    close(aux.beta_used, beta, rtol=1e-6)
    close(values, logistic(beta * gaps), rtol=1e-6)


@given(pairs, orders, st.integers(0, 99))
def test_beta_dpo_draw_does_not_depend_on_the_order_of_the_batch(pair, order, seed):
    gaps = margin(pair)
    assume(len(np.unique(gaps)) == ROWS)
    order, key = np.array(order), jax.random.key(seed)
    drawn = losses.beta_dpo_loss(*pair, losses.beta_dpo_state(), key, rho=0.5)[2].selection_mask
    moved = losses.beta_dpo_loss(*[x[order] for x in pair], losses.beta_dpo_state(), key, rho=0.5)[2].selection_mask
    np.testing.assert_array_equal(moved, drawn[order])


@pytest.mark.parametrize(
    ("rho", "size", "expected"), [(0.2, 6, 4), (0.3, 10, 7), (0.9, 3, 1), (1.0, 4, 1), (0.0, 5, 5)]
)
@pytest.mark.parametrize("precision", [jnp.float32, jnp.float64])
def test_beta_dpo_draws_the_whole_part_of_the_batch(rho, size, expected, precision):
    with jax.enable_x64(precision == jnp.float64):
        gaps, zeros = jnp.arange(size + 2, dtype=precision), jnp.zeros(size + 2, precision)
        where = np.arange(size + 2) < size
        run = jax.jit(lambda rho: losses.beta_dpo_loss(
            gaps, zeros, zeros, zeros, losses.beta_dpo_state(), jax.random.key(0), where=where, rho=rho
        )[2].selection_mask)  # fmt: skip
        assert int(jnp.sum(run(rho))) == expected
        assert not np.any(run(rho)[size:])


def test_beta_dpo_draws_in_proportion_to_the_weights():
    gaps, zeros = np.array([-1.0, 0.0, 0.5, 2.0]), np.zeros(4)
    state = losses.BetaDpoState(jnp.asarray(0.0), jnp.asarray(1.0))

    def draw(key):
        return losses.beta_dpo_loss(gaps, zeros, zeros, zeros, state, key, rho=0.75, update=False)[2].selection_mask

    frequencies = np.mean(jax.vmap(draw)(jax.random.split(jax.random.key(0), 20_000)), axis=0)
    expected = np.exp(-0.5 * gaps**2)
    np.testing.assert_allclose(frequencies, expected / np.sum(expected), atol=0.015)


def test_beta_dpo_draw_needs_a_key():
    with pytest.raises(ValueError, match="key is None"):
        losses.beta_dpo_loss(*[np.zeros(2)] * 4, losses.beta_dpo_state())


# Latent collective preferences


def lcpo(pair, sizes, eta, **options):
    return losses.lcpo_loss(*pair, IDS, losses.LcpoState(jnp.asarray(eta)), *sizes, **options)


@given(pairs, lengths, betas)
def test_lcpo_that_trusts_everyone_is_its_base(pair, sizes, beta):
    sure, averages = [1.0, 1.0], (pair[0] / sizes[0], pair[1] / sizes[1])
    close(lcpo(pair, sizes, sure, beta=beta)[0], losses.dpo_loss(*pair, beta=beta))
    close(lcpo(pair, sizes, sure, base="cpo", beta=beta)[0], losses.cpo_loss(*pair[:2], beta=beta, cpo_alpha=0.0))
    raw = dict(m_step="raw", beta=beta)
    simpo = losses.simpo_loss(*pair[:2], *sizes, beta=beta, gamma=0.6)
    close(lcpo(pair, sizes, sure, base="simpo", gamma=0.6, **raw)[0], simpo)
    close(lcpo(pair, sizes, sure, base="ipo", tau=0.4, **raw)[0], losses.ipo_loss(*pair, *sizes, tau=0.4))
    gibbs = lcpo(pair, sizes, sure, base="simpo", gamma=0.6, beta=beta)[0]
    swapped = losses.simpo_loss(averages[1], averages[0], *[np.ones(ROWS)] * 2, beta=beta, gamma=0.6)
    close(gibbs, np.logaddexp(0, simpo - swapped), rtol=1e-6)


@given(pairs, lengths, st.sampled_from(("dpo", "ipo", "simpo", "cpo")), shares)
def test_lcpo_beliefs(pair, sizes, base, eta):
    """Without a prior the model's own probability is believed, without a model the annotator's."""
    _, _, aux = lcpo(pair, sizes, [0.5, 0.5], base=base)
    close(aux.w, aux.p)
    same = (pair[0], pair[0], pair[2], pair[2]), (sizes[0], sizes[0])
    values, _, aux = lcpo(*same, [eta, eta], base=base)
    close(aux.p, 0.5)
    close(aux.w, eta)
    close(values, math.log(2))


@given(pairs, st.floats(0.01, 0.99), st.floats(0.01, 0.99), shares)
def test_lcpo_moves_the_annotators_of_the_batch(pair, first, second, ema):
    _, state, aux = lcpo(pair, (), [first, second, 0.5], ema=ema)
    close(aux.w[1], aux.p[1] * second / (aux.p[1] * second + (1 - aux.p[1]) * (1 - second)), rtol=1e-6)
    moved = [(1 - ema) * first + ema * np.mean(aux.w[IDS == 0]), (1 - ema) * second + ema * aux.w[1], 0.5]
    close(state.eta, np.clip(moved, 1e-4, 1 - 1e-4))


def test_lcpo_reads_ids_out_of_range_as_unknown():
    pair, state = [np.array([-1.0, -2.0, -3.0])] * 4, losses.lcpo_state(2, 0.8)
    strange = losses.lcpo_loss(*pair, np.array([-1, 2, 1]), state, ema=1.0)
    known = losses.lcpo_loss(*pair, np.array([0, 0, 1]), state, ema=1.0)
    jax.tree.map(np.testing.assert_array_equal, strange, known)


@given(pairs, betas)
def test_lcpo_beliefs_carry_no_gradient(pair, beta):
    slope = jax.grad(lambda x: jnp.sum(lcpo((x, *pair[1:]), (), [0.9, 0.6], beta=beta)[0]))(pair[0])
    _, _, aux = lcpo(pair, (), [0.9, 0.6], beta=beta)
    close(slope, beta * (aux.p - aux.w), rtol=1e-6)


def test_lcpo_finds_the_rate_of_true_labels():
    """With a calibrated model eta settles where the labels of each annotator are right."""
    rng, size = np.random.default_rng(0), 20_000
    truth = rng.uniform(size=size) < 0.5
    margins = rng.normal(2.0, 2.0, size) * np.where(truth, 1, -1)  # of a normal model: log-odds of truth are the margin
    ids = np.arange(size) % 2
    flipped = rng.uniform(size=size) < np.array([0.3, 0.1])[ids]
    observed = np.where(truth ^ flipped, margins, -margins)
    zeros, state = np.zeros(size), losses.lcpo_state(2)
    step = jax.jit(lambda state: losses.lcpo_loss(observed, zeros, zeros, zeros, ids, state, beta=1.0, ema=0.5)[1])
    for _ in range(60):
        state = step(state)
    np.testing.assert_allclose(state.eta, [0.7, 0.9], atol=0.02)


def test_lcpo_needs_what_its_base_reads():
    pair = [np.zeros(3)] * 4
    for base in ("ipo", "simpo"):
        with pytest.raises(ValueError, match=f"base is '{base}', which needs chosen_lengths"):
            losses.lcpo_loss(*pair, IDS, losses.lcpo_state(2), base=base)
    for wrong in (0, 1.5, -1, math.nan):
        with pytest.raises(ValueError, match="annotators is .*, but must be a whole number"):
            losses.lcpo_state(wrong)


# States live through what a run does to them


@pytest.mark.parametrize("state", [losses.bco_state, losses.beta_dpo_state, losses.lcpo_state])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_states_have_the_precision_of_the_losses(state, precision):
    with jax.enable_x64(precision == "float64"):
        assert {leaf.dtype for leaf in jax.tree.leaves(state())} == {np.dtype(precision)}
