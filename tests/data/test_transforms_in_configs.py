"""Transforms named in a data stream: from rows of a file to examples, and what is said about wrong ones."""

import pytest
from ml_collections import ConfigDict

from jaxpref.data import load_stream, transforms
from jaxpref.errors import ConfigError, DataError

SCORED = [
    {"prompt": "p", "completions": ["aa", "bb", "cc", "dd"], "scores": [8.5, 7, 9, 9]},
    {"prompt": "q", "completions": ["aa", "bb"], "scores": [6, 6]},
    {"prompt": "r", "completions": ["aa", "bb"], "scores": [2, 10]},
]
TREATED = {
    "control_prompt": "Why?", "treatment_prompt": "Be polite. Why?", "control_response": "Because.",
    "treatment_response": "Because, sir.",
}  # fmt: skip
PAIR = {"prompt": "Speak.", "chosen": "tea, 3 cups", "rejected": "Coffee for all"}


def texts(found):
    """(prompt, *responses) of every example."""
    return [(example.meta["prompt"], *example.meta["responses"]) for example in found]


def test_best_against_random_is_the_function_on_the_rows_of_the_file(byte, write_rows):
    stream = {"kind": "pairs", "path": write_rows(*SCORED), "transform": {"name": "best_against_random", "seed": 1}}
    found = load_stream(stream, byte)
    expected, ties = transforms.best_against_random(SCORED, seed=1)
    assert texts(found) == [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in expected]
    assert [example.side["margin"] for example in found] == [pair["margin"] for pair in expected]
    assert ties == 1 and found.counts["dropped"] == {"all completions have the same score": 1}
    assert "2 examples kept; 1 dropped: all completions have the same score" in found.summary()
    assert [example.origin for example in found] == ["rows.jsonl:1", "rows.jsonl:3"]
    (last,) = load_stream(stream | {"lines": (3, 3)}, byte)
    assert last.meta == found[1].meta


def test_ranks_serve_as_scores_and_the_pairs_as_other_kinds(byte, write_rows):
    rows = [{"question": "p", "completions": ["aa", "bb", "cc"], "ranks": [2, 1, 2]}]
    stream = {"path": write_rows(*rows), "transform": "best_against_random", "fields": {"prompt": "question"}}
    assert texts(load_stream(stream | {"kind": "demonstrations"}, byte)) == [("p", "bb")]
    assert [e.side["label"] for e in load_stream(stream | {"kind": "unpaired"}, byte)] == [1, 0]


def test_a_world_makes_what_the_transform_reads(byte):
    stream = dict(kind="pairs", source="world:sentiment", size=40, responses=3, transform="best_against_random")
    found = load_stream(stream, byte)
    assert len(found) + sum(found.counts["dropped"].values()) == 40
    assert all(example.side["chosen_score"] > example.side["rejected_score"] for example in found)


def ultrafeedback_row(ratings=("4", "5")):
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    completions = [
        {"response": text, "overall_score": score, "annotations": {aspect: {"Rating": rating} for aspect in aspects}}
        for text, score, rating in zip(("aa", "bb"), (10, 7.5), ratings, strict=True)
    ]
    return {"instruction": "p", "completions": completions, "source": "x"}


@pytest.mark.parametrize(
    ("mode", "expected", "margin"), [("overall", ("aa", "bb"), 2.5), ("mean_fine_grained", ("bb", "aa"), 1.0)]
)
def test_ultrafeedback_is_read_as_it_is_published(mode, expected, margin, byte, write_rows):
    transform = {"name": "ultrafeedback", "mode": mode}
    (found,) = load_stream({"kind": "pairs", "path": write_rows(ultrafeedback_row()), "transform": transform}, byte)
    assert found.meta["responses"] == expected and found.side["margin"] == margin and found.meta["source"] == "x"
    stream = {"kind": "pairs", "path": write_rows(ultrafeedback_row(("4", "N/A"))), "transform": transform}
    if mode == "overall":
        assert len(load_stream(stream, byte)) == 1
        return
    with pytest.raises(DataError, match=r"completions\[1\].annotations.instruction_following.Rating' is 'N/A'"):
        load_stream(stream, byte)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("encourage", ("Why?", "Because, sir.", "Because.")),
        ("discourage", ("Why?", "Because.", "Because, sir.")),
        ("contrastive", ("Why?", "Because, sir.", "Dunno.")),
        ("negation", ("Be polite. Why?", "Because.", "Because, sir.")),
    ],
)
def test_counterfactual_pairs_of_a_file(mode, expected, byte, write_rows):
    path = write_rows(TREATED | {"undesired_response": "Dunno.", "margin": 2.0})
    transform = ConfigDict({"name": "counterfactual", "mode": mode})
    (found,) = load_stream(ConfigDict({"kind": "pairs", "path": path, "transform": transform}), byte)
    assert texts([found]) == [expected]
    assert found.side == {"margin": 2.0}


