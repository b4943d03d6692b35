"""RMSNorm and LayerNorm, with a gradient of their own."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxpref.models.config import ModelConfig, wide_dtype


def norm(config: ModelConfig, weights: Any, x: jax.Array) -> jax.Array:
    """RMSNorm or LayerNorm over the last axis, in float32 at least.

    .. math:: y = \\frac{x - m}{\\sqrt{\\mathrm{mean}((x - m)^2) + \\epsilon}} (\\mathrm{offset} + w) + b

    where m is the mean for LayerNorm and 0 for RMSNorm, which has no b.
    See *Root Mean Square Layer Normalization* (https://arxiv.org/abs/1910.07467).
    """
    wide = wide_dtype(x.dtype)
    scale = config.norm_offset + weights["scale"].astype(wide)
    y = _normalized(x, scale, config.norm_epsilon, config.norm == "layer")
    if config.norm_bias:
        y = y + weights["bias"].astype(wide)
    return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _normalized(x: jax.Array, scale: jax.Array, epsilon: float, centred: bool) -> jax.Array:
    """``scale * u``, where u is x, perhaps less its mean, over its root mean square.

    The gradient by x is ``(g * scale - mean(g * scale) - u * mean(g * scale * u)) / rms``, the middle term where x is
    centred: one pass over x, where automatic differentiation takes one for the root and one for each mean.
    """
    return _forward(x, scale, epsilon, centred)[0]


def _forward(x, scale, epsilon, centred):
    wide = x.astype(scale.dtype)
    centre = jnp.mean(wide, axis=-1, keepdims=True) if centred else jnp.zeros((), scale.dtype)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide - centre), axis=-1, keepdims=True) + epsilon)
    return (wide - centre) * inverse * scale, (x, scale, centre, inverse)


def _backward(epsilon, centred, residuals, cotangent):
    x, scale, centre, inverse = residuals
    unit = (x.astype(scale.dtype) - centre) * inverse
    by_scale = jnp.sum(cotangent * unit, axis=tuple(range(x.ndim - 1)))
    scaled = cotangent * scale
    by_x = scaled - unit * jnp.mean(scaled * unit, axis=-1, keepdims=True)
    if centred:
        by_x = by_x - jnp.mean(scaled, axis=-1, keepdims=True)
    return (by_x * inverse).astype(x.dtype), by_scale


_normalized.defvjp(_forward, _backward)
