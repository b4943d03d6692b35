"""Key phrases and graded responses, by hand and by what must hold for any text."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jaxpref.data.transforms import graded, grading, key_phrases


def test_key_phrases_worked_example():
    """Of "learning" in two phrases of 2 + 1 words the score is 3 / 2, of "deep" 2, of "data" 1."""
    assert key_phrases("Deep learning is learning from data.") == ["deep learning", "learning", "data"]


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("", []),
        ("It is what it is.", []),
        ("Tea, tea and TEA!", ["tea"]),
        ("We don\u2019t know the well-known cat's food.", ["well-known cat's food", "know"]),
        ("1. Boil water.\n2. Add 3 eggs.", ["add 3 eggs", "boil water", "1", "2"]),
    ],
)
def test_phrases_end_at_stop_words_and_punctuation(text, phrases):
    assert key_phrases(text) == phrases


def test_all_occurrences_go_with_the_space_before_them():
    assert grading.without("Tea is tea (green tea).", ["tea"]) == " is (green tea)."
    assert grading.without("Tea is tea (green tea).", ["green tea", "tea"]) == " is ()."


def test_graded_worked_example():
    text = " The old mill, the river, a bridge, a shop and an inn."
    assert graded(text, 3) == [
        text,
        " The, the, a, a shop and an inn.",  # three of five phrases: half of them, rounded up
        " The, the, a, a and an.",
    ]
    assert len(graded(text, 6)) == 6
    assert graded(text, 7) == "a response has too few key phrases for all levels"
    assert graded("Tea, water.", 3) == "a response has nothing but key phrases"


WORDS = st.sampled_from(["the", "is", "of", "tea", "Tea", "green", "river", "mill", "7", ",", ".", "\n", "and"])


@given(words=st.lists(WORDS, max_size=25), levels=st.integers(2, 5))
def test_versions_lack_more_and_more_of_the_same_words(words, levels):
    text = " ".join(words)
    versions = graded(text, levels)
    if isinstance(versions, str):
        return
    assert versions[0] == text and len(set(versions)) == levels
    for longer, shorter in zip(versions, versions[1:], strict=False):
        rest = iter(longer)
        assert all(character in rest for character in shorter)
    assert key_phrases(versions[-1]) == []
    assert graded(text, levels) == versions
