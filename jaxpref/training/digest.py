"""Digests of parameter trees: equal bits give equal digests, on any mesh and any number of processes."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.training import offload, trees


@jax.jit
def _fold(tree):
    return jax.tree.map(_fold_leaf, tree)


def _fold_leaf(leaf: jax.Array) -> jax.Array:
    """Σ bits_i · (2i + 1) modulo 2³²: in integer arithmetic the order of a sum, hence the sharding, does not matter."""
    leaf = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
    width = leaf.dtype.itemsize
    bits = jax.lax.bitcast_convert_type(leaf, {1: jnp.uint8, 2: jnp.uint16}.get(width, jnp.uint32)).astype(jnp.uint32)
    total = jnp.zeros((), jnp.uint32)
    weights = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(bits.shape):
        iota = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        weights = weights * jnp.uint32(size) + iota
    return total + jnp.sum(bits * (2 * weights + 1), dtype=jnp.uint32)


def leaf_digests(params) -> dict[str, int]:
    """One 32-bit digest for every leaf, by its path."""
    leaves = trees.leaves(params)
    away = {path: leaf for path, leaf in leaves.items() if offload.is_on_host(getattr(leaf, "sharding", None))}
    folded = _fold({path: leaf for path, leaf in leaves.items() if path not in away})
    folded |= {path: _fold(offload.brought_in(leaf)) for path, leaf in away.items()}  # one at a time
    return {path: int(np.asarray(folded[path])) for path in leaves}


def digest(params) -> str:
    """A hexadecimal digest of a whole tree: paths, shapes, dtypes and bits."""
    shapes = {path: f"{leaf.shape}{leaf.dtype}" for path, leaf in trees.leaves(params).items()}
    text = ";".join(f"{path}:{shapes[path]}:{value:08x}" for path, value in sorted(leaf_digests(params).items()))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
