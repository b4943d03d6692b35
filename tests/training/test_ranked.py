"""Ranked lists of different lengths, from a file to the loss: the same numbers in every layout."""

import json

import numpy as np
import pytest

from jaxpref import configuration, objectives
from jaxpref.training import assembly
from tests.training import steps

ROWS = [
    {"prompt": "A fruit:", "completions": [" an apple", " a stone", " a pear tree"], "scores": [0.5, -1.0, 2.0]},
    {"prompt": "A tree, any tree:", "completions": [" a shoe", " birch"], "scores": [0.0, 1.0]},
    {"prompt": "A river:", "completions": [" Nile", " Alps", " the long Rhine", " x"], "ranks": [2, 4, 1, 3]},
    {"prompt": "Two:", "completions": [" three", " two"], "ranks": [2, 1]},
]


def config(path, method: str, layout: str, kind: str):
    made = configuration.default()
    made.model.name, made.model.overrides = "nano", dict(layers=1, width=16, heads=2, head_dim=8, mlp_width=16)
    made.model.chunk = 32
    made.tokenizer.path = "byte"
    made.data.lists = dict(kind="ranked", path=str(path))
    made.objectives[method] = objectives.config(method, data="lists")
    made.reference.kind = kind
    made.optimizer.name, made.optimizer.learning_rate = "sgd", 0.1
    made.batch.examples, made.batch.layout, made.batch.rows, made.train.steps = 4, layout, 8, 2
    return made


def two_steps(folder, method: str, layout: str, kind: str) -> list[dict[str, float]]:
    folder.mkdir(exist_ok=True)
    path = folder / "lists.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    sections = configuration.sections(config(path, method, layout, kind))
    parts = assembly.assemble(sections, str(folder), report=lambda *_: None)
    return steps.take(parts)


def test_the_best_response_comes_first_whatever_the_file_says(tmp_path):
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    sections = configuration.sections(config(path, "knowpat", "padded", "none"))
    parts = assembly.assemble(sections, str(tmp_path), report=lambda *_: None)
    examples = sorted(parts.inputs.examples(0)["lists"], key=lambda example: example.origin)
    assert [example.meta["responses"][0] for example in examples] == [
        " a pear tree",
        " birch",
        " the long Rhine",
        " two",
    ]
    assert [example.side["scores"].tolist() for example in examples][2] == [-1, -2, -3, -4]
    side = parts.inputs.batch(0).examples["lists"].side["scores"]
    assert side.shape == (4, 4) and np.count_nonzero(side) == 10  # one score is zero


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind"), [("copg", "frozen"), ("copg", "cached"), ("knowpat", "none")])
def test_layouts_agree(tmp_path, method, kind):
    expected = two_steps(tmp_path / "padded", method, "padded", "frozen" if kind == "cached" else kind)
    for layout in ("packed+shared",):
        found = two_steps(tmp_path / layout, method, layout, kind)
        for one, other in zip(found, expected, strict=True):
            names = [name for name in one if name.endswith(f"/{method}")]
            assert {"loss", "reward", "ranking_accuracy"} <= {name.split("/")[0] for name in names}
            for name in names:
                assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name


def test_the_loss_at_the_reference_is_that_of_the_scores(tmp_path):
    (tmp_path / "run").mkdir()
    first, second = two_steps(tmp_path / "run", "copg", "packed+shared", "frozen")
    each = [[2.0, 0.5, -1.0], [1.0, 0.0], [-1.0, -2.0, -3.0, -4.0], [-1.0, -2.0]]
    spread = [len(s) * np.var(s) * len(s) / (len(s) - 1) / 2 for s in each]
    assert first["loss/copg"] == pytest.approx(np.mean(spread), rel=1e-6)
    assert first["reward/copg"] == 0 and second["loss/copg"] < first["loss/copg"]
