"""Executes the notebooks and writes their outputs into them: ``python tools/notebooks.py [name ...]``.

    python tools/notebooks.py losses plan

Each runs from its first cell to its last, with this interpreter as its kernel, in a temporary folder, so that a
notebook can rely on nothing but what is installed. Needs nbclient and ipykernel (``pip install '.[docs]'``).
"""

import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SECONDS = 600  # of a cell
COLOURS = 64  # of a stored figure


class ThisInterpreter(KernelSpecManager):
    """Whatever kernel a notebook names, it is this interpreter, which need not be registered anywhere."""

    def get_kernel_spec(self, kernel_name):
        command = [sys.executable, "-m", "ipykernel_launcher", "--log-level=ERROR", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs; raises ``nbclient.exceptions.CellExecutionError`` at the first error."""
    notebook = nbformat.read(path, as_version=4)
    manager = AsyncKernelManager(kernel_spec_manager=ThisInterpreter(), kernel_name="python3")
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook,
            km=manager,
            timeout=SECONDS,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=environment(), cleanup_kc=True)
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    return notebook


def smaller(figure: str) -> str:
    """A figure, PNG in base64, with a palette: a quarter of the bytes."""
    image, buffer = Image.open(io.BytesIO(base64.b64decode(figure))), io.BytesIO()
    image.convert("RGB").quantize(COLOURS).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def environment() -> dict[str, str]:
    """This process's variables, on one CPU device whatever the machine has, so that outputs do not depend on it."""
    left = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "MPLBACKEND")}
    return left | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def main(names: list[str]) -> None:
    """Refreshes the notebooks of these names, or all."""
    for path in [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb")):
        notebook = execute(path)
        nbformat.write(notebook, path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
