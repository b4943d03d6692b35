"""Pairwise losses against a reference: special cases, and which of them is another one."""

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

ZEROS, ONES = np.zeros(ROWS), np.ones(ROWS)
probabilities = arrays(float, ROWS, elements=st.floats(0, 1))
ties = arrays(bool, ROWS)


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


def swapped(pair):
    return pair[1], pair[0], pair[3], pair[2]


def slope(loss, at):
    """Derivative of a loss of the margin: with the other arguments at 0, the margin is the chosen log-probability."""
    return jax.grad(lambda z: jnp.sum(loss(z, ZEROS, ZEROS, ZEROS)))(jnp.asarray(at))


@given(pairs, lengths, betas)
def test_what_dpo_is_a_special_case_of(pair, sizes, beta):
    expected = losses.dpo_loss(*pair, beta=beta)
    wins = ZEROS.astype(bool)
    for values in (
        losses.rdpo_loss(*pair, beta=beta, label_smoothing=0.0),
        losses.soft_preference_loss(*pair, ONES, beta=beta),
        losses.mm_dpo_loss(*pair, sizes[0], beta=beta, w=0.0),
        losses.mm_dpo_loss(*pair, ZEROS, beta=beta),
        losses.mm_dpo_loss(*pair, sizes[0], beta=beta, k=0.0),
        losses.reward_aware_rpo_loss(*pair, 1e4 * ONES, ZEROS, beta=beta),
        losses.f_dpo_loss(*pair, beta=beta),
        losses.f_dpo_loss(*pair, beta=beta, divergence="alpha", alpha=0.0),
        losses.ln_dpo_loss(*pair, ONES, ONES, beta=beta),
        losses.r_dpo_loss(*pair, *sizes, beta=beta, alpha=0.0),
        losses.r_dpo_loss(*pair, sizes[0], sizes[0], beta=beta),
        losses.dpop_loss(*pair, beta=beta, lam=0.0),
        losses.flex_dpo_loss(*pair, beta_plus=beta, beta_minus=beta),
        losses.wpo_loss(*pair, ONES, ONES, beta=beta),
    ):
        close(values, expected)
    close(losses.todo_loss(*pair, wins, beta=beta, alpha=1e-12), expected)
    close(losses.f_dpo_loss(*pair, beta=beta, divergence="alpha", alpha=1e-9), expected, rtol=1e-5)
    close(losses.cal_dpo_loss(*pair, cal_weight=0.0), losses.dpo_loss(*pair, beta=1.0))


@given(pairs, betas)
def test_losses_at_the_reference(pair, beta):
    at = *pair[:2], *pair[:2]
    for divergence in ("forward_kl", "js", "alpha"):
        close(losses.f_dpo_loss(*at, beta=beta, divergence=divergence), math.log(2))
    close(losses.discopop_loss(*at, beta=beta), (math.log(2) + 1) / 2)
    close(losses.dpo_hinge_loss(*at, beta=beta), 1)
    close(losses.apo_loss(*at, beta=beta), 1)
    close(losses.apo_loss(*at, beta=beta, kind="down", offset=False), 0)
    close(losses.nca_pair_loss(*at, beta=beta), 2 * math.log(2))
    close(losses.sppo_hard_loss(*at, beta=beta), 1 / (2 * beta**2))


@given(pairs, betas, smoothing, st.floats(-50, 50))
def test_losses_of_margins_ignore_a_shift_of_both_responses(pair, beta, epsilon, shift):
    moved = pair[0] + shift, pair[1] + shift, *pair[2:]
    for loss in (
        lambda *p: losses.rdpo_loss(*p, beta=beta, label_smoothing=epsilon / 2),
        lambda *p: losses.dpo_hinge_loss(*p, beta=beta),
        lambda *p: losses.exo_pair_loss(*p, beta=beta, label_smoothing=0.1),
        lambda *p: losses.discopop_loss(*p, beta=beta, tau=0.5),
    ):
        close(loss(*moved), loss(*pair), rtol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        losses.apo_loss,
        losses.nca_pair_loss,
        losses.dpop_loss,
        losses.flex_dpo_loss,
        losses.cal_dpo_loss,
        losses.sppo_hard_loss,
        lambda *pair: losses.sppo_loss(*pair, ONES),
        lambda *pair: losses.f_dpo_loss(*pair, divergence="js"),
    ],
)
def test_losses_of_absolute_rewards_see_a_shift_of_both_responses(loss):
    assert np.all(np.abs(loss(ZEROS - 3, ZEROS - 2.5, ZEROS, ZEROS) - loss(ZEROS, ZEROS + 0.5, ZEROS, ZEROS)) > 1e-4)


