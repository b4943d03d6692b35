"""Batches as text: what is shown is read back from the rows that the model sees."""

import re

import pytest

from jaxpref.data import layouts, load_stream, order, show

TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "More\nplease"},
    {"role": "assistant", "content": "Again"},
]


@pytest.fixture
def conversation(bpe, write_rows):
    return load_stream({"kind": "demonstrations", "path": write_rows({"messages": TURNS, "weight": 2})}, bpe)


def test_trap_41_plain_text_shows_which_tokens_are_trained(conversation, bpe):
    shown = show.examples(conversation, bpe, colour=False)
    assert "rows.jsonl:1, weight 2.0" in shown
    assert re.search(r"prompt \(\d+ tokens\): <s>Hi\n", shown)
    assert "trained): [[Hello</s>]]((More\\nplease))[[Again</s>]]\n" in shown


def test_colours_mark_the_same_tokens(conversation, bpe):
    shown = show.examples(conversation, bpe)
    assert "\x1b[32mHello</s>\x1b[0m\x1b[33mMore\\nplease\x1b[0m\x1b[32mAgain</s>\x1b[0m" in shown


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_every_layout_shows_the_same_examples(layout, conversation, bpe, byte):
    pairs = load_stream({"kind": "pairs", "source": "world:sentiment", "size": 4}, byte)
    shapes = {"pairs": layouts.StreamShape(6, 2, 30, 70, ("chosen_score",))}
    shown = show.batch(
        layouts.plan({"pairs": pairs[:]}, layouts.batch_shape(shapes, layout=layout)), byte, colour=False
    )
    for n, example in enumerate(pairs):
        good, bad = (re.escape(text) for text in example.meta["responses"])
        where = rf"pairs {n}, micro-batch 0, chosen_score [-.\d]+"
        lines = rf"\n  prompt \(\d+ tokens\): <bos>{re.escape(example.meta['prompt'])}"
        answers = rf"\n.*: \[\[{good}<eos>\]\]\n.*: \[\[{bad}<eos>\]\]\n"
        assert re.search(where + lines + answers, shown)
    assert "pairs 4" not in shown  # rows that pad the batch are not shown
    assert shown.startswith("1 micro-batches of")
    turns = {"demonstrations": layouts.StreamShape(2, 1, 70, 40)}
    planned = layouts.plan({"demonstrations": conversation[:]}, layouts.batch_shape(turns, layout=layout))
    assert "[[Hello</s>]]((More\\nplease))[[Again</s>]]" in show.batch(planned, bpe, colour=False)
    assert "[[" not in show.batch(planned, bpe, limit=0, colour=False)


def test_long_lists_of_numbers_are_cut(write_rows, byte):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "prefers": [1, -1], "prompt_embedding": [0.5] * 384}
    shown = show.examples(load_stream({"kind": "pairs", "path": write_rows(row)}, byte), byte, colour=False)
    assert f"prefers [1.0, -1.0], prompt_embedding [{'0.5, ' * 8}... 384 numbers]" in shown


def test_partners_are_shown_under_the_rows_prompt(byte):
    votes = load_stream({"kind": "unpaired", "source": "world:sentiment", "size": 4}, byte)
    chosen = order.batch_indices(0, examples=4, size=4, seed=0)
    rows = order.with_partners(votes, chosen, seed=0)
    planned = layouts.plan({"votes": rows}, layouts.batch_shape({"votes": layouts.StreamShape(4, 2, 30, 70)}))
    shown = show.batch(planned, byte, colour=False)
    for row in rows:
        assert byte.decode(row.responses[1]) in shown
