"""Attention: one call on queries, keys and values, and its construction for each layout of a row.

Three rules hold for every implementation:

* a token attends to tokens of its own segment only; segment 0, padding, attends to padding, which harms nobody;
* causality goes by index, so that padding on either side and the slots of a cache need no special case;
* windows go by position, because in shared layouts index distance is not position distance.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpref.batch import Layout
from jaxpref.errors import ModelError
from jaxpref.models.sharding import axis_size

_MASKED = -1e30  # far below any score; finite, so that no gradient is NaN


def xla(
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
    window: Any = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """Scaled dot-product attention in plain XLA operations.

    .. math:: o_t = \\sum_s \\mathrm{softmax}_s(\\mathrm{cap}(\\mathrm{scale} \\; q_t \\cdot k_s)) v_s

    over the keys s that query t may see.

    Args:
        query: ``[B, T, H, head_dim]``.
        key, value: ``[B, S, G, head_dim]``; query heads ``g H/G .. (g+1) H/G - 1`` read head g, without copies of it.
        query_segments, query_positions: ``[B, T]`` int.
        key_segments, key_positions: ``[B, S]`` int.
        offset: query t sees keys ``s <= t + offset``.
        scale: multiplies the scores.
        window: int or int array; a query sees positions less than ``window`` behind its own. None: no limit.
        soft_cap: scores become ``soft_cap * tanh(scores / soft_cap)``.

    Returns:
        ``[B, T, H, head_dim]`` in the dtype of ``value``; softmax is computed in float32 at least.
    """
    batch, length, heads, head_dim = query.shape
    groups = key.shape[2]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    grouped = query.reshape(batch, length, groups, heads // groups, head_dim)
    scores = jnp.einsum("btghd,bsgd->bghts", grouped, key, preferred_element_type=wide) * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    visible = jnp.arange(key.shape[1]) <= jnp.arange(length)[:, None] + offset
    visible &= query_segments[:, :, None] == key_segments[:, None, :]
    if window is not None:
        visible &= query_positions[:, :, None] - key_positions[:, None, :] < window
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, _MASKED), axis=-1).astype(value.dtype)
    out = jnp.einsum("bghts,bsgd->btghd", weights, value, preferred_element_type=wide)
    return out.reshape(query.shape).astype(value.dtype)


IMPLEMENTATIONS: dict[str, Callable] = {"xla": xla}


def implementation(name: str, layout: Layout | None = None) -> Callable:
    """Looks up an attention implementation.

    Raises:
        ModelError: the name is unknown, or the layout cannot be computed on this mesh.
    """
    if name not in IMPLEMENTATIONS:
        raise ModelError(f"attention is {name!r}; expected one of {', '.join(IMPLEMENTATIONS)}.")
    if layout is not None and layout.shared and axis_size("sequence") > 1:
        raise ModelError(
            f"mesh.sequence is {axis_size('sequence')}, but the shared layouts cut rows into regions; "
            f"use the padded or packed layout, or mesh.sequence = 1."
        )
    return IMPLEMENTATIONS[name]


def over_regions(
    attend: Callable, query: jax.Array, key: jax.Array, value: jax.Array, segments, positions, layout: Layout, **options
) -> jax.Array:
    """Attention over rows ``[R, T, H, head_dim]`` of any layout, by at most two ordinary calls.

    The prompt region attends to itself. Every response region attends to the row's prompt region and to itself:
    regions are folded into the batch, ``[R K, Tr]`` queries against ``[R K, Tp + Tr]`` keys, causal with offset Tp.
    Equal segment ids keep packed examples apart.

    Args:
        attend: an implementation, such as :func:`xla`.
        query, key, value: as the implementation wants them.
        segments, positions: ``[R, T]`` int.
        layout: static regions of a row.
        **options: scale, window, soft_cap.
    """
    if not layout.shared:
        own = (query, key, value, segments, positions)
        return _call(attend, own, own, 0, options)
    rows, width = query.shape[0], layout.prompt
    arrays = (query, key, value, segments, positions)
    prompts = tuple(x[:, :width] for x in arrays)
    responses = tuple(x[:, width:].reshape(rows * layout.responses, layout.response, *x.shape[2:]) for x in arrays)
    seen = tuple(
        jnp.concatenate([jnp.repeat(prompt, layout.responses, axis=0), response], axis=1)
        for prompt, response in zip(prompts, responses, strict=True)
    )
    on_prompts = _call(attend, prompts, prompts, 0, options)
    on_responses = _call(attend, responses, seen, width, options)
    return jnp.concatenate([on_prompts, on_responses.reshape(rows, -1, *query.shape[2:])], axis=1)


def _call(attend, queries, keys, offset, options):
    query, _, _, query_segments, query_positions = queries
    _, key, value, key_segments, key_positions = keys
    return attend(
        query,
        key,
        value,
        query_segments=query_segments,
        key_segments=key_segments,
        query_positions=query_positions,
        key_positions=key_positions,
        offset=offset,
        **options,
    )
