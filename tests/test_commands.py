"""The commands end to end on a tiny pipeline: what one writes, the others read."""

import json

import jax
import numpy as np
import pytest

from jaxpref import cli, models

CONFIG = """
from jaxpref import configuration, objectives

WORLD = "world:sentiment"

def stage(kind, objective):
    config = configuration.default()
    config.tokenizer.path = WORLD
    config.length.prompt, config.length.response = 16, 24
    config.batch.examples = 4
    config.train.steps = 2
    config.log.progress = False
    config.data[kind] = dict(kind=kind, source=WORLD, size=16)
    config.data.heldout = dict(kind=kind, source=WORLD, size=6, split="test")
    config.objectives[objective] = objectives.config(objective)
    config.evals.heldout = dict(data="heldout")
    return config

def get_config():
    config = configuration.default()
    config.stages.sft = stage("demonstrations", "sft")
    config.stages.sft.model.name = "nano"
    config.stages.reward = stage("pairs", "bradley_terry")
    config.stages.reward.init_from = "stage:sft"
    return config
"""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A config file and the folder of its finished pipeline."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "config.py").write_text(CONFIG)
    assert cli.main(["train", f"--config={folder}/config.py", f"--workdir={folder}/run"]) == 0
    return folder


@pytest.fixture
def main(capsys):
    """Runs a command line; returns what it prints, or raises with its one line of error."""

    def run(*arguments):
        code = cli.main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return run


@pytest.fixture
def failure(capsys):
    """Runs a command line that fails; returns the line of error."""

    def run(*arguments):
        assert cli.main(list(map(str, arguments))) == cli.USER_ERROR
        return capsys.readouterr().err.splitlines()[-1]

    return run


def last(path):
    """The metrics of the last line of a metrics file that has each name."""
    values = {}
    for line in (path / "metrics.jsonl").read_text().splitlines():
        values |= json.loads(line)
    return values


# ---------------------------------------------------------------- eval


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_eval_gives_the_numbers_of_the_run(pipeline, main, stage):
    measured = json.loads(main("eval", f"--workdir={pipeline}/run/{stage}"))
    logged = {name: value for name, value in last(pipeline / "run" / stage).items() if name.startswith("heldout/")}
    assert logged and measured.keys() == logged.keys()
    for name, value in logged.items():
        assert measured[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.slow
def test_eval_reads_running_states_the_moved_reference_and_the_step(main, tmp_path):
    (tmp_path / "config.py").write_text(
        CONFIG.partition("def get_config")[0]
        + """def get_config():
    config = stage("unpaired", "bco")
    config.model.name = "nano"
    rising = dict(schedule="linear", start=0.1, end=2.0, steps=2)
    config.objectives.bco = objectives.config("bco", beta=rising)
    config.reference.kind = "moving"
    config.optimizer.learning_rate = 0.01
    return config
"""
    )
    main("train", f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run")
    measured = json.loads(main("eval", f"--workdir={tmp_path}/run"))
    logged = {name: value for name, value in last(tmp_path / "run").items() if name.startswith("heldout/")}
    assert logged["heldout/loss/bco"] != pytest.approx(np.log(2), abs=1e-4)
    assert measured == pytest.approx(logged, rel=1e-5, abs=1e-6)


def test_trap_66_eval_does_not_depend_on_the_batch(pipeline, main):
    whole = json.loads(main("eval", f"--workdir={pipeline}/run/sft"))
    ragged = json.loads(main("eval", f"--workdir={pipeline}/run/sft", "--config.batch.examples=5"))
    assert ragged == pytest.approx(whole, rel=1e-5)


def test_eval_may_change_what_is_scored_only(pipeline, failure):
    error = failure("eval", f"--workdir={pipeline}/run/sft", "--config.train.steps=9")
    assert "--config.train.steps: evaluation may change only fields of batch, data, evals, mesh." in error


def test_eval_of_a_pipeline_names_its_stages(pipeline, failure):
    assert "it holds the stages reward, sft: name one" in failure("eval", f"--workdir={pipeline}/run")
    assert "train there first" in failure("eval", f"--workdir={pipeline}/nowhere")


# ---------------------------------------------------------------- generate


def test_generate_answers_a_file(pipeline, main, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "The film was"}\n{"prompt": "I saw"}\n')
    command = ("generate", f"--model={pipeline}/run/sft", f"--prompts={tmp_path}/prompts.jsonl", "--max_tokens=4")
    lines = [json.loads(line) for line in main(*command, "--temperature=0", "--samples=2").splitlines()]
    assert [line["prompt"] for line in lines] == ["The film was"] * 2 + ["I saw"] * 2
    assert lines[0]["completion"] == lines[1]["completion"]
    main(*command, "--temperature=0", f"--output={tmp_path}/answers.jsonl")
    written = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["completion"] for line in written] == [line["completion"] for line in lines[::2]]


def test_generate_answers_with_the_checkpoint_that_is_asked_for(pipeline, main, failure, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "The film was"}\n')
    command = ("generate", f"--prompts={tmp_path}/prompts.jsonl", "--max_tokens=4", "--temperature=0")
    run = f"--model={pipeline}/run/sft"
    assert main(*command, run, "--step=2") == main(*command, run)
    assert "does not exist, only [2] do" in failure(*command, run, "--step=1")


def test_generate_says_what_is_no_model(failure, tmp_path):
    assert "is neither a run" in failure("generate", f"--model={tmp_path}", "--prompts=x")


# ---------------------------------------------------------------- convert


def same(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), one, other))


