"""One pair and one batch, side by side with the formulas written out in plain Python."""

import math

import numpy as np
import pytest

from jaxpref import losses

# One pair: 4 and 2 tokens; log-probabilities of chosen and rejected under policy and reference.
LW, LL, RW, RL, NW, NL = -3.0, -5.0, -4.0, -4.5, 4, 2
PAIR = [np.array([x]) for x in (LW, LL, RW, RL)]
LENGTHS = [np.array([NW]), np.array([NL])]
A, C = LW - RW, LL - RL  # log-ratios: 1.0 and -0.5


def softplus(x):
    return math.log1p(math.exp(x))


def odds(average):
    return math.exp(average) / (1 - math.exp(average))


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (losses.dpo_loss(*PAIR, beta=0.5), softplus(-0.75)),
        (losses.dpo_loss(*PAIR, beta=0.5, reference_free=True), softplus(-1.0)),
        (losses.dpo_loss(*PAIR, beta=0.5, label_smoothing=0.2), 0.8 * softplus(-0.75) + 0.2 * softplus(0.75)),
        (losses.cdpo_loss(*PAIR, beta=0.5, label_smoothing=0.2), 0.8 * softplus(-0.75) + 0.2 * softplus(0.75)),
        (losses.ipo_loss(*PAIR, tau=0.25, normalize="sum"), (1.5 - 2) ** 2),
        (losses.ipo_loss(*PAIR, *LENGTHS, tau=0.25), (A / NW - C / NL - 2) ** 2),
        (losses.simpo_loss(*PAIR[:2], *LENGTHS, beta=2.0, gamma_beta_ratio=0.5), softplus(-(2 * (-0.75 + 2.5) - 1))),
        (losses.simpo_loss(*PAIR[:2], *LENGTHS, gamma=3.0, sft_weight=0.1), softplus(-(3.5 - 3)) + 0.1 * 0.75),
        (losses.simpo_loss(*PAIR[:2], *LENGTHS, gamma=3.0, loss="hinge"), 0.5),
        (losses.simpo_loss(*PAIR[:2], *LENGTHS, gamma=3.0, loss="hinge", label_smoothing=0.1), 0.9 * 0.5 + 0.1 * 1.5),
        (losses.orpo_loss(*PAIR[:2], *LENGTHS, lam=0.3)[0], 0.75 + 0.3 * math.log1p(odds(-2.5) / odds(-0.75))),
        (losses.orpo_loss(*PAIR[:2], *LENGTHS, 9.0, lam=0.3)[0], 9 + 0.3 * math.log1p(odds(-2.5) / odds(-0.75))),
        (losses.bradley_terry_loss(*PAIR[:2], np.array([0.5]), temperature=2.0), softplus(-0.75)),
        (losses.bradley_terry_loss(*PAIR[:2], None, np.array([0.7])), 0.7 * softplus(-2.0) + 0.3 * softplus(2.0)),
        (losses.bradley_terry_loss(*PAIR[:2], center_coefficient=0.01), softplus(-2.0) + 0.01 * 64),
    ],
)
def test_one_pair(actual, expected):
    assert actual.shape == (1,)
    assert float(actual[0]) == pytest.approx(expected, rel=1e-5)


def test_kto():
    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    zeros = np.zeros(3)
    ratios, drift = np.array([1.0, -2.0, 0.5]), np.array([1.0, -0.4])
    values, aux = losses.kto_loss(
        ratios, zeros, np.array([1, 0, 0]), drift, zeros[:2], beta=0.5, desirable_weight=2.0, undesirable_weight=3.0
    )
    assert float(aux.kl) == pytest.approx(0.3)
    expected = [2 * (1 - sigmoid(0.5 * 0.7)), 3 * (1 - sigmoid(0.5 * 2.3)), 3 * (1 - sigmoid(0.5 * -0.2))]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [("batch_token_mean", 6 / 3), ("sequence_mean", [1.5, 3.0]), ("sequence_sum", [3.0, 3.0])],
)
def test_sft(normalize, expected):
    token_logps, mask = np.array([[-1.0, -2.0], [-3.0, -9.0]]), np.array([[1, 1], [1, 0]])
    np.testing.assert_allclose(losses.sft_loss(token_logps, mask, normalize=normalize), expected)


def test_sequence_logps():
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [1.0, 1.0, 1.0]]]))
    logps, lengths = losses.sequence_logps(logits, np.array([[2, 1, 2]]), np.array([[1, 1, 1]]))
    np.testing.assert_allclose(logps, [math.log(0.25 * 0.7)], rtol=1e-6)
    assert lengths.tolist() == [2]
