"""Two processes train, save and are killed; one process with another mesh goes on, with the same losses."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.conftest import ROOT, cli_environment
from tests.e2e import tiny
from tests.invariance.test_processes import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),  # of Orbax, when checkpoints are compared
]

STEPS, DIED = 6, 4
CONFIG = tiny.HERE / "configs" / "single.py"


def start(folder, run: str, *mesh: str, devices: int, moment: str = "", process: int = 0, **variables: str):
    """Starts the command line in a process of its own (recorded.py)."""
    options = [f"--config.train.steps={STEPS}", "--config.checkpoint.every=2", *(f"--config.mesh.{m}" for m in mesh)]
    train = ["train", f"--config={CONFIG}", f"--workdir={folder / run}", *options]
    return subprocess.Popen(
        [sys.executable, tiny.HERE / "recorded.py", folder / f"{run}-{process}.batches", moment, *train],
        env=os.environ | cli_environment(devices, reduced=True) | {"TINY": str(folder)} | variables,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process) -> str:
    """What a process printed, once it has ended well."""
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data, the uninterrupted run ``straight`` on one device, and ``died``, which two processes left."""
    folder = tmp_path_factory.mktemp("elastic")
    tiny.write_data(folder)
    straight = start(folder, "straight", devices=1)
    finish(straight)
    cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    both = [
        start(folder, "died", "data=2", "fsdp=2", devices=2, moment=f"saving:died:{DIED}", process=number,
              **cluster | {"JAX_PROCESS_ID": str(number)})
        for number in range(2)
    ]  # fmt: skip
    end = time.monotonic() + 300
    while all(process.poll() is None for process in both) and time.monotonic() < end:
        time.sleep(0.1)
    printed = []
    for process in both:
        try:
            printed.append(process.communicate(timeout=30)[0])
        except subprocess.TimeoutExpired:  # it waits for the other one, which is dead
            process.kill()
            printed.append(process.communicate()[0])
    assert all(process.returncode == -signal.SIGKILL for process in both), "\n".join(printed)
    assert tiny.steps(folder / "died") == [2], "only the checkpoint before the one in the making is complete"
    return folder


def losses(run) -> dict[int, dict[str, float]]:
    return {
        line["step"]: {name: value for name, value in line.items() if name.startswith(("loss", "accuracy"))}
        for line in tiny.read(run / "metrics.jsonl")
    }


@pytest.mark.parametrize("mesh", [("fsdp=4",), ("fsdp=2", "tensor=2")], ids="-".join)
def test_one_process_goes_on_where_two_were_killed(folder, mesh):
    run = "-".join(mesh)
    shutil.copytree(folder / "died", folder / run)
    printed = finish(start(folder, run, "data=1", *mesh, devices=4))
    assert "continuing with a changed config: mesh.data: 2 -> 1." in printed
    assert f"{folder / run}: continuing after step 2." in printed
    found, expected = losses(folder / run), losses(folder / "straight")
    assert list(found) == list(expected) == list(range(1, STEPS + 1))
    for step, values in expected.items():
        assert values.keys() == found[step].keys() and "loss/dpo" in values
        for name, value in values.items():
            assert found[step][name] == pytest.approx(value, rel=1e-5, abs=1e-7), f"step {step}, {name}"
    one, other = tiny.checkpoint(folder / run, STEPS), tiny.checkpoint(folder / "straight", STEPS)
    assert one.keys() == other.keys()
    for path, (shape, dtype, content) in other.items():
        if path.startswith("/params"):
            left, right = (np.frombuffer(c, dtype).reshape(shape) for c in (one[path][2], content))
            np.testing.assert_allclose(left, right, atol=1e-5 * max(1.0, np.abs(right).max()), err_msg=path)


def test_every_example_is_read_once_whatever_the_processes(folder):
    """Both processes lay out the same global batches as one does, and a resumed run goes on with the next ones."""

    def batches(name):
        return {line["step"]: line["examples"] for line in tiny.read(folder / f"{name}.batches")}

    straight = batches("straight-0")
    assert sorted(straight) == list(range(STEPS))
    for name in ("died-0", "died-1"):
        found = batches(name)
        assert set(range(DIED)) <= set(found)
        assert all(found[step] == straight[step] for step in found)
    order = [origin for step in range(3) for origin, *_ in straight[step]["pairs"]]
    assert len(order) == len(set(order)) == 12, "an example of the first epoch came twice"
