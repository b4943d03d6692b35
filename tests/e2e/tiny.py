"""The files, the runs and the comparisons of the end-to-end tests."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp

from tests.conftest import ROOT, cli_environment

HERE = pathlib.Path(__file__).parent
CONFIG = HERE / "configs" / "pipeline.py"
WORDS = ("apple", "birch", "river", "stone", "cloud")


def write(path, rows) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_data(folder) -> None:
    """The files that ``configs/pipeline.py`` reads."""

    def pairs(numbers):
        return [
            {"prompt": f"Name {WORDS[n % 5]} {n}", "chosen": f" {WORDS[n % 5]}.", "rejected": f" {WORDS[n % 4]} {n}."}
            for n in numbers
        ]

    texts = [(f"Say {WORDS[n % 5]} {n}", f" {WORDS[2 * n % 5] * (1 + n % 3)}.") for n in range(21)]
    write(folder / "demonstrations.jsonl", [{"prompt": p, "completion": c} for p, c in texts[:10]])
    write(folder / "unpaired.jsonl", [{"prompt": p, "completion": c, "label": len(c) % 3 > 0} for p, c in texts])
    write(folder / "pairs.jsonl", pairs(range(13)))
    write(folder / "heldout.jsonl", pairs(range(30, 35)))


def train(folder, run: str, *overrides: str) -> list[str]:
    """The command that trains the pipeline."""
    return ["train", f"--config={CONFIG}", f"--workdir={folder / run}", *overrides]


def recorded(folder, run: str, moment: str = "", *overrides: str) -> list:
    """The command in a process of its own, which writes down its batches and dies at a moment (recorded.py)."""
    return [sys.executable, HERE / "recorded.py", folder / f"{run}.batches", moment, *train(folder, run, *overrides)]


def start(folder, run: str, moment: str = "", *overrides: str) -> subprocess.CompletedProcess:
    """Runs that command to its end."""
    command = recorded(folder, run, moment, *overrides)
    return subprocess.run(command, env=environment(folder), cwd=ROOT, capture_output=True, text=True, timeout=300)


def environment(folder) -> dict[str, str]:
    return os.environ | cli_environment() | {"TINY": str(folder)}


def checkpoint(run, step: int) -> dict[str, tuple]:
    """Every array of a checkpoint by its path: shape, dtype and bytes."""
    tree = ocp.PyTreeCheckpointHandler().restore(run / "checkpoints" / str(step) / "state")
    leaves = {}

    def walk(node, path):
        if isinstance(node, dict):
            for name, inner in node.items():
                walk(inner, f"{path}/{name}")
        else:
            array = np.asarray(node)
            leaves[path] = (array.shape, array.dtype.name, array.tobytes())

    walk(tree, "")
    return leaves


def largest_file(folder):
    """The file of a checkpoint that holds most."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def steps(run) -> list[int]:
    """Steps of the complete checkpoints of a run."""
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())


def metrics(run) -> list[str]:
    """The lines of ``metrics.jsonl`` without ``time/``, as text: floats are equal when their bits are."""
    return [
        json.dumps({name: value for name, value in line.items() if not name.startswith("time/")})
        for line in read(run / "metrics.jsonl")
    ]


def batches(folder, run: str) -> dict[int, dict]:
    """The examples of every trained step; a step that was done again must have got the same ones."""
    seen: dict[int, dict] = {}
    for line in read(folder / f"{run}.batches"):
        name = (next(iter(line["examples"])), line["step"])
        assert seen.setdefault(name, line["examples"]) == line["examples"], f"step {name} got other examples"
    return seen


def assert_same_run(folder, run: str, other: str, stages=("sft", "align")) -> None:
    """Two runs of the pipeline are bitwise equal: metrics, order, first batch, samples, every checkpoint's leaves."""
    assert batches(folder, run) == batches(folder, other)
    for stage in stages:
        one, two = folder / run / stage, folder / other / stage
        assert metrics(one) == metrics(two)
        for name in ("first_batch.txt", "model.json", "samples.jsonl"):
            assert (one / name).exists() == (two / name).exists()
            assert not (one / name).exists() or (one / name).read_bytes() == (two / name).read_bytes()
        assert steps(one) == steps(two)
        for step in steps(one):
            left, right = checkpoint(one, step), checkpoint(two, step)
            assert left.keys() == right.keys()
            assert [path for path in left if left[path] != right[path]] == [], f"{stage}, checkpoint {step}"
