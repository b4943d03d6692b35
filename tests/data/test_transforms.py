"""Records made of other material, by worked examples."""

import numpy as np
import pytest

from jaxpref.data import records, transforms
from jaxpref.errors import DataError

SHORT = transforms.Instruction("Use at most three words.", lambda response: len(response.split()) <= 3)
QUIET = transforms.Instruction("Do not shout.", lambda response: "!" not in response)
TEA = transforms.Instruction("Mention tea.", lambda response: "tea" in response.lower())
LOWER = transforms.Instruction("Use lower case only.", str.islower)
ALL = (SHORT, QUIET, TEA, LOWER)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("encourage", ("Why?", "Because, sir.", "Because.")),
        ("discourage", ("Why?", "Because.", "Because, sir.")),
        ("contrastive", ("Why?", "Because, sir.", "Dunno.")),
        ("negation", ("Be polite. Why?", "Because.", "Because, sir.")),
    ],
)
def test_counterfactual_pairs(mode, expected):
    material = ("Why?", "Be polite. Why?", "Because.", "Because, sir.", "Dunno.")
    pair = transforms.counterfactual_pairs(*material, mode=mode)
    assert pair == dict(zip(("prompt", "chosen", "rejected"), expected, strict=True))
    (record,) = records.parse("pairs", pair)
    assert (record.prompt, *record.responses) == expected and not record.dropped


def test_counterfactual_pairs_encourage_by_default_and_take_messages():
    prompts = [[{"role": "user", "content": text}] for text in ("Why?", "Be polite. Why?")]
    pair = transforms.counterfactual_pairs(*prompts, "Because.", "Because, sir.")
    assert pair["prompt"] == prompts[0] and pair["chosen"] == "Because, sir."
    assert records.parse("pairs", pair)[0].prompt[0].content == "Why?"


def test_a_treatment_without_effect_is_dropped_by_the_reader():
    pair = transforms.counterfactual_pairs("Why?", "Be polite. Why?", "Because.", "Because.")
    assert records.parse("pairs", pair)[0].dropped == "identical responses"


def test_counterfactual_pairs_refuse_what_is_missing():
    with pytest.raises(DataError, match="mode is 'encouraged', which does not exist; did you mean 'encourage'"):
        transforms.counterfactual_pairs("a", "b", "c", "d", mode="encouraged")
    with pytest.raises(DataError, match="mode is 'contrastive', which needs undesired_response"):
        transforms.counterfactual_pairs("a", "b", "c", "d", mode="contrastive")


def asked(prompt):
    return [one for one in ALL if one.text in prompt]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("relation", "count"), [("all", 1), ("all", 2), ("any", 1), ("any", 2)])
def test_mapl_intra_prompts_keep_their_relation(seed, relation, count):
    response = "tea is wonderful indeed!"  # follows TEA and LOWER, breaks SHORT and QUIET
    pair = transforms.mapl_intra_pair("Speak.", response, ALL, count=count, rng=rng(seed), relation=relation)
    followed = {name: [one.check(response) for one in asked(pair[f"{name}_prompt"])] for name in ("chosen", "rejected")}
    assert [len(checks) for checks in followed.values()] == [count, count]
    assert all(pair[f"{name}_prompt"].startswith("Speak.\n") for name in followed)
    assert pair["response"] == response
    if relation == "all":
        assert all(followed["chosen"]) and not all(followed["rejected"])
    else:
        assert any(followed["chosen"]) and not any(followed["rejected"])


def test_mapl_intra_worked_example():
    pair = transforms.mapl_intra_pair("Speak.", "Tea time now", (TEA, LOWER), count=1, rng=rng(), separator=" ")
    assert pair == {
        "chosen_prompt": "Speak. Mention tea.",
        "rejected_prompt": "Speak. Use lower case only.",
        "response": "Tea time now",
    }


