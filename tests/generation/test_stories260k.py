"""A real pretrained model: the greedy text that its author published, character for character."""

import json

import jax
import pytest

from jaxpref import data, models
from jaxpref.generation import command, generate, generate_texts


@pytest.fixture(scope="module")
def stories(data_dir):
    folder = data_dir / "stories260k"
    tokenizer = data.tokenizers.load(folder / "hf")
    return *models.load_hf(folder / "hf"), tokenizer, json.loads((folder / "expected.json").read_text())


def test_the_published_greedy_text_from_the_beginning_of_sequence(stories):
    model, params, tokenizer, expected = stories
    (found,) = generate(model, params, [[tokenizer.bos_id]], key=jax.random.key(0), max_tokens=256, temperature=0)
    assert [tokenizer.bos_id, *found.tokens] == expected["ours"]["greedy_ids"]
    assert tokenizer.decode(found.tokens, after=[tokenizer.bos_id]) == expected["published"]["greedy_text_257"]


def test_the_published_greedy_text_from_a_file_of_prompts(stories, tmp_path):
    *policy, expected = stories
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": ""}\n{"prompt": "Once upon a time, there was a little girl named"}\n')
    command.run(*policy, prompts=prompts, output=output, max_tokens=256, temperature=0)
    empty, begun = (json.loads(line) for line in output.read_text().splitlines())
    assert empty["completion"] == expected["published"]["greedy_text_257"]
    assert (empty["tokens"], empty["finished"]) == (256, False)
    # A completion that goes on a text brings the space that the text lacks.
    assert (begun["prompt"] + begun["completion"]).startswith(expected["published"]["greedy_text_257"])


def test_texts_and_their_leading_spaces(stories):
    model, params, tokenizer, _ = stories
    template = data.templates.load("none", tokenizer)
    texts, _ = generate_texts(
        model, params, tokenizer, template, ["Once upon a", ""], key=jax.random.key(0), max_tokens=3, temperature=0
    )
    assert texts == [" time, there", "Once upon a"]


@pytest.mark.slow
def test_the_published_greedy_text_from_the_command_line(data_dir, tmp_path, run_cli):
    folder, prompts = data_dir / "stories260k", tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": ""}\n')
    options = (f"--model={folder / 'hf'}", f"--prompts={prompts}", "--temperature=0", "--max-tokens=256")
    done = run_cli("generate", *options)
    assert done.code == 0, done.stderr
    expected = json.loads((folder / "expected.json").read_text())["published"]["greedy_text_257"]
    assert json.loads(done.stdout)["completion"] == expected
