"""The tables of names: each is a bijection between leaves and files, and slices are read by rows."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from jaxpref.models import huggingface_names as names

SIZES = dict(V=13, D=12, P=7, F=10, H=4, G=2, h=3, I=12, J=6)
UNGROUPED = SIZES | dict(G=4, J=12)


def sizes_of(family):
    return UNGROUPED if family in ("gpt2", "gpt_neox") else SIZES


def filled(family):
    """Random leaves of one layer and the files that they make."""
    sizes, rng = sizes_of(family), np.random.default_rng(0)
    leaves, arrays = {}, {}
    for leaf, place in names.TABLES[family].items():
        leaves[leaf] = rng.normal(size=names.leaf_shape(place, sizes))
        array = arrays.setdefault(place.name, np.full(names.file_shape(place, sizes), np.nan))
        names.put(array, place, sizes, leaves[leaf])
    return leaves, arrays


@pytest.mark.parametrize("family", names.TABLES)
def test_leaves_fill_their_files_exactly(family):
    leaves, arrays = filled(family)
    assert not any(np.isnan(array).any() for array in arrays.values())
    assert sum(leaf.size for leaf in leaves.values()) == sum(array.size for array in arrays.values())


@given(st.sampled_from(sorted(names.TABLES)), st.data())
def test_any_slice_of_a_leaf_is_read_back(family, data):
    leaves, arrays = filled(family)
    leaf = data.draw(st.sampled_from(sorted(leaves)))
    place = names.TABLES[family][leaf]
    index = []
    for length in leaves[leaf].shape:
        start = data.draw(st.integers(0, length - 1))
        index.append(slice(start, data.draw(st.integers(start + 1, length))))
    read = []

    def rows(start, stop):
        read.append(stop - start)
        return arrays[place.name][start:stop]

    taken = names.take(rows, place, sizes_of(family), tuple(index))
    np.testing.assert_array_equal(taken, leaves[leaf][tuple(index)])
    assert len(read) == 1 and read[0] <= len(arrays[place.name])


def test_a_shard_of_heads_reads_only_its_rows():
    place = names.TABLES["llama"]["layers/attention/query/kernel"]
    asked = []

    def rows(start, stop):
        asked.append((start, stop))
        return np.zeros((stop - start, 12))

    assert names.take(rows, place, SIZES, (slice(0, 12), slice(1, 3), slice(0, 3))).shape == (12, 2, 3)
    assert asked == [(3, 9)]
