"""The reference cache is keyed by content and never hands out what was not computed."""

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


def test_a_truncated_part_is_named(tmp_path):
    cache = open_cache(tmp_path)
    cache.add({"k": np.array([-1.0])})
    (part,) = cache.directory.glob("part-*")
    part.write_bytes(part.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="not a readable part"):
        open_cache(tmp_path)
