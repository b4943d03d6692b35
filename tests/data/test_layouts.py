"""The planner: every example is laid out whole, once, in every layout."""

from typing import NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from jaxpref.data import layouts
from jaxpref.errors import ConfigError, DataError

MAX_PROMPT, MAX_RESPONSE = 9, 7


class Example(NamedTuple):
    prompt: np.ndarray
    responses: tuple
    masks: tuple
    side: dict
    origin: str = "rows.jsonl:1"


@st.composite
def examples(draw, responses=2, most=9):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    made = []
    for _ in range(draw(st.integers(1, most))):
        answers = tuple(rng.integers(1, 50, rng.integers(0, MAX_RESPONSE + 1)) for _ in range(responses))
        masks = tuple(rng.random(len(a)) < 0.8 for a in answers)
        made.append(
            Example(rng.integers(1, 50, rng.integers(1, MAX_PROMPT + 1)), answers, masks, {"margin": rng.random()})
        )
    return made


def shape_of(layout, rows, final, streams=None, **sizes):
    pairs = layouts.StreamShape(9, 2, MAX_PROMPT, MAX_RESPONSE, ("margin",))
    return layouts.batch_shape(streams or {"pairs": pairs}, layout=layout, rows=rows, final=final, **sizes)


def read_back(batch, n, k, stream="pairs"):
    """What the model sees of one response, rebuilt from rows alone: (tokens, targets, their positions)."""
    found = batch.examples[stream]
    rows = [np.asarray(field).reshape(-1) for field in batch.rows]
    tokens, targets, positions, segments = rows
    length = batch.rows.tokens.shape[-1]
    scored = found.index[n, k][found.index[n, k] != layouts.NOWHERE]
    row = scored[0] // length
    inside = slice(row * length, (row + 1) * length)
    mine = np.flatnonzero(segments[inside] == segments[scored[0]]) + row * length
    before = [i for i in mine if positions[i] < positions[scored[0]]]
    return tokens[before].tolist() + tokens[scored].tolist(), targets[scored].tolist(), positions[scored].tolist()


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@given(made=examples(), rows=st.sampled_from([0, 2, 3]), final=st.booleans(), short=st.integers(0, MAX_RESPONSE))
def test_every_example_is_laid_out_whole(layout, made, rows, final, short):
    shape = shape_of(layout, rows, final, short_length=short if layout.startswith("packed") else 0)
    batch = layouts.plan({"pairs": made}, shape)
    lengths = np.full(shape.micro_batches, shape.layout.length) if batch.row_lengths is None else batch.row_lengths
    behind = np.arange(shape.layout.length) >= lengths[:, None, None]
    assert not batch.rows.segments[np.broadcast_to(behind, batch.rows.segments.shape)].any()
    found = batch.examples["pairs"]
    assert found.where.sum() == len(made)
    for n, example in enumerate(made):
        for k, response in enumerate(example.responses):
            np.testing.assert_array_equal(found.mask[n, k, : len(response)], example.masks[k])
            assert not found.mask[n, k, len(response) :].any()
            if not len(response):
                continue
            seen, targets, positions = read_back(batch, n, k)
            assert targets == response.tolist()
            assert seen == [*example.prompt, *response[:-1]]
            assert positions == list(range(len(example.prompt) - 1, len(example.prompt) + len(response) - 1))
            if final:
                assert batch.rows.tokens.reshape(-1)[found.last[n, k]] == response[-1]
            assert found.index[n, k, 0] // batch.rows.tokens[0].size == found.micro[n] < batch.count


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@given(made=examples())
def test_trap_49_every_token_is_laid_out_exactly_once(layout, made):
    batch = layouts.plan({"pairs": made}, shape_of(layout, 2, False))
    filled = int((batch.rows.segments > 0).sum())
    sizes = [(len(e.prompt), [len(r) for r in e.responses]) for e in made]
    if layout.endswith("shared"):
        expected = sum(p - 1 + sum(rs) for p, rs in sizes)
    else:
        expected = sum(p - 1 + r for p, rs in sizes for r in rs if r)
    assert filled == expected


@given(made=examples())
def test_streams_with_different_numbers_of_responses_share_rows(made):
    streams = {
        "pairs": layouts.StreamShape(9, 2, MAX_PROMPT, MAX_RESPONSE),
        "demonstrations": layouts.StreamShape(9, 1, MAX_PROMPT, MAX_RESPONSE),
    }
    singles = [e._replace(responses=e.responses[:1], masks=e.masks[:1]) for e in made]
    for layout in layouts.LAYOUTS:
        batch = layouts.plan({"pairs": made, "demonstrations": singles}, shape_of(layout, 4, False, streams))
        for n, example in enumerate(made):
            if len(example.responses[0]):
                assert read_back(batch, n, 0) == read_back(batch, n, 0, "demonstrations")


def test_the_plan_is_deterministic_and_of_fixed_shape():
    made = [
        Example(np.arange(1, 5), (np.arange(3), np.arange(2)), (np.ones(3, bool), np.ones(2, bool)), {"margin": 1.0})
    ]
    shape = shape_of("packed", 2, False)
    one, other = layouts.plan({"pairs": made}, shape), layouts.plan({"pairs": made * 9}, shape)
    assert [x.shape for x in one.rows] == [x.shape for x in other.rows]
    np.testing.assert_array_equal(other.rows.tokens, layouts.plan({"pairs": made * 9}, shape).rows.tokens)


