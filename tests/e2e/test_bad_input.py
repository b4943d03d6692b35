"""What a user gets wrong is answered with one sentence that names what, where, what was expected, and how to mend it.

Most of it runs the command line in this process, on 8 virtual devices; a real process is started where it matters.
"""

import json
import shutil

import jax
import pytest

from jaxpref import cli, models
from tests.data.conftest import train_bpe
from tests.e2e import tiny

CONFIG = tiny.HERE / "configs" / "single.py"
NO_END = "{% for m in messages %}{{ m.role + ': ' + m.content + ' ' }}{% endfor %}"
BAD_ROWS = {
    '{"prompt": "a", "chosen":': "the line is no valid JSON (Expecting value); expected one object a line.",
    '{"prompt": "a", "chosen": "b"}': "field 'rejected' is missing; the row has 'prompt', 'chosen'.",
    '{"prompt": "a", "chosen": 5, "rejected": "c"}': "field 'chosen' is int 5; expected a string or a list of messages",
    '{"prompt": "a", "chosen": " ", "rejected": "c"}': "field 'chosen' is empty; expected a response with at least one",
    '["a", "b"]': "the row is a list of 2; expected an object with named fields.",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The data that the config reads."""
    tiny.write_data(tmp_path)
    monkeypatch.setenv("TINY", str(tmp_path))
    return tmp_path


@pytest.fixture
def main(folder, capsys):
    """Runs a command on the config (or on another file); returns the exit code and the lines on standard error."""

    def run(*options, command="train", config=CONFIG, workdir=None):
        places = [f"--workdir={workdir or folder / 'run'}"] if command == "train" else []
        code = cli.main([command, f"--config={config}", *places, *options])
        return code, capsys.readouterr().err.splitlines()

    return run


@pytest.fixture
def failure(main):
    """Runs what must fail; returns the one line that says why."""

    def run(*options, **where):
        code, lines = main(*options, **where)
        assert code == cli.USER_ERROR
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
        assert not any("Traceback" in line for line in lines)
        return lines[-1].removeprefix("error: ")

    return run


def edited(folder, old, new, file=CONFIG):
    """A copy of the config with other text."""
    text = file.read_text()
    assert old in text
    (folder / "edited.py").write_text(text.replace(old, new, 1))
    return folder / "edited.py"


# ---------------------------------------------------------------- rows


def insert(folder, *lines):
    """Puts lines before the second row of the pairs."""
    first, *others = (folder / "pairs.jsonl").read_text().splitlines()
    (folder / "pairs.jsonl").write_text("\n".join([first, *lines, *others]) + "\n")


@pytest.mark.parametrize("row", BAD_ROWS)
def test_a_bad_row_is_named_with_file_and_line(folder, failure, row):
    insert(folder, row)
    assert failure().startswith(f"pairs.jsonl:2: {BAD_ROWS[row]}")


def test_bad_rows_are_skipped_counted_and_shown(folder, main):
    insert(folder, *BAD_ROWS)
    code, (summary, *problems) = main("--config.data.on_bad_row=skip", command="show-batch")
    assert code == 0
    assert "18 rows read, 13 examples kept; 5 bad rows skipped" in summary
    for number, (problem, sentence) in enumerate(zip(problems, BAD_ROWS.values(), strict=False), 2):
        assert f"pairs.jsonl:{number}: {sentence}" in problem


def test_a_long_prompt_is_an_error_dropped_or_cut_as_configured(folder, main, failure):
    insert(folder, json.dumps({"prompt": "long " * 9, "chosen": "b", "rejected": "c"}))
    error = failure("--config.length.on_long=error")
    assert error.startswith("pairs.jsonl:2: the prompt has 46 tokens; length.prompt allows 24")
    assert "1 dropped: prompt longer than 24 tokens" in main("--config.length.on_long=drop", command="show-batch")[1][0]
    assert "1 times a prompt was cut to its last 24 tokens" in main(command="show-batch")[1][0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "stream 'pairs' has no example left of 0 rows read (the source is empty)."),
        (b'{"prompt": "\xff"}\n', "the line is no valid JSON ('utf-8' codec can't decode byte 0xff"),
        (None, "check the path"),
    ],
    ids=["empty", "not-text", "absent"],
)
def test_an_unreadable_file_is_named(folder, failure, content, expected):
    (folder / "pairs.jsonl").unlink()
    if content is not None:
        (folder / "pairs.jsonl").write_bytes(content)
    assert expected in failure()


# ---------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("optimizer.learning_rat=1", "no field 'optimizer.learning_rat'; did you mean 'learning_rate'?"),
        ("optimiser.learning_rate=1", "no field 'optimiser'; did you mean 'optimizer'?"),
        ("objectives.dpo.betta=1", "no field 'objectives.dpo.betta'; did you mean 'beta'?"),
        ("data.pairs.limt=3", "no field 'limt'; did you mean 'limit'?"),
        ("model.overrides.widht=3", "no field 'model.overrides.widht'; did you mean 'width'?"),
        ("evals.heldout.data=paris", "config.evals.heldout.data is 'paris', which config.data lacks"),
        ("train.steps=many", "--config.train.steps=many: expected an integer."),
        ("batch.layout=pakced", "config.batch.layout is 'pakced'; expected one of 'padded', 'packed'"),
        ("objectives.dpo.label_smoothing=0.7", "label_smoothing is 0.7, but must be between 0 and 0.5"),
        ("tokenizer.template=chatlm", "tokenizer.template is 'chatlm'; expected one of none, chatml"),
        ("model.dtype=float64", "set JAX_ENABLE_X64=1"),
        ("mesh.fsdp=3", "fsdp=3, tensor=1, sequence=1, whose product 3 is not the number of devices, 8"),
        ("batch.rows=3", "batch.rows is 3, which 8 data-parallel devices cannot divide"),
    ],
    ids=lambda value: value.split("=")[0],
)
def test_a_wrong_field_or_value_is_named(failure, option, expected):
    assert expected in failure(f"--config.{option}")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["reference.cache=x"], "reference.cache is set, but nothing reads it with kind='frozen'; leave it out."),
        (["optimizer.momentum=0.9"], "optimizer.momentum is 0.9, but adamw does not read it; leave it out."),
        (["length.on_long=drop", "length.prompt_keep=start"], "nothing reads it with on_long='drop'; leave it out."),
        (["early_stop.patience=9"], "config.early_stop.patience is set, but nothing reads it"),
        (["checkpoint.best.metric=heldout/loss/dpo"], "which no evaluation measures"),
        (["batch.length=64"], "config.batch.length is set, but nothing reads it with layout='padded'; leave it out."),
        (["reference.kind=none"], "config.objectives.dpo compares with a reference, but reference.kind is 'none'"),
        (["groups=[('nothing', {'frozen': True})]"], "it matches no parameter: 'nothing'"),
    ],
    ids=lambda value: value[0].split("=")[0] if isinstance(value, list) else "",
)
def test_a_field_that_nothing_reads_is_an_error(failure, options, expected):
    assert expected in failure(*(f"--config.{option}" for option in options))


def test_a_stream_or_reference_that_nothing_reads_is_an_error(folder, failure):
    spare = '    config.data.spare = dict(kind="pairs", path="$TINY/pairs.jsonl")\n    config.batch'
    error = failure(config=edited(folder, "    config.batch", spare))
    assert error == "config.data.spare is read by no objective and no evaluation; remove it."
    error = failure("--config.reference.kind=frozen", config=f"{CONFIG}:reward")
    assert "no objective compares with a reference; set 'none'" in error


def test_mistakes_inside_a_config_file_are_named(folder, failure):
    error = failure(config=edited(folder, "config.train.steps", "config.train.step"))
    assert error == "config has no field 'train.step'; did you mean 'steps'?"
    error = failure(config=edited(folder, 'data="pairs")', 'data="pairs", betta=1)'))
    assert "was given the field 'betta', which does not exist; did you mean 'beta'?" in error
    error = failure(config=edited(folder, "return config", "return config.nothing"))
    assert error.startswith(f"{folder}/edited.py:") and "nothing" in error
    assert "get_config returned None" in failure(config=edited(folder, "return config", "return None"))
    assert "no such file; did you mean" in failure(config=folder / "editde.py")


def test_a_mistake_in_the_comparison_is_told_before_any_training(folder, failure):
    text = "    config.compare.gold = dict(wrold='sentiment', policies={'SFT': 'sft'}, reference='sft')\n"
    error = failure(config=edited(folder, "    return config", f"{text}    return config", tiny.CONFIG))
    assert error == "config has no field 'compare.gold.wrold'; did you mean 'world'?"
    assert not list((folder / "run").glob("*"))


def test_a_failed_start_does_not_block_its_folder(folder, failure):
    """The config of a run that never began is none to be faithful to."""
    assert "leave it out" in failure("--config.optimizer.momentum=0.9")
    assert "expected one of none, chatml" in failure("--config.tokenizer.template=chatlm")


def test_an_unwritable_workdir_is_an_error(folder, failure):
    (folder / "file").write_text("")
    assert f"--workdir={folder}/file/run cannot be written" in failure(workdir=folder / "file" / "run")
    assert f"--workdir={folder}/file cannot be written" in failure(workdir=folder / "file")
    error = failure("--config.reference.kind=cached", f"--config.reference.cache={folder}/file/cache")
    assert "reference log-probs cannot be written" in error and "set config.reference.cache" in error


# ---------------------------------------------------------------- models and tokenizers


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A Hugging Face directory without a tokenizer."""
    path = tmp_path_factory.mktemp("exported") / "hf"
    model = models.Transformer(models.BUILTIN["nano"])
    models.save_hf(model, models.init(model, jax.random.key(0)), path)
    return path


@pytest.fixture
def imported(exported, folder):
    """A copy of that directory, to be spoilt, and a config that starts from it."""
    shutil.copytree(exported, folder / "hf")
    text = CONFIG.read_text().replace('config.model.name = "nano"', 'config.init_from = "$TINY/hf"')
    text = text.replace("config.model.overrides =", "config.tokenizer.path = 'byte'\n    unused =")
    (folder / "imported.py").write_text(text)
    return folder / "imported.py"


@pytest.mark.parametrize(
    ("size", "expected"),
    [(-1000, "is truncated or not a safetensors file"), (5, "5 bytes cannot hold its header"), (0, "download it")],
)
def test_a_truncated_safetensors_file_is_named(folder, failure, imported, size, expected):
    file = folder / "hf" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    error = failure(config=imported)
    assert str(file) in error and expected in error


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"hidden_size": 128}, "embed_tokens.weight has shape [512, 64], but config.json asks for [512, 128]"),
        ({"num_hidden_layers": 3}, "lacks tensors that its config.json asks for: model.layers.2."),
        ({"model_type": "t5"}, "model_type is 't5'; supported are llama, mistral"),
    ],
    ids=["width", "depth", "family"],
)
def test_a_checkpoint_of_another_architecture_is_refused(folder, failure, imported, change, expected):
    file = folder / "hf" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert expected in failure(config=imported)


