"""Low-rank adapters: a small trained tree beside frozen weights.

A linear layer with kernel W then computes

.. math:: y = x W + s (x A) B, \\qquad s = \\alpha / r

where A has r columns and B has r rows. Neither the product A B nor a gradient of its size ever exists. A starts at
random and B at zero, so that the policy starts as the base model, bit for bit.

See *LoRA: Low-Rank Adaptation of Large Language Models* (https://arxiv.org/abs/2106.09685).
"""

import dataclasses
import functools
import math
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpref.errors import ModelError
from jaxpref.models import parameters, quantization
from jaxpref.models.config import ModelConfig, Transformer
from jaxpref.models.sharding import BATCH, constrain

TARGETS = ("query", "key", "value", "out", "gate", "up", "down")
SCALINGS = ("lora", "rslora")


@functools.partial(jax.tree_util.register_dataclass, data_fields=["layers"], meta_fields=["scale"])
@dataclasses.dataclass(frozen=True)
class Adapter:
    """The factors of an adapter; a pytree.

    Attributes:
        layers: ``{"attention": {"query": {"a": [N_l, D, r], "b": [N_l, r, H, head_dim]}, ...}, "mlp": {...}}``, like
            the kernels that are adapted: ``a`` has a kernel's axes of inputs, ``b`` its axes of outputs.
        scale: s of the formula above.
    """

    layers: dict[str, dict[str, Any]]
    scale: float

    @property
    def rank(self) -> int:
        """r, the columns of every ``a``."""
        factors = next(iter(next(iter(self.layers.values())).values()))
        return factors["a"].shape[-1]


class Off(NamedTuple):
    """Stands for a reference's parameters: those of the policy without its adapter. It has no leaves."""


OFF = Off()


def init(
    model: Transformer,
    key: jax.Array,
    *,
    rank: int,
    alpha: float,
    targets: tuple[str, ...] = (),
    scaling: str = "lora",
) -> Adapter:
    """Draws an adapter whose product is exactly zero.

    ``a`` is uniform in ±1/√(fan-in) and ``b`` is zero. The paper draws a Gaussian without naming its width; this is the
    draw of its authors' code and of Hugging Face's PEFT, so that their learning rates carry over.

    Args:
        model: gives the architecture. Factors have its ``param_dtype``, but float32 at least: they are few, and updates
            of their size would be lost in bfloat16.
        key: from ``jax.random.key``; each factor's draw depends on the key and its path only.
        rank: r, the columns of ``a``.
        alpha: numerator of the scale.
        targets: linear layers by name, of ``TARGETS``; empty for all that the architecture has.
        scaling: 'lora' for ``alpha / r``, 'rslora' for ``alpha / √r``, which keeps the gradient's size at high ranks
            (*A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA*, https://arxiv.org/abs/2312.03732).

    Raises:
        ModelError: a value outside its domain, or a target that the architecture lacks.
    """
    _check(rank, alpha, scaling)
    dtype = jnp.promote_types(model.param_dtype, jnp.float32)
    layers: dict[str, dict[str, Any]] = {}
    for name, (stacked, inputs, outputs) in _kernels(model.config, targets).items():
        if rank > min(math.prod(inputs), math.prod(outputs)):
            raise ModelError(
                f"adapter.rank is {rank}, but {name} maps {math.prod(inputs)} numbers to {math.prod(outputs)}: its "
                "kernel's own rank is no higher than the smaller; lower the rank or leave it out of adapter.targets."
            )
        bound = math.prod(inputs) ** -0.5
        draw = jax.random.fold_in(key, zlib.crc32(name.encode()))
        block, leaf = name.split("/")
        layers.setdefault(block, {})[leaf] = {
            "a": jax.random.uniform(draw, (stacked, *inputs, rank), dtype, -bound, bound),
            "b": jnp.zeros((stacked, rank, *outputs), dtype),
        }
    return Adapter(layers, alpha / (rank if scaling == "lora" else rank**0.5))


def attach(params: dict[str, Any], adapter: Adapter) -> dict[str, Any]:
    """A model's parameters with the factors beside their kernels, ``b`` times the scale.

    The result is used like the parameters themselves: training, caches and heads read it.
    """
    return _beside(params, adapter, lambda weights, a, b: weights | {"a": a, "b": adapter.scale * b})


