"""Losses on pairs of other prompts, with several references, or with one that moves."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxpref import losses
from tests.losses.strategies import ROWS, betas, close, logps, margin, pairs

references = arrays(float, (3, ROWS), elements=st.floats(-200, -0.01))
earlier = arrays(float, (2, ROWS), elements=st.floats(-5, 5))


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


@given(pairs, logps, logps, betas)
def test_dove_of_one_instruction_is_dpo(pair, prompt, ref_prompt, beta):
    joint = losses.dove_loss(*pair, prompt, prompt, ref_prompt, ref_prompt, beta=beta)
    close(joint, losses.dpo_loss(*pair, beta=beta))


@given(pairs, pairs, betas)
def test_dove_is_dpo_on_joint_probabilities(pair, prompts, beta):
    joint = [response + prompt for response, prompt in zip(pair, prompts, strict=True)]
    close(losses.dove_loss(*pair, *prompts, beta=beta), losses.dpo_loss(*joint, beta=beta))


@given(pairs, pairs, betas)
def test_mapl_special_cases(high, low, beta):
    response, reference = high[0], high[2]
    close(losses.mapl_intra_loss(response, response, reference, reference, beta=beta), math.log(2))
    close(losses.mapl_inter_loss(*high, *high, beta=beta), math.log(2))
    close(losses.mapl_inter_loss(*high, *low[:2], *low[:2], beta=beta), losses.dpo_loss(*high, beta=beta))
    expected = losses.links.logistic(beta * (margin(high) - margin(low)))
    close(losses.mapl_inter_loss(*high, *low, beta=beta), expected)


@given(pairs, betas)
def test_mapl_intra_is_dpo_between_prompts(pair, beta):
    close(losses.mapl_intra_loss(*pair, beta=beta), losses.dpo_loss(*pair, beta=beta))


@given(references, references, st.sampled_from(["paper", (0.2, 0.5, 0.3)]), st.sampled_from([None, 0.0, 0.3, math.inf]))
def test_mrpo_of_equal_references_is_that_reference(chosen, rejected, alpha, eps):
    same = [np.tile(logps[:1], (3, 1)) for logps in (chosen, rejected)]
    for combined, reference in zip(losses.mrpo_reference(*same, alpha=alpha, eps=eps), same, strict=True):
        close(combined, reference[0])


@given(references, references, st.sampled_from(["paper", "code", (1.0,)]))
def test_mrpo_of_one_reference_is_that_reference(chosen, rejected, alpha):
    close(losses.mrpo_reference(chosen[:1], rejected[:1], alpha=alpha)[0], chosen[0])


@given(references, references, st.sampled_from(["paper", (0.2, 0.5, 0.3)]))
def test_mrpo_without_room_is_the_base(chosen, rejected, alpha):
    for combined, reference in zip(
        losses.mrpo_reference(chosen, rejected, alpha=alpha, eps=0.0), (chosen, rejected), strict=True
    ):
        close(combined, reference[0])


@given(references, references, st.integers(0, 2))
def test_mrpo_one_hot_weights_choose_a_reference(chosen, rejected, k):
    combined = losses.mrpo_reference(chosen, rejected, alpha=np.eye(3)[k], eps=math.inf)
    close(combined[0], chosen[k])
    close(combined[1], rejected[k])


@given(references, references)
def test_mrpo_is_a_harmonic_mean_of_probabilities(chosen, rejected):
    weights = np.array([0.2, 0.5, 0.3])
    combined = losses.mrpo_reference(chosen / 10, rejected / 10, alpha=weights, eps=math.inf)[0]
    close(combined, -np.log(weights @ np.exp(-chosen / 10)))
    assert np.all(combined >= np.min(chosen / 10, axis=0) - 1e-9)
    assert np.all(combined <= np.max(chosen / 10, axis=0) + 1e-9)


@given(references, references)
def test_mrpo_code_weights_are_crosswise(chosen, rejected):
    gaps = np.abs(chosen - rejected)[:2]
    weights = gaps[::-1] / (gaps.sum(0) + 1e-6)
    weights[1] = 1 - weights[0]
    combined = losses.mrpo_reference(chosen[:2], rejected[:2], alpha="code", eps=math.inf)[0]
    for row in range(ROWS):
        expected = losses.mrpo_reference(chosen[:2], rejected[:2], alpha=weights[:, row], eps=math.inf)[0]
        close(combined[row], expected[row])


def test_mrpo_adaptive_clip_by_hand():
    chosen, rejected = np.array([[-10.0], [-30.0]]), np.array([[-40.0], [-20.0]])
    # Mean log-probabilities -20 and -30: radii 0.04 and 0.06, so the second model moves to -10.4 and -37.6.
    combined = losses.mrpo_reference(chosen, rejected, alpha=(0.5, 0.5))
    close(combined[0], -np.log(0.5 * np.exp(10.0) + 0.5 * np.exp(10.4)))
    close(combined[1], -np.log(0.5 * np.exp(40.0) + 0.5 * np.exp(37.6)))


def test_mrpo_refuses_what_it_cannot_weigh():
    three = np.full((3, ROWS), -5.0)
    with pytest.raises(ValueError, match="alpha is 'code', which is defined for two references, not for 3"):
        losses.mrpo_reference(three, three, alpha="code")
    with pytest.raises(ValueError, match="alpha is .* but must sum to 1"):
        losses.mrpo_reference(three, three, alpha=(0.5, 0.4, 0.2))
    with pytest.raises(ValueError, match=r"alpha\[1\] is -0.1"):
        losses.mrpo_reference(three, three, alpha=(0.5, -0.1, 0.6))
    with pytest.raises(ValueError, match="eps is -1"):
        losses.mrpo_reference(three, three, eps=-1)
    with pytest.raises(AssertionError, match="argument alpha"):
        losses.mrpo_reference(three, three, alpha=(0.5, 0.5))
    with pytest.raises(AssertionError, match="argument ref_rejected_logps"):
        losses.mrpo_reference(three, three[:2])


@pytest.mark.parametrize("alpha", ["paper", "code"])
@pytest.mark.parametrize("size", [1e4, 0.0])
def test_mrpo_is_a_finite_constant_at_extremes(alpha, size):
    with jax.enable_x64(False):
        chosen = jnp.array([[-size] * ROWS, [-0.5 * size] * ROWS])
        total = lambda c: jnp.sum(jnp.stack(losses.mrpo_reference(c, c[::-1], alpha=alpha)))  # noqa: E731
        value, gradient = jax.value_and_grad(total)(chosen)
        assert np.isfinite(value) and not np.any(gradient)


@given(pairs, earlier, earlier, betas)
def test_sequential_po_without_earlier_rounds_or_multipliers_is_dpo(pair, chosen, rejected, beta):
    expected = losses.dpo_loss(*pair, beta=beta)
    close(losses.sequential_po_loss(*pair, chosen, rejected, alphas=[0.0, 0.0], beta=beta), expected)
    close(losses.sequential_po_loss(*pair, chosen[:0], rejected[:0], alphas=[], beta=beta), expected)


@given(logps, logps, logps, logps, betas, st.floats(0, 2), st.floats(0, 2))
def test_sequential_po_rewards_follow_the_recursion(first, second, third, start, beta, one, other):
    none = np.zeros((0, ROWS))
    round_1 = losses.sequential_po_rewards(first, start, none, alphas=[], beta=beta)
    close(round_1, beta * (first - start))
    round_2 = losses.sequential_po_rewards(second, first, round_1[None], alphas=[one], beta=beta)
    close(round_2, beta * (second - first) - one * beta * (first - start))
    rewards = jnp.stack([round_1, round_2])
    round_3 = losses.sequential_po_rewards(third, second, rewards, alphas=[one, other], beta=beta)
    close(round_3, beta * (third - second) - one * round_1 - other * round_2)


@given(pairs, earlier, earlier)
def test_sequential_po_asks_for_more_where_earlier_rounds_agree(pair, chosen, rejected):
    agreeing = np.maximum(chosen, rejected), np.minimum(chosen, rejected)
    harder = losses.sequential_po_loss(*pair, *agreeing, alphas=[0.5, 1.0])
    assert np.all(harder >= losses.dpo_loss(*pair) - 1e-12)


def test_sequential_po_takes_earlier_rewards_as_constants():
    one = jnp.ones(ROWS)
    loss = lambda w, l: jnp.sum(losses.sequential_po_loss(one, one, one, one, w, l, alphas=[0.5]))  # noqa: E731, E741
    gradients = jax.grad(loss, argnums=(0, 1))(one[None], 2 * one[None])
    assert not any(np.any(g) for g in gradients)


@given(pairs, betas)
def test_hybrid_dpo_is_dpo_or_has_no_reference(pair, beta):
    loss = losses.hybrid_dpo_loss(*pair, beta=beta)
    plain = losses.dpo_loss(*pair, beta=beta)
    agrees = pair[2] >= pair[3]
    close(loss, np.where(agrees, plain, losses.dpo_loss(*pair, beta=beta, reference_free=True)))
    assert np.all(loss >= plain - 1e-12)


TREE = {"kernel": np.arange(6.0).reshape(2, 3), "deeper": [np.ones(2, np.float32)]}
OTHER = {"kernel": np.full((2, 3), 10.0), "deeper": [np.full(2, 5.0, np.float32)]}


@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("step", [1, 2, 3, 6])
def test_reference_moves_on_its_steps_only(mode, step):
    moved = jax.jit(lambda step: losses.update_reference(TREE, OTHER, step, mode=mode, alpha=0.25, every=3))(step)
    share = 0.0 if step % 3 else 1.0 if mode == "hard" else 0.25
    jax.tree.map(lambda m, old, new: close(m, (1 - share) * old + share * new, rtol=1e-6), moved, TREE, OTHER)
    assert jax.tree.map(lambda x: x.dtype, moved) == jax.tree.map(lambda x: x.dtype, TREE)


def test_reference_stays_or_is_the_policy_at_the_ends_of_alpha():
    for alpha, expected in ((0.0, TREE), (1.0, OTHER)):
        jax.tree.map(close, losses.update_reference(TREE, OTHER, 1, alpha=alpha), expected)


def test_reference_keeps_a_low_precision():
    low = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), TREE)
    assert losses.update_reference(low, TREE, 1)["kernel"].dtype == jnp.bfloat16


def test_reference_refuses_another_shape_and_wrong_settings():
    with pytest.raises(AssertionError):
        losses.update_reference(TREE, TREE | {"kernel": np.ones((2, 1))}, 1)
    for wrong in ({"mode": "slow"}, {"alpha": 1.1}, {"every": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
            losses.update_reference(TREE, OTHER, 1, **wrong)