def test_a_reference_of_another_architecture_is_refused(failure, imported, folder):
    error = failure("--config.reference.path=$TINY/hf")
    assert "config.reference.path='$TINY/hf' is another architecture than the policy: the width is 64, not 32" in error


@pytest.mark.slow
def test_a_checkpoint_of_the_run_of_another_architecture_is_refused(folder, main, failure):
    assert main("--config.train.steps=1", config=f"{CONFIG}:reward")[0] == 0
    option = "--config.model.overrides.mlp_width=48"
    error = failure(option, config=f"{CONFIG}:reward")
    assert "holds a run of another config (model.overrides.mlp_width: 32 -> 48)" in error
    (folder / "run" / "config.json").unlink()
    error = failure(option, config=f"{CONFIG}:reward")
    assert "checkpoint 1 in" in error and "is of another architecture" in error
    assert "mlp/" in error and "use the config that made it, or a new workdir" in error


def test_a_start_that_is_no_model_is_named(failure, imported, folder):
    error = failure("--config.tokenizer.path=", config=imported)
    assert f"{folder}/hf holds no tokenizer.json" in error and "or to 'byte'" in error
    shutil.rmtree(folder / "hf")
    assert "is neither a run (it has no model.json) nor a Hugging Face directory" in failure(config=imported)


