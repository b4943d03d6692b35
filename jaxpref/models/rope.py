"""Rotary position embeddings on the half-split layout: dimension i is paired with dimension i + rotary_dim / 2.

See *RoFormer: Enhanced Transformer with Rotary Position Embedding* (https://arxiv.org/abs/2104.09864).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.models.config import Rope


def frequencies(rope: Rope, rotated: int) -> np.ndarray:
    """Angle per position of each dimension pair, ``[rotated / 2]`` float64.

    Scalings: linear as in *Extending Context Window of Large Language Models via Positional Interpolation*
    (https://arxiv.org/abs/2306.15595); llama3 as in *The Llama 3 Herd of Models* (https://arxiv.org/abs/2407.21783) and
    its reference code; longrope as in *LongRoPE* (https://arxiv.org/abs/2402.13753).
    """
    plain = rope.theta ** (-np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    if rope.scaling == "linear":
        return plain / rope.factor
    if rope.scaling == "longrope":
        return plain / np.asarray(rope.long_factors if rope.long_context else rope.short_factors)
    if rope.scaling == "llama3":
        turns = rope.original_positions * plain / (2 * math.pi)
        low, high = rope.low_frequency_factor, rope.high_frequency_factor
        keep = np.clip((turns - low) / (high - low), 0, 1)
        return keep * plain + (1 - keep) * plain / rope.factor
    return plain


def tables(rope: Rope, rotated: int, positions: jax.Array, dtype) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines ``[B, T, 1, rotated / 2]`` for positions ``[B, T]``."""
    angles = positions[..., None, None].astype(dtype) * jnp.asarray(frequencies(rope, rotated), dtype)
    return jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor


def rotate(x: jax.Array, cosines: jax.Array, sines: jax.Array) -> jax.Array:
    """Rotates the first ``2 * cosines.shape[-1]`` dimensions of heads ``[B, T, H, head_dim]``."""
    half = cosines.shape[-1]
    first, second, rest = jnp.split(x, [half, 2 * half], axis=-1)
    rotated = (first * cosines - second * sines, second * cosines + first * sines)
    return jnp.concatenate([*(part.astype(x.dtype) for part in rotated), rest], axis=-1)