@given(pairs, betas, st.floats(0, 0.49))
def test_rdpo_is_unbiased(pair, beta, epsilon):
    """Over clean and flipped labels, at the rate of flips, its mean is DPO on clean ones."""
    kept, flipped = (losses.rdpo_loss(*p, beta=beta, label_smoothing=epsilon) for p in (pair, swapped(pair)))
    expected = losses.dpo_loss(*pair, beta=beta)
    np.testing.assert_allclose(
        (1 - epsilon) * kept + epsilon * flipped, expected, rtol=1e-9, atol=1e-9 / (0.5 - epsilon)
    )


@given(st.floats(-20, 20), st.floats(0, 0.49))
def test_rdpo_pulls_harder_than_dpo(z, epsilon):
    at = np.full(ROWS, z)
    robust = slope(lambda *p: losses.rdpo_loss(*p, beta=1.0, label_smoothing=epsilon), at)
    assert np.all(np.abs(robust) >= np.abs(slope(lambda *p: losses.dpo_loss(*p, beta=1.0), at)) - 1e-12)


@pytest.mark.parametrize("label_smoothing", [0.5, 0.7])
def test_rdpo_refuses_labels_that_say_nothing(label_smoothing):
    with pytest.raises(ValueError, match="label_smoothing is .* must be between 0 and 0.5, 0.5 excluded"):
        losses.rdpo_loss(ZEROS, ZEROS, ZEROS, ZEROS, label_smoothing=label_smoothing)


@given(pairs, betas, st.floats(0, 0.5))
def test_soft_preference_with_one_strength_is_cdpo(pair, beta, epsilon):
    expected = losses.cdpo_loss(*pair, beta=beta, label_smoothing=epsilon)
    close(losses.soft_preference_loss(*pair, (1 - epsilon) * ONES, beta=beta), expected)


@given(arrays(float, ROWS, elements=st.floats(0.01, 0.99)))
def test_soft_preference_has_its_minimum_at_the_log_odds(strength):
    at = np.log(strength / (1 - strength))
    close(slope(lambda *p: losses.soft_preference_loss(*p, strength, beta=1.0), at), 0)


@given(pairs, rewards, rewards, betas)
def test_dno_is_soft_preference_with_the_odds_of_a_win(pair, first, second, eta):
    expected = losses.soft_preference_loss(*pair, 1 / (1 + np.exp(second - first)), beta=eta)
    close(losses.dno_loss(*pair, first, second, eta=eta), expected)
    close(losses.dno_loss(*swapped(pair), second, first, eta=eta), expected)


@given(pairs, betas, st.floats(0, 2), st.floats(0, 2), arrays(float, ROWS, elements=st.floats(0, 20)))
def test_mm_dpo_is_dpo_with_a_beta_for_each_pair(pair, beta, w, k, gap):
    own = beta * (1 + w * (1 - np.exp(-k * gap)))
    assert np.all((own >= beta - 1e-12) & (own <= beta * (1 + w) + 1e-12))
    close(losses.mm_dpo_loss(*pair, gap, beta=beta, w=w, k=k), np.logaddexp(0, -own * margin(pair)))


def test_mm_dpo_holds_beta_above_zero_and_constant():
    """Where the reward model contradicts the label, beta would change its sign."""
    loss = lambda gap: jnp.sum(losses.mm_dpo_loss(ONES, ZEROS, ZEROS, ZEROS, gap))  # noqa: E731
    close(losses.mm_dpo_loss(ONES, ZEROS, ZEROS, ZEROS, -1e4 * ONES), math.log1p(math.exp(-1e-3)))
    assert not np.any(jax.grad(loss)(ONES))


