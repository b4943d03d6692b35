"""Which keys a query may see, and rows made longer."""

from typing import Any

import jax
import jax.numpy as jnp

_UNLIMITED = 2**30  # a window that no position distance reaches


def visible(
    query_segments: jax.Array,
    key_segments: jax.Array,
    query_positions: jax.Array,
    key_positions: jax.Array,
    offset: Any,
    window: int | None = None,
    local: Any = None,
) -> jax.Array:
    """Mask ``[B, T, S]``, True where a query sees a key; arguments as :func:`jaxpref.models.attention.xla.attend`."""
    queries, keys = query_segments.shape[1], key_segments.shape[1]
    seen = jnp.arange(keys) <= jnp.arange(queries)[:, None] + offset
    seen &= query_segments[:, :, None] == key_segments[:, None, :]
    if window is None:
        return seen
    limit = window if local is None else jnp.where(local, window, _UNLIMITED)
    return seen & (query_positions[:, :, None] - key_positions[:, None, :] < limit)


def padded(x: jax.Array, length: int) -> jax.Array:
    """``[B, T, ...]`` with zeros behind, up to ``length`` tokens: segment 0, padding."""
    return jnp.pad(x, [(0, length - x.shape[1] if axis == 1 else 0) for axis in range(x.ndim)])
