"""The documentation says what is: its commands parse, its files exist, its Python runs or is a config."""

import pathlib
import re
import shlex

import pytest

from jaxpref import cli

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
NAVIGATION = (ROOT / "mkdocs.yml").read_text()


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page):
    """Calls of jaxpref in a page's shell blocks, without variables before and comments behind."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;", line):
                words = shlex.split(part, comments=True)
                words = words[next((n for n, word in enumerate(words) if "=" not in word), len(words)) :]
                if words and words[0].rpartition("/")[2] == "jaxpref":
                    yield words[1:]


@pytest.mark.parametrize(
    "words", [pytest.param(words, id=f"{page.stem}: {' '.join(words)}") for page in PAGES for words in commands(page)]
)
def test_every_command_parses_and_its_config_exists(words):
    options = cli.parse(words)
    config = getattr(options, "config", None)
    assert config is None or config in ("my_run.py", "my_config.py") or (ROOT / config.partition(":")[0]).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_is_in_the_navigation_and_names_files_that_exist(page):
    assert f"{page.name}" in NAVIGATION
    for name in re.findall(r"`((?:jaxpref|configs|tools|tests|docs|experiments)/[\w/.-]+)`", page.read_text()):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_first_page_runs():
    names = {}
    exec(blocks(ROOT / "docs" / "index.md", "python")[0], names)  # noqa: S102
    assert names["slopes"].shape == (8,) and (names["slopes"] < 0).all()
