import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxpref import models
from jaxpref.batch import Batch, Examples, Rows
from jaxpref.errors import ConfigError, ModelError
from jaxpref.training import mesh, optimizers, state, trees
from tests import compilations

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Device:
    """A device of one of several slices."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "a device"


def section(data=1, fsdp=1, tensor=1, sequence=1):
    return types.SimpleNamespace(data=data, fsdp=fsdp, tensor=tensor, sequence=sequence)


# ------------------------------------------------------------------------------------------------ mesh


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (dict(data=-1), (8, 1, 1, 1)),
        (dict(data=2, fsdp=-1, tensor=2), (2, 2, 2, 1)),
        (dict(data=2, fsdp=2, tensor=1, sequence=2), (2, 2, 1, 2)),
        (dict(data=8, fsdp=-1), (8, 1, 1, 1)),
    ],
)
def test_one_axis_is_inferred(sizes, expected):
    assert mesh.axis_sizes(section(**sizes), 8) == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            dict(data=3, fsdp=-1),
            "data=3, fsdp=-1, .* product 3 does not divide the number of devices, 8; change an axis",
        ),
        (dict(data=2), "product 2 is not the number of devices, 8"),
        (dict(data=16), "product 16 is not the number of devices, 8"),
        (dict(data=-1, fsdp=-1), "at most one of them -1"),
        (dict(data=0, fsdp=-1), "must be positive"),
        (dict(data=-2, fsdp=-1), "must be positive"),
    ],
)
def test_a_mesh_that_does_not_divide_the_devices_is_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        mesh.axis_sizes(section(**sizes), 8)


def test_axes_are_auto_and_cover_all_devices():
    made = mesh.make_mesh(section(data=2, fsdp=-1, tensor=2))
    assert dict(made.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
    assert set(made.axis_types) == {AxisType.Auto}
    assert {device.id for device in made.devices.ravel()} == {device.id for device in jax.devices()}


def test_slices_of_a_data_centre_network_are_told_apart_along_data():
    devices = [Device(id=number, slice_index=number // 4, process_index=number // 4) for number in range(8)]
    made = mesh.make_mesh(section(data=2, fsdp=2, tensor=2), devices[::-1])
    slices = np.vectorize(lambda device: device.slice_index)(made.devices)
    assert (slices == slices[:, :1, :1, :1]).all() and len(np.unique(slices)) == 2
    with pytest.raises(ConfigError, match="mesh.data is 1 but must be a multiple of the 2 TPU slices"):
        mesh.make_mesh(section(fsdp=8), devices)


# ------------------------------------------------------------------------------------------------ state


def train_state(model, optimizer_section, average=True):
    params = jax.eval_shape(lambda: {"model": models.init(model, jax.random.key(0)), "heads": {}})
    params["heads"] = {"reward": {"kernel": jax.ShapeDtypeStruct((model.config.width, 1), jnp.float32)}}
    mask = optimizers.trainable_mask(params, [("embed", dict(frozen=True))])
    transformation, _ = optimizers.make(optimizer_section, (), params, steps=10)
    scale = {"kto": jax.ShapeDtypeStruct((), jnp.float32)}
    return jax.eval_shape(lambda p, s: state.create(p, mask, transformation, s, average=average), params, scale)


@pytest.mark.parametrize("name", sorted(optimizers.HYPERPARAMETERS))
def test_moments_and_averages_lie_as_their_parameters(name):
    chosen = optimizers_section(name)
    made = mesh.make_mesh(section(data=2, fsdp=2, tensor=2))
    model = models.Transformer(models.BUILTIN["nano"])
    whole = train_state(model, chosen)
    specs = {path: sharding.spec for path, sharding in trees.leaves(mesh.state_shardings(whole, model, made)).items()}
    query = "model/layers/attention/query/kernel"
    assert specs[f"params/{query}"] == PartitionSpec(None, "fsdp", "tensor", None)
    assert specs["params/heads/reward/kernel"] == PartitionSpec("fsdp", None)
    assert specs["step"] == specs["objective/kto"] == PartitionSpec()
    shapes = {path: leaf.shape for path, leaf in trees.leaves(whole).items()}
    same = [path for path in specs if path.endswith(query) and shapes[path] == shapes[f"params/{query}"]]
    assert len(same) == {"adamw": 4, "adafactor": 3, "lion": 3, "muon": 3, "sgd": 3}[name]
    assert {specs[path] for path in same} == {specs[f"params/{query}"]}
    for path, spec in specs.items():
        assert len(spec) <= len(shapes[path])


def optimizers_section(name):
    fields = dict(
        name=name, learning_rate=0.1, schedule="constant", warmup_steps=0, end_factor=None, clip_norm=0.0,
        weight_decay=0.0, b1=None, b2=None, eps=None, momentum=0.9 if name == "sgd" else None, moment_dtype="bfloat16",
    )  # fmt: skip
    return types.SimpleNamespace(**fields)


def test_a_model_that_the_mesh_does_not_divide_is_refused():
    model = models.Transformer(models.BUILTIN["nano"])
    odd = jax.sharding.Mesh(np.array(jax.devices()[:7]).reshape(1, 7, 1, 1), mesh.AXES)
    with pytest.raises(ModelError, match="does not divide"):
        mesh.state_shardings(train_state(model, optimizers_section("sgd")), model, odd)


def test_a_sharded_update_compiles_once_and_keeps_its_shardings():
    made = mesh.make_mesh(section(data=2, fsdp=2, tensor=2))
    model = models.Transformer(models.BUILTIN["nano"])
    params = {"model": {"head": {"kernel": jnp.ones((8, 16))}, "norm": {"scale": jnp.ones(8)}}, "heads": {}}
    transformation, _ = optimizers.make(optimizers_section("adamw"), (), params, steps=10)
    create = lambda p: state.create(p, jax.tree.map(lambda _: True, p), transformation, {}, average=False)  # noqa: E731
    shardings = mesh.state_shardings(jax.eval_shape(create, params), model, made)
    current = jax.jit(create, out_shardings=shardings)(params)

    def step(current):
        changes, moments = transformation.update(current.params, current.optimizer, current.params)
        return current._replace(params=optax.apply_updates(current.params, changes), optimizer=moments)

    step = jax.jit(step, donate_argnums=0, out_shardings=shardings)
    with compilations.counted() as counts:
        for _ in range(3):
            current = step(current)
    assert counts["jit(step)"] == 1
    assert jax.tree.map(lambda leaf: leaf.sharding, current) == shardings
    assert current.params["model"]["head"]["kernel"].sharding.spec == PartitionSpec("fsdp", "tensor")


# ------------------------------------------------------------------------------------------------ batch


def host_batch(micro=2, rows=8, tokens=4, examples=3):
    numbers = np.arange(micro * rows * tokens, dtype=np.int32).reshape(micro, rows, tokens)
    index = np.zeros((examples, 2, 5), np.int32)
    side = {"margin": np.arange(examples, dtype=np.float32)}
    pairs = Examples(index, index > 0, index[..., 0], index[:, 0, 0], np.ones(examples, bool), side)
    return Batch(
        Rows(numbers, numbers + 1, numbers + 2, numbers + 3), np.int32(micro), np.int32(micro), {"pairs": pairs}
    )


def test_rows_are_divided_and_examples_whole():
    made = mesh.make_mesh(section(data=2, fsdp=2, sequence=2))
    batch = host_batch()
    placed = mesh.place_batch(batch, made)
    assert placed.rows.tokens.sharding.spec == PartitionSpec(None, ("data", "fsdp"), "sequence")
    assert placed.rows.tokens.addressable_shards[0].data.shape == (2, 2, 2)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves((placed.examples, placed.count)))
    jax.tree.map(np.testing.assert_array_equal, placed, batch)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (dict(rows=6), "batch.rows, the rows of a micro-batch, has 6, which the mesh's data x fsdp = 4"),
        (dict(tokens=5), "a row has 5 tokens, which the mesh's sequence = 2"),
    ],
)
def test_a_batch_that_the_mesh_does_not_divide_is_refused(batch, message):
    with pytest.raises(ConfigError, match=message):
        mesh.batch_shardings(host_batch(**batch), mesh.make_mesh(section(data=2, fsdp=2, sequence=2)))


# ------------------------------------------------------------------------------------------------ processes


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ""),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1"}, "environment"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, ""),  # a batch script: no step, hence alone
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, ""),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, "slurm"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpi"),
    ],
)
def test_clusters_are_found_in_the_environment(monkeypatch, variables, expected):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORDINATOR")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert mesh.find_cluster() == expected


@pytest.mark.parametrize(
    ("tasks", "gpus", "expected"),
    [
        ("1(x4)", "8", list(range(8))),
        ("1", "2", [0, 1]),
        ("8(x4)", "8", None),
        ("1(x4)", "", None),
        ("16(x2)", "1", None),
    ],
)
def test_one_slurm_task_of_a_node_takes_all_its_gpus(monkeypatch, tasks, gpus, expected):
    started = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: started.update(arguments))
    variables = {"STEP_NUM_TASKS": "4", "PROCID": "1", "STEP_TASKS_PER_NODE": tasks, "GPUS_ON_NODE": gpus}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert mesh.initialise_distributed("auto") == "slurm"
    assert started["initialization_timeout"] == 1800 and started.get("local_device_ids") == expected


def test_bad_modes_and_half_an_environment_are_refused(monkeypatch):
    assert mesh.initialise_distributed("off") == ""
    with pytest.raises(ConfigError, match="mesh.distributed is 'yes'"):
        mesh.initialise_distributed("yes")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    with pytest.raises(ConfigError, match="but JAX_PROCESS_ID must hold a number; set all three or none"):
        mesh.initialise_distributed("auto")


def test_two_processes_divide_the_batch():
    program = """
import types, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from jaxpref.training import mesh
assert mesh.initialise_distributed("auto") == "environment"
made = mesh.make_mesh(types.SimpleNamespace(data=-1, fsdp=2, tensor=1, sequence=1))
values = np.arange(2 * 8 * 4, dtype=np.float32).reshape(2, 8, 4)
rows = mesh.to_global(values, jax.sharding.NamedSharding(made, mesh.ROWS))
mine = sorted({shard.index[1].start or 0 for shard in rows.addressable_shards})
with jax.set_mesh(made):
    total = jax.jit(lambda x: (x * x).sum())(rows)
print("result", jax.process_index(), len(jax.devices()), mine, float(total) == float((values**2).sum()))
"""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    base = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    base |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    base |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=base | {"JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    results = [next(line for line in text.splitlines() if line.startswith("result")) for text in printed]
    assert results == ["result 0 4 [0, 2] True", "result 1 4 [4, 6] True"]
