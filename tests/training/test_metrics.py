import io
import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from jaxpref.errors import ConfigError
from jaxpref.training import mesh, metrics
from tests.training.object_store import write_once


def log(**changes):
    return types.SimpleNamespace(**dict(every=1, progress=True, tensorboard=False, wandb="") | changes)


def lines(run):
    return [json.loads(line) for line in (epath.Path(run) / metrics.FILE).read_text().splitlines()]


# ------------------------------------------------------------------------------------------------ sums and counts


def test_trap_66_the_mean_of_batches_of_different_sizes_is_the_mean_of_examples():
    """Two batches with 2 of 2 and 0 of 1 right: 2/3, where the mean of the batches' means would be 1/2."""
    totals = metrics.add({}, {"accuracy": (jnp.float32(2), jnp.float32(2))})
    totals = metrics.add(totals, {"accuracy": (jnp.float32(0), jnp.float32(1)), "only_here": (3, 4)})
    assert metrics.means(totals) == {"accuracy": 2 / 3, "only_here": 0.75}


def test_trap_68_and_69_means_are_global_and_padding_counts_nothing():
    """8 devices hold 16 examples of which 11 are real; each device alone would see another mean."""
    devices = mesh.make_mesh(types.SimpleNamespace(data=-1, fsdp=1, tensor=1, sequence=1))
    right = np.random.default_rng(0).integers(0, 2, 16).astype(np.float32)
    where = np.arange(16) < 11
    sharding = NamedSharding(devices, PartitionSpec("data"))
    score = jax.jit(lambda r, w: {"accuracy": (jnp.sum(jnp.where(w, r, 0)), jnp.sum(w))})
    got = metrics.means(score(mesh.to_global(right, sharding), mesh.to_global(where, sharding)))
    assert got["accuracy"] == pytest.approx(right[:11].mean())


def test_what_was_not_measured_is_left_out():
    assert metrics.means({"margin": (0.0, 0), "loss": (1.0, 2.0)}) == {"loss": 0.5}


# ------------------------------------------------------------------------------------------------ metrics.jsonl


def test_a_line_is_json_with_step_first_even_when_values_are_not_finite():
    line = metrics.to_line(3, {"loss": math.nan, "norm": math.inf, "low": -math.inf, "rate": 0.1})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    record = json.loads(line, parse_constant=refuse)
    assert next(iter(record)) == "step"
    assert record == {
        "step": 3, "loss": None, "norm": None, "low": None, "rate": 0.1,
        "nonfinite": {"loss": "nan", "norm": "inf", "low": "-inf"},
    }  # fmt: skip


def test_values_come_back_bit_for_bit(tmp_path):
    values = {"a": 0.1, "b": 1e-45, "c": float(np.float32(1) / np.float32(3)), "d": 2.0**-1074}
    with metrics.Writer(tmp_path, log(), first_step=0) as writer:
        writer.write(1, values)
    assert lines(tmp_path) == [{"step": 1} | values]


def test_a_resume_truncates_to_the_restored_step(tmp_path):
    with metrics.Writer(tmp_path, log(), first_step=0) as writer:
        for step in range(1, 6):
            writer.write(step, {"loss": float(step)})
            if step % 2 == 0:
                writer.write(step, {"heldout/loss": 0.5})
    with open(tmp_path / metrics.FILE, "a") as file:
        file.write('{"step": 6, "lo')  # the machine died here
    with metrics.Writer(tmp_path, log(), first_step=4) as writer:
        assert [(line["step"], len(line)) for line in lines(tmp_path)] == [
            (1, 2),
            (2, 2),
            (2, 2),
            (3, 2),
            (4, 2),
            (4, 2),
        ]
        writer.write(5, {"loss": 5.0})
    assert lines(tmp_path)[-1] == {"step": 5, "loss": 5.0}
    with metrics.Writer(tmp_path, log(), first_step=0):
        pass
    assert lines(tmp_path) == []  # no checkpoint: everything is done again


def test_every_line_is_on_disk_when_it_is_written(tmp_path):
    writer = metrics.Writer(tmp_path, log(), first_step=0)
    writer.write(1, {"loss": 1.0})
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}]  # a killed process closes nothing
    writer.close()


