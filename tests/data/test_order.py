"""The global order: every epoch a permutation, any step found at once, and partners that are never the row itself."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from jaxpref.data import Tokenized, order
from jaxpref.errors import DataError


def steps(count, **options):
    return [order.batch_indices(step, **options).tolist() for step in range(count)]


def example(prompt, response):
    ids = np.array([*response.encode(), 257], np.int32)
    return Tokenized(
        np.array([256, *prompt.encode()], np.int32), (ids,), (np.ones(len(ids), bool),), {"label": 1.0}, "r:1"
    )


@given(
    examples=st.integers(1, 12),
    size=st.integers(1, 15),
    epochs=st.sampled_from([0.5, 1, 2, 2.5, 3.1]),
    seed=st.integers(0, 2**40),
)
def test_trap_56_57_58_every_epoch_is_a_permutation_without_gaps(examples, size, epochs, seed):
    total = order.number_of_examples(examples, epochs)
    batches = steps(-(-total // size) + 1, examples=examples, size=size, seed=seed, epochs=epochs)
    assert batches[-1] == []  # after the end
    assert all(len(batch) == size for batch in batches[:-2])
    stream = [tuple(pair) for batch in batches for pair in batch]
    assert len(stream) == total == int(epochs * examples + 1e-9)
    assert [epoch for epoch, _ in stream] == [place // examples for place in range(total)]
    for epoch in range(int(epochs)):
        assert sorted(index for e, index in stream if e == epoch) == list(range(examples))


def test_trap_56_a_ragged_tail_of_two_and_a_half_epochs():
    batches = steps(6, examples=7, size=4, seed=3, epochs=2.5)
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 1, 0]
    assert {epoch for epoch, _ in batches[1]} == {0, 1}  # a batch crosses the boundary of epochs


def test_trap_58_epochs_and_seeds_have_orders_of_their_own():
    one = np.concatenate([order.batch_indices(step, examples=50, size=50, seed=1) for step in range(3)])
    orders = [tuple(one[one[:, 0] == epoch, 1]) for epoch in range(3)]
    other = tuple(order.batch_indices(0, examples=50, size=50, seed=2)[:, 1])
    assert len({*orders, other, tuple(range(50))}) == 5


def test_trap_59_more_epochs_go_on_where_fewer_ended():
    short = sum(steps(6, examples=7, size=3, seed=0, epochs=2), [])
    long = sum(steps(12, examples=7, size=3, seed=0, epochs=4), [])
    assert long[: len(short)] == short
    assert len(long) == 28


def test_trap_59_a_run_that_ended_raggedly_goes_on_with_the_next_example():
    options = dict(examples=7, size=3, seed=0)
    short, whole = sum(steps(5, **options, epochs=2), []), sum(steps(10, **options, epochs=4), [])
    begun = (5, len(short))  # 14 examples in 5 steps, the last of which held 2
    rest = [order.batch_indices(step, **options, epochs=4, begun=begun).tolist() for step in range(5, 11)]
    assert [len(batch) for batch in rest] == [3, 3, 3, 3, 2, 0]
    assert short + sum(rest, []) == whole


def test_the_order_is_the_one_of_every_release():
    # Resuming an old run needs the old order: grain must not change it unnoticed.
    assert steps(3, examples=7, size=4, seed=3, epochs=1.5) == [
        [[0, 4], [0, 6], [0, 0], [0, 2]],
        [[0, 5], [0, 3], [0, 1], [1, 2]],
        [[1, 1], [1, 3]],
    ]


@given(size=st.integers(2, 12), seed=st.integers(0, 99), step=st.integers(0, 5), distinct=st.booleans())
def test_trap_14_no_row_is_its_own_partner(size, seed, step, distinct):
    dataset = [example(f"p{n}", f"r{n if distinct else n % 2}") for n in range(9)]
    chosen = order.batch_indices(step, examples=9, size=size, seed=seed)
    rows = [dataset[index] for _, index in chosen]
    found = order.partners(rows, chosen, seed=seed)
    assert all(other != place for place, other in enumerate(found))
    if distinct and size <= 9 and len({index for _, index in chosen}) == size:
        assert sorted(found) == list(range(size))  # every response is used once
    answers = {row.responses[0].tobytes() for row in rows}
    for row, partnered in zip(rows, order.with_partners(dataset, chosen, seed=seed), strict=True):
        own, other = partnered.responses
        assert own is row.responses[0] and partnered.prompt is row.prompt and partnered.side == row.side
        assert (own.tobytes() != other.tobytes()) == (len(answers) > 1)
        assert len(partnered.masks[1]) == len(other)


def test_trap_14_a_batch_of_one_raises():
    with pytest.raises(DataError, match="a batch of one example has no other.*at least 2"):
        order.with_partners([example("p", "r")], np.array([[0, 0]]), seed=0)


def test_trap_14_partners_answer_another_prompt_where_there_is_one():
    rows = [example("p", "a"), example("p", "b"), example("q", "c")]
    chosen = np.array([[0, 0], [0, 1], [0, 2]])
    for seed in range(9):
        found = order.partners(rows, chosen, seed=seed)
        assert found[0] == found[1] == 2


def test_trap_16_partners_differ_between_epochs_and_are_reproducible():
    dataset = [example(f"p{n}", f"r{n}") for n in range(12)]

    def partners(epoch, seed, rows=range(12)):
        chosen = np.array([[epoch, index] for index in rows])
        found = order.partners([dataset[index] for index in rows], chosen, seed=seed)
        return {row: rows[other] for row, other in zip(rows, found, strict=True)}

    assert partners(0, 0) != partners(1, 0) != partners(1, 1)
    # places in the batch do not matter, so that any layout and process finds the same partners
    assert partners(1, 0) == partners(1, 0, rows=range(11, -1, -1))
