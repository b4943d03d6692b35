"""Held-out preference metrics: published definitions, and the same numbers whatever the evaluation's batch size."""

import numpy as np
import pytest

from jaxpref.errors import DataError
from jaxpref.evaluation import preferences


def pairs(count, seed=0):
    generator = np.random.default_rng(seed)
    logps = {name: -20 * generator.random(count) for name in ("chosen_logps", "rejected_logps")}
    ref = {f"ref_{name}": value + generator.normal(size=count) for name, value in logps.items()}
    return logps | ref | {name: generator.integers(1, 30, count) for name in ("chosen_lengths", "rejected_lengths")}


def batches(arrays, size):
    """Batches of a fixed shape: the last is padded with a repeated row that counts for nothing."""
    count = len(next(iter(arrays.values())))
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        yield {name: array[rows] for name, array in arrays.items()}, np.arange(start, start + size) < count


def test_metrics_by_hand():
    """Case 1 of the published definitions, beta 0.1."""
    metrics = preferences.preference_metrics(
        chosen_logps=[-30.379268, -72.232319, -43.292783, -24.030079, -34.376507, -15.933901],
        rejected_logps=[-26.126412, -79.857926, -42.000334, -28.375438, -16.765079, -19.847195],
        ref_chosen_logps=[-26.610409, -71.517367, -32.74272, -20.957083, -27.1342, -22.491612],
        ref_rejected_logps=[-23.007212, -74.423405, -35.222875, -12.315614, -13.616297, -20.364671],
        chosen_lengths=[35, 15, 23, 16, 25, 25],
        rejected_lengths=[18, 16, 29, 16, 20, 34],
    )
    expected = {
        "chosen_reward": -0.3131911,
        "rejected_reward": -0.5670385,
        "margin": 0.2538474,
        "accuracy": 0.5,
        "accuracy_ties_half": 0.5,
        "ranking_accuracy": 0.5,
        "ranking_accuracy_len_norm": 0.5,
        "ref_ranking_accuracy": 1 / 3,
        "chosen_displacement": -3.131911,
        "rejected_displacement": -5.670385,
        "frac_chosen_decreased": 5 / 6,
        "frac_both_decreased": 5 / 6,
    }
    assert metrics == pytest.approx(expected)


def test_policy_equal_to_reference():
    arrays = pairs(50)
    arrays |= {"ref_chosen_logps": arrays["chosen_logps"], "ref_rejected_logps": arrays["rejected_logps"]}
    metrics = preferences.preference_metrics(**arrays)
    assert metrics["margin"] == metrics["accuracy"] == metrics["frac_both_decreased"] == 0
    assert metrics["accuracy_ties_half"] == 0.5
    assert metrics["ranking_accuracy"] == metrics["ref_ranking_accuracy"]


@pytest.mark.parametrize("size", [1, 2, 7, 50, 64])
def test_trap_66_metrics_do_not_depend_on_the_batch_size(size):
    arrays = pairs(50)
    collected = preferences.collect(batches(arrays, size), expected=50)
    assert preferences.preference_metrics(**collected) == preferences.preference_metrics(**arrays)


def test_trap_66_a_mean_of_batch_means_would_be_wrong():
    """Three pairs, two right, in batches of two: 2/3, where the mean of batch means says 1/2."""
    margins = {"margins": np.array([1.0, 1.0, -1.0])}
    assert preferences.accuracy(preferences.collect(batches(margins, 2))["margins"]).value == pytest.approx(2 / 3)


def test_trap_67_the_tail_is_scored():
    arrays = pairs(50)
    assert len(preferences.collect(batches(arrays, 16))["chosen_logps"]) == 50
    without_tail = list(batches(arrays, 16))[:-1]
    with pytest.raises(DataError, match="scored 48 examples; expected 50"):
        preferences.collect(without_tail, expected=50)
    with pytest.raises(DataError, match="scored 0 examples"):
        preferences.collect([])


def test_trap_68_padding_rows_count_for_nothing():
    arrays = pairs(5)
    padded = {name: np.concatenate([array, np.full(3, np.nan)]) for name, array in arrays.items()}
    collected = preferences.collect([(padded, np.arange(8) < 5)])
    assert preferences.preference_metrics(**collected) == preferences.preference_metrics(**arrays)


def test_trap_71_token_likelihood_counts_target_tokens():
    """Responses of 1 and 9 tokens with 2 and 9 nats: 1.1 nats per token, 5.5 per response."""
    result = preferences.likelihood(np.array([-2.0, -9.0]), np.array([1, 9]))
    assert result["per_token"].value == pytest.approx(1.1) and result["per_response"].value == pytest.approx(5.5)
    with pytest.raises(DataError, match="positive"):
        preferences.likelihood(np.zeros(2), np.zeros(2))


def test_trap_78_displacement_is_shown_beside_the_margin():
    """Both sides fall, the rejected one faster: the margin grows while the chosen log-probability falls."""
    arrays = pairs(20)
    arrays |= {"chosen_logps": arrays["ref_chosen_logps"] - 3, "rejected_logps": arrays["ref_rejected_logps"] - 8}
    metrics = preferences.preference_metrics(**arrays)
    assert metrics["accuracy"] == 1 and metrics["margin"] == pytest.approx(0.5)
    assert metrics["chosen_displacement"] == pytest.approx(-3)
    assert metrics["rejected_displacement"] == pytest.approx(-8)
    assert metrics["frac_both_decreased"] == 1


def test_accuracy_counts_ties_half():
    interval = preferences.accuracy(np.array([1.0, 2.0, -1.0, 0.0]))
    assert interval.value == 0.625 and interval.low < 0.5 < interval.high


def test_longer_wins():
    assert preferences.longer_wins([3, 2, 5], [2, 3, 5]).tolist() == [1.0, 0.0, 0.5]


def test_against_length():
    """Four pairs: the scorer is right on the first three; the longer one wins in the first and the last."""
    result = preferences.against_length([1.0, 1.0, 1.0, -1.0], [9, 2, 3, 9], [1, 5, 4, 1])
    assert result["accuracy"].value == 0.75 and result["longer_wins"].value == 0.5
    assert result["difference"].value == 0.25
    assert result["accuracy_shorter"].value == 1.0 and result["accuracy_shorter"].count == 2
    assert preferences.against_length([1.0], [9], [1])["accuracy_shorter"] is None


def test_reward_metrics_by_hand():
    metrics = preferences.reward_metrics([1.0, 0.0, 2.0], [0.0, 1.0, 2.0])
    loss = (np.log1p(np.exp(-1)) + np.log1p(np.exp(1)) + np.log(2)) / 3
    assert metrics == pytest.approx({"accuracy": 1 / 3, "accuracy_ties_half": 0.5, "margin": 0.0, "loss": loss})


def test_bad_arrays_raise():
    with pytest.raises(DataError, match="one entry per example"):
        preferences.reward_metrics(np.ones(3), np.ones((3, 1)))
    with pytest.raises(DataError, match="not finite"):
        preferences.reward_metrics(np.array([np.inf]), np.ones(1))
