"""Frozen kernels in few bits, the base of QLoRA: stored as integers with scales, whole for one product at a time.

A kernel's inputs are cut into tiles of 64; each tile of each output has its own float32 scale, so that int8 takes 8.5
bits a weight and nf4 4.5. The quantised kernel is ``{"values": integers, "scale": [..., inputs / 64, ...]}`` in the
kernel's place; nf4 packs two codes into a byte along the last axis. The integers come from qwix.

See *QLoRA: Efficient Finetuning of Quantized LLMs* (https://arxiv.org/abs/2305.14314); its second quantisation, of the
scales, is left out.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxpref.errors import ModelError

TILE = 64
_BLOCKS = ("attention", "mlp")


def quantize_layers(params: dict[str, Any], kind: str) -> dict[str, Any]:
    """A model's parameters with the kernels of its layers quantised; embeddings, norms, biases and head stay.

    Args:
        params: the parameter tree.
        kind: 'int8', or 'nf4' (16 levels at the quantiles of a normal distribution).

    Raises:
        ModelError: qwix is not installed, or nf4 meets a kernel with an odd last axis.
    """
    return _map_kernels(params, lambda name, kernel: _quantize(kernel, kind, name))


def restore_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Undoes :func:`quantize_layers` up to the rounding, in the dtype of the embedding; other kernels stay."""
    dtype = params["embed"]["tokens"].dtype

    def restore(_, kernel):
        return jax.lax.map(lambda one: dequantize(one, dtype), kernel) if is_quantized(kernel) else kernel

    return _map_kernels(params, restore)


def is_quantized(kernel: Any) -> bool:
    """Whether a kernel, or a node of a parameter tree, is a quantised kernel."""
    return isinstance(kernel, dict) and kernel.keys() == {"values", "scale"}


def dequantize(kernel: dict[str, jax.Array], dtype: Any) -> jax.Array:
    """The kernel as an array: its values times their tile's scale, in float32, then cast."""
    values, scale = kernel["values"], kernel["scale"]
    if values.dtype == jnp.uint8:
        codes = jnp.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:-1], -1)
        values = _levels()[codes]
    axis = next((axis for axis in range(values.ndim) if values.shape[axis] != scale.shape[axis]), 0)
    tiles = scale.shape[axis]
    tiled = (*values.shape[:axis], tiles, values.shape[axis] // tiles, *values.shape[axis + 1 :])
    whole = values.astype(jnp.float32).reshape(tiled) * jnp.expand_dims(scale, axis + 1)
    return whole.reshape(values.shape).astype(dtype)


def product(subscripts: str, x: jax.Array, kernel: dict[str, jax.Array]) -> jax.Array:
    """An einsum with a quantised kernel, which the backward pass restores again instead of keeping it."""

    def multiply(x, kernel):
        return jnp.einsum(subscripts, x, dequantize(kernel, x.dtype))

    return jax.checkpoint(multiply, prevent_cse=False)(x, kernel)


def _map_kernels(params, change) -> dict[str, Any]:
    """Parameters with every kernel of the layers replaced by ``change(name of its linear layer, kernel)``."""
    layers = dict(params["layers"])
    for block in _BLOCKS:
        layers[block] = {
            name: weights | {"kernel": change(name, weights["kernel"])} if "kernel" in weights else weights
            for name, weights in layers[block].items()
        }
    return params | {"layers": layers}


def _quantize(kernel: jax.Array, kind: str, name: str) -> dict[str, jax.Array]:
    """One stacked kernel, layer by layer; tiles lie along its last axis of inputs."""
    qwix, axis = _qwix(kind), 1 if name == "out" else 0  # attention's output reads heads and their width
    if kind == "nf4" and kernel.shape[-1] % 2:
        raise ModelError(
            f"adapter.base 'nf4' packs pairs, but {name} has a last axis of {kernel.shape[-1]}; use 'int8'."
        )
    tile = math.gcd(kernel.shape[1 + axis], TILE)
    others = [other for other in range(kernel.ndim - 1) if other != axis]

    def one(layer):
        whole = layer.astype(jnp.float32)
        found = qwix.quantize(whole, kind, channelwise_axes=others, tiled_axes={axis: tile})
        values = found.qvalue
        if kind == "nf4":
            codes = values.astype(jnp.uint8)
            values = codes[..., 0::2] | (codes[..., 1::2] << 4)
        return {"values": values, "scale": found.scale}

    return jax.lax.map(one, kernel)


def _levels() -> jax.Array:
    """The 16 values of nf4."""
    qwix = _qwix("nf4")
    return qwix.dequantize(qwix.QArray(jnp.arange(16).astype(jnp.uint4), jnp.ones((1,)), None, "nf4"))


def _qwix(kind: str):
    try:
        import qwix
    except ImportError:
        raise ModelError(
            f"adapter.base {kind!r} needs the package qwix; install it with pip install 'jaxpref[qlora]', or leave "
            "adapter.base empty."
        ) from None
    return qwix