@given(pairs, rewards, rewards, betas, st.floats(0.1, 3))
def test_reward_aware_rpo_is_zero_only_where_the_margins_agree(pair, chosen, rejected, beta, scale):
    target = scale * (chosen - rejected)
    met = target / beta, ZEROS, ZEROS, ZEROS
    for distance in ("rpo_bwd_kl", "rpo_fwd_kl", "rpo_sq"):
        options = dict(beta=beta, gt_reward_scale=scale, distance=distance)
        close(losses.reward_aware_rpo_loss(*met, chosen, rejected, **options), 0)
        assert np.all(losses.reward_aware_rpo_loss(*pair, chosen, rejected, **options) >= -1e-9)


@given(pairs, betas)
def test_reward_aware_rpo_squared_is_ipo(pair, tau):
    values = losses.reward_aware_rpo_loss(*pair, 0.5 * ONES, ZEROS, beta=tau, distance="rpo_sq")
    close(values, tau**2 * losses.ipo_loss(*pair, tau=tau, normalize="sum"))


def test_reward_aware_rpo_divergences_differ_in_direction():
    """Backward, the target comes first: its certain win leaves the policy's log-probability of the win."""
    arguments = np.array([-2.0]), np.zeros(1), np.zeros(1), np.zeros(1), np.array([50.0]), np.zeros(1)
    close(losses.reward_aware_rpo_loss(*arguments, beta=1.0), math.log1p(math.exp(2)))
    q = 1 / (1 + math.exp(2))
    forward = q * math.log(q) + (1 - q) * (math.log(1 - q) + 50)
    close(losses.reward_aware_rpo_loss(*arguments, beta=1.0, distance="rpo_fwd_kl"), forward)


@given(pairs, betas, st.floats(0.01, 3))
def test_todo_probabilities_sum_to_one(pair, beta, alpha):
    no, yes = np.zeros(ROWS, bool), np.ones(ROWS, bool)
    win = losses.todo_loss(*pair, no, beta=beta, alpha=alpha)
    loss = losses.todo_loss(*swapped(pair), no, beta=beta, alpha=alpha)
    tie = losses.todo_loss(*pair, yes, beta=beta, alpha=alpha)
    close(np.exp(-win) + np.exp(-loss) + np.exp(-tie), 1)
    close(losses.todo_loss(*swapped(pair), yes, beta=beta, alpha=alpha), tie)


@given(st.floats(0.01, 50), st.floats(-20, 20))
def test_todo_draws_ties_together(alpha, z):
    loss = lambda *p: losses.todo_loss(*p, np.ones(ROWS, bool), beta=1.0, alpha=alpha)  # noqa: E731
    close(slope(loss, ZEROS), 0)
    assert np.all(loss(np.full(ROWS, z), ZEROS, ZEROS, ZEROS) >= loss(ZEROS, ZEROS, ZEROS, ZEROS) - 1e-12)


@given(pairs, ties, betas, smoothing)
def test_todo_smooths_wins_and_not_ties(pair, tie, beta, epsilon):
    no = np.zeros(ROWS, bool)
    win, loss = (losses.todo_loss(*p, no, beta=beta) for p in (pair, swapped(pair)))
    expected = np.where(tie, losses.todo_loss(*pair, tie, beta=beta), (1 - epsilon) * win + epsilon * loss)
    close(losses.todo_loss(*pair, tie, beta=beta, label_smoothing=epsilon), expected)


def test_todo_with_wide_ties_is_finite_float32():
    with jax.enable_x64(False):
        values = losses.todo_loss(ZEROS, ZEROS, ZEROS, ZEROS, np.array([True, False, True]), alpha=1e3)
        np.testing.assert_allclose(values, [0, 1e3, 0], atol=1e-3)


@given(pairs, betas)
def test_hinge_stops_at_a_margin_of_one(pair, beta):
    values = losses.dpo_hinge_loss(*pair, beta=beta)
    close(values, np.maximum(0, 1 - beta * margin(pair)))
    gradient = jax.grad(lambda w: jnp.sum(losses.dpo_hinge_loss(w, *pair[1:], beta=beta)))(pair[0])
    close(gradient, np.where(beta * margin(pair) < 1, -beta, 0))


