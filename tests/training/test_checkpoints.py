import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxpref.errors import CheckpointError
from jaxpref.training import checkpoints, optimizers, state, stored, trees
from tests.training.test_optimizers import Section

ROOT = pathlib.Path(__file__).resolve().parents[2]
IDENTITY = {"seed": 0, "data": "abc"}


def section(every=0, keep=2, keep_every=0, metric="", mode="min"):
    best = types.SimpleNamespace(metric=metric, mode=mode)
    return types.SimpleNamespace(every=every, keep=keep, keep_every=keep_every, best=best)


def opened(path, identity=IDENTITY, **fields):
    return checkpoints.Checkpoints(path, section(**fields), identity=identity)


def tree(seed=0, width=64):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "params": {"model": {"w": jax.random.normal(keys[0], (256, width)), "b": jnp.zeros(7, jnp.bfloat16)}},
        "step": jnp.int32(seed),
        "flag": jnp.array(True),
    }


def assert_equal(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for path, leaf in trees.leaves(expected).items():
        other = trees.leaves(got)[path]
        assert other.dtype == leaf.dtype, path
        np.testing.assert_array_equal(np.asarray(other, np.float64), np.asarray(leaf, np.float64), err_msg=path)


def save(path, *steps, **fields):
    with opened(path, **fields) as saver:
        for step in steps:
            saver.save(step, tree(step), {"waited": step})


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


# ------------------------------------------------------------------------------------------------ round trips


def test_a_relative_run_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("runs/relative", 3)
    with opened("runs/relative") as reader:
        assert_equal(reader.restore(tree())[0], tree(3))
    assert (tmp_path / "runs/relative/checkpoints/3").is_dir()


@pytest.mark.parametrize("name", sorted(optimizers.HYPERPARAMETERS))
def test_a_whole_train_state_comes_back_bit_for_bit(tmp_path, name):
    params = {
        "model": {"layers": {"mlp": {"up": {"kernel": jnp.ones((2, 4, 6))}}}, "norm": {"scale": jnp.ones(4)}},
        "heads": {"reward": {"kernel": jnp.ones((4, 1))}},
    }
    mask = optimizers.trainable_mask(params, [("norm", dict(frozen=True))])
    transformation, _ = optimizers.make(Section(name=name, moment_dtype="bfloat16"), (), params, steps=10)
    whole = state.create(params, mask, transformation, {"kto": {"baseline": jnp.float32(0.3)}}, average=True)
    with opened(tmp_path) as saver:
        saver.save(5, whole, {})
        got, _ = saver.restore(jax.eval_shape(lambda: whole))
    assert isinstance(got, state.TrainState)
    assert_equal(got, whole)


def test_a_run_without_checkpoints_starts_afresh(tmp_path):
    with opened(tmp_path) as saver:
        assert saver.restore(tree()) == (None, None)
        assert saver.latest_step() is saver.best_step() is None


def test_the_newest_is_restored_with_its_progress(tmp_path):
    save(tmp_path, 1, 2)
    with opened(tmp_path) as saver:
        got, progress = saver.restore(tree())
        assert saver.latest_step() == 2 and progress == {"waited": 2} and saver.damaged == ()
        assert_equal(got, tree(2))
        assert not saver.save(2, tree(2), {})  # already there
    meta = json.loads((tmp_path / "checkpoints" / "2" / "meta" / "metadata").read_text())
    assert meta["step"] == 2 and meta["identity"] == IDENTITY and meta["environment"]["devices"] == 8
    assert meta["environment"]["libraries"]["jax"] == jax.__version__


def test_a_state_may_be_donated_while_it_is_being_saved(tmp_path):
    value = jax.random.normal(jax.random.key(0), (1000, 1000))
    step = jax.jit(lambda x: x * 2, donate_argnums=0)
    with opened(tmp_path) as saver:
        kept = np.array(value)
        saver.save(1, {"w": value}, {})
        for _ in range(3):
            value = step(value)
        got, _ = saver.restore({"w": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)})
    np.testing.assert_array_equal(got["w"], kept)


