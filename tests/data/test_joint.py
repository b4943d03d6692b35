"""Responses with prompts of their own: rows, tokens, lengths, and what is dropped."""

import numpy as np
import pytest

from jaxpref.data import layouts, load_stream, records, show, transforms
from jaxpref.errors import DataError

JOINT = {"chosen_prompt": "Sum:", "chosen": " 4", "rejected_prompt": "Sing:", "rejected": " la la"}
SAME = {"chosen_prompt": "Be brief.", "rejected_prompt": "Be long!", "response": " No."}
CROSSED = {"hi_prompt": "Be brief.", "lo_prompt": "Be long!", "chosen": " No.", "rejected": " No, never."}
USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def read(kind, rows, write_rows, byte, length=None, **options):
    return load_stream({"kind": kind, "path": write_rows(*rows)}, byte, length, **options)


def texts(example, byte):
    """(own prompt, response) of each response, read back from the tokens."""
    cuts = example.side["prompt_lengths"].astype(int)
    return [(byte.decode(ids[:cut]), byte.decode(ids[cut:])) for ids, cut in zip(example.responses, cuts, strict=True)]


def test_every_response_follows_its_own_prompt(write_rows, byte):
    first, second = read("joint", [JOINT, SAME], write_rows, byte)
    assert texts(first, byte) == [("Sum:", " 4"), ("Sing:", " la la")]
    assert texts(second, byte) == [("Be brief.", " No."), ("Be long!", " No.")]
    for example in (first, second):
        assert example.prompt.tolist() == [byte.bos_id]
        assert all(ids[-1] == byte.eos_id for ids in example.responses)
        assert all(mask.all() for mask in example.masks)
    assert first.meta["prompts"] == ("Sum:", "Sing:") and first.meta["responses"] == (" 4", " la la")


def test_a_batch_shows_where_prompts_end(write_rows, byte):
    found = read("joint", [JOINT], write_rows, byte)
    stream = layouts.StreamShape(1, 2, 1, 14, ("prompt_lengths",))
    planned = layouts.plan({"joint": found}, layouts.batch_shape({"joint": stream}))
    shown = show.batch(planned, byte, colour=False)
    assert "prompt_lengths [4.0, 5.0]" in shown and "[[Sum: 4<eos>]]" in shown


def test_crossed_rows_have_both_responses_under_both_prompts(write_rows, byte):
    (example,) = read("crossed", [CROSSED], write_rows, byte)
    assert texts(example, byte) == [
        ("Be brief.", " No."),
        ("Be brief.", " No, never."),
        ("Be long!", " No."),
        ("Be long!", " No, never."),
    ]


def test_pairs_are_joint_rows_with_one_prompt(write_rows, byte):
    rows = [
        {"prompt": "Sum:", "chosen": " 4", "rejected": " 5", "weight": 2.0},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    ]
    found = read("joint", [rows[0]], write_rows, byte)
    assert texts(found[0], byte) == [("Sum:", " 4"), ("Sum:", " 5")]
    assert found[0].side["weight"] == 2
    assert texts(read("joint", [rows[1]], write_rows, byte)[0], byte)[1] == ("\n\nHuman: a\n\nAssistant:", " c")


def test_messages_are_written_by_the_template(write_rows, byte):
    row = {"chosen_prompt": [USER], "rejected_prompt": "Ho", "response": [BOT]}
    with pytest.raises(DataError, match="holds messages"):
        read("joint", [row], write_rows, byte, template="chatml")
    (example,) = read("joint", [row | {"response": "Hello"}], write_rows, byte, template="chatml")
    (prompt, response), (other, same) = texts(example, byte)
    assert prompt == "<|im_start|>user\nHi\n<|im_start|>assistant\n"
    assert other == prompt.replace("Hi", "Ho") and response == same == "Hello"


def test_only_trained_turns_and_prompts_are_targets(write_rows, byte):
    answer = [BOT, USER | {"content": "Bye"}, BOT | {"content": "Go"}]
    row = {"chosen_prompt": [USER], "chosen": answer, "rejected_prompt": [USER], "rejected": "No"}
    (example,) = read("joint", [row], write_rows, byte, template="chatml")
    ids, mask, own = example.responses[0], example.masks[0], int(example.side["prompt_lengths"][0])
    assert mask[:own].all()
    assert byte.decode(ids[own:][mask[own:]]) == "HelloGo"