@given(logps, logps, logps, st.floats(0.1, 10), st.floats(0, 2))
def test_slic_is_a_scaled_hinge_and_a_likelihood(chosen, rejected, target, delta, lam):
    """Without a reference, a hinge with beta = 1 / delta, delta times."""
    hinge = delta * losses.dpo_hinge_loss(chosen, rejected, ZEROS, ZEROS, beta=1 / delta)
    close(losses.slic_loss(chosen, rejected, target, delta=delta, lam=lam), hinge - lam * target)
    met = jax.grad(lambda w: jnp.sum(losses.slic_loss(w, rejected, target, delta=delta, lam=0.0)))(rejected + 2 * delta)
    assert not np.any(met)


@given(pairs, betas)
def test_f_dpo_alpha_of_one_is_the_forward_divergence(pair, beta):
    near = tuple(x / 20 for x in pair)
    forward = losses.f_dpo_loss(*near, beta=beta, divergence="forward_kl")
    close(losses.f_dpo_loss(*near, beta=beta, divergence="alpha", alpha=1.0), forward, rtol=1e-6)


@given(pairs, st.sampled_from([-1.0, 0.3, 0.5, 2.0]))
def test_f_dpo_scores_are_derivatives_of_the_divergence(pair, alpha):
    """Written out in ratios, where these are small enough for powers."""
    near = tuple(x / 50 for x in pair)
    u, v = np.exp(near[0] - near[2]), np.exp(near[1] - near[3])
    expected = np.log1p(np.exp(-0.1 * ((1 - u**-alpha) / alpha - (1 - v**-alpha) / alpha)))
    close(losses.f_dpo_loss(*near, divergence="alpha", alpha=alpha), expected)
    mixture = np.log1p(np.exp(-0.1 * (np.log(u / (1 + u)) - np.log(v / (1 + v)))))
    close(losses.f_dpo_loss(*near, divergence="js"), mixture)


@given(st.floats(0.001, 0.5), betas)
def test_exo_is_zero_at_its_target_and_above_elsewhere(epsilon, beta):
    target = math.log((1 - epsilon) / epsilon) / beta
    loss = lambda *p: losses.exo_pair_loss(*p, beta=beta, label_smoothing=epsilon)  # noqa: E731
    close(loss(ZEROS + target, ZEROS, ZEROS, ZEROS), 0)
    close(slope(loss, ZEROS + target), 0)
    assert np.all(loss(ZEROS + target + 1 / beta, ZEROS, ZEROS, ZEROS) > 0)


@given(pairs, betas, st.floats(0.01, 0.49))
def test_exo_is_the_divergence_in_the_other_direction(pair, beta, epsilon):
    """Reward-aware RPO's forward divergence, with the odds of the smoothed label as the target."""
    target = math.log((1 - epsilon) / epsilon) * ONES
    expected = losses.reward_aware_rpo_loss(*pair, target, ZEROS, beta=beta, distance="rpo_fwd_kl")
    close(losses.exo_pair_loss(*pair, beta=beta, label_smoothing=epsilon), expected)


@given(pairs, betas, st.floats(-20, -0.1))
def test_exo_official_targets_do_not_add_up_to_one(pair, beta, log_epsilon):
    q = 1 / (1 + np.exp(-beta * margin(pair) / 20))
    near = tuple(x / 20 for x in pair)
    expected = q * np.log(q) + (1 - q) * (np.log(1 - q) - log_epsilon)
    close(losses.exo_pair_loss(*near, beta=beta, log_epsilon=log_epsilon), expected, rtol=1e-6)


@given(pairs, betas)
def test_discopop_with_a_wide_transition_is_the_mean_of_two_losses(pair, beta):
    near = tuple(x / 20 for x in pair)
    z = beta * margin(near)
    expected = (np.log1p(np.exp(-z)) + np.exp(-z)) / 2
    close(losses.discopop_loss(*near, beta=beta, tau=1e9), expected, rtol=1e-6)