def test_packing_pads_less():
    rng = np.random.default_rng(0)
    made = []
    for _ in range(9):
        answers = tuple(rng.integers(1, 50, rng.integers(1, MAX_RESPONSE + 1)) for _ in range(2))
        masks = tuple(np.ones(len(a), bool) for a in answers)
        made.append(Example(rng.integers(1, 50, rng.integers(1, MAX_PROMPT + 1)), answers, masks, {"margin": 0.0}))
    shapes = {
        "padded": shape_of("padded", 4, False),
        "packed": shape_of("packed", 4, False, length=20),
        "shared": shape_of("shared", 2, False),
        "packed+shared": shape_of("packed+shared", 2, False, prompt_length=16, response_length=14),
    }
    share = {name: layouts.padding_share(layouts.plan({"pairs": made}, shape)) for name, shape in shapes.items()}
    assert share["packed"] < share["padded"]
    assert share["packed+shared"] < share["shared"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"layout": "stacked"}, "batch.layout is 'stacked'"),
        ({"layout": "packed", "length": 5}, "the row region holds 5 tokens, but the longest example needs 15"),
        ({"layout": "packed+shared", "response_length": 3}, "the response region holds 3 tokens"),
        ({"layout": "padded", "length": 64}, "batch.length is 64, but layout 'padded' does not choose it"),
        ({"layout": "packed+shared", "length": 64}, "batch.length is 64"),
        ({"layout": "packed", "response_length": 64}, "batch.response_length is 64"),
        ({"layout": "shared", "short_length": 4}, "batch.short_length is 4, but only packed layouts"),
        ({"layout": "padded", "rows": 1}, "one example needs 2 rows"),
        ({"layout": "padded", "rows": 3, "multiple_of": 2}, "use a multiple of 2"),
    ],
)
def test_impossible_shapes_are_config_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        layouts.batch_shape({"pairs": layouts.StreamShape(4, 2, MAX_PROMPT, MAX_RESPONSE)}, **arguments)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@given(made=examples(), granule=st.sampled_from([4, 128]))
def test_regions_are_rounded_up_to_a_granule(layout, made, granule):
    given_sizes = {"packed": {"length": 21}, "packed+shared": {"prompt_length": 11, "response_length": 13}}
    shape = shape_of(layout, 2, True, granule=granule, **given_sizes.get(layout, {}))
    assert shape.layout.prompt % granule == shape.layout.response % granule == 0
    batch = layouts.plan({"pairs": made}, shape)
    for n, example in enumerate(made):
        if len(example.responses[1]):
            assert read_back(batch, n, 1)[1] == example.responses[1].tolist()


def pair(prompt, *responses):
    return Example(
        np.arange(1, prompt + 1),
        tuple(np.arange(n) for n in responses),
        tuple(np.ones(n, bool) for n in responses),
        {"margin": 0.0},
    )


def test_what_fits_goes_into_short_rows_and_into_what_is_left_of_long_ones():
    made = [pair(3, 7, 1), pair(9, 2, 3), pair(2, 1, 2), pair(9, 3, 3)]
    shape = shape_of("packed+shared", 1, False, prompt_length=10, response_length=8, short_length=4)
    batch = layouts.plan({"pairs": made}, shape)
    assert batch.examples["pairs"].micro[: len(made)].tolist() == [0, 2, 0, 1]  # the third lies beside the first
    assert batch.row_lengths[: int(batch.count)].tolist() == [26, 18, 18]
    whole = layouts.plan({"pairs": made}, layouts.with_short_rows(shape, 0, 1))
    assert whole.row_lengths is None
    assert layouts.padding_share(batch) < layouts.padding_share(whole)


def test_short_rows_that_would_take_more_micro_batches_than_there_are_stay_unused():
    """Nine pairs fit four and a half long rows, but nine short ones."""
    shape = shape_of("packed+shared", 1, False, prompt_length=16, response_length=14, short_length=7)
    batch = layouts.plan({"pairs": [pair(9, 7, 7)] * 9}, shape)
    assert (shape.micro_batches, int(batch.count)) == (5, 5)
    assert (batch.row_lengths == shape.layout.length).all()


def test_mismatched_responses_have_short_rows_of_their_own():
    streams = {"pairs": layouts.StreamShape(4, 2, 9, 7, ("margin",), partnered=True)}
    shape = shape_of("packed+shared", 1, False, streams, prompt_length=9, response_length=7, short_length=3)
    batch = layouts.plan({"pairs": [pair(8, 6, 1), pair(8, 2, 6), pair(8, 3, 3)]}, shape)
    assert (int(batch.trained), int(batch.count)) == (3, 6)
    assert (batch.row_lengths[:6] < shape.layout.length).tolist() == [False, True, True, False, True, True]


def test_a_shape_in_words():
    shared = shape_of("packed+shared", 1, False, prompt_length=16, response_length=14)
    assert layouts.describe(shared) == "up to 5 micro-batches of 1 row of [16 | 14 | 14] tokens"
    short = layouts.with_short_rows(shared, 7, 1)
    assert layouts.describe(short) == f"{layouts.describe(shared)}, or short ones of 7 a response"
    packed = shape_of("packed", 9, False, length=30)
    assert layouts.describe(packed) == "one micro-batch of 9 rows of [30] tokens"
    assert layouts.describe(layouts.with_short_rows(packed, 20, 1)).endswith("[30] tokens, or short ones of 20")


def test_an_example_that_breaks_the_shape_is_named():
    shape = shape_of("padded", 2, False)
    long = Example(np.ones(10), (np.ones(1), np.ones(1)), (np.ones(1, bool),) * 2, {"margin": 0.0}, "pairs.jsonl:7")
    with pytest.raises(DataError, match="pairs.jsonl:7: prompt of 10"):
        layouts.plan({"pairs": [long]}, shape)
    with pytest.raises(DataError, match="field 'margin' is missing"):
        layouts.plan({"pairs": [long._replace(prompt=np.ones(2), side={})]}, shape)
