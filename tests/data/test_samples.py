"""Rows with samples: read behind the row's own responses where an objective wants them, else a free field."""

import dataclasses
import json

import numpy as np
import pytest

from jaxpref import data
from jaxpref.data import layouts, load_stream, samples
from jaxpref.errors import DataError
from jaxpref.generation import command
from tests.models.families import LLAMA, build

READS = frozenset({"samples", "ids"})
PAIRS = [
    {"prompt": "A fruit:", "chosen": " fig", "rejected": " shoe", "samples": [" plum", " a very old boot"]},
    {"prompt": "A tree:", "chosen": " oak", "rejected": " cup", "note": "none"},
    {"prompt": "A river:", "chosen": " Po", "rejected": " Alps", "samples": [""]},
]
USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


@pytest.fixture
def path(write_rows):
    return write_rows(*PAIRS)


def texts(byte, example):
    return [byte.decode(response) for response in example.responses]


def test_they_come_behind_the_responses_of_the_row(byte, path):
    for kind, own in {"pairs": 2, "demonstrations": 1}.items():
        found = load_stream({"kind": kind, "path": path}, byte, reads=READS)
        given = [[" fig", " shoe"], [" oak", " cup"], [" Po", " Alps"]]
        drawn = [[" plum", " a very old boot"], ["", ""], ["", ""]]
        assert [texts(byte, e) for e in found] == [a[:own] + b for a, b in zip(given, drawn, strict=True)]
        sizes = [[len(response) for response in e.responses[own:]] for e in found]
        assert sizes == [
            [6, 17],
            [0, 0],
            [1, 0],
        ]  # saying nothing is an end-of-sequence token, which an absent one lacks
        assert [e.side["ids"] for e in found] == [0, 1, 2]
        assert "2 of 3 examples have samples" in found.summary()
        assert found[1].meta["note"] == "none" and "samples" not in found[0].meta


def test_unread_they_are_a_free_field(byte, path, write_rows):
    without = write_rows(*({k: v for k, v in row.items() if k != "samples"} for row in PAIRS), name="without.jsonl")
    for kind in ("pairs", "demonstrations", "unpaired", "prompts"):
        found, plain = (load_stream({"kind": kind, "path": file}, byte) for file in (path, without))
        assert found.fingerprint == plain.fingerprint
        assert found[0].meta["samples"] == PAIRS[0]["samples"]
        told = "2 of 3 examples have 'samples', which no objective reads" in found.summary()
        assert told == (kind in samples.FIRST_SAMPLE)


def test_a_sample_never_costs_an_example(byte, write_rows):
    """One that is too long is dropped alone, and one that repeats the row's own response is no mistake."""
    row = PAIRS[0] | {"samples": [" fig", " a very old boot", " shoe"]}
    stream = {"kind": "pairs", "path": write_rows(row)}
    found = load_stream(stream, byte, {"response": 8, "on_long": "drop"}, reads=READS)
    assert texts(byte, found[0]) == [" fig", " shoe", " fig", " shoe"]
    assert found.counts["dropped"] == {"sample longer than 8 tokens": 1}
    with pytest.raises(DataError, match=r"rows.jsonl:1: the sample has 17 tokens; length.response allows 8"):
        load_stream(stream, byte, {"response": 8, "on_long": "error"}, reads=READS)
    cut = load_stream(stream, byte, {"response": 8}, reads=READS)
    assert texts(byte, cut[0])[3] == " a very "
    one = write_rows({"prompt": "p", "completion": " fig", "samples": [" fig"]})
    assert len(load_stream({"kind": "demonstrations", "path": one}, byte, reads=READS)) == 1


def test_messages_have_samples_as_text_or_messages(byte, write_rows):
    rows = [{"messages": [USER, BOT], "samples": ["Hey", [{"role": "assistant", "content": "Hey"}]]}]
    (found,) = load_stream({"kind": "demonstrations", "path": write_rows(*rows)}, byte, template="chatml", reads=READS)
    assert texts(byte, found)[1:] == ["Hey", "Hey"]
    np.testing.assert_array_equal(found.responses[1], found.responses[2])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "field 'samples' is a list of 0; expected a list of at least 1 response"),
        (" plum", "field 'samples' is the string ' plum'; expected a list of at least 1 response"),
        ([3], "field 'samples\\[0\\]' is int 3; expected"),
        ([" a", [USER]], "field 'samples\\[1\\]' must begin and end with a turn of the assistant"),
    ],
)
def test_what_is_no_list_of_responses_is_a_bad_row(value, message, byte, write_rows):
    stream = {"kind": "pairs", "path": write_rows(PAIRS[0], PAIRS[0] | {"samples": value})}
    with pytest.raises(DataError, match=f"rows.jsonl:2: {message}"):
        load_stream(stream, byte, reads=READS)
    found = load_stream(stream | {"on_bad_row": "skip"}, byte, reads=READS)
    assert (len(found), found.counts["skipped"]) == (1, 1)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_absent_samples_take_no_room(layout, byte, path):
    found = load_stream({"kind": "pairs", "path": path}, byte, reads=READS)
    shape = layouts.StreamShape(4, 4, 20, 20, ("ids",))
    planned = layouts.plan({"pairs": found[:]}, layouts.batch_shape({"pairs": shape}, layout=layout)).examples["pairs"]
    assert planned.mask.sum(-1).tolist() == [[5, 6, 6, 17], [5, 5, 0, 0], [4, 6, 1, 0], [0] * 4]
    assert planned.side["ids"].dtype == np.int32 and planned.side["ids"].tolist() == [0, 1, 2, 0]


def test_what_generate_writes_is_joined_by_the_prompt(tmp_path):
    byte = data.tokenizers.load("byte")
    rows = [{"prompt": "One", "completion": " two"}, {"prompt": [USER], "completion": "Hello"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, params = build(dataclasses.replace(LLAMA, vocab_size=259))
    options = dict(prompts=tmp_path / "rows.jsonl", output=tmp_path / "drawn.jsonl", samples=2, max_tokens=4)
    command.run(model, params, byte, template="chatml", **options)
    lines = [json.loads(line) for line in (tmp_path / "drawn.jsonl").read_text().splitlines()]
    found = samples.joined(rows, lines[::-1])
    assert [row["samples"] for row in found] == [[lines[n + 1]["completion"], lines[n]["completion"]] for n in (0, 2)]
    assert [{k: v for k, v in row.items() if k != "samples"} for row in found] == rows
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    stream = {"kind": "demonstrations", "path": str(tmp_path / "rows.jsonl")}
    assert [len(e.responses) for e in load_stream(stream, byte, template="chatml", reads=READS)] == [3, 3]
    with pytest.raises(DataError, match="row 2: no sample was drawn for its prompt"):
        samples.joined(rows, lines[:2])
