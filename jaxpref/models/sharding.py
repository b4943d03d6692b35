"""Where arrays lie on a device mesh: rules for parameters, and the one helper that constrains activations.

Mesh axes are ``data`` and ``fsdp`` (both divide the batch; ``fsdp`` also divides parameters), ``tensor`` (divides
heads, MLP width and vocabulary) and ``sequence`` (divides the tokens of a row). All are Auto axes: XLA's partitioner
does the rest. Nothing here does anything unless a mesh is set (``with jax.set_mesh(mesh)``).
"""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from jaxpref.errors import ModelError

BATCH = ("data", "fsdp")
BIG = 2**20  # bytes from which a leaf must have a rule
_PART = "(/values|/scale)?"  # of a quantised kernel
_LENIENT = r"(attention|mlp)/[^/]+/([ab]|kernel/(values|scale))$"  # replicated where a mesh axis does not divide it

# Of a stacked leaf; the first axis counts layers.
_LAYER_RULES = (
    (rf"attention/(query|key|value)/kernel{_PART}$", PartitionSpec(None, "fsdp", "tensor", None)),
    (r"attention/(query|key|value)/bias$", PartitionSpec(None, "tensor", None)),
    (rf"attention/out/kernel{_PART}$", PartitionSpec(None, "tensor", None, "fsdp")),
    (rf"mlp/(gate|up)/kernel{_PART}$", PartitionSpec(None, "fsdp", "tensor")),
    (r"mlp/(gate|up)/bias$", PartitionSpec(None, "tensor")),
    (rf"mlp/down/kernel{_PART}$", PartitionSpec(None, "tensor", "fsdp")),
    (r"(attention/out|mlp/down)/bias$", PartitionSpec()),
    (r"norm/(scale|bias)$", PartitionSpec()),
    # Low-rank factors: the long side lies as the kernel's does, divided further where that side is not.
    (r"attention/(query|key|value)/a$", PartitionSpec(None, "fsdp", None)),
    (r"attention/(query|key|value)/b$", PartitionSpec(None, None, "tensor", "fsdp")),
    (r"attention/out/a$", PartitionSpec(None, "tensor", "fsdp", None)),
    (r"attention/out/b$", PartitionSpec(None, None, "fsdp")),
    (r"mlp/(gate|up)/a$", PartitionSpec(None, "fsdp", None)),
    (r"mlp/(gate|up)/b$", PartitionSpec(None, None, ("tensor", "fsdp"))),
    (r"mlp/down/a$", PartitionSpec(None, ("tensor", "fsdp"), None)),
    (r"mlp/down/b$", PartitionSpec(None, None, "fsdp")),
)
_RULES = (
    (r"embed/tokens$", PartitionSpec("tensor", "fsdp")),
    (r"embed/positions$", PartitionSpec(None, "fsdp")),
    *_LAYER_RULES,
    (r"(^|/)head/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"(^|/)heads/[^/]+/kernel$", PartitionSpec("fsdp", None)),
)


def sharding_rules(model: Any) -> list[tuple[str, PartitionSpec]]:
    """Rules ``(pattern of the leaf's path, PartitionSpec)`` for a model's parameters; the first match counts.

    Patterns match the end of a path, so the same rules place an optimizer's moments, whose paths end like their
    parameter's.
    """
    del model  # every family has the same tree
    return list(_RULES)


def shard_specs(rules, tree: Any, mesh: Any) -> Any:
    """Chooses a PartitionSpec for every leaf of a tree of arrays or shapes.

    Args:
        rules: as :func:`sharding_rules` gives them.
        tree: anything whose leaves have ``shape`` and ``dtype``: parameters, a train state.
        mesh: ``jax.sharding.Mesh``; axes that it lacks are ignored.

    Returns:
        A tree of ``PartitionSpec`` like ``tree``; small leaves without a rule are replicated, and so is an axis of a
        low-rank factor or of a quantised kernel that its mesh axes do not divide (a head's width, over more devices
        than it has entries).

    Raises:
        ModelError: a leaf of 1 MiB or more has no rule, or a mesh axis does not divide the axis of a leaf.
    """

    def place(path, leaf):
        return _place(leaf_path(path), leaf, rules, dict(mesh.shape))

    return jax.tree_util.tree_map_with_path(place, tree)


def leaf_path(path) -> str:
    """A tree path as text: ``layers/attention/query/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _place(name, leaf, rules, sizes) -> PartitionSpec:
    spec = next((spec for pattern, spec in rules if re.search(pattern, name)), None)
    if spec is None or len(spec) > len(leaf.shape):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        if size >= BIG:
            raise ModelError(
                f"leaf {name!r} of shape {tuple(leaf.shape)} ({size / 2**20:.1f} MiB) matches no sharding rule of its "
                f"rank; add a rule for it."
            )
        return PartitionSpec()
    if re.search(_LENIENT, name):
        return PartitionSpec(*(_dividing(*pair, sizes) for pair in zip(leaf.shape, spec, strict=False)))
    spec = PartitionSpec(*(axis if axis in sizes else None for axis in spec))
    for dimension, axis in enumerate(spec):
        if axis is not None and leaf.shape[dimension] % sizes[axis]:
            raise ModelError(
                f"leaf {name!r}: mesh axis {axis!r} of size {sizes[axis]} does not divide axis {dimension} of its "
                f"shape {tuple(leaf.shape)}; choose a mesh.{axis} that divides {leaf.shape[dimension]}."
            )
    return spec


def _dividing(length: int, axis: Any, sizes: dict[str, int]) -> Any:
    """The mesh axes of an array's axis that the mesh has; None when together they do not divide it."""
    names = tuple(name for name in (axis if isinstance(axis, tuple) else (axis,)) if name in sizes)
    if not names or length % math.prod(sizes[name] for name in names):
        return None
    return names if len(names) > 1 else names[0]


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
    """Asks XLA to lay out an activation: for each array axis None, a mesh axis, or a tuple of mesh axes.

    Without a mesh this is the identity. Mesh axes that are missing, or that do not divide the array's axis (a batch of
    one row on eight devices), are left out: a layout never changes values.
    """
    sizes = _auto_axes()
    if not sizes:
        return x
    chosen = (_dividing(length, axis, sizes) for length, axis in zip(x.shape, axes, strict=True))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*chosen))