def test_a_run_survives_the_way_to_hugging_face_and_back(pipeline, main, failure, tmp_path):
    main("convert", f"--from={pipeline}/run/sft", f"--to_hf={tmp_path}/hf")
    main("convert", f"--from_hf={tmp_path}/hf", f"--to={tmp_path}/run")
    main("convert", f"--from={tmp_path}/run", f"--to_hf={tmp_path}/again")
    (model, params), (again, others) = models.load_hf(tmp_path / "hf"), models.load_hf(tmp_path / "again")
    assert model.config == again.config and same(params, others)
    prompt = ("--temperature=0", "--max_tokens=4", f"--prompts={tmp_path}/prompts.jsonl")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "The film was"}\n')
    answers = [main("generate", f"--model={place}", *prompt) for place in (pipeline / "run/sft", tmp_path / "hf")]
    assert answers[0] == answers[1]
    refused = "--step=2 chooses a checkpoint of a run"
    assert refused in failure("generate", f"--model={tmp_path}/hf", *prompt, "--step=2")
    assert refused in failure("convert", f"--from_hf={tmp_path}/hf", f"--to={tmp_path}/x", "--step=2")


def test_a_reward_model_is_exported_with_its_head(pipeline, main, failure, tmp_path):
    command = ("convert", f"--from={pipeline}/run/reward", f"--to_hf={tmp_path}/hf")
    assert "give one as --head, or --head=none" in failure(*command)
    assert "did you mean 'bradley_terry'?" in failure(*command, "--head=bradley_tery")
    main(*command, "--head=bradley_terry")
    assert models.load_hf_head(tmp_path / "hf")["kernel"].shape[1] == 1
    assert "ForSequenceClassification" in (tmp_path / "hf/config.json").read_text()


def test_convert_refuses_what_it_would_ignore(pipeline, failure, tmp_path):
    run = pipeline / "run/sft"
    assert "give it as --from=" in failure("convert", f"--from_hf={run}", f"--to={tmp_path}/x")
    assert "is not empty" in failure("convert", f"--from={run}", f"--to_hf={run}")
    assert "has no reward head" in failure("convert", f"--from={run}", f"--to_hf={tmp_path}/x", "--head=dpo")
    assert "does not exist, only [2] do" in failure("convert", f"--from={run}", f"--to_hf={tmp_path}/x", "--step=7")


# ---------------------------------------------------------------- show-batch


def test_show_batch_shows_the_first_batch_of_the_run(pipeline, main):
    shown = main("show-batch", f"--config={pipeline}/config.py", "--examples=4")
    assert shown == (pipeline / "run/sft/first_batch.txt").read_text()


def test_show_batch_of_a_later_stage_and_step(pipeline, main, failure):
    command = ("show-batch", f"--config={pipeline}/config.py", "--stage=reward", f"--workdir={pipeline}/run")
    first, second = main(*command), main(*command, "--step=1", "--color=always")
    assert "pairs 0" in first and "[[" in first and "\x1b[" not in first
    assert "\x1b[" in second and "[[" not in second
    assert "the run has the steps 0 to 1" in failure(*command, "--step=2")
    assert "did you mean 'reward'?" in failure(*command[:2], "--stage=rewards")