def detach(params: dict[str, Any]) -> dict[str, Any]:
    """Undoes :func:`attach`; parameters without factors stay as they are."""
    layers = {
        name: {leaf: _bare(weights) for leaf, weights in block.items()} if name in ("attention", "mlp") else block
        for name, block in params["layers"].items()
    }
    return params | {"layers": layers}


def merge(params: dict[str, Any], adapter: Adapter) -> dict[str, Any]:
    """Parameters whose kernels are ``W + s A B``, summed in float32 at least and rounded once to the kernel's dtype.

    Layer by layer, so that no more than one layer's sum exists at a time. Quantised kernels come out restored, in the
    dtype of the embedding.
    """

    dtype = params["embed"]["tokens"].dtype

    def merged(weights, a, b):
        kernels = jax.lax.map(lambda one: _sum(*one, adapter.scale, dtype), (weights["kernel"], a, b))
        return weights | {"kernel": kernels}

    return quantization.restore_layers(_beside(params, adapter, merged))


def policy(params: dict[str, Any]) -> dict[str, Any]:
    """The policy of a run's ``{"model": ..., "heads": ..., "adapter": ...}``: the model, with its adapter if any."""
    return attach(params["model"], params["adapter"]) if "adapter" in params else params["model"]


def low_rank(subscripts: str, x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """``(x a) b`` for a linear layer's einsum, such as ``'btm,mhd->bthd'``; x is ``[B, T, ...]``."""
    read, written = subscripts.split("->")
    read, kernel = read.split(",")
    inputs = "".join(axis for axis in kernel if axis not in written)
    outputs = "".join(axis for axis in kernel if axis in written)
    inner = constrain(jnp.einsum(f"{read},{inputs}r->btr", x, a), BATCH, "sequence", None)
    return jnp.einsum(f"btr,r{outputs}->{written}", inner, b)


def _kernels(config: ModelConfig, targets: tuple[str, ...]) -> dict[str, tuple[int, tuple, tuple]]:
    """``{"attention/query": (layers, axes of inputs, axes of outputs)}`` of the kernels to adapt."""
    found = {}
    for path, leaf in parameters.table(config).items():
        *_, block, name, kind = ("", "", *path.split("/"))
        if path.startswith("layers/") and kind == "kernel":
            split = 3 if name == "out" else 2  # attention's output reads heads and their width
            found[f"{block}/{name}"] = leaf.shape[0], leaf.shape[1:split], leaf.shape[split:]
    names = [path.split("/")[1] for path in found]
    for target in targets:
        if target not in names:
            raise ModelError(
                f"adapter.targets holds {target!r}, which is no linear layer of this architecture; it has "
                f"{', '.join(names)}."
            )
    return {path: shape for path, shape in found.items() if not targets or path.split("/")[1] in targets}


def _beside(params, adapter: Adapter, change) -> dict[str, Any]:
    """Parameters in which every adapted layer's weights are ``change(weights, a, b)``."""
    layers = dict(params["layers"])
    for block, targets in adapter.layers.items():
        changed = {name: change(layers[block][name], factors["a"], factors["b"]) for name, factors in targets.items()}
        layers[block] = layers[block] | changed
    return params | {"layers": layers}


def _bare(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: leaf for name, leaf in weights.items() if name not in ("a", "b")}


def _sum(kernel: Any, a: jax.Array, b: jax.Array, scale: float, dtype: Any) -> jax.Array:
    wide = jnp.promote_types(dtype, jnp.float32)
    whole = quantization.dequantize(kernel, wide) if quantization.is_quantized(kernel) else kernel.astype(wide)
    product = jnp.tensordot(a.astype(wide), b.astype(wide), axes=1, precision=jax.lax.Precision.HIGHEST)
    return (whole + scale * product).astype(dtype)


def _check(rank: int, alpha: float, scaling: str) -> None:
    if rank < 1:
        raise ModelError(f"adapter.rank is {rank}; expected at least 1.")
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ModelError(f"adapter.alpha is {alpha}; expected a positive number.")
    if scaling not in SCALINGS:
        raise ModelError(f"adapter.scaling is {scaling!r}; expected one of {', '.join(SCALINGS)}.")