def replicate(x: jax.Array) -> jax.Array:
    """Asks XLA to hold a whole copy of a (small) array on every device."""
    return constrain(x, *(None,) * x.ndim)


def gathered(layer: Any, dtype: Any) -> Any:
    """Casts one layer's weights to the compute dtype and undoes their ``fsdp`` sharding; quantised ones stay so.

    Casting first halves the traffic of bfloat16; saying where the gather happens keeps XLA from dividing activations by
    width instead. Scales of norms keep their dtype, because norms compute in float32.
    """

    def gather(path, leaf):
        name = leaf_path(path)
        if name.endswith("norm/scale"):
            return leaf
        spec = next((spec for pattern, spec in _LAYER_RULES if re.search(pattern, name)), PartitionSpec())
        stored = [*spec[1:], *(None,) * leaf.ndim][: leaf.ndim]
        used = [tuple(n for n in (axis if isinstance(axis, tuple) else (axis,)) if n != "fsdp") for axis in stored]
        kept = leaf.dtype if name.endswith(("/values", "/scale")) else jnp.dtype(dtype)
        return _gather(leaf, kept, tuple(stored), tuple(used)) if _auto_axes() else leaf.astype(kept)

    return jax.tree_util.tree_map_with_path(gather, layer)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(leaf: jax.Array, dtype: Any, stored: tuple, used: tuple) -> jax.Array:
    """The leaf in ``dtype``, moved from the axes ``stored`` to the axes ``used``.

    The transposed constraints would add up the whole gradient on every device and then cut it; this one asks for each
    device's part at once, which is half the traffic (a reduce-scatter) and, on TPUs, overlaps with the product.
    """
    return constrain(constrain(leaf, *stored).astype(dtype), *used)


def _gather_forward(leaf, dtype, stored, used):
    return _gather(leaf, dtype, stored, used), jnp.zeros((), leaf.dtype)


def _gather_backward(dtype, stored, used, like, cotangent):
    return (constrain(cotangent, *stored).astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


def axis_size(axis: str) -> int:
    """Size of a mesh axis; 1 without a mesh or without the axis."""
    return _auto_axes().get(axis, 1)


def batch_shards(length: int) -> int:
    """Over how many devices a batch axis of this length is divided."""
    sizes = _auto_axes()
    shards = math.prod(sizes.get(axis, 1) for axis in BATCH)
    return shards if length % shards == 0 else 1


def _auto_axes() -> dict[str, int]:
    mesh = jax.sharding.get_abstract_mesh()
    return {
        name: size
        for (name, size), kind in zip(mesh.shape.items(), mesh.axis_types, strict=True)
        if kind == AxisType.Auto
    }
