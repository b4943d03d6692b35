"""Attention by cuDNN's fused kernel, through :func:`jax.nn.dot_product_attention`.

Everything that a query may see is told by one boolean mask ``[B, 1, T, S]``: the kernel has neither segment ids nor
windows by position, and its own windows given as one number are symmetric. The kernel keeps no scores, but the mask
takes a byte (and the bias that JAX makes of it two) for each pair of a query and a key of a row.
"""

from typing import Any

import jax

from jaxpref.batch import Layout
from jaxpref.models.attention.masks import padded, visible
from jaxpref.models.attention.regions import over_regions
from jaxpref.models.attention.request import Request

DTYPES = ("bfloat16", "float16")
HEAD_DIM, HEAD_DIM_FROM_HOPPER = 128, 256


def refusal(request: Request) -> str:
    """Why this kernel cannot serve a request; empty when it can."""
    if request.platform != "gpu":
        return f"cuDNN runs on NVIDIA GPUs, and this is {request.platform!r}"
    if request.dtype.name not in DTYPES:
        return f"cuDNN computes in {' or '.join(DTYPES)}, and the compute dtype is {request.dtype.name}"
    if request.soft_cap is not None:
        return f"cuDNN has no soft cap, and the model caps its scores at {request.soft_cap:g}"
    if request.head_dim % 8 or request.head_dim > _widest_head():
        return f"cuDNN takes heads of a multiple of 8 up to {_widest_head()}, and head_dim is {request.head_dim}"
    if request.sequence > 1:
        return f"cuDNN needs whole rows, and mesh.sequence is {request.sequence}"
    return ""


def _widest_head() -> int:
    generation = str(getattr(jax.devices()[0], "compute_capability", "")).split(".")[0]
    return HEAD_DIM_FROM_HOPPER if generation.isdigit() and int(generation) >= 9 else HEAD_DIM


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
    offset: int,
    scale: float,
    window: int | None = None,
    local: Any = None,
    soft_cap: None = None,
    implementation: str = "cudnn",
) -> jax.Array:
    """Scaled dot-product attention; arguments as :func:`jaxpref.models.attention.xla.attend`, without a soft cap.

    ``implementation='xla'`` runs JAX's own form of the same call, to test what the arguments mean without a GPU.
    """
    assert soft_cap is None  # refused above
    length, keys = query.shape[1], key.shape[1]
    even, even_keys = length + length % 2, keys + keys % 2  # with a mask, cuDNN's backward pass takes even lengths only
    mask = visible(
        padded(query_segments, even),
        padded(key_segments, even_keys),
        padded(query_positions, even),
        padded(key_positions, even_keys),
        offset,
        window,
        local,
    )
    out = jax.nn.dot_product_attention(
        padded(query, even),
        padded(key, even_keys),
        padded(value, even_keys),
        mask=mask[:, None],
        scale=scale,
        is_causal=offset == 0 and even == even_keys,  # the mask says so already; this skips the blocks it hides
        implementation=implementation,
    )
    return out[:, :length]