@pytest.mark.parametrize("relation", ["all", "any"])
def test_mapl_intra_without_enough_instructions_has_no_pair(relation):
    make = lambda response, count: transforms.mapl_intra_pair(  # noqa: E731
        "Speak.", response, ALL, count=count, rng=rng(), relation=relation
    )
    assert make("tea", 2) is None  # breaks nothing
    assert make("Oh Coffee Is A Far Better Drink!", 1) is None  # follows nothing
    assert make("tea is wonderful indeed!", 3) is None
    with pytest.raises(DataError, match="relation is 'some'"):
        transforms.mapl_intra_pair("Speak.", "tea", ALL, count=1, rng=rng(), relation="some")


@pytest.mark.parametrize("seed", range(5))
def test_mapl_inter_prompts_widen_and_narrow_the_gap(seed):
    chosen, rejected = "Tea time, please", "coffee time for everyone!"
    # The chosen response alone follows SHORT, QUIET and TEA, the rejected one alone LOWER.
    pair = transforms.mapl_inter_pair("Speak.", chosen, rejected, ALL, count=2, rng=rng(seed))
    gaps = [sum(one.check(chosen) - one.check(rejected) for one in asked(pair[f"{x}_prompt"])) for x in ("hi", "lo")]
    assert gaps == [2, 0]
    assert (pair["chosen"], pair["rejected"]) == (chosen, rejected)


def test_mapl_inter_worked_example_and_no_pair():
    pair = transforms.mapl_inter_pair("Speak.", "Tea", "coffee", (LOWER, TEA), count=1, rng=rng())
    assert (pair["hi_prompt"], pair["lo_prompt"]) == ("Speak.\nMention tea.", "Speak.\nUse lower case only.")
    assert transforms.mapl_inter_pair("Speak.", "tea", "more tea", (TEA, LOWER), count=1, rng=rng()) is None
    assert transforms.mapl_inter_pair("Speak.", "Tea", "coffee", (LOWER, TEA), count=3, rng=rng()) is None


SCORED = [
    {"prompt": "p", "completions": ["a", "b", "c", "d"], "scores": [8.5, 7, 9, 9], "source": "x"},
    {"prompt": "q", "completions": ["a", "b"], "scores": [6, 6]},
    {"prompt": "r", "completions": ["a", "b"], "scores": [2, 10]},
]


def test_best_against_random_worked_example():
    pairs, ties = transforms.best_against_random(SCORED, seed=1)
    assert ties == 1 and [pair["prompt"] for pair in pairs] == ["p", "r"]
    first, second = pairs
    assert first["chosen"] == "c" and first["rejected"] in ("a", "b") and first["source"] == "x"
    assert first["margin"] == first["chosen_score"] - first["rejected_score"] in (0.5, 2.0)
    expected = {"chosen": "b", "rejected": "a", "chosen_score": 10.0, "rejected_score": 2.0, "margin": 8.0}
    assert second == {"prompt": "r"} | expected
    (record,) = records.parse("pairs", first)
    assert record.side == {name: first[name] for name in ("margin", "chosen_score", "rejected_score")}


def test_best_against_random_draws_all_that_score_lower_by_seed_and_place():
    many = SCORED[:1] * 40
    drawn = [pair["rejected"] for pair in transforms.best_against_random(many, seed=3)[0]]
    assert set(drawn) == {"a", "b"}
    assert drawn == [pair["rejected"] for pair in transforms.best_against_random(many, seed=3)[0]]
    assert drawn != [pair["rejected"] for pair in transforms.best_against_random(many, seed=4)[0]]
    assert drawn[:5] == [pair["rejected"] for pair in transforms.best_against_random(many[:5], seed=3)[0]]


@pytest.mark.parametrize("scores", [[1.0], [1.0, float("nan")], [[1.0, 2.0]]])
def test_best_against_random_names_a_bad_row(scores):
    with pytest.raises(DataError, match="row 1: field 'scores' is .* beside 2 completions"):
        transforms.best_against_random([SCORED[0], {"prompt": "p", "completions": ["a", "b"], "scores": scores}])
