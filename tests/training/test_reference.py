"""The reference cache is keyed by content and never hands out what was not computed."""

import multiprocessing
from typing import NamedTuple

import numpy as np
import pytest

from jaxpref.data import layouts
from jaxpref.errors import CheckpointError
from jaxpref.training.reference import ReferenceCache, content_key, distinct, keys_of


class Example(NamedTuple):
    prompt: np.ndarray
    responses: tuple
    masks: tuple
    side: dict = {}
    origin: str = "pairs.jsonl:3"


def example(*responses, prompt=(5, 6)):
    arrays = tuple(np.array(r, np.int32) for r in responses)
    return Example(np.array(prompt, np.int32), arrays, tuple(np.ones(len(r), bool) for r in arrays))


def open_cache(path, parameters="abc", dtype="float32"):
    return ReferenceCache(str(path), parameters=parameters, dtype=dtype)


def test_trap_52_the_key_is_the_content():
    base = example([1, 2])
    assert keys_of(base) == keys_of(example([1, 2])._replace(origin="elsewhere", side={"margin": 1}))
    changed = [
        example([1, 3]),
        example([1, 2], prompt=(5,)),
        example([1, 2], prompt=(5, 6, 1)),
        base._replace(masks=(np.array([True, False]),)),
    ]
    assert len({key for e in [base, *changed] for key in keys_of(e)}) == 5
    # Moving a token from the prompt's end to the response's start is another content.
    assert content_key([1, 2], [3], [True]) != content_key([1], [2, 3], [True])


def test_entries_survive_on_disk_and_are_shared_between_writers(tmp_path):
    first, second = example([1, 2]), example([3])
    one, other = open_cache(tmp_path), open_cache(tmp_path)
    one.add({keys_of(first)[0]: np.array([-1.0, -2.0])})
    other.add({keys_of(second)[0]: np.array([-3.0])})
    again = open_cache(tmp_path)
    assert len(again) == 2 and again.covers([first, second])
    assert not open_cache(tmp_path, parameters="other").covers([first])
    assert not open_cache(tmp_path, dtype="bfloat16").covers([first])
    assert distinct([first, second, first]) == [first, second]


def test_a_content_that_is_scored_again_keeps_its_first_value(tmp_path):
    (key,) = keys_of(example([1, 2]))
    cache = open_cache(tmp_path)
    for value in (-1.0, -1.0000001):
        cache.add({key: np.array([value, -2.0])})
    assert cache[key, ""][0] == open_cache(tmp_path)[key, ""][0] == -1.0
    assert len(list(cache.directory.glob("part-*"))) == 1


def test_two_writers_of_the_same_entries_write_one_part(tmp_path):
    one, other = open_cache(tmp_path), open_cache(tmp_path)
    for cache in (one, other):
        cache.add({"k": np.array([-1.0, -2.0])})
    assert len(list(one.directory.iterdir())) == 1


def test_attach_puts_each_value_beside_its_token(tmp_path):
    pair = example([1, 2], [3, 4, 7])
    cache = open_cache(tmp_path)
    cache.add(dict(zip(keys_of(pair), [np.array([-1.0, -2.0]), np.array([-3.0, -4.0, -5.0])], strict=True)))
    shape = layouts.batch_shape({"pairs": layouts.StreamShape(2, 2, 2, 3)}, layout="packed")
    streams = {"pairs": [pair]}
    values = cache.attach(layouts.plan(streams, shape), streams, shape).examples["pairs"].side["ref_logps"]
    np.testing.assert_array_equal(values, [[[-1, -2, 0], [-3, -4, -5]], np.zeros((2, 3))])


def test_trap_53_unfilled_entries_raise(tmp_path):
    pair = example([1, 2], [3])
    shape = layouts.batch_shape({"pairs": layouts.StreamShape(1, 2, 2, 3)}, layout="padded")
    cache, streams = open_cache(tmp_path), {"pairs": [pair]}
    with pytest.raises(CheckpointError, match="pairs.jsonl:3: no reference log-probs"):
        cache.attach(layouts.plan(streams, shape), streams, shape)
    cache.add({keys_of(pair)[0]: np.array([np.nan, -1.0])})
    with pytest.raises(CheckpointError, match="non-finite"):
        open_cache(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flipped", "replaced"])
def test_a_part_that_is_not_what_was_written_is_named_and_never_read(tmp_path, damage):
    cache = open_cache(tmp_path)
    cache.add({"k": np.array([-1.0])})
    (part,) = cache.directory.glob("part-*")
    content = bytearray(part.read_bytes())
    if damage == "cut":
        content = content[:40]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        other = open_cache(tmp_path / "other")
        other.add({"k": np.array([-2.0])})
        content = next(other.directory.glob("part-*")).read_bytes()
    part.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not what was written; delete it"):
        open_cache(tmp_path)


def test_a_write_that_was_cut_off_is_not_read(tmp_path):
    cache = open_cache(tmp_path)
    cache.add({"k": np.array([-1.0])})
    (cache.directory / "0123.tmp").write_bytes(b"half of a part")
    assert len(open_cache(tmp_path)) == 1


def test_entries_of_float64_models_are_float64(tmp_path):
    value, (key,) = np.array([-1.0 - 2.0**-40]), keys_of(example([1]))
    open_cache(tmp_path, dtype="float64").add({key: value})
    again = open_cache(tmp_path, dtype="float64")
    np.testing.assert_array_equal(again[key, ""], value)
    shape = layouts.batch_shape({"pairs": layouts.StreamShape(1, 1, 2, 1)}, layout="padded")
    streams = {"pairs": [example([1])]}
    side = again.attach(layouts.plan(streams, shape), streams, shape).examples["pairs"].side["ref_logps"]
    assert side.dtype == np.float64 and side[0, 0, 0] == value
    open_cache(tmp_path, dtype="bfloat16").add({key: value})
    assert open_cache(tmp_path, dtype="bfloat16")[key, ""].dtype == np.float32


def _write_many(folder, writer: int) -> None:
    """The work of one of several processes: entries of its own, and some that all of them write."""
    cache = open_cache(folder)
    for number in range(20):
        cache.add({f"{writer}-{number}": np.full(3, -1.0 - writer), f"shared-{number}": np.full(2, -0.5 - number)})


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(tmp_path, writer)) for writer in range(3)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        now = len(open_cache(tmp_path))  # a reader in between sees whole parts only
        assert now >= seen
        seen = now
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    cache = open_cache(tmp_path)
    assert len(cache) == 3 * 20 + 20
    assert all(cache[f"{w}-{n}", ""].tolist() == [-1.0 - w] * 3 for w in range(3) for n in range(20))
    assert all(cache[f"shared-{n}", ""].tolist() == [-0.5 - n] * 2 for n in range(20))
    assert not list(cache.directory.glob("*.tmp"))
