"""Underlying distribution matching: the probability that a prompt is one of a desirable response."""

import numpy as np
import pytest

from jaxpref import losses
from jaxpref.data import load_stream, matching
from jaxpref.data.records import Record
from jaxpref.errors import ConfigError, DataError


def rows(number=40):
    """Desirable responses to questions on tea, undesirable ones to questions on rivers; a fifth asks for anything."""
    made = []
    for n in range(number):
        label = n % 2 == 0
        topic = ("tea" if label else "river") if n % 5 else "thing"
        made.append({"prompt": f"Tell me about {topic} {n % 7}.", "completion": f"It is {n}.", "label": label})
    return made


LOOSE = {"features": "words", "penalty": 0.1}  # for so few rows


def of_topic(found, topic):
    return np.array([e.side["prob_desirable"] for e in found if f" {topic} " in e.meta["prompt"]])


def test_topics_of_one_label_are_told_apart_and_common_ones_are_not(byte, write_rows):
    found = load_stream({"kind": "unpaired", "path": write_rows(*rows()), "prob_desirable": LOOSE}, byte)
    tea, river, thing = (of_topic(found, topic) for topic in ("tea", "river", "thing"))
    assert tea.min() > 0.8 and river.max() < 0.2
    assert np.all((thing > 0.3) & (thing < 0.7))
    labels = np.array([example.side["label"] for example in found])
    weights = np.asarray(
        losses.density_ratio(np.array([e.side["prob_desirable"] for e in found]), labels > 0, 0.5, 10.0)
    )
    assert np.all(weights[labels > 0] == 1)
    # Undesirable responses count by how likely their question is one that desirable ones have.
    np.testing.assert_allclose(weights[[" river " in e.meta["prompt"] for e in found]], 0.5)
    assert np.all(weights[(labels == 0) & [" thing " in e.meta["prompt"] for e in found]] > 0.5)
    again = load_stream({"kind": "unpaired", "path": write_rows(*rows()), "prob_desirable": LOOSE}, byte)
    assert again.fingerprint == found.fingerprint


def test_worked_example_by_hand():
    """One feature that is 1 for all desirable and half of the undesirable prompts: the balanced odds are 2."""
    features = np.array([[1.0]] * 30 + [[1.0]] * 5 + [[0.0]] * 5)
    labels = np.arange(40) < 30
    coefficients = matching.fit(features, labels, penalty=1e-6)
    odds = np.exp(coefficients.sum())
    assert odds == pytest.approx(2.0, rel=1e-3)  # (30 / 30) / (5 / 10)
    assert coefficients[1] < -5  # without the feature there was no desirable one


def test_the_fit_is_stationary_and_the_penalty_draws_to_one_half():
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(60, 5)), random.uniform(size=60) < 0.3
    coefficients = matching.fit(features, labels, penalty=0.7)
    inputs = np.concatenate([features, np.ones((60, 1))], axis=1)
    weights = 0.5 / np.where(labels, labels.mean(), 1 - labels.mean())
    residual = weights * (1 / (1 + np.exp(-inputs @ coefficients)) - labels)
    np.testing.assert_allclose(features.T @ residual, -0.7 * coefficients[:-1], atol=1e-8)
    assert abs(np.sum(residual)) < 1e-6
    strong = matching.fit(features, labels, penalty=1e6)
    np.testing.assert_allclose(inputs @ strong, 0, atol=1e-3)


def test_every_source_of_the_stream_is_seen(byte, write_rows):
    """Desirable and undesirable responses in files of their own."""
    by_label = [[row for row in rows() if row["label"] == label] for label in (True, False)]
    paths = [write_rows(*part, name=f"{number}.jsonl") for number, part in enumerate(by_label)]
    stream = {"kind": "unpaired", "sources": [{"path": path} for path in paths], "prob_desirable": LOOSE}
    found = load_stream(stream, byte)
    assert of_topic(found, "tea").min() > 0.8 and of_topic(found, "river").max() < 0.2
    with pytest.raises(DataError, match="data.data.prob_desirable: all 20 responses have the same label"):
        load_stream({"kind": "unpaired", "path": paths[0], "prob_desirable": "words"}, byte)


def test_embeddings_of_the_rows(byte, write_rows):
    given = [row | {"prompt_embedding": [1.0, 9.0 * row["label"] - 4.5]} for row in rows()]
    stream = {"kind": "unpaired", "path": write_rows(*given), "prob_desirable": {"features": "embedding"}}
    found = load_stream(stream, byte)
    assert all((example.side["prob_desirable"] > 0.9) == example.side["label"] for example in found)
    for line, wrong in ((4, {}), (5, {"prompt_embedding": [1.0]})):
        bad = list(given)
        bad[line - 1] = {key: value for key, value in given[0].items() if key != "prompt_embedding"} | wrong
        with pytest.raises(DataError, match=f"rows.jsonl:{line}: field 'prompt_embedding'"):
            load_stream(stream | {"path": write_rows(*bad)}, byte)


def test_the_number_of_examples_and_the_seed_change_what_is_seen():
    located = [
        (f"rows:{n}", Record(row["prompt"], ("x",), {"label": float(row["label"])}, {})) for n, row in enumerate(rows())
    ]
    everything = matching.probabilities(located)
    few = [matching.probabilities(located, examples=3, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(few[0], few[1])
    assert np.any(few[0] != few[2]) and np.any(few[0] != everything)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ("word", "data.data.prob_desirable: features is 'word'; did you mean 'words'"),
        ({"featurs": "words"}, "data.data.prob_desirable has no field 'featurs'; did you mean 'features'"),
        ({"examples": 0}, "examples is 0; expected a whole number, 1 or above"),
        ({"penalty": 0}, "penalty is 0; expected a finite number above 0"),
    ],
)
def test_wrong_options_are_config_errors(described, message, byte, write_rows):
    with pytest.raises(ConfigError, match=message):
        load_stream({"kind": "unpaired", "path": write_rows(*rows()), "prob_desirable": described}, byte)


def test_only_unpaired_streams_without_probabilities_of_their_own_have_them_estimated(byte, write_rows):
    with pytest.raises(ConfigError, match="data.data.prob_desirable is read by no stream of kind 'pairs'"):
        load_stream({"kind": "pairs", "path": "x", "prob_desirable": "words"}, byte)
    path = write_rows(*(row | {"prob_desirable": 0.5} for row in rows()))
    with pytest.raises(DataError, match="rows.jsonl:1: the row has 'prob_desirable' already; remove data.data.prob"):
        load_stream({"kind": "unpaired", "path": path, "prob_desirable": "words"}, byte)