def test_discopop_has_a_gradient_through_its_weight():
    z, tau = 0.1, 0.5
    m = 1 / (1 + math.exp(-z / tau))
    through = m * (1 - m) / tau * (math.exp(-z) - math.log1p(math.exp(-z)))
    direct = -(1 - m) / (1 + math.exp(z)) - m * math.exp(-z)
    close(slope(lambda *p: losses.discopop_loss(*p, beta=1.0, tau=tau), np.full(ROWS, z)), direct + through)


@pytest.mark.parametrize("tau", [0.05, 5.0])
def test_discopop_of_wrong_margins_is_finite_float32(tau):
    with jax.enable_x64(False):
        loss = lambda w: losses.discopop_loss(w, ZEROS, ZEROS, ZEROS, beta=1.0, tau=tau)[0]  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(jnp.full(ROWS, -1e4))
        assert np.isfinite(value) and np.all(np.isfinite(gradient))


@given(pairs, st.integers(1, 40), betas)
def test_ln_dpo_of_equal_lengths_is_dpo(pair, size, beta):
    sizes = np.full(ROWS, size)
    close(losses.ln_dpo_loss(*pair, sizes, sizes, beta=beta), losses.dpo_loss(*pair, beta=beta / size))


@given(pairs, lengths, betas)
def test_ln_dpo_with_a_uniform_reference_is_simpo(pair, sizes, beta):
    """A reference that gives every token the same probability cancels in averages."""
    uniform = -1.5 * sizes[0], -1.5 * sizes[1]
    expected = losses.simpo_loss(*pair[:2], *sizes, beta=beta, gamma=0.0)
    close(losses.ln_dpo_loss(*pair[:2], *uniform, *sizes, beta=beta), expected)


@given(pairs, lengths, betas, st.floats(0, 1))
def test_r_dpo_asks_less_margin_of_long_chosen_responses(pair, sizes, beta, alpha):
    charged = beta * margin(pair) + alpha * (sizes[0] - sizes[1])
    close(losses.r_dpo_loss(*pair, *sizes, beta=beta, alpha=alpha), np.logaddexp(0, -charged))


token_pairs = st.tuples(*[arrays(float, (ROWS, 5), elements=st.floats(-30, 0))] * 4, *[arrays(bool, (ROWS, 5))] * 2)


@given(token_pairs, betas, st.floats(0, 1))
def test_ld_dpo_counts_only_the_shared_length_fully(tokens, beta, ld_alpha):
    """Row by row in plain Python; responses may start anywhere and have gaps."""
    masks = tokens[4:]
    expected = []
    for row in range(ROWS):
        shared = min(masks[0][row].sum(), masks[1][row].sum())

        def desensitised(side, row=row, shared=shared):
            kept = tokens[side][row][masks[side % 2][row]]
            return kept[:shared].sum() + ld_alpha * kept[shared:].sum()

        z = beta * ((desensitised(0) - desensitised(2)) - (desensitised(1) - desensitised(3)))
        expected.append(np.logaddexp(0, -z))
    close(losses.ld_dpo_loss(*tokens, beta=beta, ld_alpha=ld_alpha), expected)


@given(token_pairs, betas, st.floats(0, 1))
def test_ld_dpo_is_dpo_for_equal_lengths_or_full_weight(tokens, beta, ld_alpha):
    def dpo(masks):
        sums = [np.sum(values * masks[side % 2], axis=-1) for side, values in enumerate(tokens[:4])]
        return losses.dpo_loss(*sums, beta=beta)

    close(losses.ld_dpo_loss(*tokens, beta=beta, ld_alpha=1.0), dpo(tokens[4:]))
    same = tokens[4], tokens[4][:, ::-1]
    close(losses.ld_dpo_loss(*tokens[:4], *same, beta=beta, ld_alpha=ld_alpha), dpo(same))


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
def test_trap_24_ld_dpo_ignores_masked_tokens(junk):
    rng = np.random.default_rng(0)
    mask = [np.arange(5) < rng.integers(0, 6, (ROWS, 1)) for _ in range(2)]
    tokens = [-rng.gamma(1.0, 1.0, (ROWS, 5)) for _ in range(4)]

    def loss(*values):
        return jnp.sum(losses.ld_dpo_loss(*values, *mask))

    filled = [np.where(mask[side % 2], values, junk) for side, values in enumerate(tokens)]
    expected = jax.value_and_grad(loss, argnums=(0, 1))(*tokens)
    jax.tree.map(np.testing.assert_array_equal, jax.value_and_grad(loss, argnums=(0, 1))(*filled), expected)


