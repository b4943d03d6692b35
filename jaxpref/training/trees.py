"""Paths of leaves: '/'-joined keys such as ``model/layers/attention/query/kernel``."""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp


def name(path) -> str:
    """The '/'-joined name of a key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves(tree) -> dict[str, Any]:
    """Every leaf by its path; None is no leaf."""
    return {name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def map_paths(function: Callable, tree, *others):
    """``function(path, leaf, *leaves of the other trees)`` over a tree."""
    return jax.tree_util.tree_map_with_path(lambda path, *values: function(name(path), *values), tree, *others)


def parameter_of(path: str, parameters: Collection[str]) -> str | None:
    """The parameter that a leaf of the train state belongs to.

    Moments and averages live in trees like the parameters', so their paths end with the parameter's path.
    """
    parts = path.split("/")
    suffixes = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((suffix for suffix in suffixes if suffix in parameters), None)


def widen(leaf: jax.Array) -> jax.Array:
    """The array in float32 at least."""
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
