"""Configs: strict fields with helpful errors, overrides by type, stages, and what a resumed run may change."""

import dataclasses
import inspect
import re
import typing

import pytest

from jaxpref import configuration, objectives
from jaxpref.configuration import schema
from jaxpref.errors import ConfigError

FILE = """
from jaxpref import configuration, objectives

def get_config(argument="dpo"):
    config = configuration.default()
    config.model.name = "nano"
    config.data.pairs = dict(kind="pairs", path="train.jsonl")
    config.evals.heldout = dict(data="pairs", every=10, metrics=("accuracy",))
    config.objectives[argument] = objectives.config(argument)
    config.reference.kind = "frozen" if argument == "dpo" else "none"
    return config
"""

STAGED = """
import importlib.util, pathlib
from jaxpref import configuration

spec = importlib.util.spec_from_file_location("one", pathlib.Path(__file__).parent / "one.py")
one = importlib.util.module_from_spec(spec)
spec.loader.exec_module(one)

def get_config():
    config = configuration.default()
    config.stages.warm = one.get_config("orpo")
    config.stages.align = one.get_config("dpo")
    config.stages.align.model.name = ""
    config.stages.align.init_from = "stage:warm"
    return config
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "one.py"
    path.write_text(FILE)
    return str(path)


@pytest.fixture
def staged(file, tmp_path):
    path = tmp_path / "staged.py"
    path.write_text(STAGED)
    return str(path)


def failure(spec, **overrides):
    """The message of the error that a config with these overrides gives; ``__`` stands for a dot."""
    with pytest.raises(ConfigError) as caught:
        configuration.load(spec, {name.replace("__", "."): text for name, text in overrides.items()})
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------- files


def test_a_file_is_completed_with_defaults(file):
    config = configuration.load(file)
    assert config.data.pairs.path == "train.jsonl"
    assert config.train.epochs == configuration.default().train.epochs
    assert list(config.objectives) == ["dpo"]


def test_the_argument_reaches_get_config(file):
    assert list(configuration.load(f"{file}:simpo").objectives) == ["simpo"]


def test_an_argument_that_no_one_reads_is_an_error(staged):
    assert "takes no argument" in failure(f"{staged}:dpo")


def test_a_misspelt_file_is_answered_with_the_nearest(file):
    assert f"did you mean {file!r}" in failure(file.replace("one.py", "on.py"))


def test_a_file_without_get_config_says_so(tmp_path):
    (tmp_path / "empty.py").write_text("")
    assert "no function get_config" in failure(str(tmp_path / "empty.py"))


def test_an_error_inside_a_file_names_file_and_line(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def get_config():\n    return 1 / 0\n")
    assert failure(str(path)).startswith(f"{path}:2: ZeroDivisionError")


def test_a_wrong_type_inside_a_file_names_the_line(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(FILE.replace('"nano"', "3"))
    assert failure(str(path)).startswith(f"{path}:6: TypeError")


def test_a_field_misspelt_inside_a_file_is_an_error(tmp_path):
    path = tmp_path / "misspelt.py"
    path.write_text(FILE.replace("config.model.name", "config.train.epoch = 2.0; config.model.name"))
    assert failure(str(path)) == "config has no field 'train.epoch'; did you mean 'epochs'?"


def test_a_saved_config_is_the_same_config(file, tmp_path):
    config = configuration.load(file)
    (tmp_path / "config.json").write_text(configuration.to_json(config))
    again = configuration.load(str(tmp_path / "config.json"))
    assert configuration.to_json(again) == configuration.to_json(config)
    assert configuration.sections(again) == configuration.sections(config)


def test_a_config_of_an_older_version_gets_new_defaults():
    assert configuration.from_json('{"seed": 3}').checkpoint.keep == configuration.default().checkpoint.keep


# ---------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("train.steps", "1_000", 1000),
        ("train.steps", "1e3", 1000),
        ("train.epochs", "2", 2.0),
        ("log.progress", "false", False),
        ("optimizer.b1", "0.8", 0.8),
        ("profile", "(2, 4)", (2, 4)),
        ("model.overrides.vocab_size", "300", 300),
        ("batch.streams.pairs", "16", 16),
        ("objectives.dpo.beta", "0.2", 0.2),
        ("data.pairs.limit", "7", 7),
        ("data.on_bad_row", "skip", "skip"),
        ("evals.heldout.every", "5", 5),
        ("init_from", "", ""),
    ],
)
def test_an_override_has_the_type_of_its_field(file, field, text, value):
    config = configuration.load(file, {field: text})
    for name in field.split("."):
        config = config[name]
    assert config == value and type(config) is type(value)


def test_a_hyperparameter_may_become_a_schedule(file):
    text = "{'schedule': 'linear', 'start': 0.1, 'end': 0.5, 'steps': 10}"
    config = configuration.load(file, {"objectives.dpo.beta": text})
    assert "dpo" in objectives.build(config.objectives).terms
    assert config.objectives.dpo.beta.end == 0.5


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("objectives.dpo.betta", "1", "config has no field 'objectives.dpo.betta'; did you mean 'beta'?"),
        ("trian.steps", "1", "config has no field 'trian'; did you mean 'train'?"),
        ("data.pair.limit", "1", "config has no field 'data.pair'; did you mean 'pairs'?"),
        ("train.steps.more", "1", "config.train.steps is 0, which has no fields"),
        ("train.steps", "many", "--config.train.steps=many: expected an integer."),
        ("train.steps", "1.5", "expected an integer"),
        ("train.steps", "true", "expected an integer"),
        ("train.steps", "-1", "config.train.steps is -1; expected at least 0."),
        ("train.epochs", "long", "expected a number"),
        ("log.progress", "maybe", "expected true or false"),
        ("optimizer.name", "adam", "expected one of 'adamw', 'adafactor'"),
        ("optimizer.b1", "high", "config.optimizer.b1 is 'high'; expected a number or None"),
        ("optimizer.b1", "1.5", "expected at most 1"),
        ("batch.streams.pairs", "few", "config.batch.streams.pairs is 'few'; expected an integer"),
        ("profile", "3", "expected a list"),
        ("profile", "(4, 2)", "expected (first step, last step)"),
        ("mesh", "8", "this is a section; set one of its fields: data, distributed"),
        ("mesh.data", "-1", "-1 on several axes"),
        ("model.name", "", "give init_from to start from a checkpoint, or model.name"),
        ("data.on_bad_row", "ignore", "expected 'error' or 'skip'"),
    ],
)
def test_a_bad_override_is_one_clear_sentence(file, field, text, message):
    with pytest.raises(ConfigError) as caught:
        configuration.load(file, {field: text})
    assert message in str(caught.value)


@pytest.mark.parametrize("field", ["objectives.dpo", "objectives.dpo.objective", "objectives.simpo.beta"])
def test_an_objective_is_chosen_by_the_argument_not_by_an_override(file, field):
    assert f"--config={file}:<objective>" in failure(file, **{field: "simpo"})


# ---------------------------------------------------------------- strictness


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("early_stop.patience", "9"),
        ("checkpoint.best.mode", "max"),
        ("batch.length", "64"),
        ("reference.cache", "folder"),
    ],
)
def test_trap_60_a_field_that_the_rest_leaves_unread_is_an_error(file, field, text):
    assert "nothing reads it" in failure(file, **{field: text})


def leaves(section_class, where=""):
    annotations = typing.get_type_hints(section_class)
    for field in dataclasses.fields(section_class):
        path = f"{where}.{field.name}" if where else field.name
        if dataclasses.is_dataclass(annotations[field.name]):
            yield from leaves(annotations[field.name], path)
        else:
            yield path


def test_trap_77_every_field_is_documented_where_its_default_stands():
    for line in inspect.getsource(schema).splitlines():
        is_field = re.match(r"    [a-z0-9_]+: .* = ", line)
        if is_field and "section(" not in line and "name: Literal" not in line:
            assert "  # " in line, line


def test_every_leaf_of_the_schema_refuses_another_type():
    for path in leaves(schema.Sections):
        config = configuration.plain(configuration.default())
        *parents, leaf = path.split(".")
        node = config
        for name in parents:
            node = node[name]
        node[leaf] = object()
        with pytest.raises(ConfigError, match=path.replace(".", r"\.")):
            configuration.sections(config)


def test_data_streams_inherit_the_rule_for_bad_rows(file):
    sections = configuration.sections(configuration.load(file, {"data.on_bad_row": "skip"}))
    assert list(sections.data) == ["pairs"]
    assert sections.data["pairs"]["on_bad_row"] == "skip"


def test_bind_checks_a_section_against_a_signature():
    def stream(kind: str, *, limit: int = 0, tokenizer=None):
        return kind, limit

    assert configuration.bind(stream, dict(kind="pairs", limit=3), "data.x", provided=("tokenizer",)) == {
        "kind": "pairs",
        "limit": 3,
    }
    for section, message in [
        (dict(kind="pairs", limits=3), "config has no field 'data.x.limits'; did you mean 'limit'?"),
        (dict(limit=3), "config.data.x lacks kind."),
        (dict(kind="pairs", limit="3"), "config.data.x.limit is '3'; expected an integer."),
        (dict(kind="pairs", tokenizer=1), "config has no field 'data.x.tokenizer'"),
        ("pairs", "expected the fields kind, limit"),
    ]:
        with pytest.raises(ConfigError) as caught:
            configuration.bind(stream, section, "data.x", provided=("tokenizer",))
        assert message in str(caught.value)


# ---------------------------------------------------------------- stages


def test_stages_keep_their_order_and_add_the_seed(staged):
    config = configuration.load(staged, {"seed": "3", "stages.align.seed": "10"})
    stages = configuration.stages(config)
    assert [(name, stage.seed) for name, stage in stages] == [("warm", 3), ("align", 13)]


def test_stages_are_overridden_by_name(staged):
    config = configuration.load(
        staged, {"stages.align.objectives.dpo.beta": "0.7", "stages.warm.data.pairs.limit": "4"}
    )
    assert config.stages.align.objectives.dpo.beta == 0.7
    assert "did you mean 'steps'" in failure(staged, stages__warm__train__step="3")


def test_what_only_a_stage_reads_is_refused_beside_stages(staged):
    assert "set config.stages.warm.train" in failure(staged, train__steps="3")


def test_a_comparison_without_stages_is_refused(file):
    config = configuration.load(file)
    config.compare.gold = dict(world="sentiment")
    with pytest.raises(ConfigError, match="config.compare compares the stages of a config, and this one has none"):
        configuration.sections(config)


def test_a_stage_can_only_start_from_an_earlier_one(staged):
    assert "did you mean 'warm'" in failure(staged, stages__align__init_from="stage:warn")


def test_an_objective_of_a_stage_cannot_be_added_by_an_override(staged):
    assert "an override cannot choose an objective" in failure(staged, stages__align__objectives__simpo__beta="1")


# ---------------------------------------------------------------- resume


def test_only_the_allow_list_may_change_in_a_resumed_run(file):
    old = configuration.load(file)
    overrides = {"train.steps": "9", "log.every": "5", "evals.heldout.every": "3", "objectives.dpo.beta": "0.3"}
    changes = configuration.difference(old, configuration.load(file, overrides))
    assert {change.field: change.allowed for change in changes} == {
        "train.steps": True,
        "log.every": True,
        "evals.heldout.every": True,
        "objectives.dpo.beta": False,
    }
    assert "objectives.dpo.beta: 0.1 -> 0.3" in map(str, changes)


def test_the_same_config_has_no_difference_after_saving(file):
    config = configuration.load(file)
    assert configuration.difference(configuration.from_json(configuration.to_json(config)), config) == []


def test_another_order_of_data_streams_is_a_difference(file):
    config = configuration.load(file)
    config.data.more = dict(kind="demonstrations", path="x.jsonl")
    other = configuration.load(file)
    other.data = dict(more=config.data.more, pairs=config.data.pairs, on_bad_row="error")
    assert [change.field for change in configuration.difference(config, other)] == ["order of data"]
