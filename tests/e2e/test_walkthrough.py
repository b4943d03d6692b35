"""The README's walk-through, line by line: from pairs and a Hugging Face directory to an aligned one."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.conftest import ROOT, cli_environment
from tests.e2e import tiny

pytestmark = [pytest.mark.slow, pytest.mark.torch]

SECTION = (ROOT / "README.md").read_text().split("## Your own data")[1].split("\n## ")[0]
CONFIG = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)[0]
INSTALL, *COMMANDS = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)[0].strip().splitlines()
SHORT = ("--max-tokens=8", "--samples=1")


def pairs(numbers) -> list[dict]:
    things = ("a cat", "a red ball", "the sun", "her mom")
    return [
        {"prompt": f"Once upon a time, number {n} saw", "chosen": f" {things[n % 4]}.", "rejected": f" no {n} {n}."}
        for n in numbers
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data_dir):
    """Where a user begins: a model, two files and a config."""
    made = tmp_path_factory.mktemp("walkthrough")
    (made / "model").symlink_to(data_dir / "stories260k" / "hf")
    tiny.write(made / "pairs.jsonl", pairs(range(40)))
    tiny.write(made / "heldout.jsonl", pairs(range(40, 48)))
    (made / "my_run.py").write_text(CONFIG)
    return made


def run(folder, command: str) -> subprocess.CompletedProcess:
    """One line of the walk-through, in the user's folder."""
    program, *arguments = shlex.split(command, comments=True)
    prefix = {"jaxpref": [sys.executable, "-m", "jaxpref.cli"], "python": [sys.executable]}[program]
    short = SHORT if arguments[0] == "generate" else ()
    environment = os.environ | cli_environment()
    done = subprocess.run(
        [*prefix, *arguments, *short], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def test_the_walk_through_takes_at_most_eight_commands():
    assert INSTALL.count("&&") + 1 + len(COMMANDS) <= 8 + 1  # `export PATH` installs nothing
    assert [shlex.split(c)[1] for c in COMMANDS if c.startswith("jaxpref")] == [
        "show-batch", "train", "eval", "generate", "convert",
    ]  # fmt: skip


def test_every_command_does_what_it_says(folder):
    shown, trained, scored, generated, converted, loaded = (run(folder, command) for command in COMMANDS)
    assert "40 rows read, 40 examples kept" in shown.stderr and "[[" in shown.stdout
    assert re.findall(r"== (.*) ==", trained.stdout)[:2] == ["Stage 1 of 2: sft", "Stage 2 of 2: dpo"]
    metrics = json.loads(scored.stdout)
    assert 0 <= metrics["heldout/accuracy/dpo"] <= 1
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [answer["prompt"] for answer in answers] == [row["prompt"] for row in pairs(range(40, 48))]
    assert "aligned" in converted.stdout
    assert "Once upon a time" in loaded.stdout
