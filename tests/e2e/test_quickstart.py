"""The shipped pipelines through the command line, as a new user runs them."""

import json
import re

import pytest

from jaxpref import configuration

pytestmark = pytest.mark.slow

QUICK = "--config=configs/quickstart.py:quick"
FILES = ("config.json", "metrics.jsonl", "first_batch.txt", "model.json", "tokenizer/tokenizer.json", "plots/loss.png")
# What a page may not need: other files, other hosts, scripts.
OUTSIDE = re.compile(r"""(?:src|href)\s*=\s*["'](?!#|data:)|@import|url\((?!["']?(?:#|data:))|<script""")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture
def train(run_cli, folder):
    """Trains the quick pipeline; returns what it printed."""

    def run(*options):
        done = run_cli("train", QUICK, f"--workdir={folder}/run", *options)
        assert done.code == 0, done.stderr
        assert "Warning" not in done.stderr and "WARNING" not in done.stderr
        return done.stdout

    return run


def test_a_dry_run_leaves_nothing(train, folder):
    assert "== Stage 1 of 3: sft ==" in train("--dry-run")
    assert list(folder.iterdir()) == []


def test_the_pipeline_ends_in_its_table_and_a_report(train, folder):
    out = train()
    assert re.findall(r"== (.*) ==", out) == [
        "Stage 1 of 3: sft", "Stage 2 of 3: reward", "Stage 3 of 3: dpo", "Comparison",
    ]  # fmt: skip
    table = out[out.index("== Comparison ==") :]
    assert "gold reward" in table and "gold win rate" in table and "KL (nats)" in table and "length" in table
    for row in ("base", "SFT", "DPO"):
        assert re.search(rf"^ *{row} .*\[", table, re.MULTILINE), row
    assert re.search(r"^ *reward model .*% \[", table, re.MULTILINE)
    assert out.endswith(f"Report: {folder}/run/report.html\n")
    assert {path.name for path in (folder / "run" / "plots").iterdir()} == {
        "frontier.png", "calibration_reward_model.png",
    }  # fmt: skip


def test_every_stage_folder_holds_what_it_should(folder):
    config = configuration.load(QUICK.removeprefix("--config="))
    for name, stage in configuration.stages(config):
        run = folder / "run" / name
        assert [file for file in FILES if not (run / file).exists()] == []
        assert configuration.difference(configuration.from_json((run / "config.json").read_text()), stage) == []
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert lines[0]["step"] == 1 and lines[-1]["step"] == stage.train.steps
        assert any("heldout/" in key for key in lines[-1]) and any(key.startswith("time/") for key in lines[0])
        assert (run / "checkpoints" / str(stage.train.steps)).is_dir()
        assert "[[" in (run / "first_batch.txt").read_text()
    assert len((folder / "run/dpo/samples.jsonl").read_text().splitlines()) == 4


def test_the_report_needs_no_other_file_and_no_network(folder):
    page = (folder / "run" / "report.html").read_text()
    assert "<svg" in page and "gold reward" in page
    assert OUTSIDE.findall(page) == []
    links = set(re.findall(r"https?://[^\s\"'<>]+", page))
    assert links <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, which nobody fetches


def test_the_same_command_again_only_shows_the_results(train, folder):
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*") if "config.json" != path.name}
    out = train()
    for name, steps in (("sft", 60), ("reward", 20), ("dpo", 20)):
        assert f"{folder}/run/{name}: all {steps} steps are done." in out
    assert "gold reward" in out and out.endswith(f"Report: {folder}/run/report.html\n")
    assert [path for path, time in before.items() if path.is_file() and path.stat().st_mtime_ns != time] == []


def test_the_run_on_real_data_starts(run_cli, data_dir, tmp_path):
    command = ("train", "--config=configs/hh_cpu.py:quick", f"--workdir={tmp_path}/run", "--dry-run")
    done = run_cli(*command, JAXPREF_DATA=str(data_dir.resolve()))
    assert done.code == 0, done.stderr
    assert re.search(r"demonstrations: \d+ rows read, 5240 examples kept; ", done.stdout), done.stdout
    assert "a prompt was cut to its last 128 tokens" in done.stdout
    assert list(tmp_path.iterdir()) == []
