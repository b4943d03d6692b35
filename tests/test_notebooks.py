"""Every notebook opens with a sentence, is small, and runs from its first cell to its last."""

import importlib.util

import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 150_000  # bytes

needs_nbclient = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("nbclient", "ipykernel")),
    reason="nbclient and ipykernel are not installed: pip install '.[docs]'",
)


def test_there_are_notebooks():
    names = {path.stem for path in NOTEBOOKS}
    assert names >= {"losses", "gradient", "reward_model", "plan", "own_data"}


@needs_nbclient
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    from tools import notebooks

    executed = notebooks.execute(path)
    first = executed.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert any(cell.get("outputs") for cell in executed.cells)
    for cell in executed.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error" and output.get("name") != "stderr", output


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_small_and_holds_its_outputs(path):
    text = path.read_text()
    assert len(text.encode()) < LARGEST
    assert '"outputs": [\n' in text and "Traceback" not in text and str(ROOT) not in text