def test_restores_onto_another_mesh(tmp_path):
    def place(shape, spec, axes):
        devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
        mesh = jax.sharding.Mesh(devices, axes, axis_types=(AxisType.Auto,) * len(axes))
        return NamedSharding(mesh, spec)

    old = place((4, 2), PartitionSpec("fsdp", "tensor"), ("fsdp", "tensor"))
    new = place((2, 2), PartitionSpec("tensor", None), ("fsdp", "tensor"))
    value = jax.random.normal(jax.random.key(0), (8, 8))
    with opened(tmp_path) as saver:
        saver.save(1, {"w": jax.device_put(value, old)}, {})
        got, _ = saver.restore({"w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=new)})
    assert got["w"].sharding == new
    np.testing.assert_array_equal(got["w"], value)


# ------------------------------------------------------------------------------------------------ what is kept


def test_newest_multiples_and_the_best_are_kept(tmp_path):
    values = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: float("nan"), 6: 9.0, 7: 1.0}
    with opened(tmp_path, keep=2, keep_every=3, metric="loss") as saver:
        for step, value in values.items():
            saver.save(step, {"w": jnp.ones(2)}, {}, value=value)
        saver.wait()
        assert saver.best_step() == 2
        assert saver.steps() == [2, 3, 6, 7]
    with opened(tmp_path, keep=1, metric="loss", mode="max") as saver:  # values are read again, the rule is the new one
        saver.save(8, {"w": jnp.ones(2)}, {}, value=5.0)
        saver.wait()
        assert saver.best_step() == 6 and saver.steps() == [6, 8]


def test_due():
    assert [step for step in range(1, 10) if checkpoints.Checkpoints.due(saver_of(every=4), step)] == [4, 8]
    assert not any(checkpoints.Checkpoints.due(saver_of(every=0), step) for step in range(1, 10))


def saver_of(**fields):
    return types.SimpleNamespace(_section=section(**fields))


# ------------------------------------------------------------------------------------------------ damage


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def edit_progress(folder):
    meta = folder / "meta" / "metadata"
    meta.write_text(meta.read_text().replace('"waited": 2', '"waited": 3'))


DAMAGES = {
    "truncated": lambda folder: truncate(largest_file(folder)),
    "byte_changed": lambda folder: flip(largest_file(folder)),
    "file_missing": lambda folder: largest_file(folder).unlink(),
    "meta_truncated": lambda folder: truncate(folder / "meta" / "metadata"),
    "meta_changed": edit_progress,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back_loudly(tmp_path, caplog, damage):
    save(tmp_path, 1, 2)
    DAMAGES[damage](tmp_path / "checkpoints" / "2")
    with opened(tmp_path) as saver:
        got, progress = saver.restore(tree())
        assert_equal(got, tree(1))
        assert progress == {"waited": 1}
        (damaged,) = saver.damaged
        assert damaged.step == 2
        assert "CHECKPOINT 2 IN" in caplog.text and f"IS DAMAGED: {damaged.reason}" in caplog.text
        assert saver.steps() == [1]
        assert [path.name for path in saver.folder.iterdir() if path.name.startswith("damaged-2-")]
        assert saver.save(2, tree(2), {"waited": 2})  # the step can be saved again
        saver.wait()
        assert_equal(saver.restore(tree())[0], tree(2))


def test_orbax_alone_does_not_notice_a_changed_byte(tmp_path):
    """Why every leaf has a digest. Should this test fail one day, Orbax has learned it."""
    save(tmp_path, 1)
    flip(largest_file(tmp_path / "checkpoints" / "1"))
    folder = checkpoints.epath.Path(tmp_path) / "checkpoints"
    leaves = stored.read_leaves(folder, 1, trees.leaves(jax.eval_shape(tree)))
    assert stored.changed_leaves(leaves, stored.read_meta(folder, 1)["leaves"]) == ["params/model/w"]


def test_a_missing_item_is_damage_and_all_damaged_is_an_error(tmp_path):
    save(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "meta")
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "state")
    with (
        opened(tmp_path) as saver,
        pytest.raises(CheckpointError, match="all 2 checkpoints in .* are damaged .2: .*1: "),
    ):
        saver.restore(tree())
    assert {"1", "2"} <= {path.name for path in (tmp_path / "checkpoints").iterdir()}  # nothing was removed


def test_a_save_that_was_killed_is_ignored_and_removed(tmp_path):
    program = f"""
import os, signal, types, jax, jax.numpy as jnp
from jaxpref.training import checkpoints
best = types.SimpleNamespace(metric="", mode="min")
section = types.SimpleNamespace(every=1, keep=2, keep_every=0, best=best)
saver = checkpoints.Checkpoints({str(tmp_path)!r}, section, identity={IDENTITY!r})
state = {{"w": jax.random.normal(jax.random.key(0), (4000, 1000))}}
saver.save(1, state, {{}})
saver.wait()
saver.save(2, state, {{}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if "tmp" in path.name]
    with opened(tmp_path) as saver:
        assert saver.steps() == [1]
        got, _ = saver.restore({"w": jax.ShapeDtypeStruct((4000, 1000), jnp.float32)})
        assert saver.latest_step() == 1 and got["w"].shape == (4000, 1000) and saver.damaged == ()
    assert not [path.name for path in (tmp_path / "checkpoints").iterdir() if "tmp" in path.name]


# ------------------------------------------------------------------------------------------------ what does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: tree(width=32),
            r"params/model/w is float32\[256, 64\] there, but float32\[256, 32\] in this config",
        ),
        (lambda t: t | {"step": jnp.ones(())}, r"step is int32\[\] there, but float32\[\]"),
        (lambda t: t | {"more": jnp.ones(3)}, r"more is absent there, but float32\[3\]"),
        (lambda t: {"params": t["params"]}, r"flag is bool\[\] there, but absent"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, change, message):
    save(tmp_path, 1, 2)
    target = jax.eval_shape(lambda: change(tree()))
    with (
        opened(tmp_path) as saver,
        pytest.raises(CheckpointError, match="checkpoint 2 .*another architecture: " + message),
    ):
        saver.restore(target)
    assert saver.steps() == [1, 2]


def test_trap_61_other_data_are_refused(tmp_path):
    save(tmp_path, 1)
    with opened(tmp_path, identity=IDENTITY | {"data": "xyz"}) as saver:
        with pytest.raises(CheckpointError, match="made with another data .'abc', now 'xyz'.; .* new workdir"):
            saver.restore(tree())
    with opened(tmp_path, identity={"seed": 0}) as saver, pytest.raises(CheckpointError, match="another data"):
        saver.restore(tree())


def test_a_folder_that_cannot_be_written_is_one_clear_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written .*; choose a workdir that can"):
        opened(tmp_path / "file")


# ------------------------------------------------------------------------------------------------ optimizer, steps


def test_trap_62_moments_schedule_and_counters_go_on_as_if_nothing_had_happened(tmp_path):
    config = Section(schedule="cosine", warmup_steps=2, moment_dtype="bfloat16", weight_decay=0.1)
    params = {"model": {"layers": {"mlp": {"up": {"kernel": jnp.ones((2, 8, 8))}}}}, "heads": {}}
    transformation, _ = optimizers.make(config, (), params, steps=6)
    everything = jax.tree.map(lambda _: True, params)
    create = lambda: state.create(params, everything, transformation, {}, average=False)  # noqa: E731

    @jax.jit
    def step(current):
        key = jax.random.fold_in(jax.random.key(0), current.step)
        gradients = jax.tree.map(lambda p: p + jax.random.normal(key, p.shape), current.params)
        changes, moments = transformation.update(gradients, current.optimizer, current.params)
        updated = optax.apply_updates(current.params, changes)
        return current._replace(step=current.step + 1, params=updated, optimizer=moments)

    straight = create()
    for _ in range(6):
        straight = step(straight)
    for killed_after in (1, 4):
        current = create()
        for _ in range(killed_after):
            current = step(current)
        with opened(tmp_path / str(killed_after)) as saver:
            saver.save(killed_after, current, {})
        with opened(tmp_path / str(killed_after)) as saver:
            current, _ = saver.restore(jax.eval_shape(create))
        for _ in range(killed_after, 6):
            current = step(current)
        assert_equal(current, straight)


def test_trap_59_the_final_checkpoint_says_how_many_steps_are_finished(tmp_path):
    """A run of 6 steps ends with checkpoint 6, from which a longer run takes step 6 (counted from 0) next."""
    with opened(tmp_path) as saver:
        saver.save(6, {"step": jnp.int32(6)}, {})
        got, _ = saver.restore({"step": jnp.int32(0)})
        assert saver.latest_step() == 6 == int(got["step"])


# ------------------------------------------------------------------------------------------------ other runs


def run_with_average(path, values=(None, None)):
    with opened(path, metric="loss", keep=2) as saver:
        for step, value in enumerate(values, 1):
            model = {"w": jnp.full((4, 2), float(step)), "b": jnp.zeros(2)}
            average = {"model": {"w": jnp.full((4, 2), step + 0.5), "b": None}, "heads": {}}
            saver.save(step, {"params": {"model": model, "heads": {}}, "average": average}, {}, value=value)


def test_parameters_of_a_run_are_the_average_of_its_best_or_newest_checkpoint(tmp_path):
    shapes = {"w": jax.ShapeDtypeStruct((4, 2), jnp.bfloat16), "b": jax.ShapeDtypeStruct((2,), jnp.float32)}
    run_with_average(tmp_path / "newest")
    got = checkpoints.load_model_params(tmp_path / "newest", shapes)
    assert got["w"].dtype == jnp.bfloat16 and float(got["w"][0, 0]) == 2.5 and float(got["b"][0]) == 0
    run_with_average(tmp_path / "best", (1.0, 2.0))
    assert float(checkpoints.load_model_params(tmp_path / "best", shapes)["w"][0, 0]) == 1.5
    whole = checkpoints.load_params(tmp_path / "best", {"model": shapes}, step=2)
    assert float(whole["model"]["w"][0, 0]) == 2.5


def test_parameters_of_a_run_that_do_not_fit_are_refused(tmp_path):
    shapes = {"w": jax.ShapeDtypeStruct((4, 3), jnp.float32), "b": jax.ShapeDtypeStruct((2,), jnp.float32)}
    with pytest.raises(CheckpointError, match="no complete checkpoint; train that run first"):
        checkpoints.load_model_params(tmp_path, shapes)
    run_with_average(tmp_path)
    with pytest.raises(CheckpointError, match=r"another architecture: w is \[4, 2\] there, but \[4, 3\]"):
        checkpoints.load_model_params(tmp_path, shapes)
    with pytest.raises(CheckpointError, match=r"checkpoint 7 .* does not exist, only \[1, 2\] do"):
        checkpoints.load_model_params(tmp_path, shapes, step=7)
    truncate(tmp_path / "checkpoints" / "2" / "meta" / "metadata")
    with pytest.raises(CheckpointError, match="checkpoint 2 .* is damaged"):
        checkpoints.load_model_params(tmp_path, shapes)


# ------------------------------------------------------------------------------------------------ processes


@pytest.mark.slow
def test_two_processes_agree_that_a_checkpoint_is_damaged(tmp_path):
    """Process 1's part of the newest checkpoint is truncated: process 0 could read its own, and must fall back too."""
    program = f"""
import sys, types, jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from jaxpref.training import checkpoints, mesh
mesh.initialise_distributed("auto")
made = mesh.make_mesh(types.SimpleNamespace(data=1, fsdp=-1, tensor=1, sequence=1))
best = types.SimpleNamespace(metric="", mode="min")
section = types.SimpleNamespace(every=1, keep=2, keep_every=0, best=best)
sharding = jax.sharding.NamedSharding(made, jax.sharding.PartitionSpec("fsdp"))
host = np.random.default_rng(0).normal(size=(64, 100)).astype(np.float32)
saver = checkpoints.Checkpoints({str(tmp_path)!r}, section, identity={{}})
if sys.argv[1] == "save":
    for step in (1, 2):
        saver.save(step, {{"w": mesh.to_global(host + step, sharding)}}, {{}})
else:
    state, _ = saver.restore({{"w": jax.ShapeDtypeStruct(host.shape, jnp.float32, sharding=sharding)}})
    same = all(np.array_equal(shard.data, (host + 1)[shard.index]) for shard in state["w"].addressable_shards)
    print("result", jax.process_index(), saver.steps(), same)
    saver.save(2, state, {{}})
saver.close()
"""

    def both(mode):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        base = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
        base |= {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", program, mode],
                env=base | {"JAX_PROCESS_ID": str(number)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(2)
        ]
        texts = [process.communicate(timeout=120)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], texts
        return texts

    both("save")
    truncate(largest_file(tmp_path / "checkpoints" / "2" / "state" / "ocdbt.process_1"))
    texts = both("restore")
    assert ["result 0 [1] True" in texts[0], "result 1 [1] True" in texts[1]] == [True, True], texts
    assert "CHECKPOINT 2 IN" in texts[0] and "process 1 could not read its part" in texts[0]
