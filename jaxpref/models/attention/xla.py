"""Attention in plain XLA operations: every platform, dtype, window, soft cap and layout."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxpref.batch import Layout
from jaxpref.models.attention.masks import visible
from jaxpref.models.attention.regions import over_regions
from jaxpref.models.attention.request import Request
from jaxpref.models.sharding import axis_size

# A block of queries skips the keys behind its last query: with n blocks, (n + 1) / 2n of the scores are computed. On a
# CPU 64 was the fastest of 64, 128 and 256 for rows of 512 tokens; more than 8 blocks take long to compile.
BLOCK, BLOCKS = 64, 8
_MASKED = -1e30  # far below any score; finite, so that no gradient is NaN


def refusal(request: Request) -> str:
    """Why this kernel cannot serve a request; empty, because it serves all of them."""
    del request
    return ""


def over_rows(query, key, value, segments, positions, layout: Layout, **options) -> jax.Array:
    """:func:`attend` over rows ``[R, T, H, head_dim]`` of any layout; options are scale, window, local, soft_cap."""

    def bound(*arrays, **places):
        return attend(*arrays, **places, **options)

    return over_regions(bound, query, key, value, segments, positions, layout)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    query_segments: jax.Array,
    key_segments: jax.Array,
    query_positions: jax.Array,
    key_positions: jax.Array,
    offset: Any,
    scale: float,
    window: int | None = None,
    local: Any = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """Scaled dot-product attention.

    .. math:: o_t = \\sum_s \\mathrm{softmax}_s(\\mathrm{cap}(\\mathrm{scale} \\; q_t \\cdot k_s)) v_s

    over the keys s that query t may see. Where the offset is a plain number, blocks of queries are computed one after
    the other, each against the keys up to its last query's.

    Args:
        query: ``[B, T, H, head_dim]``.
        key, value: ``[B, S, G, head_dim]``; query heads ``g H/G .. (g+1) H/G - 1`` read head g, without copies of it.
        query_segments, query_positions: ``[B, T]`` int.
        key_segments, key_positions: ``[B, S]`` int.
        offset: query t sees keys ``s <= t + offset``.
        scale: multiplies the scores.
        window: a query sees positions less than ``window`` behind its own. None: no limit.
        local: bool scalar, which may be traced: whether the window holds in this layer. None: it does.
        soft_cap: scores become ``soft_cap * tanh(scores / soft_cap)``.

    Returns:
        ``[B, T, H, head_dim]`` in the dtype of ``value``; softmax is computed in float32 at least.
    """

    def block(start: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        stop, keys = start + query.shape[1], key.shape[1]
        mask = visible(
            query_segments[:, start:stop],
            key_segments[:, :keys],
            query_positions[:, start:stop],
            key_positions[:, :keys],
            start + offset,
            window,
            local,
        )
        return _softmax(query, key, value, mask, scale, soft_cap)

    length, keys = query.shape[1], key.shape[1]
    # Blocks would cut through the shards of a row that lies over several devices.
    whole = not isinstance(offset, int) or axis_size("sequence") > 1
    # Blocks of about the same size: one of few queries would cost nearly as much as a whole one.
    blocks = 1 if whole else max(1, round(length / (BLOCK * math.ceil(length / (BLOCK * BLOCKS)))))
    if blocks == 1:
        return block(0, query, key, value)
    size = math.ceil(length / blocks)
    starts = range(0, length, size)
    # Parts that are put together have slices for gradients, where a slice's would be padded to all keys.
    queries = jnp.split(query, list(starts[1:]), axis=1)
    keys, values = (jnp.split(x, [min(t + size + offset, keys) for t in starts], axis=1) for x in (key, value))
    outputs = [
        block(start, queries[n], jnp.concatenate(keys[: n + 1], axis=1), jnp.concatenate(values[: n + 1], axis=1))
        for n, start in enumerate(starts)
    ]
    return jnp.concatenate(outputs, axis=1)


def _softmax(query, key, value, mask, scale, soft_cap) -> jax.Array:
    """Attention under a mask ``[B, T, S]``; sums are divided out last, over ``head_dim`` instead of S entries."""
    batch, length, heads, head_dim = query.shape
    groups = key.shape[2]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    grouped = query.reshape(batch, length, groups, heads // groups, head_dim)
    scores = jnp.einsum("btghd,bsgd->bghts", grouped, key, preferred_element_type=wide) * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    scores = jnp.where(mask[:, None, None], scores, _MASKED)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    sums = jnp.moveaxis(jnp.sum(weights, axis=-1), 3, 1)[..., None]
    out = jnp.einsum("bghts,bsgd->btghd", weights.astype(value.dtype), value, preferred_element_type=wide) / sums
    return out.reshape(query.shape).astype(value.dtype)
