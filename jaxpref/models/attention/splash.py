"""Attention by splash attention, a TPU kernel that skips the blocks of scores which causality or a window hides.

Under a mesh the kernel runs inside ``jax.shard_map``: rows are divided over ``data`` and ``fsdp``, heads over
``tensor``, and queries over ``sequence``, each device holding the keys and values of whole rows (context parallelism).
Like every layout here, a mesh axis that does not divide rows or heads is left out: all its devices compute the same.

Heads that share keys and values are computed against one copy of them. Lengths are padded to whole blocks behind the
row, where causality hides them from every real query, and the results are cut off again.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import NamedSharding, PartitionSpec

from jaxpref.batch import Layout
from jaxpref.models.attention.masks import padded
from jaxpref.models.attention.regions import over_regions
from jaxpref.models.attention.request import Request, platform
from jaxpref.models.sharding import BATCH, axis_size

DTYPES = ("float32", "bfloat16")
LANES = 128  # lengths of the kernel's blocks are multiples of it
LARGEST_BLOCK = 512  # 512 x 512 float32 scores and their gradients fit the vector memory of every TPU since v5e
RESIDUALS = "attention"  # name of output and log-sum-exp, which a rematerialisation policy may keep


def refusal(request: Request) -> str:
    """Why this kernel cannot serve a request; empty when it can."""
    if request.platform not in ("tpu", "cpu"):
        return f"splash runs on TPUs (and interpreted on CPUs), and this is {request.platform!r}"
    if request.dtype.name not in DTYPES:
        return f"splash computes in {' or '.join(DTYPES)}, and the compute dtype is {request.dtype.name}"
    if request.layout.shared and request.window is not None:
        return (
            f"splash counts windows in tokens of the row, which are not positions in the shared layouts, and the "
            f"window of {request.window} is shorter than a row's prompt and response"
        )
    return ""


def over_rows(
    query, key, value, segments, positions, layout: Layout, *, window: int | None = None, local: Any = None, **options
) -> jax.Array:
    """:func:`attend` over rows ``[R, T, H, head_dim]`` of any layout and mesh; options are scale and soft_cap.

    A mask of this kernel is static. Where only some layers are local, ``local`` chooses between two kernels.
    """

    def attend_within(window, *arrays):
        return _on_mesh(*arrays, layout, window=window, **options)

    arrays = (query, key, value, segments, positions)
    if window is None or local is None:
        return attend_within(window, *arrays)
    near, far = functools.partial(attend_within, window), functools.partial(attend_within, None)
    return jax.lax.cond(local, near, far, *arrays)


def _on_mesh(query, key, value, segments, positions, layout: Layout, **options) -> jax.Array:
    rows = tuple(axis for axis in BATCH if axis_size(axis) > 1)
    rows = rows if query.shape[0] % math.prod(map(axis_size, rows)) == 0 else ()
    heads = "tensor" if axis_size("tensor") > 1 and key.shape[2] % axis_size("tensor") == 0 else None
    if axis_size("sequence") > 1:
        return _over_sequence(query, key, value, segments, rows, heads, **options)
    interpret = platform() != "tpu"

    def on_device(*arrays):
        bound = functools.partial(attend, interpret=interpret, **options)
        return over_regions(bound, *arrays, layout)

    arrays = (query, key, value, segments, positions)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return on_device(*arrays)
    wide, narrow = PartitionSpec(rows, None, heads, None), PartitionSpec(rows, None)
    specs = (wide, wide, wide, narrow, narrow)
    return jax.shard_map(on_device, in_specs=specs, out_specs=wide, check_vma=False)(*arrays)


def _over_sequence(query, key, value, segments, rows, heads, *, scale, window=None, soft_cap=None) -> jax.Array:
    """Rows without regions, whose queries are divided over ``sequence``; every shard takes its part of the mask."""
    shards, length = axis_size("sequence"), query.shape[1]
    whole = -(-length // (LANES * shards)) * LANES * shards
    kernel = _kernel(
        whole,
        whole,
        offset=0,
        heads=query.shape[2] // key.shape[2],
        window=window,
        soft_cap=soft_cap,
        interpret=platform() != "tpu",
        shards=shards,
    )
    by_query = NamedSharding(jax.sharding.get_abstract_mesh(), PartitionSpec(None, "sequence"))
    specs = (
        kernel.manual_sharding_spec(by_query),
        PartitionSpec(rows, "sequence", heads, None),
        PartitionSpec(rows, None, heads, None),
        PartitionSpec(rows, None, heads, None),
        PartitionSpec(rows, "sequence"),
        PartitionSpec(rows, None),
    )
    run = jax.shard_map(_grouped, in_specs=specs, out_specs=specs[1], check_vma=False)
    query, key, value, segments = (padded(x, whole) for x in (_scaled(query, scale), key, value, segments))
    return run(kernel, query, key, value, segments, segments)[:, :length]


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
    soft_cap: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Scaled dot-product attention on one device; arguments as :func:`jaxpref.models.attention.xla.attend`.

    Positions are not read: a window counts tokens, which is the same wherever this kernel accepts one.
    See *FlashAttention-2* (https://arxiv.org/abs/2307.08691) for the algorithm.
    """
    del query_positions, key_positions
    length, keys = query.shape[1], key.shape[1]
    whole, whole_keys = (-(-n // LANES) * LANES for n in (length, keys))
    kernel = _kernel(
        whole,
        whole_keys,
        offset=offset,
        heads=query.shape[2] // key.shape[2],
        window=window,
        soft_cap=soft_cap,
        interpret=interpret,
    )
    out = _grouped(
        kernel,
        padded(_scaled(query, scale), whole),
        padded(key, whole_keys),
        padded(value, whole_keys),
        padded(query_segments, whole),
        padded(key_segments, whole_keys),
    )
    return out[:, :length]


def _scaled(query: jax.Array, scale: float) -> jax.Array:
    """The kernel has no scale. Multiplying in float32 rounds once; bfloat16 would round the scale too, for all scores
    in the same direction."""
    return (query.astype(jnp.float32) * scale).astype(query.dtype)


def _kernel(length: int, keys: int, *, offset, heads, window, soft_cap, interpret, shards: int = 1):
    """The kernel for the query heads of one key head, of lengths that are multiples of ``LANES``."""
    shape = (length, keys)
    if window is None:
        mask = splash_mask.CausalMask(shape, offset=offset)
    else:
        mask = splash_mask.LocalMask(shape, (window - 1, 0), offset=offset)
    rows, columns = block_size(length // shards), block_size(keys)
    sizes = splash_kernel.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_kv_compute=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_kv_dkv_compute=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    return splash_kernel.make_splash_mqa(
        splash_mask.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        attn_logits_soft_cap=soft_cap,
        head_shards=1,
        q_seq_shards=shards,
        residual_checkpoint_name=RESIDUALS,
        interpret=interpret,
    )


def block_size(length: int) -> int:
    """Tokens of a block: the largest multiple of ``LANES`` up to ``LARGEST_BLOCK`` that divides the length."""
    return max(size for size in range(LANES, LARGEST_BLOCK + 1, LANES) if length % size == 0)


def _grouped(kernel, query, key, value, query_segments, key_segments) -> jax.Array:
    """The kernel for every row and key head: ``[B, T, H, d]``, ``[B, S, G, d]`` -> ``[B, T, H, d]``."""
    batch, length, heads, head_dim = query.shape
    groups = key.shape[2]
    query = query.reshape(batch, length, groups, heads // groups, head_dim).transpose(0, 2, 3, 1, 4)
    key, value = (x.transpose(0, 2, 1, 3) for x in (key, value))
    segments = splash_kernel.SegmentIds(q=query_segments, kv=key_segments)
    over_heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    out = jax.vmap(over_heads)(query, key, value, segments)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)
