"""Word-level tokens: short, lossless, complete."""

import hypothesis
import hypothesis.strategies as st
import pytest

from jaxpref.data import tokenizers, worlds

TOKENIZER, BYTE = worlds.tokenizer("sentiment"), tokenizers.load("byte")
PHRASES = worlds.sentiment.phrases()


def test_a_review_is_a_few_tokens():
    prompt, response = "Ann on film: ", "not dull cast, very warm song but weak plot."
    assert [TOKENIZER.decode([number]) for number in TOKENIZER.encode(prompt)] == ["Ann on ", "film: "]
    pieces = [TOKENIZER.decode([number]) for number in TOKENIZER.encode(response)]
    assert pieces == ["not ", "dull ", "cast", ", ", "very ", "warm ", "song", " but ", "weak ", "plot", "."]
    longest = 0
    for record in worlds.sentiment.records("demonstrations", size=1000):
        ids = TOKENIZER.encode(record["prompt"]) + TOKENIZER.encode(record["completion"])
        assert ids[-1] == ord(".") and min(ids[:-1]) >= BYTE.vocab_size
        assert TOKENIZER.decode(ids) == record["prompt"] + record["completion"]
        longest = max(longest, len(ids))
    assert longest <= 14


@hypothesis.given(st.text() | st.lists(st.sampled_from(PHRASES)).map("".join))
def test_every_text_decodes_to_itself(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text, markup=False)) == text


def test_bytes_and_special_tokens_keep_their_ids():
    assert (TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.special) == (BYTE.bos_id, BYTE.eos_id, BYTE.special)
    assert TOKENIZER.encode("Zürich") == BYTE.encode("Zürich")
    assert TOKENIZER.encode("<eos>") == [BYTE.eos_id] and TOKENIZER.encode("<eos>", markup=False) == list(b"<eos>")


def test_every_id_decodes():
    assert TOKENIZER.decode([TOKENIZER.bos_id, *TOKENIZER.encode("good cast."), TOKENIZER.eos_id]) == "good cast."
    assert TOKENIZER.decode([TOKENIZER.eos_id], special=True) == "<eos>"
    assert TOKENIZER.vocab_size == BYTE.vocab_size + len(set(PHRASES))
    assert TOKENIZER.decode([TOKENIZER.vocab_size - 1]) == " but "
    assert isinstance(TOKENIZER.decode([200, TOKENIZER.vocab_size + 5]), str)


def test_saved_it_reads_back_the_same(tmp_path):
    TOKENIZER.save(tmp_path)
    again = tokenizers.load(tmp_path)
    text = "Ann on film: not dull cast, xyzzy but weak plot."
    assert again.encode(text) == TOKENIZER.encode(text) and again.decode(again.encode(text)) == text
    assert (again.bos_id, again.eos_id, again.vocab_size) == (TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.vocab_size)


@pytest.mark.parametrize("name", worlds.NAMES)
def test_prompts_and_responses_meet_between_tokens(name):
    tokenizer = worlds.tokenizer(name)
    for record in worlds.get(name).records("demonstrations", size=50):
        whole = tokenizer.encode(record["prompt"] + record["completion"])
        assert whole == tokenizer.encode(record["prompt"]) + tokenizer.encode(record["completion"])


def test_digest_tells_vocabularies_apart():
    assert TOKENIZER.digest == worlds.tokenizer("sentiment").digest != worlds.tokenizer("bandit").digest
    assert worlds.tokenizer("bandit", states=3).digest != worlds.tokenizer("bandit", states=4).digest