@given(pairs, betas, st.sampled_from(["zero", "down"]))
def test_apo_is_bounded_and_its_constant_has_no_gradient(pair, beta, kind):
    values = losses.apo_loss(*pair, beta=beta, kind=kind)
    assert np.all((values >= 0) & (values <= 2))
    close(losses.apo_loss(*pair, beta=beta, kind=kind, offset=False), values - 1)
    gradients = [
        jax.grad(lambda w, offset=offset: jnp.sum(losses.apo_loss(w, *pair[1:], beta=beta, kind=kind, offset=offset)))
        for offset in (True, False)
    ]
    close(gradients[0](pair[0]), gradients[1](pair[0]))


def test_apo_kinds_move_the_chosen_response_in_opposite_directions():
    for kind, sign in (("zero", -1), ("down", 1)):
        # Near the reference, with the rejected response far below: only the anchor moves the chosen one.
        gradient = jax.grad(lambda w, kind=kind: losses.apo_loss(w, ZEROS - 1e3, ZEROS, ZEROS, kind=kind)[0])(ZEROS)
        assert np.sign(gradient[0]) == sign


@given(pairs, betas)
def test_nca_adds_a_bound_to_its_biased_form(pair, beta):
    """Both draw the chosen reward up; only the unbiased form stops at odds of 2 to 1."""
    chosen, rejected = beta * (pair[0] - pair[2]), beta * (pair[1] - pair[3])
    biased = np.logaddexp(0, -chosen) + np.logaddexp(0, rejected)
    close(losses.nca_pair_loss(*pair, beta=beta, loss_type="biasedNCA"), biased)
    unbiased = np.logaddexp(0, -chosen) + np.logaddexp(0, chosen) / 2 + np.logaddexp(0, rejected) / 2
    close(losses.nca_pair_loss(*pair, beta=beta), unbiased)
    close(slope(lambda *p: losses.nca_pair_loss(*p, beta=beta), ZEROS + math.log(2) / beta), 0)


@given(pairs, betas)
def test_biased_nca_is_above_dpo(pair, beta):
    biased = losses.nca_pair_loss(*pair, beta=beta, loss_type="biasedNCA")
    assert np.all(biased >= losses.dpo_loss(*pair, beta=beta) - 1e-9)


@given(pairs, betas, st.floats(0, 60))
def test_dpop_charges_a_fall_of_the_chosen_response_only(pair, beta, lam):
    z = beta * (margin(pair) - lam * np.maximum(0, pair[2] - pair[0]))
    close(losses.dpop_loss(*pair, beta=beta, lam=lam), np.logaddexp(0, -z))
    risen = np.maximum(pair[0], pair[2]), *pair[1:]
    close(losses.dpop_loss(*risen, beta=beta, lam=lam), losses.dpo_loss(*risen, beta=beta))


@given(pairs, lengths, betas, st.floats(0, 2))
def test_flex_dpo_has_a_scale_for_each_side(pair, sizes, beta, weight):
    one_sided = np.logaddexp(0, -beta * (pair[0] - pair[2]))
    close(losses.flex_dpo_loss(*pair, beta_plus=beta, beta_minus=0.0), one_sided)
    plain = losses.flex_dpo_loss(*pair)
    close(losses.flex_dpo_loss(*pair, sizes[0], sft_weight=weight), plain - weight * pair[0] / sizes[0])


def test_flex_dpo_needs_lengths_for_its_likelihood():
    with pytest.raises(ValueError, match="sft_weight is 0.1, but must be 0 where chosen_lengths is None"):
        losses.flex_dpo_loss(ZEROS, ZEROS, ZEROS, ZEROS, sft_weight=0.1)
    with pytest.raises(ValueError, match="sft_weight"):
        jax.jit(lambda c: losses.flex_dpo_loss(ZEROS, ZEROS, ZEROS, ZEROS, sft_weight=c))(0.1)