def test_what_the_transforms_make_is_read():
    tea = transforms.Instruction("Mention tea.", lambda response: "tea" in response)
    loud = transforms.Instruction("Shout.", str.isupper)
    rng = np.random.default_rng(0)
    intra = transforms.mapl_intra_pair("Drink?", " tea", [tea, loud], count=1, rng=rng)
    (record,) = records.parse("joint", intra)
    assert record.prompts == ("Drink?\nMention tea.", "Drink?\nShout.") and record.responses == (" tea", " tea")
    inter = transforms.mapl_inter_pair("Drink?", " tea", " NO", [tea, loud], count=1, rng=rng)
    (record,) = records.parse("crossed", inter)
    assert record.prompts == ("Drink?\nMention tea.",) * 2 + ("Drink?\nShout.",) * 2
    assert record.responses == (" tea", " NO") * 2


def test_lengths_hold_for_prompts_and_responses_apart(write_rows, byte):
    rule = dict(prompt=4, response=3)
    found = read("joint", [JOINT], write_rows, byte, rule)
    assert texts(found[0], byte) == [("um:", " 4"), ("ng:", " la")]
    assert found[0].prompt.tolist() == [byte.bos_id]
    assert sorted(found.counts["truncated"].items()) == [
        ("a prompt was cut to its last 4 tokens", 2),
        ("a response was cut to its first 3 tokens (and lost its end-of-sequence token)", 1),
    ]
    for limits, reason in (({"prompt": 5}, "prompt longer than 5 tokens"), ({"response": 3}, "response longer than 3")):
        with pytest.raises(DataError, match=reason):  # nothing is left
            read("joint", [JOINT], write_rows, byte, dict(**limits, on_long="drop"))
    with pytest.raises(DataError, match="the prompt has 6 tokens; length.prompt allows 5"):
        read("joint", [JOINT], write_rows, byte, dict(prompt=5, on_long="error"))


@pytest.mark.parametrize(
    ("kind", "row", "length", "reason"),
    [
        ("joint", JOINT | {"rejected_prompt": "Sum:", "rejected": " 4"}, {}, "identical responses"),
        ("joint", SAME | {"rejected_prompt": "Be brief."}, {}, "identical responses"),
        ("joint", SAME | {"rejected_prompt": "Oh, be brief."}, {"prompt": 4}, "identical responses after truncation"),
        ("crossed", CROSSED | {"rejected": " No."}, {}, "identical responses"),
        ("crossed", CROSSED | {"lo_prompt": "Be brief."}, {}, "identical responses"),
        ("crossed", CROSSED, {"response": 3}, "identical responses after truncation"),
    ],
)
def test_what_is_the_same_under_the_same_prompt_is_dropped(kind, row, length, reason, write_rows, byte):
    rows = [row, {"joint": SAME | {"response": " A"}, "crossed": CROSSED | {"chosen": "A"}}[kind]]
    found = read(kind, rows, write_rows, byte, length)
    assert len(found) == 1 and found.counts["dropped"] == {reason: 1}


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("joint", {"chosen_prompt": "p", "chosen": "a", "rejected": "b"}, "field 'rejected_prompt' is missing"),
        ("joint", {"chosen_prompt": "p", "rejected_prompt": "q", "chosen": "a"}, "field 'rejected' is missing"),
        ("joint", {"chosen_prompt": "p", "rejected_prompt": "q", "response": " "}, "field 'response' is empty"),
        ("joint", {"prompt": "p", "response": "a"}, "field 'chosen' is missing"),
        ("crossed", {"hi_prompt": "p", "chosen": "a", "rejected": "b"}, "field 'lo_prompt' is missing"),
        ("crossed", {"hi_prompt": [BOT], "lo_prompt": "q", "chosen": "a", "rejected": "b"}, "field 'hi_prompt' ends"),
    ],
)
def test_bad_rows(kind, row, message):
    with pytest.raises(DataError, match=message):
        records.parse(kind, row)


def test_prompts_that_begin_with_different_tokens_need_a_beginning_of_sequence(write_rows, make_bpe):
    from jaxpref.data import tokenizers

    bare = tokenizers.load(make_bpe(bos_token=None))
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: the prompts begin with different tokens.*beginning-of-sequence"
    ):
        read("joint", [SAME | {"chosen_prompt": "Oh!"}], write_rows, bare)
    (example,) = read("joint", [SAME], write_rows, bare, template="chatml")  # both begin with the header of the user
    assert example.prompt.tolist() == [bare.special["<|im_start|>"]]