def test_each_source_has_a_transform_of_its_own(byte, write_rows):
    sources = [
        {"path": write_rows(TREATED, name="treated.jsonl"), "transform": "counterfactual"},
        {"path": write_rows(PAIR, name="pairs.jsonl")},
    ]
    found = load_stream({"kind": "pairs", "sources": sources}, byte)
    assert [example.origin for example in found] == ["treated.jsonl:1", "pairs.jsonl:1"]
    with pytest.raises(ConfigError, match=r"data.data.sources\[1\].transform is 'bst_against_random'"):
        load_stream({"kind": "pairs", "sources": [sources[0], sources[1] | {"transform": "bst_against_random"}]}, byte)


VOTE = {"prompt": "p", "response_a": "aa", "response_b": "bb"}


def test_votes_are_pairs_with_ties_or_strengths(byte, write_rows):
    path = write_rows(*(VOTE | {"winner": winner, "user_id": 3} for winner in ("model_b", "both bad", "model_a")))
    transform = {"name": "comparison", "first": "model_a", "second": "model_b", "tie": ["tie", "both bad"]}
    found = load_stream({"kind": "pairs", "path": path, "transform": transform}, byte)
    assert texts(found) == [("p", "bb", "aa"), ("p", "aa", "bb"), ("p", "aa", "bb")]
    assert [example.side for example in found] == [{"user_id": 3, "tie": tie} for tie in (False, True, False)]
    path = write_rows(VOTE | {"probability_a": 0.25}, VOTE | {"probability_a": [0.5, 0.75]})
    found = load_stream({"kind": "pairs", "path": path, "transform": "comparison"}, byte)
    assert texts(found) == [("p", "bb", "aa"), ("p", "aa", "bb")]
    assert [example.side["preference_strength"] for example in found] == [0.75, 0.625]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (VOTE, "field 'winner' or 'probability_a' is missing"),
        (VOTE | {"winner": "c"}, "field 'winner' is the string 'c'; there are a, b, tie"),
        (VOTE | {"probability_a": 1.5}, "field 'probability_a' is 1.5; expected numbers between 0 and 1"),
        (VOTE | {"probability_a": "high"}, "field 'probability_a' is the string 'high'; expected a finite number"),
        ({"prompt": "p", "response_a": "aa", "winner": "a"}, "field 'response_b' is missing"),
    ],
)
def test_votes_that_say_nothing_are_errors(row, message, byte, write_rows):
    with pytest.raises(DataError, match=f"rows.jsonl:1: data.data.transform 'comparison': {message}"):
        load_stream({"kind": "pairs", "path": write_rows(row), "transform": "comparison"}, byte)


def test_annotators_have_the_numbers_of_their_places_in_the_config(byte, write_rows):
    rows = [VOTE | {"winner": "a", "user_id": name} for name in ("w7", "w3", "w7")]
    chain = ["comparison", {"name": "annotators", "names": ["w3", "w7"]}]
    found = load_stream({"kind": "pairs", "path": write_rows(*rows), "transform": chain}, byte)
    assert [example.side["user_id"] for example in found] == [1, 0, 1]
    stream = {"kind": "pairs", "path": write_rows(PAIR | {"user_id": "w4"}, PAIR), "transform": chain[1]}
    with pytest.raises(
        DataError, match="rows.jsonl:1: data.data.transform 'annotators': field 'user_id' is the string"
    ):
        load_stream(stream, byte)
    with pytest.raises(DataError, match="rows.jsonl:2: .*field 'user_id' is missing"):
        load_stream(stream | {"lines": (2, 2)}, byte)
    for names in ("w3", [], ["w3", "w3"]):
        with pytest.raises(ConfigError, match="expected a list of different names of annotators"):
            load_stream(stream | {"transform": {"name": "annotators", "names": names}}, byte)


def asked(prompt, names):
    return [name for name in names if transforms.instruction(name).text in prompt]


NAMES = ("at_most_words:2", "at_least_words:3", "contains:tea", "lower_case", "no_digit", "no_comma")


