"""Rows in every shape that people have, and what is said about bad ones."""

import json
import pathlib

import pytest

from jaxpref.data import records, transcripts
from jaxpref.data.records import Message
from jaxpref.errors import DataError

VECTOR = pathlib.Path(__file__).parent / "fixtures" / "data_hh_parse.json"
USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


def one(kind, row):
    (record,) = records.parse(kind, row)
    return record


def test_hh_parsing_equals_its_vector():
    (case,) = json.loads(VECTOR.read_text())["cases"]
    for (chosen, rejected), expected in zip(case["inputs"]["pairs"], case["expected"]["results"], strict=True):
        names = ("prompt", "chosen", "rejected", "rejected_shares_prompt")
        split = transcripts.split_transcripts(chosen, rejected)
        assert dict(zip(names, split, strict=True)) == expected["dpo_repo"]
        common, first, second = transcripts.diverging_turns(chosen, rejected)
        turns = {"prompt_turns": common, "chosen_turn": (first,), "rejected_turn": (second,)}
        for name, found in turns.items():
            wanted = expected["easylm"][name]
            wanted = wanted if isinstance(wanted, list) else [wanted]
            assert [{"role": m.role, "content": m.content} for m in found] == wanted


def test_trap_33_no_prompt_is_guessed_from_common_characters():
    with pytest.raises(DataError, match="field 'prompt' is missing.*never taken for a prompt"):
        records.parse("pairs", {"chosen": "Paris is big", "rejected": "Paris is small"})


@pytest.mark.parametrize(
    "chosen, rejected, prompt, responses",
    [
        # one transcript is a prefix of an answer, whitespace, and "Assistant:" inside the prompt
        (
            "\n\nHuman: a\n\nAssistant: Paris ",
            "\n\nHuman: a\n\nAssistant: Paris",
            "\n\nHuman: a\n\nAssistant:",
            (" Paris ", " Paris"),
        ),
        (
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: de",
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:",
            (" d", " de"),
        ),
    ],
)  # fmt: skip
def test_trap_33_transcripts_split_at_the_last_assistant_turn(chosen, rejected, prompt, responses):
    record = one("pairs", {"chosen": chosen, "rejected": rejected})
    assert (record.prompt, record.responses, record.dropped) == (prompt, responses, "")


def test_transcripts_with_other_prompts_or_equal_answers_are_of_no_use():
    pair = {
        "chosen": "\n\nHuman: a\n\nAssistant: b",
        "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
    }
    assert one("pairs", pair).dropped == "prompts differ"
    assert one("pairs", pair | {"rejected": pair["chosen"]}).dropped == "identical responses"
    assert one("demonstrations", pair).dropped == ""


def test_messages_are_compared_whole():
    pair = {"chosen": [USER, BOT], "rejected": [USER, BOT | {"content": "Hello!"}]}
    record = one("pairs", pair)
    assert record.prompt == (Message("user", "Hi"),)
    assert record.responses == ((Message("assistant", "Hello"),), (Message("assistant", "Hello!"),))
    assert (
        one("pairs", {"chosen": [USER, BOT], "rejected": [USER | {"content": "Ho"}, BOT]}).dropped == "prompts differ"
    )
    assert one("pairs", pair | {"prompt": "Hi"}).prompt == record.prompt
    with pytest.raises(DataError, match="'prompt' is none of the turns"):
        records.parse("pairs", pair | {"prompt": "Something else"})


def test_trap_51_multi_turn_prompts_and_answers_are_read():
    turns = [USER, BOT, USER | {"content": "More"}, BOT | {"content": "Again"}]
    record = one("demonstrations", {"messages": turns})
    assert [m.content for m in record.prompt] == ["Hi"]
    assert [m.content for m in record.responses[0]] == ["Hello", "More", "Again"]
    pair = one("pairs", {"prompt": turns[:3], "chosen": "yes", "rejected": [BOT]})
    assert [m.content for m in pair.prompt] == ["Hi", "Hello", "More"]


def test_untrained_first_turns_belong_to_the_prompt():
    turns = [USER, BOT | {"weight": 0}, USER, BOT]
    record = one("demonstrations", {"messages": turns})
    assert (len(record.prompt), len(record.responses[0])) == (3, 1)


def test_a_pair_serves_as_two_unpaired_rows():
    good, bad = records.parse("unpaired", PAIR)
    assert (good.responses, good.side, bad.responses, bad.side) == (("a",), {"label": 1.0}, ("b",), {"label": 0.0})


