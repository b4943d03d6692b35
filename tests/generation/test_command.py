"""The function behind ``jaxpref generate``: files of prompts, and a dialogue."""

import dataclasses
import io
import json
import sys

import jax
import numpy as np
import pytest

from jaxpref import data
from jaxpref.errors import ConfigError, DataError
from jaxpref.generation import command, sampler
from tests.models.families import FAMILIES, LLAMA, build

BYTE = data.tokenizers.load("byte")
MODEL, PARAMS = build(dataclasses.replace(LLAMA, vocab_size=259))
CHAT = [{"role": "user", "content": "Hello"}]
ROWS = [{"prompt": "One"}, {"messages": CHAT}, {"prompt": CHAT}, {"prompt": "Ünï"}, {"prompt": "5", "note": "unread"}]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def run(prompts, output, **options):
    options = {"max_tokens": 6, "template": "chatml"} | options
    command.run(MODEL, PARAMS, BYTE, prompts=prompts, output=output, **options)
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_every_prompt_gets_its_lines_in_order(prompts, tmp_path):
    lines = run(prompts, tmp_path / "new" / "out.jsonl", samples=2, batch_size=5)
    assert [line["prompt"] for line in lines] == [p for p in ("One", CHAT, CHAT, "Ünï", "5") for _ in range(2)]
    assert {tuple(line) for line in lines} == {("prompt", "completion", "tokens", "finished", "logp")}
    assert all(1 <= line["tokens"] <= 6 and line["logp"] < 0 for line in lines)
    assert all(line["finished"] or line["tokens"] == 6 for line in lines)
    assert len({line["completion"] for line in lines}) > 5


def test_lines_do_not_depend_on_the_batch_size_but_on_the_seed(prompts, tmp_path):
    def logps(name, **options):
        lines = run(prompts, tmp_path / name, **options)
        return [line["completion"] for line in lines], np.array([line["logp"] for line in lines])

    texts, values = logps("a")
    others, close = logps("b", batch_size=2)
    assert texts == others
    np.testing.assert_allclose(values, close, atol=1e-4)
    assert logps("c", seed=1)[0] != texts


def test_lines_are_written_as_soon_as_their_batch_is_done(prompts, tmp_path, monkeypatch):
    seen, sample, output = [], sampler._sample, tmp_path / "out.jsonl"

    def watched(*arguments):
        seen.append(len(output.read_text().splitlines()))
        return sample(*arguments)

    monkeypatch.setattr(sampler, "_sample", watched)
    run(prompts, output, batch_size=2)
    assert seen == [0, 2, 4]


def test_without_an_output_lines_go_to_the_terminal(prompts, capsys):
    command.run(MODEL, PARAMS, BYTE, template="chatml", prompts=prompts, max_tokens=2, prompt_limit=20)
    printed = capsys.readouterr()
    assert [json.loads(line)["prompt"] for line in printed.out.splitlines()] == ["One", CHAT, CHAT, "Ünï", "5"]
    assert "a prompt was cut to its last 20 tokens" in printed.err


def test_without_a_file_every_line_is_answered_by_itself(monkeypatch, capsys):
    def answers(text):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        command.run(MODEL, PARAMS, BYTE, max_tokens=4, temperature=0)
        return capsys.readouterr().out

    both = answers("One\nTwo\n")
    assert both == answers("One\n") + answers("Two")
    assert both


def test_a_terminal_is_asked_and_a_bad_line_costs_only_itself(capsys):
    model, params = build(dataclasses.replace(FAMILIES["gpt2"], vocab_size=259))
    lines = io.StringIO(f"{'long' * 20}\nshort\n")
    lines.isatty = lambda: True
    template = data.templates.load("none", BYTE)
    command.converse(model, params, BYTE, template, lines, sys.stdout, key=jax.random.key(0), max_tokens=3, stop_ids=())
    printed = capsys.readouterr().out
    assert printed.startswith(command.HINT + "\n> error: the longest prompt and max_tokens together take 84 positions")
    assert printed.count("> ") == 3


def test_stop_tokens_may_be_given_as_text():
    template = data.templates.load("none", BYTE)
    assert command.stop_ids(BYTE, template) == (BYTE.eos_id,)
    assert command.stop_ids(BYTE, template, ["\n", "<pad>"]) == (10, BYTE.eos_id, 258)
    with pytest.raises(ConfigError, match="stop is 'ab', which is 2 tokens; expected the text of one token"):
        command.stop_ids(BYTE, template, ["ab"])


@pytest.mark.parametrize(
    "row, message",
    [
        ('{"prompt": "a"', "prompts.jsonl:6: the line is no valid JSON"),
        ('{"text": "a"}', "prompts.jsonl:6: field 'prompt' is missing"),
        ('{"prompt": 3}', "prompts.jsonl:6: field 'prompt' is "),
    ],
)
def test_a_bad_row_is_named(row, message, prompts, tmp_path):
    prompts.write_text(prompts.read_text() + row + "\n")
    with pytest.raises(DataError, match=message):
        run(prompts, tmp_path / "out.jsonl")


def test_a_bad_option_leaves_an_earlier_output_alone(prompts, tmp_path):
    before = run(prompts, tmp_path / "out.jsonl")
    for option in ({"top_p": 0.0}, {"samples": 0}, {"stop": ["two"]}, {"template": "chatlm"}, {"prompt_limit": -1}):
        with pytest.raises(ConfigError, match="expected"):
            run(prompts, tmp_path / "out.jsonl", **option)
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == before


def test_outputs_that_cannot_be_are_refused(prompts, tmp_path):
    with pytest.raises(ConfigError, match="is the file of prompts; give another file"):
        run(prompts, prompts)
    with pytest.raises(ConfigError, match="cannot be written"):
        run(prompts, tmp_path)
    with pytest.raises(ConfigError, match="there is no file of prompts"):
        command.run(MODEL, PARAMS, BYTE, output=tmp_path / "out.jsonl", max_tokens=3)
    with pytest.raises(DataError, match="no file"):
        run(tmp_path / "missing.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="the model's vocabulary holds 37"):
        command.run(*build(LLAMA), BYTE, prompts=prompts, max_tokens=3)
