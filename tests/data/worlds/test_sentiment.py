"""The sentiment world: an exact reward, labels with the faults asked for, disjoint splits, reproducible."""

import hashlib
import json
import math

import numpy as np
import pytest

from jaxpref.data import records as record_types
from jaxpref.data import worlds
from jaxpref.data.worlds import annotation, sentiment
from jaxpref.errors import DataError


def interval(successes, *, width=4.0):
    """Mean plus and minus ``width`` standard errors of a share."""
    share, count = np.mean(successes), len(successes)
    half = width * math.sqrt(max(share * (1 - share), 1 / count) / count)
    return share - half, share + half


def contains(successes, expected):
    low, high = interval(successes)
    return low <= expected <= high


@pytest.mark.parametrize(
    "response, expected",
    [
        ("epic cast.", 2.0),
        ("very epic cast.", 3.0),
        ("not epic cast.", -1.0),
        ("not vile cast.", 1.0),
        ("very warm song but weak plot.", 0.25),
        ("not dull cast, very warm song but weak plot.", 1 / 3),
        ("new end, old plot.", 0.0),
        ("", 0.0),
        ("good", 1.0),
        ("xyzzy", 0.0),
        ("good xyzzy", 0.5),
        ("very very good cast.", 0.75),
        ("good cast. very", 0.5),
        ("but , . cast", 0.0),
    ],
)
def test_reward_of_any_text(response, expected):
    assert sentiment.reward("Ann on film: ", response) == pytest.approx(expected, abs=1e-12)


def test_well_formed_is_what_the_grammar_writes():
    for record in sentiment.records("demonstrations", size=500):
        assert sentiment.well_formed(record["completion"], prompt=record["prompt"])
        assert math.isfinite(sentiment.log_prob(record["prompt"], record["completion"]))
    for text in [
        "",
        "good cast",
        "good cast, vile plot.",
        "good cast but nice plot.",
        "good cast, nice cast.",
        "good xyzzy.",
        "good  cast.",
        "good cast..",
        "good cast, good plot, good song, good end.",
    ]:
        assert not sentiment.well_formed(text), text
        assert sentiment.log_prob("Ann on film: ", text) == -math.inf
    assert sentiment.well_formed("good soup.") and not sentiment.well_formed("good soup.", prompt="Ann on film: ")


def test_splits_are_disjoint_and_complete():
    splits = [set(sentiment.prompts(split)) for split in annotation.SPLITS]
    assert [len(split) for split in splits] == [320, 64, 128]
    assert len(set.union(*splits)) == 512
    for split in annotation.SPLITS:
        drawn = [record["prompt"] for record in sentiment.records("prompts", size=64, split=split)]
        assert len(set(drawn)) == 64 and set(drawn) <= set(sentiment.prompts(split))


def test_texts_are_short():
    records = sentiment.records("demonstrations", size=2000)
    assert max(len(record["prompt"]) for record in records) <= 14
    assert max(len(record["completion"]) for record in records) <= 53
    assert (
        len(sentiment.render([sentiment.Opinion("very", "good", "cast"), sentiment.Opinion("very", "weak", "plot")]))
        < 53
    )


def test_records_are_the_same_on_every_machine():
    found = [sentiment.records(kind, size=20, seed=3, noise=0.1) for kind in annotation.KINDS if kind != "ranked"]
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    assert digest[:16] == "4b1c2efac9dfb8cb"


@pytest.mark.parametrize("kind", annotation.KINDS)
def test_a_longer_list_begins_with_the_shorter(kind):
    assert sentiment.records(kind, size=50, seed=5)[:20] == sentiment.records(kind, size=20, seed=5)
    assert sentiment.records(kind, size=20, seed=5) != sentiment.records(kind, size=20, seed=6)


def test_faults_change_labels_and_never_texts():
    def texts(**faults):
        return [
            (record["prompt"], frozenset((record["chosen"], record["rejected"])))
            for record in sentiment.records("pairs", size=200, **faults)
        ]

    plain = texts()
    assert plain == texts(noise=0.3) == texts(length_bias=1.0) == texts(temperature=0.1)
    assert plain == texts(annotators=dict(a=dict(share=0.2), b=dict(reward=-1.0)))


def clear(records):
    """Whether the better response was chosen, where there is a better one."""
    return [r["chosen_score"] > r["rejected_score"] for r in records if r["chosen_score"] != r["rejected_score"]]


def test_scores_are_the_true_rewards():
    for record in sentiment.records("pairs", size=100, noise=0.5):
        assert record["chosen_score"] == sentiment.reward(record["prompt"], record["chosen"])
        assert record["rejected_score"] == sentiment.reward(record["prompt"], record["rejected"])
        assert record["chosen"] != record["rejected"]


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.5, 1.0])
def test_noise_is_the_share_of_flipped_labels(noise):
    assert contains(clear(sentiment.records("pairs", size=3000, temperature=0.0, noise=noise)), 1 - noise)


