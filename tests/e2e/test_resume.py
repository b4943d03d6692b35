"""Runs that were killed, stopped, damaged or prolonged end bitwise where the uninterrupted run ends (CPU).

Most tests share one uninterrupted run: starting a process and compiling costs more than all the steps.
"""

import re
import shutil
import signal
import subprocess
import time

import pytest

from jaxpref import cli
from tests.conftest import ROOT
from tests.e2e import tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.bitwise,
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),  # of Orbax, when checkpoints are compared
]

MOMENTS = (
    "saving:sft:2",
    "metrics:align:1",
    "saving:align:2",
    "metrics:align:4",
    "saving:align:5",
    "metrics:align:7",
)
STEPS = 7  # 21 examples, 2.5 times, 8 in a batch; the last batch holds 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data, and the finished, never interrupted run ``straight``."""
    folder = tmp_path_factory.mktemp("resume")
    tiny.write_data(folder)
    done = tiny.start(folder, "straight")
    assert done.returncode == 0, done.stderr
    assert tiny.steps(folder / "straight/sft") == [1, 2, 3]
    assert tiny.steps(folder / "straight/align") == list(range(1, STEPS + 1))
    return folder


@pytest.fixture
def failure(folder, capsys, monkeypatch):
    """Trains in this process with changed options; returns the line of error."""
    monkeypatch.setenv("TINY", str(folder))

    def run(name, *overrides):
        assert cli.main(tiny.train(folder, name, *overrides)) == cli.USER_ERROR
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ")
        return line

    return run


def copy(folder, name):
    """A copy of the uninterrupted run, to be spoilt."""
    shutil.copytree(folder / "straight", folder / name)
    return folder / name


def test_the_run_is_as_ragged_as_it_should_be(folder):
    sizes = {
        name: [len(examples) for examples in tiny.batches(folder, "straight")[name].values()]
        for name in tiny.batches(folder, "straight")
    }
    assert [sizes["unpaired", step] for step in range(STEPS)] == [[8, 3]] * (STEPS - 1) + [[4, 3]]
    assert [sizes["demonstrations", step] for step in range(3)] == [[4], [4], [2]]


def test_trap_56_killed_at_any_step_the_run_ends_bitwise_equal(folder):
    for moment in MOMENTS:
        died = tiny.start(folder, "killed", moment)
        assert died.returncode == -signal.SIGKILL, (moment, died.stderr)
        kind, stage, step = moment.split(":")
        if kind == "saving":
            assert int(step) not in tiny.steps(folder / "killed" / stage), "the checkpoint was complete already"
    done = tiny.start(folder, "killed")
    assert done.returncode == 0, done.stderr
    assert "sft: all 3 steps are done." in done.stdout
    assert re.search("align: continuing after step [56].", done.stdout)  # 6 may have been in the making
    tiny.assert_same_run(folder, "killed", "straight")


def test_a_finished_stage_is_not_run_again(folder):
    trained = [line for line in tiny.read(folder / "killed.batches") if "demonstrations" in line["examples"]]
    assert [line["step"] for line in trained] in ([0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2])


def test_sigterm_saves_and_exits_and_a_damaged_newest_checkpoint_falls_back(folder):
    process = subprocess.Popen(
        tiny.recorded(folder, "stopped"),
        cwd=ROOT,
        env=tiny.environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = folder / "stopped/align"
    while process.poll() is None and not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text()):
        time.sleep(0.01)
    process.terminate()
    out, err = process.communicate(timeout=120)
    newest = tiny.steps(run)[-1]
    assert process.returncode == 0, err
    assert f"stopped after step {newest}; the same command continues" in out

    largest = tiny.largest_file(run / f"checkpoints/{newest}/state")
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    done = tiny.start(folder, "stopped")
    assert done.returncode == 0, done.stderr
    assert f"CHECKPOINT {newest} IN {run / 'checkpoints'} IS DAMAGED" in done.stderr
    if newest > 1:
        assert f"align: continuing after step {newest - 1}." in done.stdout
    tiny.assert_same_run(folder, "stopped", "straight")


def test_trap_59_a_finished_run_goes_on_with_the_next_example(folder):
    """Also a truncated newest checkpoint, and an allowed change of the config, which is printed."""
    run = copy(folder, "longer")
    shutil.copy(folder / "straight.batches", folder / "longer.batches")
    largest = tiny.largest_file(run / "align/checkpoints/7/state")
    largest.write_bytes(largest.read_bytes()[:-9])
    assert tiny.start(folder, "longer").returncode == 0  # the ragged step is done again
    tiny.assert_same_run(folder, "longer", "straight")

    done = tiny.start(folder, "longer", "", "--config.stages.align.train.epochs=4.0")
    assert done.returncode == 0, done.stderr
    assert "longer/align: continuing with a changed config: train.epochs: 2.5 -> 4.0." in done.stderr
    assert "align: continuing after step 7." in done.stdout
    found = tiny.batches(folder, "longer")
    order = [origin for step in range(11) for origin, *_ in found["unpaired", step]["unpaired"]]
    assert [len(found["unpaired", step]["unpaired"]) for step in range(11)] == [8] * 6 + [4] + [8, 8, 8, 8]
    epochs = [order[start : start + 21] for start in range(0, 84, 21)]
    assert all(len(set(epoch)) == 21 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4, "two epochs have the same order"


def test_trap_61_changed_data_stops_the_run(folder, failure):
    copy(folder, "other")
    file = folder / "demonstrations.jsonl"
    original = file.read_bytes()
    try:
        tiny.write(file, [*tiny.read(file)[:-1], {"prompt": "Say less", "completion": " No."}])
        error = failure("other")
    finally:
        file.write_bytes(original)
    assert "was made with another data" in error and "restore the old one, or use a new workdir" in error


def test_a_changed_config_stops_the_run(folder, failure):
    error = failure("straight", "--config.stages.align.optimizer.learning_rate=0.5")
    assert "learning_rate: 0.001 -> 0.5" in error and "use a new --workdir, or the old values" in error
