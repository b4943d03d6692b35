"""A key-value cache, for generating token by token what :func:`jaxpref.models.hidden` computes at once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpref.models.attention import xla
from jaxpref.models.config import Transformer
from jaxpref.models.sharding import BATCH, constrain
from jaxpref.models.transformer import options, run_layers


class Cache(NamedTuple):
    """Keys and values of the tokens read so far.

    Attributes:
        keys, values: ``[layers, B, S, G, head_dim]`` in the compute dtype, after rotation.
        positions: ``[B, S]`` int32.
        valid: ``[B, S]`` int32, 1 where a slot holds a token, 0 for padding and slots not yet written.
        length: int32 scalar, slots written so far, padding included.
    """

    keys: jax.Array
    values: jax.Array
    positions: jax.Array
    valid: jax.Array
    length: jax.Array


def init_cache(model: Transformer, batch: int, length: int) -> Cache:
    """An empty cache with ``length`` slots for each of ``batch`` sequences."""
    config = model.config
    shape = (config.layers, batch, length, config.key_value_heads, config.head_dim)
    empty = constrain(jnp.zeros(shape, model.dtype), None, BATCH, None, "tensor", None)
    slots = jnp.zeros((batch, length), jnp.int32)
    return Cache(empty, empty, slots, slots, jnp.zeros((), jnp.int32))


def extend(
    model: Transformer, params: Any, tokens: jax.Array, positions: jax.Array, valid: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Reads t more tokens of every sequence.

    Padding may stand on either side of a prompt: every sequence takes t slots, and ``valid`` and ``positions`` say
    which of them hold tokens and where those belong. A finished sequence goes on with ``valid`` False.

    Args:
        model: the transformer.
        params: its parameter tree.
        tokens, positions: ``[B, t]`` int.
        valid: ``[B, t]`` bool; a token that is not valid is seen by nobody.
        cache: from :func:`init_cache` or an earlier call. It must have t free slots: writing past its end goes
            unnoticed, because the number of written slots is known at run time only.

    Returns:
        ``(hidden [B, t, D] after the final norm, cache)``.
    """
    valid = valid.astype(jnp.int32)
    seen = cache._replace(
        positions=_write(cache.positions, positions.astype(jnp.int32), (0, cache.length)),
        valid=_write(cache.valid, valid, (0, cache.length)),
    )

    def mix(query, key, value, local, place):
        (keys, values), layer = place
        keys = _write(keys, key[None], (layer, 0, cache.length, 0, 0))
        values = _write(values, value[None], (layer, 0, cache.length, 0, 0))
        out = xla.attend(
            query,
            jax.lax.dynamic_index_in_dim(keys, layer, keepdims=False),
            jax.lax.dynamic_index_in_dim(values, layer, keepdims=False),
            query_segments=valid,
            key_segments=seen.valid,
            query_positions=positions,
            key_positions=seen.positions,
            offset=cache.length,
            **options(model.config, local),
        )
        return out, (keys, values)

    states, (keys, values) = run_layers(model, params, tokens, positions, mix, (cache.keys, cache.values))
    return states, seen._replace(keys=keys, values=values, length=cache.length + tokens.shape[1])


def _write(slots: jax.Array, values: jax.Array, start: tuple) -> jax.Array:
    return jax.lax.dynamic_update_slice(slots, values.astype(slots.dtype), start)
