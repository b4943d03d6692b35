"""The frame of the command line: help, errors, overrides. What commands do is tested in the rooms that do it."""

import pathlib
import subprocess
import sys

import pytest

from jaxpref import cli, losses, objectives
from jaxpref.commands import methods


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from jaxpref import configuration, objectives\n"
        "def get_config():\n"
        "    config = configuration.default()\n"
        "    config.model.name = 'nano'\n"
        "    config.objectives.sft = objectives.config('sft')\n"
        "    return config\n"
    )
    return str(path)


def failure(capsys, *arguments):
    """The one line that a mendable error prints."""
    assert cli.main(list(map(str, arguments))) == cli.USER_ERROR
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("command", [None, *cli.COMMANDS])
def test_help_reads_well(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*([command] if command else []), "--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    assert max(map(len, out.splitlines())) <= 120
    assert all(name in out for name in ([command] if command else cli.COMMANDS))


def test_help_imports_no_array_library():
    code = """
import sys
from jaxpref import cli
try:
    cli.main(["train", "--help"])
finally:
    print([name for name in ("jax", "numpy", "ml_collections", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_misspelt_command_is_answered_with_the_nearest(capsys):
    assert "no command 'trian'; did you mean 'train'?" in failure(capsys, "trian")


def test_a_misspelt_option_is_answered_with_the_nearest(capsys, config):
    assert "did you mean '--workdir'?" in failure(capsys, "train", f"--config={config}", "--workdir=x", "--workdr=y")


def test_a_misspelt_field_is_answered_with_the_nearest(capsys, config):
    error = failure(capsys, "train", f"--config={config}", "--workdir=x", "--config.objectives.sft.wieght=2")
    assert error == "error: config has no field 'objectives.sft.wieght'; did you mean 'weight'?\n"


def test_an_override_without_value_is_an_error(capsys, config):
    assert "has no value" in failure(capsys, "train", f"--config={config}", "--config.train.steps", "--workdir=x")


def test_an_override_that_nothing_reads_is_an_error(capsys):
    assert "reads no config" in failure(capsys, "methods", "--config.train.steps=3")


def test_an_unwritable_workdir_is_an_error(capsys, config, tmp_path):
    (tmp_path / "file").write_text("")
    error = failure(capsys, "train", f"--config={config}", f"--workdir={tmp_path}/file/run")
    assert "cannot be written" in error


def test_options_may_be_written_with_underscores():
    assert cli.parse(["convert", "--from_hf=a_b", "--to=c"]).from_hf == "a_b"


def test_overrides_come_as_one_word_or_two():
    line = "train --config.a.b=1=2 --config x.py --config.c 3 --dry-run"
    others, overrides = cli.split_overrides(line.split())
    assert others == ["train", "--config", "x.py", "--dry-run"]
    assert overrides == {"a.b": "1=2", "c": "3"}


def test_an_interrupt_ends_quietly(capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(methods, "run", interrupted)
    assert cli.main(["methods"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_methods_lists_the_catalogue(capsys):
    assert cli.main(["methods"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [row.name for row in objectives.catalogue()]


@pytest.mark.parametrize("name", [row.name for row in objectives.catalogue()])
def test_methods_shows_a_method_with_its_defaults(name, capsys):
    assert cli.main(["methods", name]) == 0
    out = capsys.readouterr().out
    row = next(row for row in objectives.catalogue() if row.name == name)
    assert row.url in out and all(f"{field}={value!r}" in out for field, value in row.defaults.items())


def test_methods_by_feedback(capsys):
    assert cli.main(["methods", "--feedback=unpaired"]) == 0
    assert "kto" in capsys.readouterr().out
    assert "no feedback type 'pair'; did you mean 'pairs'?" in failure(capsys, "methods", "--feedback=pair")


def test_the_page_of_methods_is_that_of_the_registry(capsys):
    """After a change: ``jaxpref methods --markdown > docs/methods.md``."""
    assert cli.main(["methods", "--markdown"]) == 0
    page = pathlib.Path(__file__).parent.parent / "docs" / "methods.md"
    assert capsys.readouterr().out == page.read_text()
    assert all(hasattr(losses, row.function) for row in objectives.catalogue())
    assert "leave out the name" in failure(capsys, "methods", "dpo", "--markdown")


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m jaxpref.cli methods | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


def test_a_user_error_ends_the_process_with_its_code(run_cli):
    done = run_cli("trian")
    assert done == (cli.USER_ERROR, "", "error: there is no command 'trian'; did you mean 'train'?\n")
