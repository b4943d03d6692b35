"""Verdicts, what a run writes, and that every folder of the lab is complete and up to date."""

import json
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxpref import cli, lab
from jaxpref.errors import DataError, UserError
from jaxpref.lab import claims, folders, pages

ROOT = folders.root()
RUN = """
from matplotlib.figure import Figure
from jaxpref import lab

CLAIM = lab.Claim("One is more than zero", "Arithmetic", "https://example.org", "So they say.", "Three seeds.", 0.1)

VALUES = [1.0, SECOND, 1.2]

def run(quick):
    return lab.Outcome({"one": {"value": VALUES}}, [lab.above("one is above zero", VALUES)], Figure())
"""


def test_a_check_holds_where_its_whole_interval_does():
    assert lab.above("", [1.0, 1.1, 0.9]).holds
    assert not lab.above("", [1.0, 0.1, -0.5]).holds  # the mean is above zero, its interval is not
    assert lab.below("", [1.0, 2.0, 3.0], [1.5, 2.6, 3.4]).holds  # paired
    assert not lab.below("", [1.0, 2.0], [1.0, 2.0]).holds  # the same is not below
    assert lab.near("", [0.5, 0.51, 0.49], 0.5, 0.05).holds and not lab.near("", [0.5, 0.6, 0.4], 0.5, 0.05).holds


def test_verdicts():
    assert [claims.verdict(h) for h in ([True, True], [True, False], [False])] == list(claims.VERDICTS)


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.0, 2.0, np.nan]])
def test_trap_a_claim_of_too_few_seeds_or_broken_numbers_is_refused(values):
    with pytest.raises(DataError):
        claims.summary(lab.Outcome({"a": {"b": values}}, [lab.above("", values)], Figure()))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A lab with one claim."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "run.py").write_text(RUN.replace("SECOND", "1.1"))
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    return tmp_path


def test_a_full_run_writes_and_a_quick_one_compares(folder, capsys):
    assert cli.main(["reproduce", "one", "--quick"]) == 0
    assert sorted(path.name for path in (folder / "one").iterdir() if path.is_file()) == ["run.py"]
    assert cli.main(["reproduce", "one"]) == 0
    results = json.loads((folder / "one" / "results.json").read_text())
    assert results["verdict"] == "reproduced" and results["seeds"] == 3
    assert "| one is above zero | 1.1 [" in (folder / "one" / "README.md").read_text()
    assert "One is more than zero" in (folder / "README.md").read_text()
    (folder / "one" / "run.py").write_text(RUN.replace("SECOND", "-9.0"))
    assert cli.main(["reproduce", "--all", "--quick"]) == 1
    assert "Not what the last full run found: one." in capsys.readouterr().out
    assert cli.main(["reproduce", "--list"]) == 0
    assert "reproduced" in capsys.readouterr().out


def test_what_was_asked_beyond_the_claim_is_shown_and_has_no_part_in_the_verdict(folder):
    failing = 'Figure(), [lab.below("one is below zero", VALUES)])'
    (folder / "one" / "run.py").write_text(RUN.replace("SECOND", "1.1").replace("Figure())", failing))
    assert cli.main(["reproduce", "one"]) == 0
    assert json.loads((folder / "one" / "results.json").read_text())["verdict"] == "reproduced"
    page = (folder / "one" / "README.md").read_text()
    assert page.index("one is above zero") < page.index("Asked beyond the claim") < page.index("one is below zero")
    assert cli.main(["reproduce", "one", "--quick"]) == 0  # as the full run found


def test_errors_name_what_to_do(folder, capsys):
    assert cli.main(["reproduce", "ones"]) == 2
    assert "there is no claim 'ones'" in capsys.readouterr().err
    assert cli.main(["reproduce"]) == 2
    assert "name the claims to run, or give --all" in capsys.readouterr().err
    (folder / "one" / "run.py").write_text("CLAIM = 1")
    with pytest.raises(UserError, match="must define CLAIM"):
        folders.load(folder, "one")


def test_outside_a_checkout_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.jaxpref, "__file__", str(tmp_path / "jaxpref" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="clone the repository"):
        folders.root()


@pytest.mark.parametrize("name", folders.names(ROOT))
def test_a_claim_is_complete_and_its_page_is_that_of_its_results(name):
    claim, results = folders.load(ROOT, name).CLAIM, folders.stored(ROOT, name)
    assert results is not None, f"run: jaxpref reproduce {name}"
    assert (ROOT / name / folders.FIGURE).stat().st_size < 200_000
    assert (ROOT / name / folders.README).read_text() == pages.page(name, claim, results)
    assert results["verdict"] == "reproduced" or claim.notes, "say why it does not hold"
    assert claim.url.startswith("https://")


def test_the_readme_counts_as_the_table_does():
    (counts,) = re.findall(r"Of (\d+) claims (\d+) reproduce", (ROOT / folders.README).read_text())
    assert (
        "Of {} papers' claims that were put to the test, {} reproduce".format(*counts)
        in (ROOT.parent / "README.md").read_text()
    )


def test_the_table_of_the_lab_is_up_to_date():
    assert (ROOT / folders.README).read_text() == pages.overview(folders.entries(ROOT)), (
        "run: jaxpref reproduce --table"
    )
