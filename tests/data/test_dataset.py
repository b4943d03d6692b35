"""Streams: length rules, counts, mixtures, and what is said about wrong configs and bad rows."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from ml_collections import ConfigDict

from jaxpref.data import dataset, examples, load_stream
from jaxpref.errors import ConfigError, DataError

PAIR = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
HH = "hh_rlhf"


@given(
    size=st.integers(0, 12),
    limit=st.integers(0, 12),
    keep=st.sampled_from(["start", "end"]),
)
def test_trap_08_truncation_keeps_a_contiguous_prefix_or_suffix(size, limit, keep):
    values = list(range(size))
    kept = examples._cut(values, limit, keep)
    assert len(kept) == (min(size, limit) if limit else size)
    assert kept == (values[: len(kept)] if keep == "start" else values[size - len(kept) :])


@given(
    prompt=st.text("ab c", max_size=9),
    chosen=st.text("ab c", min_size=1, max_size=9).filter(str.strip),
    prompt_limit=st.sampled_from([0, 2, 3, 7]),
    limit=st.sampled_from([0, 1, 3, 7]),
    keeps=st.tuples(*[st.sampled_from(["start", "end"])] * 2),
)
def test_trap_08_09_the_length_rule_on_examples(byte, prompt, chosen, prompt_limit, limit, keeps):
    rule = examples.Lengths(prompt=prompt_limit, response=limit, prompt_keep=keeps[0], response_keep=keeps[1])
    ledger = examples.Ledger("error")
    record = dataset.records.parse("demonstrations", {"prompt": prompt, "completion": chosen})
    layout = examples.templates.load("none", byte)
    (made,) = examples.tokenise([("row:1", record[0])], byte, layout, rule, ledger)
    full = [byte.bos_id, *prompt.encode()], [*chosen.encode(), byte.eos_id]
    assert 1 <= len(made.prompt) == min(len(full[0]), prompt_limit or 99)
    assert 1 <= len(made.responses[0]) == len(made.masks[0]) == min(len(full[1]), limit or 99)
    if keeps[0] == "end":
        assert made.prompt[0] == byte.bos_id
        assert made.prompt[1:].tolist() == full[0][1:][len(full[0]) - len(made.prompt) :]
    else:
        assert made.prompt.tolist() == full[0][: len(made.prompt)]
    assert (made.responses[0][-1] == byte.eos_id) == (keeps[1] == "end" or len(made.responses[0]) == len(full[1]))
    cut = (len(made.prompt) < len(full[0])) + (len(made.responses[0]) < len(full[1]))
    assert sum(ledger.truncated.values()) == cut


def test_what_is_cut_is_counted_and_shown(byte, write_rows):
    path = write_rows(PAIR, PAIR | {"prompt": "a" * 9}, PAIR | {"chosen": "bad!"})
    found = load_stream({"kind": "pairs", "path": path}, byte, {"prompt": 8, "response": 3}, name="preferences")
    assert found.counts == {
        "read": 3,
        "kept": 2,
        "skipped": 0,
        "dropped": {"identical responses after truncation": 1},
        "truncated": {
            "a response was cut to its first 3 tokens (and lost its end-of-sequence token)": 4,
            "a prompt was cut to its last 8 tokens": 1,
        },
    }
    assert found.summary().startswith(
        "preferences (pairs): 3 rows read, 2 examples kept; 1 dropped: identical responses"
    )


def test_trap_09_long_examples_are_dropped_or_refused_as_configured(byte, write_rows):
    stream = {"kind": "pairs", "path": write_rows(PAIR, PAIR | {"prompt": "a" * 30})}
    found = load_stream(stream, byte, {"prompt": 10, "on_long": "drop"})
    assert (len(found), found.counts["dropped"]) == (1, {"prompt longer than 10 tokens": 1})
    with pytest.raises(DataError, match="rows.jsonl:2: the prompt has 31 tokens; length.prompt allows 10"):
        load_stream(stream, byte, {"prompt": 10, "on_long": "error"})
    found = load_stream(stream | {"on_bad_row": "skip"}, byte, {"prompt": 10, "on_long": "error"})
    assert (len(found), found.counts["skipped"]) == (1, 1)


def test_a_cut_that_leaves_no_target_drops_the_example(byte, write_rows):
    turns = [{"role": role, "content": "x" * 9} for role in ("user", "assistant", "user", "assistant")]
    stream = {"kind": "demonstrations", "path": write_rows({"messages": turns}, {"messages": turns[:2]})}
    assert len(load_stream(stream, byte, {"response": 5})) == 2
    found = load_stream(stream, byte, {"response": 12, "response_keep": "end"})
    assert [int(e.masks[0].sum()) for e in found] == [10, 10]
    turns[1]["weight"], turns[3]["content"] = 0, "y"
    pair = {"prompt": turns[:1], "chosen": turns[1:], "rejected": "no"}
    with pytest.raises(DataError, match="has no example left of 1 rows read .no target token left"):
        load_stream({"kind": "pairs", "path": write_rows(pair)}, byte, {"response": 5})


def test_trap_32_tokens_are_flat_integer_arrays(byte, write_rows):
    (example,) = load_stream({"kind": "pairs", "path": write_rows(PAIR)}, byte)
    for array in (example.prompt, *example.responses):
        assert array.dtype == np.int32 and array.ndim == 1
    assert all(
        mask.dtype == bool and mask.shape == ids.shape
        for mask, ids in zip(example.masks, example.responses, strict=True)
    )
    assert example.meta == {"prompt": "ask", "responses": ("good", "bad")}
    assert example.origin == "rows.jsonl:1"


def test_trap_35_an_end_token_inside_a_response_is_masked_by_place_alone(bpe, write_rows):
    row = PAIR | {"chosen": "good</s>even better</s>"}
    (example,) = load_stream({"kind": "pairs", "path": write_rows(row)}, bpe)
    assert list(example.responses[0]).count(bpe.eos_id) == 2
    assert example.masks[0].all()


def test_an_empty_prompt_needs_a_beginning_of_sequence(byte, make_bpe, write_rows):
    from jaxpref.data import tokenizers

    stream = {"kind": "pairs", "path": write_rows(PAIR | {"prompt": ""})}
    assert load_stream(stream, byte)[0].prompt.tolist() == [byte.bos_id]
    with pytest.raises(DataError, match="'prompt' is empty, and the tokenizer has no beginning-of-sequence token"):
        load_stream(stream, tokenizers.load(make_bpe(bos_token=None)))


def test_trap_07_bad_rows_raise_or_are_counted(byte, write_rows):
    path = write_rows(
        PAIR, '{"prompt": ', {"prompt": "p"}, PAIR | {"chosen": ""}, "", PAIR | {"rejected": 1}, "7", PAIR
    )
    with pytest.raises(DataError, match="rows.jsonl:2: the line is no valid JSON"):
        load_stream({"kind": "pairs", "path": path}, byte)
    found = load_stream({"kind": "pairs", "path": path, "on_bad_row": "skip"}, byte)
    assert (found.counts["read"], found.counts["kept"], found.counts["skipped"]) == (7, 2, 5)
    assert [problem.split(":")[1] for problem in found.problems] == ["2", "3", "4", "6", "7"]
    assert "5 bad rows skipped" in found.summary() and "rows.jsonl:4: field 'chosen' is empty" in found.summary()


def test_numbers_that_some_rows_lack(byte, write_rows):
    path = write_rows(PAIR | {"tie": True, "margin": 2.0, "user_id": 1}, PAIR | {"user_id": 2})
    found = load_stream({"kind": "pairs", "path": path}, byte)
    assert [example.side for example in found] == [{"tie": True, "user_id": 1}, {"tie": False, "user_id": 2}]
    assert found[0].meta["margin"] == 2.0
    assert found.problems == ("1 of 2 examples have 'margin', so objectives cannot read it.",)


def test_trap_61_the_fingerprint_changes_with_anything_that_training_sees(byte, write_rows):
    def of(*rows, **length):
        return load_stream({"kind": "pairs", "path": write_rows(*rows)}, byte, length).fingerprint

    other = PAIR | {"prompt": "else"}
    prints = [of(PAIR, other), of(other, PAIR), of(PAIR), of(PAIR | {"margin": 1.0}), of(PAIR | {"margin": 2.0})]
    assert len({*prints, of(PAIR, other, response=3)}) == 6
    assert of(PAIR, other) == prints[0] == of(PAIR | {"free": "text"}, other)


def test_steps_end_at_tokens(byte, write_rows):
    rows = [
        {"prompt": "q", "completions": ["ab", "cde"], "labels": [True, False]},
        {"prompt": "q", "completions": ["f"], "labels": [1.0]},
    ]
    stream = {"kind": "steps", "path": write_rows(*rows), "step_separator": "; "}
    first, second = load_stream(stream, byte)
    assert byte.decode(first.responses[0]) == "ab; cde"
    assert (first.meta["step_ends"], first.meta["step_labels"]) == (((3, 7),), (1.0, 0.0))
    assert second.meta["step_ends"] == ((1,),)
    (cut, _) = load_stream(stream, byte, {"response": 5})
    assert cut.meta["step_ends"] == ((3,),)


@pytest.mark.parametrize("template", ["chatml", "tokenizer"])
def test_steps_in_a_chat_template(template, bpe, write_rows):
    row = {"prompt": "q", "steps": ["s"], "chosen": ["hello world", "wide"], "rejected": ["web"]}
    (example,) = load_stream({"kind": "steps", "path": write_rows(row)}, bpe, template=template)
    assert bpe.decode(example.prompt).endswith("user\nqs\n\nassistant\n")
    ends = example.meta["step_ends"][0]
    assert bpe.decode(example.responses[0][: ends[0] + 1]) == "hello world\n"
    assert ends[1] == len(example.responses[0]) - 1


def test_a_mixture_has_its_shares_and_repeats_nothing(byte, write_rows):
    paths = [
        write_rows(*(PAIR | {"prompt": f"{name}{n}"} for n in range(20)), name=name) for name in ("a.jsonl", "b.jsonl")
    ]
    sources = [{"path": path, "weight": weight} for path, weight in zip(paths, (3.0, 1.0), strict=True)]
    found = load_stream({"kind": "pairs", "sources": sources}, byte)
    names = [example.origin[0] for example in found]
    assert abs(names.count("a") - 3 * names.count("b")) <= 3
    assert names.count("a") >= 19
    assert len({example.origin for example in found}) == len(found)
    assert found.counts["dropped"] == {"left over by the weights of the mixture": 40 - len(found)}
    assert [e.origin for e in found] == [e.origin for e in load_stream({"kind": "pairs", "sources": sources}, byte)]
    sources[0]["repeat"] = 2
    assert [e.origin[0] for e in load_stream({"kind": "pairs", "sources": sources}, byte)].count("a") >= 38


def test_several_sources_follow_one_another(byte, write_rows):
    path = write_rows(*(PAIR | {"prompt": str(n)} for n in range(4)))
    sources = (dict(path=path, lines=(2, 3)), dict(path=path, limit=1), dict(path=[path], repeat=2))
    found = load_stream(ConfigDict({"kind": "pairs", "sources": sources}), byte, ConfigDict({"response": 9}))
    assert [example.meta["prompt"] for example in found] == [*"12", "0", *"01230123"]


@pytest.mark.parametrize(
    "stream, message",
    [
        ({"path": "x"}, "data.data has no field 'kind'; expected one of demonstrations, pairs"),
        ({"kind": "pair", "path": "x"}, "data.data.kind is 'pair'; did you mean 'pairs'"),
        ({"kind": "pairs", "pth": "x"}, "data.data has no field 'pth'; did you mean 'path'"),
        ({"kind": "pairs", "path": "x", "on_bad_rows": "skip"}, "no field 'on_bad_rows'; did you mean 'on_bad_row'"),
        ({"kind": "pairs", "path": "x", "on_bad_row": "ignore"}, "on_bad_row is 'ignore'; there are error, skip"),
        ({"kind": "pairs", "path": "x", "turns": "all"}, "data.data.turns is read by no stream of kind 'pairs'"),
        ({"kind": "pairs", "path": "x", "weight": 1.0}, "a single source has no share"),
        ({"kind": "pairs", "path": "x", "source": "world:bandit"}, "give exactly one"),
        ({"kind": "pairs"}, "data.data names no data; expected 'path'"),
        ({"kind": "pairs", "source": "wrld:bandit"}, "source is 'wrld:bandit'; expected 'world:<name>'"),
        ({"kind": "pairs", "source": "world:bandit"}, "source 'world:bandit' needs 'size'"),
        ({"kind": "pairs", "source": "world:bandit", "size": 3, "nois": 1}, "no field 'nois'; did you mean 'noise'"),
        ({"kind": "pairs", "path": "x", "noise": 1}, "data.data has no field 'noise'"),
        ({"kind": "pairs", "path": "x", "limit": 0}, "limit is 0; expected a positive number"),
        ({"kind": "pairs", "sources": []}, "data.data.sources is empty"),
        ({"kind": "pairs", "sources": [{"path": "x"}], "limit": 3}, "data.data has no field 'limit'"),
        (
            {"kind": "pairs", "sources": [{"pat": "x"}]},
            r"data.data.sources\[0\] has no field 'pat'; did you mean 'path'",
        ),
        ({"kind": "pairs", "sources": [{"path": "x", "weight": 1}, {"path": "y"}]}, "give all of them one, or none"),
        ({"kind": "pairs", "path": "x", "lines": (3, 2)}, "lines is .3, 2.; expected .first, last."),
    ],
)
def test_wrong_streams_are_config_errors(stream, message, byte, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    with pytest.raises(ConfigError, match=message):
        load_stream(stream, byte)


@pytest.mark.parametrize(
    "length, message",
    [
        ({"promt": 3}, "length has no field 'promt'; did you mean 'prompt'"),
        ({"prompt": -1}, "length.prompt is -1"),
        ({"prompt": 1}, "length.prompt is 1; expected a number of tokens, at least 2"),
        ({"response": 1.5}, "length.response is 1.5"),
        ({"on_long": "trunc"}, "length.on_long is 'trunc'"),
    ],
)
def test_wrong_lengths_are_config_errors(length, message, byte, write_rows):
    with pytest.raises(ConfigError, match=message):
        load_stream({"kind": "pairs", "path": write_rows(PAIR)}, byte, length)


def test_renamed_fields(byte, write_rows):
    stream = {"kind": "pairs", "path": write_rows({"q": "ask", "yes": "good", "no": "bad", "topic": 1})}
    (example,) = load_stream(stream | {"fields": {"prompt": "q", "chosen": "yes", "rejected": "no"}}, byte)
    assert example.meta == {"prompt": "ask", "responses": ("good", "bad"), "topic": 1}
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: field 'good' \(to be read as 'chosen'\) is missing; the row has 'q'"
    ):
        load_stream(stream | {"fields": {"chosen": "good"}}, byte)


def hh(part, *names):
    sources = {
        "train": [("helpful-rejection-sampled", None), ("helpful-online", None), ("helpful-base", (1, 1354))],
        "test": [("helpful-base", (1355, 2354))],
        "harmless": [("harmless-base", None)],
    }[part]
    endings = {"harmless-base": ".test.first500.jsonl.gz"}
    return [
        {"path": f"$JAXPREF_DATA/{HH}/{name}{endings.get(name, '.test.jsonl.gz')}"}
        | ({"lines": lines} if lines else {})
        for name, lines in sources
    ]


@pytest.mark.parametrize(
    "part, name, read, dropped, empty",
    [
        ("train", "byte", 5240, {"prompts differ": 11, "identical responses": 35}, 6),
        ("test", "stories", 1000, {"prompts differ": 1, "identical responses": 1}, 1),
        ("harmless", "stories", 500, {}, 1),
    ],
)
def test_the_split_of_real_preferences_is_counted_exactly(
    part, name, read, dropped, empty, request, data_dir, monkeypatch
):
    monkeypatch.setenv("JAXPREF_DATA", str(data_dir))
    stream, tokenizer = {"kind": "pairs", "sources": hh(part), "on_bad_row": "skip"}, request.getfixturevalue(name)
    found = load_stream(stream, tokenizer, {"prompt": 128, "response": 128})
    same = found.counts["dropped"].pop("identical responses after truncation", 0)
    assert (found.counts["read"], found.counts["dropped"], found.counts["skipped"]) == (read, dropped, empty)
    assert len(found) == read - sum(dropped.values()) - empty - same
    assert max(len(e.prompt) for e in found) == 128 == max(len(r) for e in found for r in e.responses)
    assert all(e.prompt[0] == tokenizer.bos_id for e in found)


def test_an_empty_answer_among_real_preferences_is_named(stories, data_dir, monkeypatch):
    monkeypatch.setenv("JAXPREF_DATA", str(data_dir))
    with pytest.raises(DataError, match="helpful-online.test.jsonl.gz:553: field 'rejected' is empty"):
        load_stream({"kind": "pairs", "sources": hh("train")}, stories)


@pytest.mark.parametrize("template", ["none", "chatml", "human-assistant"])
def test_shapes_that_people_really_have(template, stories, data_dir):
    folder = data_dir / "llamafactory_demos"
    pairs = load_stream({"kind": "pairs", "path": folder / "dpo_en_demo.json.gz"}, stories, template=template)
    assert (len(pairs), pairs.counts["read"]) == (300, 300)
    votes = load_stream({"kind": "unpaired", "path": folder / "kto_en_demo.json.gz"}, stories, template=template)
    assert len(votes) == 300
    assert sum(example.side["label"] for example in votes) == 150
    assert (
        len(load_stream({"kind": "pairs", "path": folder / "v1_dpo_demo.jsonl.gz"}, stories, template=template)) == 10
    )
    tools = {"kind": "demonstrations", "path": folder / "reason_tool_use_demo_50.jsonl.gz", "on_bad_row": "skip"}
    with pytest.raises(
        DataError, match="has no example left of 50 rows read.*of type '(reasoning|tool_call)'; expected text"
    ):
        load_stream(tools, stories, template=template)
