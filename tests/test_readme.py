"""The README says what is: its code runs, its commands exist, its table of methods is the registry's."""

import pathlib
import re
import shlex

import pytest

from jaxpref import cli, objectives

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_notebook_example_runs():
    names = {}
    exec(blocks("python")[0], names)  # noqa: S102
    assert names["slope"].shape == (101,)
    # Below both targets the loss falls; beyond IPO's, at 10, it pulls back in the end.
    assert names["slope"][0] < 0 < names["slope"][-1]
    names["plt"].close("all")


def test_the_config_example_is_a_valid_config():
    names = {}
    exec(blocks("python")[1], names)  # noqa: S102
    from jaxpref import configuration

    stages = dict(configuration.stages(names["get_config"]()))
    assert configuration.sections(stages["dpo"]).reference.kind == "cached"


def test_every_method_is_listed():
    table = TEXT[TEXT.index("## Methods") :]
    missing = [row.name for row in objectives.catalogue() if f"`{row.name}`" not in table]
    assert not missing


@pytest.mark.parametrize("command", re.findall(r"`jaxpref ([a-z-]+[^`]*)`", TEXT))
def test_every_command_and_option_exists(command, capsys):
    name, *options = shlex.split(command)
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out.replace("_", "-")
    assert all(option.split("=")[0].replace("_", "-") in told for option in options if option.startswith("--"))


def test_continuous_integration_runs_the_test_command_of_the_readme():
    command = next(block for block in blocks("bash") if "pytest" in block)
    pytest_command = command[command.index("pytest") :].strip().replace('"', "'")
    assert pytest_command in (ROOT / ".ci" / "run").read_text()


def test_links_to_files_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", TEXT):
        assert (ROOT / target).exists(), target