def test_mapl_intra_gives_joint_pairs_of_one_response(byte, write_rows):
    transform = {"name": "mapl_intra", "count": 2, "instructions": NAMES}
    (found,) = load_stream({"kind": "joint", "path": write_rows(PAIR), "transform": transform}, byte)
    lengths, good, bad = found.side["prompt_lengths"], *found.responses
    first, second = (byte.decode(response[: int(n)]) for response, n in zip((good, bad), lengths, strict=True))
    # "tea, 3 cups" has three words, names tea in small letters, and has a comma and a digit.
    followed = [transforms.instruction(name).check("tea, 3 cups") for name in asked(first, NAMES)]
    assert followed == [True, True] and first.startswith("Speak.\n")
    assert not all(transforms.instruction(name).check("tea, 3 cups") for name in asked(second, NAMES))
    assert byte.decode(good[int(lengths[0]) :]) == byte.decode(bad[int(lengths[1]) :]) == "tea, 3 cups"
    other = {"name": "mapl_intra", "count": 1, "instructions": NAMES[:1], "response": "rejected"}
    with pytest.raises(DataError, match="the response follows too many of the instructions, or too few"):
        load_stream({"kind": "joint", "path": write_rows(PAIR), "transform": other}, byte)


def test_mapl_inter_gives_crossed_pairs(byte, write_rows):
    transform = {"name": "mapl_inter", "count": 1, "instructions": ("lower_case", "no_comma"), "separator": " "}
    loaded = transforms.load("data.x.transform", transform, "crossed")
    (made,) = loaded.rows(PAIR | {"user_id": 4}, 0, print)
    assert made == {
        "hi_prompt": "Speak. Use no capital letters.",
        "lo_prompt": "Speak. Use no commas.",
        "chosen": PAIR["chosen"],
        "rejected": PAIR["rejected"],
        "user_id": 4,
    }
    path = write_rows(PAIR, PAIR | {"rejected": "tea, cups"})
    found = load_stream({"kind": "crossed", "path": path, "transform": transform}, byte)
    assert len(found) == 1 and len(found[0].responses) == 4
    assert found.counts["dropped"] == {"no instructions tell the two responses apart": 1}


@pytest.mark.parametrize("seed", [0, 1])
def test_instructions_stand_in_the_last_turn_whatever_the_form_of_the_prompt(seed):
    turns = [{"role": "system", "content": "Sys."}, {"role": "user", "content": "Speak."}]
    transcript = "\n\nHuman: Speak.\n\nAssistant:"
    forms = {
        "text": PAIR,
        "messages": PAIR | {"prompt": turns},
        "transcript": {"chosen": f"{transcript} tea, 3 cups", "rejected": f"{transcript} Coffee for all"},
    }
    described = {"name": "mapl_intra", "count": 1, "instructions": NAMES, "seed": seed}
    loaded = transforms.load("data.x.transform", described, "joint")
    made = {form: loaded.rows(row, 0, print)[0] for form, row in forms.items()}
    text = made["text"]["chosen_prompt"]
    assert made["messages"]["chosen_prompt"] == [turns[0], {"role": "user", "content": text}]
    assert made["messages"]["response"] == [{"role": "assistant", "content": "tea, 3 cups"}]
    assert made["transcript"]["chosen_prompt"] == f"\n\nHuman: {text}\n\nAssistant:"
    assert made["transcript"]["response"] == " tea, 3 cups"


def test_degrees_are_graded_responses_of_both(byte, write_rows):
    row = {"prompt": "Where?", "chosen": "The old mill, the river and a bridge.", "rejected": "Nowhere.", "weight": 2.0}
    transform = {"name": "degrees", "levels": 4, "rejected_weight": 0.5}
    found = load_stream({"kind": "graded", "path": write_rows(row), "transform": transform}, byte)
    assert texts(found) == [
        ("Where?", "The old mill, the river and a bridge."),
        ("Where?", "The, the river and a bridge."),
        ("Where?", "The, the and a bridge."),
        ("Where?", "The, the and a."),
    ]
    assert [example.side for example in found] == [{"degree": level, "weight": 2.0} for level in range(4)]
    assert found.counts["dropped"] == {"a response has too few key phrases for all levels": 1}
    kept = load_stream(
        {"kind": "graded", "path": write_rows(row | {"rejected": row["chosen"][1:]}), "transform": transform}, byte
    )
    assert [example.side["weight"] for example in kept] == [2.0] * 4 + [1.0] * 4


def test_transforms_follow_one_another(byte, write_rows):
    rows = {"prompt": "p", "completions": ["old mill", "a river and a stone bridge"], "scores": [1, 2]}
    chain = ["best_against_random", dict(name="degrees", levels=2, rejected_weight=0)]
    found = load_stream({"kind": "graded", "path": write_rows(rows), "transform": chain}, byte)
    assert texts(found) == [("p", "a river and a stone bridge"), ("p", "a and a")]
    assert [example.side["degree"] for example in found] == [0, 1]