def test_a_vocabulary_that_does_not_fit_is_refused(failure):
    error = failure("--config.model.overrides.vocab_size=100")
    assert "tokenizer 'byte' has 259 tokens, but the model's vocabulary holds 100" in error


def test_a_tokenizer_without_end_of_sequence_is_refused(folder, failure):
    error = failure(f"--config.tokenizer.path={train_bpe(folder / 'bpe', eos_token=None)}")
    assert "has no end-of-sequence token" in error and "name one as 'eos_token' in tokenizer_config.json" in error


def test_a_chat_template_without_a_usable_mask_is_refused(folder, failure):
    error = failure(f"--config.tokenizer.path={train_bpe(folder / 'bpe', template=NO_END)}")
    assert error.startswith("pairs.jsonl:1: the tokenizer's chat template writes no special token after the answer")
    assert "use a built-in tokenizer.template" in error


def test_a_mesh_that_does_not_divide_the_model_is_refused(failure):
    error = failure("--config.mesh.tensor=8", "--config.mesh.fsdp=1")
    assert "mesh axis 'tensor' of size 8 does not divide axis 2" in error and "choose a mesh.tensor" in error


def test_a_loss_that_is_not_a_number_stops_the_run(failure):
    options = ("--config.optimizer.learning_rate=1e30", "--config.optimizer.clip_norm=0")
    error = failure(*options, config=f"{CONFIG}:reward")
    assert error.startswith("step ") and "became NaN or infinite; lower optimizer.learning_rate" in error


# ---------------------------------------------------------------- in a process of its own


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--config.optimizer.learning_rat=1", "error: config has no field 'optimizer.learning_rat'"),
        ("--config.optimizer.learning_rate=1e30", "became NaN or infinite"),
        ("--config.mesh.fsdp=3", "whose product 3 is not the number of devices, 1"),
    ],
)
def test_nothing_but_the_error_is_printed_by_a_real_process(folder, run_cli, option, expected):
    done = run_cli("train", f"--config={CONFIG}", f"--workdir={folder}/run", option, TINY=str(folder))
    assert done.code == cli.USER_ERROR
    assert expected in done.stderr and len(done.stderr.splitlines()) == 1
