"""Entry checks and masked reductions that every loss shares."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

Array = Any


def floating(x: Array) -> jax.Array:
    """Converts to the precision that losses compute in: float32, or float64 under ``jax_enable_x64``."""
    return jnp.asarray(x).astype(jnp.result_type(float))


def check_shape(shape: tuple[int, ...], **arrays: Array) -> None:
    """Raises an ``AssertionError`` naming the array whose shape is not exactly ``shape``; nothing ever broadcasts."""
    for name, value in arrays.items():
        chex.assert_shape(jnp.asarray(value), shape, custom_message=f"argument {name}")


def per_example(**arrays: Array) -> tuple[jax.Array, ...]:
    """Checks that all arrays have one shape ``[B]`` and returns them as floats, in the order given."""
    name, first = next(iter(arrays.items()))
    chex.assert_rank(jnp.asarray(first), 1, custom_message=f"argument {name}")
    check_shape(jnp.shape(first), **arrays)
    return tuple(floating(value) for value in arrays.values())


def selection(where: Array | None, size: int, name: str = "where") -> jax.Array:
    """The rows that count, ``[size]`` bool: all of them when ``where`` is None."""
    if where is None:
        return jnp.ones(size, bool)
    check_shape((size,), **{name: where})
    return jnp.asarray(where).astype(bool)


def masked_sum(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Sum over the last axis of what is masked in; NaN and inf elsewhere reach neither value nor gradient."""
    return jnp.sum(jnp.where(mask, x, 0), axis=-1)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the last axis of what is masked in; 0 where that is nothing."""
    return masked_sum(x, mask) / at_least_one(jnp.sum(mask, axis=-1))


def at_least_one(count: jax.Array) -> jax.Array:
    """A count or a length that is safe to divide by."""
    return jnp.maximum(floating(count), 1)