def test_numbers_and_free_fields_are_told_apart():
    row = PAIR | {"margin": 2, "tie": False, "user_id": 7, "topic": "x", "chosen_score": None}
    record = one("pairs", row)
    assert record.side == {"margin": 2.0, "tie": False, "user_id": 7}
    assert record.meta == {"topic": "x"}


def test_content_in_parts():
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "value": "lo"}]
    assert one("demonstrations", {"messages": [USER, BOT | {"content": parts}]}).responses[0][0].content == "Hello"


@pytest.mark.parametrize(
    "kind, row, message",
    [
        ("pairs", ["a"], "the row is a list of 1; expected an object"),
        ("pairs", {"prompt": "p", "chosen": "a"}, "field 'rejected' is missing; the row has 'prompt', 'chosen'"),
        ("pairs", PAIR | {"chosen": 3}, "field 'chosen' is int 3; expected a string or a list of messages"),
        ("pairs", PAIR | {"prompt": 3}, "field 'prompt' is int 3; expected a string or a list of messages"),
        ("pairs", PAIR | {"rejected": "  \n"}, "field 'rejected' is empty; expected a response"),
        ("pairs", PAIR | {"margin": "big"}, "field 'margin' is the string 'big'; expected a finite number"),
        ("pairs", PAIR | {"margin": float("nan")}, "field 'margin' is float nan; expected a finite number"),
        ("pairs", PAIR | {"tie": 2}, "field 'tie' is int 2; expected true or false"),
        ("pairs", PAIR | {"user_id": "u7"}, "field 'user_id' is the string 'u7'; expected a whole number"),
        ("pairs", PAIR | {"chosen": "\ud800"}, "half of a surrogate pair"),
        ("pairs", PAIR | {"chosen": [BOT]}, "field 'chosen' holds messages, but 'prompt' is a string"),
        ("pairs", PAIR | {"prompt": [USER, BOT]}, "field 'prompt' ends with a turn of the assistant"),
        ("pairs", PAIR | {"prompt": [USER], "chosen": [USER]}, "'chosen' must begin and end with a turn"),
        ("pairs", PAIR | {"prompt": [{"role": "bot", "content": ""}]}, r"'prompt\[0\]' has role 'bot'; expected"),
        ("demonstrations", {"prompt": "p"}, "field 'messages' or 'completion' is missing"),
        ("demonstrations", {"prompt": "p", "completion": ""}, "field 'completion' is empty"),
        ("demonstrations", {"messages": [USER]}, "no turn of the assistant to learn from"),
        ("demonstrations", {"messages": [USER, BOT, USER]}, "ends with a turn of the user"),
        ("demonstrations", {"messages": [BOT]}, "begins with a turn of the assistant"),
        ("demonstrations", {"messages": [USER, {"role": "assistant"}]}, r"field 'messages\[1\].content' is missing"),
        ("demonstrations", {"messages": [USER, BOT | {"weight": 0.5}]}, "weight' is 0.5; expected 0"),
        ("demonstrations", {"messages": [USER, BOT | {"tool_calls": [1]}]}, "calls tools"),
        ("demonstrations", {"messages": [USER, BOT | {"content": [{"type": "reasoning"}]}]}, "'reasoning'; expected"),
        ("unpaired", {"prompt": "p", "completion": "c"}, "field 'label' is missing"),
        ("unpaired", {"prompt": "p", "completion": "c", "label": "yes"}, "'label' is the string 'yes'; expected true"),
        ("unpaired", {"messages": [USER], "label": True}, "ends without an answer"),
        ("ranked", {"prompt": "p", "completions": ["a"]}, "expected a list of at least 2 responses"),
        ("ranked", {"prompt": "p", "completions": ["a", "b"]}, "field 'scores' or 'ranks' is missing"),
        ("ranked", {"prompt": "p", "completions": ["a", "b"], "scores": [1]}, "expected 2 numbers"),
        ("ranked", {"prompt": "p", "completions": ["a", ""], "ranks": [1, 2]}, r"field 'completions\[1\]' is empty"),
        ("steps", {"prompt": "p", "completions": ["a"], "labels": [True, False]}, "expected 1 labels"),
        ("steps", {"prompt": "p", "completions": "a", "labels": [True]}, "expected a list of steps"),
        ("prompts", {"question": "p"}, "field 'prompt' is missing; the row has 'question'"),
    ],
)  # fmt: skip
def test_bad_rows_name_the_field_and_what_was_expected(kind, row, message):
    with pytest.raises(DataError, match=message):
        records.parse(kind, row)
