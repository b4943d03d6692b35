"""Two processes of four devices each compute what one process of eight, or of one, computes."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, cli_environment

PROGRAM = [sys.executable, "-m", "tests.invariance.process_program"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(folder: pathlib.Path, kind: str, axes: tuple[int, int, int], devices: int, **variables: str):
    environment = os.environ | cli_environment(devices, reduced=True) | {"JAX_ENABLE_X64": "1"} | variables
    return subprocess.Popen(
        [*PROGRAM, str(folder), kind, *map(str, axes)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcomes(folder: pathlib.Path, kind: str, axes: tuple[int, int, int], processes: int, devices: int):
    """What each of some processes, with so many devices each, found."""
    folder.mkdir()
    variables = [{}]
    if processes > 1:
        cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": str(processes)}
        variables = [cluster | {"JAX_PROCESS_ID": str(number)} for number in range(processes)]
    started = [start(folder, kind, axes, devices, **given) for given in variables]
    try:
        printed = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), "\n".join(printed)
    return [dict(np.load(folder / f"process-{number}-of-{processes}.npz")) for number in range(processes)]


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path):
    (alone,) = outcomes(tmp_path / "alone", "frozen", (1, 1, 1), processes=1, devices=1)
    first, second = outcomes(tmp_path / "two", "frozen", (2, 2, 2), processes=2, devices=4)
    assert first.keys() == second.keys() == alone.keys()
    largest = max(np.abs(values).max() for name, values in alone.items() if name.startswith("model/"))
    assert largest > 0.1 and "heldout/loss/dpo" in alone
    for name, expected in alone.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        scale = largest if name.startswith("model/") else max(np.abs(expected).max(), 1e-3)
        assert np.abs(first[name] - expected).max() <= 1e-10 * scale, name


@pytest.mark.slow
def test_two_processes_share_a_reference_cache(tmp_path):
    """Both score every example, one writes. At step 0 policy and reference differ by rounding alone."""
    (alone,) = outcomes(tmp_path / "alone", "cached", (1, 1, 1), processes=1, devices=1)
    first, second = outcomes(tmp_path / "two", "cached", (2, 2, 2), processes=2, devices=4)
    for name, expected in alone.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        if name == "step 0, accuracy/dpo":
            continue
        np.testing.assert_allclose(first[name], expected, rtol=1e-6, atol=1e-7, err_msg=name)
    stored = list((tmp_path / "two" / "reference").rglob("part-*.npz"))
    entries = [key for part in stored for key in np.load(part)["keys"]]
    assert entries and len(entries) == len(set(entries))
