"""Processes, the device mesh, and where the train state and the batch lie on it.

Axes: ``data`` (copies of the model), ``fsdp`` (parameters divided, batch too), ``tensor`` (heads, hidden units and
vocabulary divided), ``sequence`` (tokens of a row divided). All are Auto axes: XLA's partitioner inserts communication.
"""

import glob
import importlib.util
import math
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxpref import models
from jaxpref.batch import Batch, Rows
from jaxpref.errors import ConfigError
from jaxpref.training import offload, trees

AXES = ("data", "fsdp", "tensor", "sequence")
ROWS = PartitionSpec(None, models.BATCH, "sequence")  # of [M, R, T]

# A gang of preemptible machines may come up one by one.
PATIENCE_SECONDS = 1800

# ------------------------------------------------------------------------------------------------ processes


def initialise_distributed(mode: str = "auto") -> str:
    """Joins the processes of a cluster; must run before anything else touches a device.

    ``auto`` looks, in this order, for ``JAX_COORDINATOR_ADDRESS`` (with ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``),
    a Slurm step of several tasks, several MPI ranks, and TPU chips; without any of them the process stays alone. ``on``
    leaves what it does not find to ``jax.distributed.initialize`` and fails without a cluster; ``off`` stays alone.

    Under Slurm, one task a node uses all its GPUs, several tasks a node use one each.

    Returns:
        what was found: ``'environment'``, ``'slurm'``, ``'mpi'``, ``'tpu'``, ``'jax'`` (mode ``on``), or ``''``.
    """
    if mode not in ("auto", "on", "off"):
        raise ConfigError(f"mesh.distributed is {mode!r}; choose one of auto, on, off.")
    if mode == "off" or jax.distributed.is_initialized():
        return ""
    found = find_cluster() if mode == "auto" else (find_cluster() or "jax")
    if not found:
        return ""
    arguments = {"environment": _environment_arguments, "slurm": _slurm_arguments}.get(found, dict)()
    try:
        jax.distributed.initialize(initialization_timeout=PATIENCE_SECONDS, **arguments)
    except ValueError as error:
        if found == "tpu" and mode == "auto" and "coordinator_address" in str(error):
            return ""  # TPU chips of a machine that belongs to no slice
        raise ConfigError(f"mesh.distributed is {mode!r}, but joining the cluster ({found}) failed: {error}") from error
    return found


def find_cluster() -> str:
    """The kind of cluster that this process was started in, from its environment; empty when alone."""
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        return "environment"
    # Only a step started by srun has tasks; a batch script sees SLURM_NTASKS but is alone.
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        return "slurm"
    if int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return "mpi"
    return "tpu" if _has_tpu() else ""


def _environment_arguments() -> dict[str, Any]:
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    missing = [name for name in names if not os.environ.get(name, "").isdigit()]
    if missing:
        raise ConfigError(
            f"JAX_COORDINATOR_ADDRESS is set, but {' and '.join(missing)} must hold a number; set all three or none."
        )
    processes, process = (int(os.environ[name]) for name in names)
    return {
        "coordinator_address": os.environ["JAX_COORDINATOR_ADDRESS"],
        "num_processes": processes,
        "process_id": process,
        "cluster_detection_method": "deactivate",
    }


def _slurm_arguments() -> dict[str, Any]:
    """jax gives every task the one GPU of its local rank; a node's only task should have them all."""
    alone = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0] == "1"
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return {"local_device_ids": list(range(int(gpus)))} if alone and gpus.isdigit() and int(gpus) else {}


def _has_tpu() -> bool:
    wanted = "tpu" in (os.environ.get("JAX_PLATFORMS") or "tpu")
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return wanted and bool(chips) and importlib.util.find_spec("libtpu") is not None


# ------------------------------------------------------------------------------------------------ mesh


def make_mesh(section, devices=None) -> jax.sharding.Mesh:
    """The device mesh of a config's ``mesh`` section: sizes of the four axes, -1 on at most one for all that remain.

    TPU slices that are joined by a data-centre network are told apart along ``data``.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = axis_sizes(section, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        if sizes[0] % slices:
            raise ConfigError(f"mesh.data is {sizes[0]} but must be a multiple of the {slices} TPU slices.")
        inner = (sizes[0] // slices, *sizes[1:])
        grid = mesh_utils.create_hybrid_device_mesh(inner, (slices, 1, 1, 1), devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_devices(mesh: jax.sharding.Mesh) -> int:
    """Over how many devices the rows of a micro-batch are divided."""
    return math.prod(mesh.shape[axis] for axis in models.BATCH)


def axis_sizes(section, devices: int) -> tuple[int, ...]:
    """Sizes of the mesh axes, with -1 replaced by what remains."""
    sizes = [getattr(section, axis) for axis in AXES]
    shown = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise ConfigError(f"mesh has {shown}; sizes must be positive, and at most one of them -1 (all that remain).")
    known = math.prod(size for size in sizes if size != -1)
    if devices % known or (-1 not in sizes and known != devices):
        rule = "does not divide" if -1 in sizes else "is not"
        raise ConfigError(
            f"mesh has {shown}, whose product {known} {rule} the number of devices, {devices}; "
            "change an axis, or set one to -1."
        )
    return tuple(devices // known if size == -1 else size for size in sizes)


# ------------------------------------------------------------------------------------------------ shardings


def state_shardings(state, model, mesh: jax.sharding.Mesh, *, offload_moments: bool = False):
    """Shardings of a whole train state (arrays or shapes): each leaf lies as the parameter that it belongs to.

    Moments and averages have paths that end with a parameter's, and its shape. What belongs to no parameter, or has
    another shape (Adafactor's factors), is replicated. Moments may lie in the hosts' memory instead of the devices'.
    """
    specs = models.shard_specs(models.sharding_rules(model), state.params, mesh)
    shapes, specs = trees.leaves(state.params), trees.leaves(specs)

    def place(path, leaf):
        parameter = trees.parameter_of(path, shapes)
        like = parameter is not None and shapes[parameter].shape == leaf.shape
        away = like and offload_moments and path.startswith("optimizer/")
        return NamedSharding(
            mesh, specs[parameter] if like else PartitionSpec(), memory_kind=offload.HOST if away else None
        )

    return trees.map_paths(place, state)


def batch_shardings(batch: Batch, mesh: jax.sharding.Mesh) -> Batch:
    """Shardings of a batch: rows divided over ``data`` and ``fsdp``, their tokens over ``sequence``; examples whole."""
    shape = batch.rows.tokens.shape
    for axis, names, what in ((1, models.BATCH, "batch.rows, the rows of a micro-batch,"), (2, ("sequence",), "a row")):
        shards = math.prod(mesh.shape[name] for name in names)
        if shape[axis] % shards:
            unit = "" if axis == 1 else " tokens"
            raise ConfigError(
                f"{what} has {shape[axis]}{unit}, which the mesh's {' x '.join(names)} = {shards} does not divide; "
                f"change it to a multiple of {shards}."
            )
    whole = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), batch)
    return whole._replace(rows=Rows(*(NamedSharding(mesh, ROWS) for _ in Rows._fields)))


def to_global(values: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """A global array from host values that every process holds; each puts only its own part on its devices."""
    values = np.asarray(values)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def place_batch(batch: Batch, mesh: jax.sharding.Mesh) -> Batch:
    """A planned batch (numpy) as global arrays."""
    return jax.tree.map(to_global, batch, batch_shardings(batch, mesh))