def test_choices_follow_bradley_terry():
    records = sentiment.records("pairs", size=4000, temperature=0.7)
    differences = np.array([abs(r["chosen_score"] - r["rejected_score"]) for r in records])
    right = np.array([r["chosen_score"] > r["rejected_score"] for r in records])
    for low, high in [(0.2, 0.6), (0.6, 1.2), (1.2, 2.5)]:
        bin_ = (differences > low) & (differences <= high)
        assert contains(right[bin_], np.mean(1 / (1 + np.exp(-differences[bin_] / 0.7))))


def longer(records):
    """Whether the longer response (in words) was chosen, where one is longer."""
    words = [(len(r["chosen"].split()), len(r["rejected"].split())) for r in records]
    return [chosen > rejected for chosen, rejected in words if chosen != rejected]


def test_length_bias_prefers_words():
    assert contains(longer(sentiment.records("pairs", size=3000)), 0.5)
    assert interval(longer(sentiment.records("pairs", size=3000, length_bias=0.5)))[0] > 0.6
    assert interval(longer(sentiment.records("pairs", size=3000, length_bias=-0.5)))[1] < 0.4
    assert np.mean(longer(sentiment.records("pairs", size=500, length_bias=100.0))) == 1.0
    shares = np.corrcoef(
        [(len(r["completion"].split()), sentiment.reward(r["prompt"], r["completion"]))
         for r in sentiment.records("demonstrations", size=3000)], rowvar=False,
    )  # fmt: skip
    assert abs(shares[0, 1]) < 4 / math.sqrt(3000)


def test_annotators_have_shares_and_tastes():
    crowd = dict(
        fan=dict(share=3.0), grump=dict(share=1.0, reward=-1.0), plotter=dict(share=1.0, tastes=dict(plot=9.0))
    )
    records = sentiment.records("pairs", size=5000, temperature=0.0, annotators=crowd)
    users = np.array([record["user_id"] for record in records])
    for number, share in enumerate([0.6, 0.2, 0.2]):
        assert contains(users == number, share)
    assert all(clear([r for r in records if r["user_id"] == 0]))
    assert not any(clear([r for r in records if r["user_id"] == 1]))
    plotters = [r for r in records if r["user_id"] == 2]
    with_plot = [r for r in plotters if "plot" in r["chosen"] + r["rejected"]]
    assert all(clear([r for r in plotters if "plot" not in r["chosen"] + r["rejected"]]))
    assert not all(clear(with_plot))


def test_annotators_may_have_noise_of_their_own():
    crowd = dict(careful=dict(noise=0.0), careless=dict(noise=0.4))
    records = sentiment.records("pairs", size=3000, temperature=0.0, noise=0.9, annotators=crowd)
    assert all(clear([r for r in records if r["user_id"] == 0]))
    assert contains(clear([r for r in records if r["user_id"] == 1]), 0.6)


def test_ties_are_marked_within_the_margin():
    records = sentiment.records("pairs", size=1000, temperature=0.0, tie_margin=0.5)
    for record in records:
        assert record["tie"] == (abs(record["chosen_score"] - record["rejected_score"]) < 0.5)
    assert contains(clear([r for r in records if r["tie"]]), 0.5)


def test_unpaired_labels_are_likes_above_the_threshold():
    def likes(**faults):
        records = sentiment.records("unpaired", size=2000, **faults)
        return np.array([(sentiment.reward(r["prompt"], r["completion"]), r["label"]) for r in records])

    sure = likes(temperature=0.0, threshold=0.8)
    assert np.array_equal(sure[:, 1], sure[:, 0] > 0.8)
    assert contains(likes(temperature=0.0, threshold=0.8, noise=0.25)[:, 1] == sure[:, 1], 0.75)
    soft = likes(temperature=1.0)
    assert contains(soft[:, 1], np.mean(1 / (1 + np.exp(-soft[:, 0]))))


def test_ranked_scores_are_rewards_at_temperature_zero():
    for record in sentiment.records("ranked", size=50, temperature=0.0, responses=5):
        assert record["scores"] == [sentiment.reward(record["prompt"], text) for text in record["completions"]]
        assert len(set(record["completions"])) == 5
    for record in sentiment.records("ranked", size=50, temperature=0.0, noise=1.0):
        truth = [sentiment.reward(record["prompt"], text) for text in record["completions"]]
        assert np.corrcoef(truth, record["scores"])[0, 1] == pytest.approx(-1.0)


def test_ranked_scores_choose_as_bradley_terry_does():
    records = sentiment.records("ranked", size=4000, temperature=0.8, responses=2)
    gaps = np.array([np.subtract(*[sentiment.reward(r["prompt"], text) for text in r["completions"]]) for r in records])
    first = np.array([r["scores"][0] > r["scores"][1] for r in records])
    high = gaps > 0.5
    assert contains(first[high], np.mean(1 / (1 + np.exp(-gaps[high] / 0.8))))


