"""The loop: results are read late and checked before anything is saved; nothing is compiled again."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import configuration, objectives
from jaxpref.errors import TrainingError
from jaxpref.training import assembly, checkpoints, loop, metrics
from jaxpref.training.arrivals import Arrivals


class Result:
    """A number that arrives when the test says so, or when somebody reads it."""

    def __init__(self, value: float):
        self.value, self.arrived = value, False

    def is_ready(self) -> bool:
        return self.arrived

    def __float__(self) -> float:
        self.arrived = True
        return self.value


@pytest.fixture
def arrivals(monkeypatch):
    """``(arrivals, what was handed on)``."""
    monkeypatch.setattr(jax, "device_get", lambda tree: tree)
    taken = []
    return Arrivals(lambda done, values, logged: taken.append((done, values["loss"], logged))), taken


def started(arrivals, done: int) -> Result:
    result = Result(10.0 * done)
    arrivals.started(done, {"loss": (result, 1)}, logged=done % 2 == 1)
    return result


def test_a_running_step_is_read_when_the_next_one_was_started(arrivals):
    arrivals, taken = arrivals
    first = started(arrivals, 1)
    arrivals.collect(newest=False)
    assert arrivals.running() and taken == [] and not first.arrived
    second = started(arrivals, 2)
    arrivals.collect(newest=False)
    assert taken == [(1, 10.0, True)] and not second.arrived
    arrivals.collect(newest=True)
    assert taken[1:] == [(2, 20.0, False)] and not arrivals.running()
    arrivals.collect(newest=True)
    assert len(taken) == 2


def test_a_result_that_is_there_is_read_at_once_unless_processes_could_disagree(arrivals, monkeypatch):
    arrivals, taken = arrivals
    started(arrivals, 1).arrived = True
    arrivals.collect(newest=False)
    assert [done for done, *_ in taken] == [1]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    started(arrivals, 2).arrived = True
    arrivals.collect(newest=False)
    assert [done for done, *_ in taken] == [1]
    started(arrivals, 3)
    arrivals.collect(newest=False)
    assert [done for done, *_ in taken] == [1, 2]


# ------------------------------------------------------------------------------------------------ whole runs


def config():
    """A tiny run of 7 steps, the last one ragged, with two evaluations and a checkpoint every two steps."""
    made = configuration.default()
    made.model.name, made.model.overrides = "nano", dict(layers=1, width=16, heads=2, head_dim=8, mlp_width=16)
    made.model.chunk = 32
    made.tokenizer.path = "world:sentiment"
    made.length.prompt = made.length.response = 16
    made.data.pairs = dict(kind="pairs", source="world:sentiment", size=26)
    made.data.heldout = dict(kind="pairs", source="world:sentiment", size=5, split="test")
    made.objectives.dpo = objectives.config("dpo", data="pairs")
    made.reference.kind = "frozen"
    made.evals.heldout = dict(data="heldout", every=2)
    made.batch.examples, made.batch.layout, made.batch.rows = 4, "packed+shared", 8
    made.checkpoint.every = 2
    made.log.progress = False
    return made


@pytest.fixture
def slow_results(monkeypatch):
    """Steps look as if they were still running when the host is done with the next batch, as on an accelerator."""
    monkeypatch.setattr(Arrivals, "running", lambda self: bool(self._started))


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / metrics.FILE).read_text().splitlines()]


def reproducible(folder) -> list[str]:
    return [json.dumps({k: v for k, v in line.items() if not k.startswith("time/")}) for line in lines(folder)]


@pytest.mark.slow
def test_no_step_compiles_anything_after_the_first_ones(tmp_path, monkeypatch, caplog, slow_results):
    """Ragged batches, evaluations and checkpoints between steps change no shape, dtype, sharding or layout."""
    compiled, place = {}, assembly.Assembly.place

    def counted(parts, step):
        compiled[step] = sum(record.getMessage().startswith("Compiling ") for record in caplog.records)
        return place(parts, step)

    monkeypatch.setattr(assembly.Assembly, "place", counted)
    with caplog.at_level(logging.WARNING, logger="jax"), jax.log_compiles(True):
        finished = loop.run(config(), str(tmp_path), say=lambda _: None)
    assert finished.complete and sorted(compiled) == list(range(7))
    assert 0 < compiled[0] < compiled[1]
    # Step 3 ends with the check that everything has moved; after it (while step 5 is laid out) all has been seen once.
    assert compiled[5] == compiled[6] == sum(r.getMessage().startswith("Compiling ") for r in caplog.records)


@pytest.mark.slow
def test_late_reading_writes_the_same_lines_and_checkpoints(tmp_path, monkeypatch):
    for name, late in (("at once", False), ("late", True)):
        monkeypatch.setattr(Arrivals, "running", lambda self, late=late: late and bool(self._started))
        loop.run(config(), str(tmp_path / name), say=lambda _: None)
    assert reproducible(tmp_path / "late") == reproducible(tmp_path / "at once")
    found = lines(tmp_path / "late")
    assert [line["step"] for line in found] == [1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 7]
    assert "time/first_step_seconds" in found[0]
    timed = [line for line in found[1:] if any(name.startswith("time/") for name in line)]
    assert all(line["time/seconds_per_step"] > 0 and 0 <= line["time/input_share"] <= 1 for line in timed)
    assert {line["step"] for line in timed} == {2, 3, 4, 5, 6, 7}


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 100])
def test_a_broken_step_is_never_saved(tmp_path, monkeypatch, slow_results, every):
    """Also when its metrics are not logged: step 4 gives NaN, and its checkpoint would be due."""
    compile_step = assembly.Assembly.compile_step

    def breaking(parts):
        step = compile_step(parts)

        def broken(state, *arguments):
            state, measured = step(state, *arguments)
            if int(state.step) == 4:
                measured["loss"] = (jnp.asarray(np.nan), 1)
            return state, measured

        return broken

    monkeypatch.setattr(assembly.Assembly, "compile_step", breaking)
    made = config()
    made.evals, made.log.every = {}, every
    del made.data.heldout
    made.data.pairs.kind, made.objectives = "demonstrations", {"sft": objectives.config("sft", data="pairs")}
    made.reference.kind, made.batch.layout = "none", "padded"  # the smallest step
    with pytest.raises(TrainingError, match="step 4: loss became NaN"):
        loop.run(made, str(tmp_path), say=lambda _: None)
    assert checkpoints.stored.complete_steps(tmp_path / checkpoints.FOLDER) == [2]
    assert [line["step"] for line in lines(tmp_path)] == ([1, 2, 3] if every == 1 else [1])


@pytest.mark.slow
def test_a_second_run_with_another_loss_reads_the_reference_that_the_first_one_scored(tmp_path):
    said = []
    for name, layout in (("dpo", "packed+shared"), ("ipo", "padded")):
        made = config()
        made.objectives = {name: objectives.config(name, data="pairs")}
        made.reference.kind, made.reference.cache = "cached", str(tmp_path / "reference")
        made.batch.layout, made.batch.rows, made.train.steps = layout, 8, 1
        loop.run(made, str(tmp_path / name), say=said.append)
    assert [line.split(" with ")[0] for line in said if line.startswith("Scoring ")] == [
        "Scoring 4 examples",
        "Scoring 5 examples",
    ]
    assert len(list((tmp_path / "reference").rglob("part-*.npz"))) == 3