@given(pairs, betas, st.floats(0, 3))
def test_cal_dpo_adds_sppo_hard_to_a_logistic_loss(pair, beta, weight):
    squares = losses.sppo_hard_loss(*pair, beta=beta)
    values = losses.cal_dpo_loss(*pair, beta=beta, cal_weight=weight)
    close(values, losses.dpo_loss(*pair, beta=1.0) + weight * squares)
    batch = losses.cal_dpo_loss(*pair, beta=beta, cal_weight=weight, batch_mean=True)
    close(batch, losses.dpo_loss(*pair, beta=1.0) + weight * np.mean(squares))
    close(np.mean(batch), np.mean(values))


@given(pairs, arrays(bool, ROWS), st.sampled_from([True, False]))
def test_cal_dpo_ignores_excluded_rows(pair, where, batch_mean):
    loss = lambda *p: jnp.sum(losses.cal_dpo_loss(*p, where, beta=0.1, batch_mean=batch_mean))  # noqa: E731
    broken = [np.where(where, x, np.nan) for x in pair]
    expected = jax.value_and_grad(loss, argnums=(0, 1))(*pair)
    jax.tree.map(close, jax.value_and_grad(loss, argnums=(0, 1))(*broken), expected)
    kept = [x[where] for x in pair]
    close(expected[0], np.sum(losses.cal_dpo_loss(*kept, beta=0.1, batch_mean=batch_mean)))
    assert not np.any(np.asarray(losses.cal_dpo_loss(*broken, where, batch_mean=batch_mean))[~where])


@given(pairs, betas)
def test_sppo_with_certain_wins_is_half_of_sppo_hard(pair, beta):
    expected = losses.sppo_hard_loss(*pair, beta=beta) / 2
    close(losses.sppo_loss(*pair, ONES, ZEROS, beta=beta), expected)
    close(losses.sppo_loss(*pair, ONES, beta=beta), expected)


@given(pairs, probabilities, probabilities, betas)
def test_sppo_draws_each_log_ratio_to_its_own_target(pair, win, lose, beta):
    met = (win - 0.5) / beta, (lose - 0.5) / beta, ZEROS, ZEROS
    close(losses.sppo_loss(*met, win, lose, beta=beta), 0)
    close(losses.sppo_loss(*pair, win, beta=beta), losses.sppo_loss(*pair, win, 1 - win, beta=beta))


@given(pairs, betas, probabilities, probabilities, smoothing)
def test_wpo_multiplies_by_constant_weights(pair, beta, first, second, epsilon):
    plain = losses.cdpo_loss(*pair, beta=beta, label_smoothing=epsilon)
    options = dict(beta=beta, label_smoothing=epsilon)
    close(losses.wpo_loss(*pair, first, second, **options), first * second * plain)
    close(losses.wpo_loss(*pair, 3 + first, 3 + second, **options), plain)
    close(losses.wpo_loss(*pair, 3 + first, 3 + second, clamp=False, **options), (3 + first) * (3 + second) * plain)
    gradient = jax.grad(lambda w: jnp.sum(losses.wpo_loss(*pair, w, second, **options)))(first)
    assert not np.any(gradient)


def test_wpo_weight_of_what_the_policy_would_write():
    """Uniform tokens weigh 1 under sampled alignment, argmax tokens under greedy alignment, and more under sampled."""
    mask = np.ones((1, 3))
    uniform = np.full((1, 3), math.log(1 / 4))
    close(losses.wpo_weights(uniform, uniform, mask), 1)
    peaked = np.log([0.7, 0.1, 0.1, 0.1])
    best = np.full((1, 3), peaked[0])
    close(losses.wpo_weights(best, best, mask), 1)
    sampled = np.full((1, 3), np.log(np.sum(np.exp(peaked) ** 2)))
    close(losses.wpo_weights(best, sampled, mask), 0.7 / 0.52)
    assert losses.wpo_weights(best, sampled, mask) > 1