def test_tilt_moves_the_reward():
    means = []
    for tilt in (-1.0, 0.0, 1.0):
        records = sentiment.records("demonstrations", size=1000, tilt=tilt)
        means.append(np.mean([sentiment.reward(r["prompt"], r["completion"]) for r in records]))
    assert means[0] < -0.5 and abs(means[1]) < 4 / math.sqrt(1000) and means[2] > 0.5


def test_log_probabilities_sum_to_one_over_all_responses():
    """All responses of one and two opinions, written out."""
    total = 0.0
    single = [
        sentiment.Opinion(modifier, adjective, aspect)
        for modifier in sentiment.MODIFIERS
        for adjective in sentiment.VALENCES
        for aspect in sentiment.THINGS["car"]
    ]
    for first in single:
        total += math.exp(sentiment.log_prob("Ann on car: ", sentiment.render([first])))
        for second in single[::7]:
            if second.aspect != first.aspect:
                pair = sentiment.log_prob("Ann on car: ", sentiment.render([first, second]))
                share = [sentiment.MODIFIER_PROBABILITIES[o.modifier] / 16 for o in (first, second)]
                assert math.exp(pair) == pytest.approx(0.5 * share[0] * share[1] / 4 / 3)
    assert total == pytest.approx(sentiment.COUNT_PROBABILITIES[1])


def test_entropy_is_the_expected_surprise():
    surprise = [
        -sentiment.log_prob(r["prompt"], r["completion"]) for r in sentiment.records("demonstrations", size=4000)
    ]
    assert abs(np.mean(surprise) - sentiment.entropy()) < 4 * np.std(surprise) / math.sqrt(4000)


def test_distribution_of_rewards():
    values, shares = sentiment.rewards()
    assert shares.sum() == pytest.approx(1) and values @ shares == pytest.approx(0, abs=1e-12)
    drawn = [sentiment.reward(r["prompt"], r["completion"]) for r in sentiment.records("demonstrations", size=4000)]
    variance = values**2 @ shares
    assert abs(np.var(drawn) - variance) < 0.15 * variance


def test_optimum_maximises_reward_minus_kl():
    """J* = beta log Z, and no other exponential tilt does better."""
    values, shares = sentiment.rewards()
    for beta in (0.2, 0.5, 2.0):
        reward, kl = sentiment.optimum(beta)
        best = reward - beta * kl
        assert best == pytest.approx(beta * math.log(shares @ np.exp(values / beta)))
        for other in (0.5 * beta, 0.9 * beta, 1.1 * beta, 3 * beta):
            reward, kl = sentiment.optimum(other)
            assert reward - beta * kl < best
    assert sentiment.optimum(1e6) == pytest.approx((0, 0), abs=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(kind="pair"), "did you mean 'pairs'"),
        (dict(split="dev"), "split"),
        (dict(noise=1.5), r"noise lies in \[0, 1\]"),
        (dict(temperature=-1.0), "at least 0"),
        (dict(size=-1), "size of at least 0"),
        (dict(annotators=dict(a=dict(nose=0.1))), "did you mean 'noise'"),
        (dict(annotators=dict(a=dict(share=0.0))), "positive share"),
        (dict(kind="ranked", responses=1), "at least 2 responses"),
    ],
)
def test_bad_arguments_are_one_clear_sentence(arguments, message):
    with pytest.raises(DataError, match=message):
        sentiment.records(**dict(dict(kind="pairs", size=5), **arguments))


def test_foreign_prompts_raise():
    with pytest.raises(DataError, match="has no prompt 'Hello'"):
        sentiment.thing("Hello")


@pytest.mark.parametrize("name", worlds.NAMES)
@pytest.mark.parametrize("kind", annotation.KINDS)
def test_records_are_those_of_users(name, kind):
    options = dict(tie_margin=0.5) if kind == "pairs" else {}
    for row in worlds.get(name).records(kind, size=20, **options):
        (record,) = record_types.parse(kind, row)
        assert record.meta == {} and record.prompt == row["prompt"]


def test_registry():
    assert worlds.get("sentiment") is sentiment
    assert worlds.get("bandit", arms=3).arms == 3
    for name in worlds.NAMES:
        world = worlds.get(name)
        assert len(world.records("pairs", size=3)) == 3 and world.prompts("train")
        assert isinstance(world.reward(world.prompts("test")[0], "?"), float) and not world.well_formed("?")
    with pytest.raises(DataError, match="did you mean 'sentiment'"):
        worlds.get("sentimant")
    with pytest.raises(DataError, match="no option named 'arms'"):
        worlds.get("sentiment", arms=3)
