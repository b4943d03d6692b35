"""The transformer's forward pass as plain functions on arrays: rows of tokens in, hidden states out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxpref.batch import Layout, Rows
from jaxpref.errors import ModelError
from jaxpref.models import attention, rope
from jaxpref.models.attention.splash import RESIDUALS
from jaxpref.models.config import ModelConfig, Transformer, wide_dtype
from jaxpref.models.linear import linear
from jaxpref.models.norms import norm
from jaxpref.models.sharding import BATCH, constrain, gathered

_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}
# Few layers are written out one by one: a loop would stack, layer on layer, whatever the backward pass reads.
UNROLLED = 8
# What a rematerialisation policy may keep: the input of a layer, what attention reads, and what it gives.
_LAYER_INPUT, _ATTENTION_INPUTS, _ATTENTION = "layer_input", "attention_inputs", RESIDUALS
_keep = jax.checkpoint_policies
_POLICIES = {
    "dots": _keep.save_from_both_policies(
        _keep.dots_with_no_batch_dims_saveable, _keep.save_only_these_names(_ATTENTION)
    ),
    "attention": _keep.save_only_these_names(_ATTENTION_INPUTS, _ATTENTION),
    "full": _keep.nothing_saveable,
    "offload": _keep.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_LAYER_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def hidden(model: Transformer, params: Any, rows: Rows, layout: Layout) -> jax.Array:
    """Hidden states after the final norm.

    Args:
        model: the transformer.
        params: tree of :func:`jaxpref.models.init`.
        rows: ``tokens``, ``positions`` and ``segments`` ``[R, T]``; ``targets`` are not read. A token outside the
            vocabulary, or a position outside a learned table, gives NaN.
        layout: static regions of a row.

    Returns:
        ``[R, T, D]`` in the compute dtype.

    Raises:
        ModelError: rows and layout disagree, or the attention implementation cannot serve them.
    """
    if rows.tokens.ndim != 2 or rows.tokens.shape[1] != layout.length:
        raise ModelError(f"rows have shape {rows.tokens.shape}; expected [R, {layout.length}] for {layout}.")
    attend = attention.over_rows(model, layout)

    def mix(query, key, value, local, _):
        return attend(query, key, value, rows.segments, rows.positions, **options(model.config, local)), None

    return run_layers(model, params, rows.tokens, rows.positions, mix, None)[0]


def options(config: ModelConfig, local: Any) -> dict[str, Any]:
    """What a layer asks of attention. The window is a plain number wherever all layers agree (``local`` is None)."""
    scalar = config.head_dim if config.attention_scalar is None else config.attention_scalar
    window = config.window if any(config.local) else None
    return {"scale": scalar**-0.5, "soft_cap": config.attention_soft_cap, "window": window, "local": local}


def run_layers(
    model: Transformer, params: Any, tokens: jax.Array, positions: jax.Array, mix: Callable, memory: Any
) -> tuple[jax.Array, Any]:
    """Embeds tokens, scans the layers and normalises: ``([B, T, D], memory)``.

    Args:
        tokens, positions: ``[B, T]`` int.
        mix: ``(query, key, value, local, (memory, layer)) -> (output [B, T, H, head_dim], memory)``, which decides
            what each token attends to; ``local`` is whether the layer is local, None when all layers are or none is.
        memory: carried from layer to layer (a cache), or None.
    """
    config = model.config
    wide = wide_dtype(model.dtype)
    angles = [
        rope.tables(r, config.rotated, positions, wide) for r in (config.rope, config.local_rope) if r is not None
    ]

    mixed = len(set(config.local)) > 1

    def block(carry, layer):
        x, memory = carry
        x = checkpoint_name(x, _LAYER_INPUT)
        weights, number, local = layer
        weights = gathered(weights, model.dtype)
        if config.local_rope is not None:
            cosines, sines = jax.tree.map(lambda a, b: jnp.where(local, b, a), *angles)
        else:
            cosines, sines = angles[0] if angles else (None, None)

        def attend(y, memory):
            query, key, value = project(config, weights["attention"], y)
            if cosines is not None:
                query, key = rope.rotate(query, cosines, sines), rope.rotate(key, cosines, sines)
            query, key, value = (constrain(a, BATCH, "sequence", "tensor", None) for a in (query, key, value))
            query, key, value = (checkpoint_name(a, _ATTENTION_INPUTS) for a in (query, key, value))
            out, memory = mix(query, key, value, local if mixed else None, (memory, number))
            return linear("bthd,hdm->btm", checkpoint_name(out, _ATTENTION), weights["attention"]["out"]), memory

        return residual_block(config, weights, x, memory, attend), None

    unrolled = config.layers <= UNROLLED
    if model.remat != "none":
        # Inside a loop nothing can be merged across the recomputation, so the barrier against it is not needed.
        block = jax.checkpoint(block, policy=_POLICIES[model.remat], prevent_cse=unrolled)
    x = embed(model, params, tokens, positions)
    numbers, local = np.arange(config.layers, dtype=np.int32), np.asarray(config.local)
    (x, memory), _ = jax.lax.scan(block, (x, memory), (params["layers"], numbers, local), unroll=unrolled)
    return norm(config, params["norm"], x), memory


def residual_block(config: ModelConfig, weights: Any, x: jax.Array, memory: Any, attend: Callable):
    """One block: attention and MLP around the residual stream, with the family's norms."""

    def inward(name, y):
        return norm(config, weights[f"{name}_norm"], y) if config.pre_norm else y

    def outward(name, y):
        y = norm(config, weights[f"{name}_post_norm"], y) if config.post_norm else y
        return constrain(y, BATCH, "sequence", None)

    mixed, memory = attend(inward("attention", x), memory)
    between = x + outward("attention", mixed)
    read = x if config.parallel_residual else between
    return between + outward("mlp", mlp(config, weights["mlp"], inward("mlp", read))), memory