@pytest.mark.parametrize(
    ("kind", "transform", "message"),
    [
        ("pairs", "counterfactal", "data.data.transform is 'counterfactal', which does not exist; did you mean 'co"),
        ("pairs", {"mode": "negation"}, "data.data.transform has no field 'name'; expected one of annotators"),
        ("pairs", ["counterfactual", 7], "data.data.transform is 7, which does not exist; there are annotators"),
        (
            "pairs",
            {"name": "counterfactual", "mod": "negation"},
            "'counterfactual' has no option 'mod'; did you mean 'mode'",
        ),
        (
            "pairs",
            {"name": "counterfactual", "mode": "negative"},
            "'counterfactual': mode is 'negative'; did you mean 'neg",
        ),
        ("pairs", {"name": "ultrafeedback", "mode": "mean"}, "'ultrafeedback': mode is 'mean'; there are mean_fine"),
        (
            "pairs",
            {"name": "best_against_random", "seed": -1},
            "seed is -1; expected a whole number, 0 or above",
        ),
        ("pairs", {"name": "comparison", "first": "tie"}, "first, second and tie are 'tie', 'b' and 'tie'"),
        (
            "joint",
            {"name": "mapl_intra", "instructions": ("contain:tea",)},
            "no instruction 'contain' .* did you mean 'contains'",
        ),
        (
            "joint",
            {"name": "mapl_intra", "count": 3, "instructions": ("no_comma",)},
            "count is 3, but there are 1",
        ),
        ("joint", {"name": "mapl_intra", "relation": "some"}, "relation is 'some'"),
        ("joint", {"name": "mapl_intra", "response": "best"}, "response is 'best'"),
        ("graded", {"name": "degrees", "levels": 1}, "levels is 1; expected a whole number, 2 or above"),
        ("graded", {"name": "degrees", "chosen_weight": -1}, "chosen_weight is -1; expected a finite number"),
        ("pairs", "mapl_intra", "makes rows of kind 'joint', which a stream of kind 'pairs' .*set kind to 'joint'"),
        ("graded", ["degrees", "mapl_intra"], "'mapl_intra' does not read the graded that 'degrees' makes"),
    ],
)
def test_wrong_transforms_are_config_errors(kind, transform, message, byte, write_rows):
    with pytest.raises(ConfigError, match=message) as caught:
        load_stream({"kind": kind, "path": write_rows(PAIR), "transform": transform}, byte)
    assert str(caught.value).startswith("data.data.transform")


@pytest.mark.parametrize(
    ("kind", "transform", "row", "message"),
    [
        (
            "pairs",
            "counterfactual",
            {"control_prompt": "p"},
            "field 'treatment_prompt' is missing; the row has 'control",
        ),
        (
            "pairs",
            {"name": "counterfactual", "mode": "contrastive"},
            TREATED | {"undesired_response": None},
            "field 'undesired_response' is missing",
        ),
        ("pairs", "best_against_random", {"prompt": "p", "completions": ["a"]}, "'scores' or 'ranks' is missing"),
        ("pairs", "best_against_random", SCORED[0] | {"scores": [1, 2]}, r"'scores' is \[1, 2\] beside 4 completions"),
        ("pairs", "best_against_random", SCORED[0] | {"completions": "aabb"}, "'completions' is the string 'aabb'"),
        ("pairs", "ultrafeedback", SCORED[0], "field 'instruction' is missing"),
        (
            "pairs",
            "ultrafeedback",
            {"instruction": "p", "completions": ["a", "b"]},
            r"'completions\[0\]' is the string",
        ),
        ("joint", "mapl_intra", {"prompt": "p", "chosen": "a"}, "field 'rejected' is missing"),
        ("graded", "degrees", ["p"], "the row is a list of 1; expected an object with named fields"),
    ],
)
def test_rows_that_a_transform_cannot_read_are_named_or_skipped(kind, transform, row, message, byte, write_rows):
    good = {"counterfactual": TREATED, "ultrafeedback": ultrafeedback_row(), "best_against_random": SCORED[0]}
    name = transform["name"] if isinstance(transform, dict) else transform
    long = "The old mill, the river and a bridge."
    first = good.get(name, {"prompt": "p", "chosen": long, "rejected": f"See {long}"}) | {
        "undesired_response": "Dunno."
    }
    stream = {"kind": kind, "path": write_rows(first, row), "transform": transform}
    with pytest.raises(DataError, match=f"rows.jsonl:2: data.data.transform '{name}': .*{message}"):
        load_stream(stream, byte)
    found = load_stream(stream | {"on_bad_row": "skip"}, byte)
    assert len(found) >= 1 and found.counts["skipped"] == 1
