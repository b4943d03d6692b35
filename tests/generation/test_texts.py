"""From text to text: prompts as training sees them, completions without special tokens."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxpref import data
from jaxpref.data.examples import Lengths
from jaxpref.errors import ConfigError, DataError
from jaxpref.generation import Generated, decode, encode, generate, generate_texts
from tests.models.families import LLAMA, build

BYTE = data.tokenizers.load("byte")
KEY = jax.random.key(1)
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]


def template(name):
    return data.templates.load(name, BYTE)


def generated(tokens, *, finished):
    return Generated(np.array(tokens, np.int32), np.zeros(len(tokens), np.float32), finished)


@pytest.mark.parametrize("name", ["none", "chatml", "human-assistant"])
@pytest.mark.parametrize("prompt", ["Hello", CHAT, ""], ids=["text", "messages", "nothing"])
def test_prompts_are_encoded_as_training_encodes_them(name, prompt, tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps([{"prompt": prompt}]))
    dataset = data.load_stream({"kind": "prompts", "path": tmp_path / "prompts.json"}, BYTE, template=name)
    (ids,) = encode(BYTE, template(name), [prompt])
    assert ids.tolist() == dataset[0].prompt.tolist()


def test_a_long_prompt_is_cut_by_the_rule_or_refused():
    (ids,) = encode(BYTE, template("none"), ["abcdef"], length=Lengths(prompt=4))
    assert ids.tolist() == [BYTE.bos_id, *b"def"]
    with pytest.raises(DataError, match=r"prompt 1: the prompt has 7 tokens; length.prompt allows 4"):
        encode(BYTE, template("none"), ["a", "abcdef"], length=Lengths(prompt=4, on_long="error"))
    with pytest.raises(ConfigError, match="every prompt wants an answer"):
        encode(BYTE, template("none"), ["a"], length=Lengths(prompt=4, on_long="drop"))


def test_special_tokens_and_the_stop_token_are_not_shown():
    prompt = [BYTE.bos_id, *b"say"]
    assert decode(BYTE, generated([*b" hi", BYTE.eos_id], finished=True), prompt=prompt) == " hi"
    assert decode(BYTE, generated([*b"\nhi.", *b"\n"], finished=True), prompt=prompt) == "\nhi."
    assert decode(BYTE, generated([*b"hi", BYTE.bos_id, *b"!"], finished=False), prompt=prompt) == "hi!"
    assert decode(BYTE, generated([BYTE.eos_id], finished=True), prompt=prompt) == ""


def test_texts_are_those_of_the_tokens_and_stop_where_the_template_does():
    model, params = build(dataclasses.replace(LLAMA, vocab_size=259))
    options = dict(key=KEY, max_tokens=9, samples=2)
    prompts = ["Hello", CHAT]
    texts, found = generate_texts(model, params, BYTE, template("chatml"), prompts, **options)
    ids = encode(BYTE, template("chatml"), prompts)
    direct = generate(model, params, ids, stop_ids=[BYTE.eos_id], **options)
    assert [one.tokens.tolist() for one in found] == [one.tokens.tolist() for one in direct]
    assert texts == [decode(BYTE, one, prompt=ids[n // 2]) for n, one in enumerate(direct)]


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused():
    model, params = build(LLAMA)
    with pytest.raises(DataError, match="has 259 tokens, but the model's vocabulary holds 37"):
        generate_texts(model, params, BYTE, template("none"), ["a"], key=KEY, max_tokens=1)