def embed(model: Transformer, params: Any, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    """Token embeddings (plus learned positions) ``[B, T, D]`` in the compute dtype."""
    config = model.config
    x = _look_up(params["embed"]["tokens"], tokens, "tensor").astype(model.dtype)
    if config.scale_embeddings:
        x = x * jnp.asarray(config.width**0.5, model.dtype)
    if config.learned_positions:
        x = x + _look_up(params["embed"]["positions"], positions, None).astype(model.dtype)
    return constrain(x, BATCH, "sequence", None)


def project(config: ModelConfig, weights: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query ``[B, T, H, head_dim]``, key and value ``[B, T, G, head_dim]`` before rotation."""
    query, key, value = (linear("btm,mhd->bthd", x, weights[name]) for name in ("query", "key", "value"))
    if config.query_key_norm == "head":
        query, key = norm(config, weights["query_norm"], query), norm(config, weights["key_norm"], key)
    if config.query_key_norm == "all":
        query = norm(config, weights["query_norm"], query.reshape(*query.shape[:2], -1)).reshape(query.shape)
        key = norm(config, weights["key_norm"], key.reshape(*key.shape[:2], -1)).reshape(key.shape)
    return query, key, value


def mlp(config: ModelConfig, weights: Any, x: jax.Array) -> jax.Array:
    """``down(activation(gate(x)) * up(x))``, or ``down(activation(up(x)))`` without a gate."""
    activation = _ACTIVATIONS[config.activation]
    up = linear("btm,mf->btf", x, weights["up"])
    inner = activation(linear("btm,mf->btf", x, weights["gate"])) * up if config.gated else activation(up)
    return linear("btf,fm->btm", constrain(inner, BATCH, "sequence", "tensor"), weights["down"])


def _look_up(table: jax.Array, index: jax.Array, rows: str | None) -> jax.Array:
    """Rows of a table whose rows lie over the mesh axis ``rows`` and whose width lies over ``fsdp``.

    Every device looks up its part of the width for all tokens; exchanging those for the whole width of its own tokens
    moves one activation. Otherwise XLA gathers the table, and adds up a whole gradient of it on every device.
    """
    table = constrain(table, rows, "fsdp")
    found = table.at[constrain(index, "data", "sequence")].get(mode="fill", fill_value=jnp.nan)
    return constrain(constrain(found, "data", "sequence", "fsdp"), BATCH, "sequence", None)
