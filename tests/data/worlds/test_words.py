"""Word-level tokens: short, lossless, complete."""

import hypothesis
import hypothesis.strategies as st
import pytest

from jaxpref.data import worlds

TOKENIZER = worlds.tokenizer("sentiment")


def test_a_review_is_a_few_tokens():
    prompt, response = "Ann on film: ", "not dull cast, very warm song but weak plot."
    assert len(TOKENIZER.encode(prompt)) == 2
    pieces = [TOKENIZER.decode([number]) for number in TOKENIZER.encode(response)]
    assert pieces == ["not ", "dull ", "cast", ", ", "very ", "warm ", "song", " but ", "weak ", "plot", "."]
    longest = 0
    for record in worlds.sentiment.records("demonstrations", size=1000):
        ids = TOKENIZER.encode(record["prompt"]) + TOKENIZER.encode(record["completion"])
        assert min(ids) >= 256 and TOKENIZER.decode(ids) == record["prompt"] + record["completion"]
        longest = max(longest, len(ids))
    assert longest <= 14


@hypothesis.given(st.text() | st.lists(st.sampled_from(TOKENIZER.phrases)).map("".join))
def test_every_text_decodes_to_itself(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_every_id_decodes():
    assert TOKENIZER.decode([TOKENIZER.bos_id, *TOKENIZER.encode("good cast."), TOKENIZER.eos_id]) == "good cast."
    assert TOKENIZER.decode([TOKENIZER.vocab_size]) == TOKENIZER.decode([200]) == "\ufffd"
    assert TOKENIZER.vocab_size == TOKENIZER.eos_id + 1 == len(set(TOKENIZER.phrases)) + 258


@pytest.mark.parametrize("name", worlds.NAMES)
def test_prompts_and_responses_meet_between_tokens(name):
    tokenizer = worlds.tokenizer(name)
    for record in worlds.get(name).records("demonstrations", size=50):
        whole = tokenizer.encode(record["prompt"] + record["completion"])
        assert whole == tokenizer.encode(record["prompt"]) + tokenizer.encode(record["completion"])


def test_digest_tells_vocabularies_apart():
    assert TOKENIZER.digest == worlds.tokenizer("sentiment").digest != worlds.tokenizer("bandit").digest
    assert worlds.tokenizer("bandit", arms=3).digest != worlds.tokenizer("bandit", arms=4).digest
