"""How a checkpoint lies on disk, and how one is read and verified. Described in :mod:`jaxpref.training.checkpoints`."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from jaxpref.errors import CheckpointError
from jaxpref.training import trees
from jaxpref.training.digest import leaf_digests

LIBRARIES = ("jaxpref", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def complete_steps(folder) -> list[int]:
    """Steps of the complete checkpoints in a ``checkpoints`` folder, oldest first."""
    return sorted(ocp.utils.checkpoint_steps(folder)) if epath.Path(folder).exists() else []


def describe(state) -> dict[str, list]:
    """``[shape, dtype, digest]`` of every leaf by its path."""
    digests = _digests(trees.leaves(state))
    return {path: [list(leaf.shape), leaf.dtype.name, digests[path]] for path, leaf in trees.leaves(state).items()}


def read_meta(folder, step: int) -> dict[str, Any]:
    """The ``meta`` of a checkpoint; raises when it is missing or not what was written."""
    meta = ocp.JsonCheckpointHandler().restore(folder / str(step) / "meta", args=ocp.args.JsonRestore())
    if sealed({name: value for name, value in meta.items() if name != "seal"}) != meta:
        raise ValueError("its description (meta) has changed since it was written")
    return meta


def read_leaves(folder, step: int, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Arrays of a checkpoint by path, with the shapes, dtypes and shardings of ``wanted``.

    This reads through Orbax's handler, not through its manager: the manager's restore ends in a barrier, where the
    other processes would wait for one whose files are damaged.
    """
    nested = nest({path: ocp.utils.to_shape_dtype_struct(leaf) for path, leaf in wanted.items()})
    arguments = ocp.args.PyTreeRestore(
        item=nested, restore_args=ocp.checkpoint_utils.construct_restore_args(nested), partial_restore=True
    )
    return trees.leaves(ocp.PyTreeCheckpointHandler().restore(folder / str(step) / "state", args=arguments))


def changed_leaves(leaves: Mapping[str, jax.Array], stored: Mapping[str, list]) -> list[str]:
    """Paths of the arrays whose digest is not the stored one."""
    digests = _digests(leaves)
    return [path for path in leaves if digests[path] != stored[path][2]]


def check_architecture(stored: Mapping[str, list], target, where: str, *, dtypes: bool = True) -> None:
    """Raises CheckpointError, naming the first leaf in which a checkpoint differs from what a run needs."""
    held = {path: _kind(shape, dtype, dtypes) for path, (shape, dtype, _) in stored.items()}
    needed = {path: _kind(leaf.shape, leaf.dtype, dtypes) for path, leaf in trees.leaves(target).items()}
    for path in [*needed, *held]:
        if held.get(path) != needed.get(path):
            raise CheckpointError(
                f"{where} is of another architecture: {path} is {held.get(path, 'absent')} there, but "
                f"{needed.get(path, 'absent')} in this config; use the config that made it, or a new workdir."
            )


def _kind(shape, dtype, with_dtype: bool) -> str:
    text = f"[{', '.join(map(str, shape))}]"
    return f"{jnp.dtype(dtype).name}{text}" if with_dtype else text


def environment() -> dict[str, Any]:
    """What bitwise equality rests on: versions, devices, mesh."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "mesh": dict(jax.sharding.get_abstract_mesh().shape),
    }


def environment_changes(old: Mapping[str, Any]) -> str:
    """What differs between a checkpoint's environment and this one, in words; empty when nothing does."""
    old, new = ({**e, **e["libraries"], "libraries": None} for e in (old, environment()))
    return ", ".join(f"{name} ({old.get(name)}, now {new.get(name)})" for name in new if new[name] != old.get(name))


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def sealed(meta: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with a digest of themselves."""
    plain = json.loads(json.dumps(meta))
    return plain | {"seal": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()}


def _digests(leaves: Mapping[str, Any]) -> dict[str, int]:
    numbers = {path: leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf for path, leaf in leaves.items()}
    return leaf_digests(numbers)


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a/b": x}`` as ``{"a": {"b": x}}``."""
    nested: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return nested


def summary(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'…' if len(text) > 200 else ''}"
