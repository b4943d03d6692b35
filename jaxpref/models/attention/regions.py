"""Attention over the regions of a row, by at most two ordinary calls."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxpref.batch import Layout


def over_regions(
    attend: Callable, query: jax.Array, key: jax.Array, value: jax.Array, segments, positions, layout: Layout
) -> jax.Array:
    """Attention over rows ``[R, T, H, head_dim]`` of any layout.

    The prompt region attends to itself. Every response region attends to the row's prompt region and to itself:
    regions are folded into the batch, ``[R K, Tr]`` queries against ``[R K, Tp + Tr]`` keys, causal with offset Tp.
    Equal segment ids keep packed examples apart. The two results are never merged, so no kernel needs to give (and
    differentiate) a log-sum-exp.

    Args:
        attend: a kernel such as :func:`jaxpref.models.attention.xla.attend` with scale, window and soft cap bound.
        query, key, value: as the kernel wants them.
        segments, positions: ``[R, T]`` int.
        layout: static regions of a row.
    """
    arrays = (query, key, value, segments, positions)
    if not layout.shared:
        return _call(attend, arrays, arrays, 0)
    rows, width = query.shape[0], layout.prompt
    # The gradient of a split is one concatenation, where each slice's would be padded to the whole row.
    prompts, rest = zip(*(jnp.split(x, [width], axis=1) for x in arrays), strict=True)
    responses = tuple(x.reshape(rows * layout.responses, layout.response, *x.shape[2:]) for x in rest)
    seen = tuple(
        jnp.concatenate([_repeated(prompt, layout.responses), response], axis=1)
        for prompt, response in zip(prompts, responses, strict=True)
    )
    on_prompts = _call(attend, prompts, prompts, 0)
    on_responses = _call(attend, responses, seen, width)
    return jnp.concatenate([on_prompts, on_responses.reshape(rows, -1, *query.shape[2:])], axis=1)


def _repeated(x: jax.Array, times: int) -> jax.Array:
    """Every row ``times`` times in a row; written so that rows divided over devices stay where they are."""
    rows, *rest = x.shape
    return jnp.broadcast_to(x[:, None], (rows, times, *rest)).reshape(rows * times, *rest)


def _call(attend, queries, keys, offset):
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
    )
