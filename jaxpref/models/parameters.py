"""The parameters of a transformer: a table of paths, shapes and initial values that flax linen declares.

The tree is a plain nested dict of arrays; leaves under ``layers`` are stacked, layer first.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.traverse_util import unflatten_dict

from jaxpref.models.config import ModelConfig, Transformer

_EMBEDDING_SPREAD = 0.02


class Declaration(NamedTuple):
    """Shape of a parameter, and how it starts."""

    shape: tuple[int, ...]
    initializer: Callable


def table(config: ModelConfig) -> dict[str, Declaration]:
    """Every parameter of an architecture: ``{"layers/attention/query/kernel": Declaration, ...}``."""
    embedding = nn.initializers.normal(_EMBEDDING_SPREAD)
    size = (config.vocab_size, config.width)
    leaves = {"embed/tokens": Declaration(size, embedding)}
    if config.learned_positions:
        leaves["embed/positions"] = Declaration((config.max_positions, config.width), embedding)
    layer = _attention(config) | _mlp(config) | _norms(config)
    for name, leaf in layer.items():
        leaves[f"layers/{name}"] = Declaration((config.layers, *leaf.shape), leaf.initializer)
    leaves |= _norm("norm", config.width, config)
    if not config.tied_embeddings:
        leaves["head/kernel"] = Declaration(size[::-1], embedding)
    return leaves


def init(model: Transformer, key: jax.Array) -> dict[str, Any]:
    """Draws parameters: kernels from N(0, 1 / fan-in), those that write to the residual stream also / (2 layers).

    Args:
        model: gives the architecture and ``param_dtype``.
        key: from ``jax.random.key``; each leaf's draw depends on the key and the leaf's path only.

    Returns:
        The nested dict of arrays that this module's docstring describes.
    """
    flat = _Declarer(model).init(key)["params"]
    return unflatten_dict({tuple(name.split("/")): leaf for name, leaf in flat.items()})


def count(params: Any) -> int:
    """Number of parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


class _Declarer(nn.Module):
    model: Transformer

    @nn.compact
    def __call__(self):
        for name, leaf in table(self.model.config).items():
            self.param(name, leaf.initializer, leaf.shape, self.model.param_dtype)


def _attention(config: ModelConfig) -> dict[str, Declaration]:
    width, head_dim = config.width, config.head_dim
    heads = {"query": config.heads, "key": config.key_value_heads, "value": config.key_value_heads}
    leaves = {}
    for name, count_ in heads.items():
        leaves |= _linear(f"attention/{name}", (width, count_, head_dim), width, bias=config.attention_bias)
    out = (config.heads, head_dim, width)
    leaves |= _linear("attention/out", out, _residual(config.heads * head_dim, config), bias=config.attention_out_bias)
    if config.query_key_norm != "none":
        for name in ("query", "key"):
            size = head_dim * (heads[name] if config.query_key_norm == "all" else 1)
            leaves |= _norm(f"attention/{name}_norm", size, config)
    return leaves


def _mlp(config: ModelConfig) -> dict[str, Declaration]:
    width, inner = config.width, config.mlp_width
    leaves = {}
    for name in ("gate", "up") if config.gated else ("up",):
        leaves |= _linear(f"mlp/{name}", (width, inner), width, bias=config.mlp_bias)
    return leaves | _linear("mlp/down", (inner, width), _residual(inner, config), bias=config.mlp_bias)


def _norms(config: ModelConfig) -> dict[str, Declaration]:
    names = ["attention_norm", "mlp_norm"] if config.pre_norm else []
    names += ["attention_post_norm", "mlp_post_norm"] if config.post_norm else []
    return {path: leaf for name in names for path, leaf in _norm(name, config.width, config).items()}


def _norm(name: str, size: int, config: ModelConfig) -> dict[str, Declaration]:
    leaves = {f"{name}/scale": Declaration((size,), nn.initializers.constant(1.0 - config.norm_offset))}
    if config.norm_bias:
        leaves[f"{name}/bias"] = Declaration((size,), nn.initializers.zeros)
    return leaves


def _linear(name: str, shape: tuple[int, ...], fan_in: int, *, bias: bool) -> dict[str, Declaration]:
    leaves = {f"{name}/kernel": Declaration(shape, nn.initializers.normal(fan_in**-0.5))}
    if bias:
        outputs = shape[-1:] if name.endswith(("out", "down")) else shape[1:]
        leaves[f"{name}/bias"] = Declaration(outputs, nn.initializers.zeros)
    return leaves


def _residual(fan_in: int, config: ModelConfig) -> int:
    """Fan-in of a kernel whose output joins 2 * layers others in the residual stream."""
    return fan_in * 2 * config.layers


def invariant_leaves(model: Transformer) -> list[str]:
    """Regular expressions of leaves that no loss on the output can move.

    Without rotary positions a key bias adds the same number to all scores of a query, which softmax ignores.
    """
    absolute = model.config.rope is None and model.config.query_key_norm == "none"
    return [r"attention/key/bias$"] if absolute and model.config.attention_bias else []