def test_a_dry_run_and_other_processes_write_nothing(tmp_path, monkeypatch):
    with metrics.Writer(tmp_path, log(), first_step=0, keep=False) as writer:
        writer.write(1, {"loss": 1.0})
        writer.upload()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with metrics.Writer(tmp_path, log(tensorboard=True), first_step=0) as writer:
        writer.write(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_on_an_object_store_the_file_is_uploaded_whole(tmp_path):
    run = "gs://bucket/run"
    with write_once(tmp_path) as uploads:
        with pytest.raises(OSError, match="cannot open"), (epath.Path(run) / "probe").open("a"):
            pass
        epath.Path(run).mkdir(parents=True)
        writer = metrics.Writer(run, log(), first_step=0)
        writer.write(1, {"loss": 1.0})
        writer.write(2, {"loss": 2.0})
        assert not uploads
        writer.upload()
        writer.write(3, {"loss": 3.0})
        assert [line["step"] for line in lines(run)] == [1, 2]  # what a killed machine leaves
        with metrics.Writer(run, log(), first_step=2) as resumed:
            resumed.write(3, {"loss": 3.0})
        assert [line["step"] for line in lines(run)] == [1, 2, 3]
        assert set(uploads) == {f"{run}/metrics.jsonl"}


# ------------------------------------------------------------------------------------------------ other writers


def fake_module(monkeypatch, name, **members):
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**members))


class FakeSummaries:
    """Stands for tensorboardX.SummaryWriter."""

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.scalars = folder, purge_step, []
        FakeSummaries.last = self

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def flush(self):
        epath.Path(self.folder).mkdir(parents=True, exist_ok=True)
        (epath.Path(self.folder) / "events").write_text(str(self.scalars))

    close = flush


def test_tensorboard_gets_finite_values_and_purges_what_is_done_again(tmp_path, monkeypatch):
    fake_module(monkeypatch, "tensorboardX", SummaryWriter=FakeSummaries)
    with metrics.Writer(tmp_path, log(tensorboard=True), first_step=4) as writer:
        writer.write(5, {"loss": 1.0, "broken": math.nan})
    assert FakeSummaries.last.scalars == [("loss", 1.0, 5)] and FakeSummaries.last.purge_step == 5
    assert (tmp_path / "tensorboard" / "events").exists()


def test_tensorboard_files_reach_an_object_store(tmp_path, monkeypatch):
    fake_module(monkeypatch, "tensorboardX", SummaryWriter=FakeSummaries)
    with write_once(tmp_path), metrics.Writer("gs://bucket/run", log(tensorboard=True), first_step=0) as writer:
        writer.write(1, {"loss": 1.0})
        writer.upload()
        assert (epath.Path("gs://bucket/run") / "tensorboard" / "events").exists()


def test_wandb_goes_on_with_the_run_of_the_same_folder(tmp_path, monkeypatch):
    started, logged, finished = [], [], []
    run = types.SimpleNamespace(
        log=lambda values, step: logged.append((values, step)), finish=lambda: finished.append(True)
    )
    fake_module(monkeypatch, "wandb", init=lambda **arguments: started.append(arguments) or run)
    (tmp_path / "config.json").write_text('{"seed": 3}')
    for first in (0, 2):
        with metrics.Writer(tmp_path, log(wandb="project"), first_step=first) as writer:
            writer.write(first + 1, {"loss": 1.0})
    assert started[0] == started[1] and started[0]["resume"] == "allow" and started[0]["project"] == "project"
    assert started[0]["config"] == {"seed": 3}
    assert logged == [({"loss": 1.0}, 1), ({"loss": 1.0}, 3)] and finished == [True, True]


@pytest.mark.parametrize(("module", "change"), [("tensorboardX", dict(tensorboard=True)), ("wandb", dict(wandb="p"))])
def test_a_writer_that_is_asked_for_and_not_installed_is_an_error(tmp_path, monkeypatch, module, change):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"log.{module.lower().rstrip('x')} needs {module}; pip install {module}"):
        metrics.Writer(tmp_path, log(**change), first_step=0)


# ------------------------------------------------------------------------------------------------ progress, profile


def test_progress_is_lines_away_from_a_terminal_and_a_bar_on_one():
    values = {"learning_rate": 0.1, "loss/dpo": 0.6931, "accuracy/dpo": 0.5, "margin/dpo": 0.0}
    for terminal, expected in ((False, "step 2/2  loss/dpo 0.6931  accuracy/dpo 0.5\n"), (True, "2/2")):
        text = io.StringIO()
        console = rich.console.Console(file=text, force_terminal=terminal, width=120)
        with metrics.progress_bar(0, 2, log(), console) as advance:
            advance(1, values)
            advance(2, values)
        assert expected in text.getvalue()
    text = io.StringIO()
    with metrics.progress_bar(0, 2, log(progress=False), rich.console.Console(file=text)) as advance:
        advance(2, values)
    assert not text.getvalue()


def test_profile_traces_its_window(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop",)))
    for number in range(5):
        with metrics.profile((1, 3), number, tmp_path):
            calls.append((number,))
    assert calls == [(0,), ("start", str(tmp_path / "profile")), (1,), (2,), (3,), ("stop",), (4,)]
    calls.clear()
    with metrics.profile((0, 0), 0, tmp_path):
        pass
    assert not calls
    with pytest.raises(ConfigError, match="profile is .3, 1."), metrics.profile((3, 1), 0, tmp_path):
        pass
