"""The benchmark against TRL: its floor, its table, and both sides on a tiny model."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture(scope="module")
def benchmark():
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location("benchmark", TOOLS / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture
def pairs(tmp_path):
    """A file of transcripts as HH has them."""
    asked = [f"\n\nHuman: {'Tell me a story. ' * (n % 4 + 1)}\n\nAssistant: " for n in range(24)]
    rows = [
        {"chosen": f"{prompt}{'Once upon a time. ' * (n % 5 + 1)}", "rejected": f"{prompt}No{'!' * (n + 1)}"}
        for n, prompt in enumerate(asked)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ARCHITECTURE = dict(
    vocab_size=100, width=8, layers=1, heads=2, key_value_heads=2, head_dim=4, mlp_width=16, max_positions=64
)


def floor(benchmark, method, reference="none"):
    from jaxpref import models

    rows = [[{"prompt": [1, 2], "responses": [[3, 4, 5], [6]]}]]
    architecture = models.ModelConfig(**ARCHITECTURE).to_dict()
    return benchmark.needed(architecture, method, reference, rows, "float32")


def test_the_floor_counts_prompts_once_and_the_vocabulary_on_responses(benchmark):
    """By hand: 2 prompt tokens, responses of 3 and 1; the last token of each is fed to reward heads only."""
    token = 2 * 8 * 4 * 8 + 2 * 8 * 16 * 3
    pair, vocabulary = 4 * 8, 2 * 8 * 100
    dpo = token * (2 + 2) + pair * (3 + (2 * 2 + 3)) + vocabulary * 4
    assert floor(benchmark, "dpo")["flops"] == 3 * dpo
    assert floor(benchmark, "dpo", "live")["flops"] == 4 * dpo
    reward = token * (2 + 4) + pair * (3 + (3 * 2 + 6) + (2 + 1))
    assert floor(benchmark, "reward")["flops"] == 3 * reward
    own = token * (2 + 2) + pair * (3 + 2 * 2 + 3) + vocabulary * 3
    mismatched = vocabulary
    assert floor(benchmark, "kto", "live")["flops"] == 4 * own + 2 * mismatched
    assert floor(benchmark, "dpo", "live")["parameter_bytes"] == 4 * 11


def run(benchmark, tmp_path, pairs, **options):
    given = dict(
        out=tmp_path / "out", data=pairs, shape="nano", vocabulary=300, examples=4, prompt=24, response=24
    ) | dict(warmup=1, steps=2, repeats=2)
    given |= options
    assert benchmark.main([f"--{name.replace('_', '-')}={value}" for name, value in given.items()]) == 0
    return json.loads((tmp_path / "out" / "results.json").read_text())


@pytest.mark.slow
def test_jaxprefs_side_runs_and_reports(benchmark, tmp_path, pairs):
    report = run(benchmark, tmp_path, pairs, sides="jaxpref", methods="reward,dpo", references="cached")
    for found in report["results"]:
        numbers = found["sides"]["jaxpref"]
        assert len(numbers["repeats"]) == 2
        assert numbers["examples_per_second"] > 0 and numbers["peak_bytes"]["process"] > 0
        assert 0 <= numbers["padding_share"] < 1 and numbers["compile_seconds"] > 0
        assert found["floor"]["flops_per_example"] > 0
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| reward | none | jaxpref |" in text and "| dpo | cached | jaxpref |" in text


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_both_sides_train_on_the_same_rows(benchmark, tmp_path, pairs):
    report = run(benchmark, tmp_path, pairs, methods="sft,dpo,kto,reward", references="live")
    for found in report["results"]:
        assert set(found["sides"]) == {"jaxpref", "trl"} and found["ratio"]["median"] > 0
