"""The folders of the lab: which claims there are, how they are loaded, and what a run writes."""

import importlib.util
import json
import pathlib
from types import ModuleType
from typing import Any

import jaxpref
from jaxpref.analysis import plots
from jaxpref.errors import UserError, hint
from jaxpref.lab import claims, pages

RUN, RESULTS, FIGURE, README = "run.py", "results.json", "figure.png", "README.md"


def root() -> pathlib.Path:
    """The folder ``experiments`` of the checkout; UserError where jaxpref was installed without one."""
    found = pathlib.Path(jaxpref.__file__).resolve().parent.parent / "experiments"
    candidates = [found, pathlib.Path.cwd() / "experiments"]
    for folder in candidates:
        if folder.is_dir() and any(folder.glob(f"*/{RUN}")):
            return folder
    raise UserError(
        "papers' claims are folders of a checkout, and this jaxpref was installed without them; clone the repository "
        "and run `jaxpref reproduce` in it."
    )


def names(folder: pathlib.Path) -> list[str]:
    """Claims of the lab: its folders with a ``run.py``."""
    return sorted(path.parent.name for path in folder.glob(f"*/{RUN}"))


def load(folder: pathlib.Path, name: str) -> ModuleType:
    """The module of a claim; UserError when there is none, or it lacks ``CLAIM`` or ``run``."""
    if name not in names(folder):
        raise UserError(f"there is no claim {name!r} in {folder}; {hint(name, names(folder))}")
    path = folder / name / RUN
    specification = importlib.util.spec_from_file_location(f"experiments.{name}", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    if not isinstance(getattr(module, "CLAIM", None), claims.Claim) or not callable(getattr(module, "run", None)):
        raise UserError(f"{path} must define CLAIM, a jaxpref.lab.Claim, and run(quick) -> jaxpref.lab.Outcome.")
    return module


def stored(folder: pathlib.Path, name: str) -> dict[str, Any] | None:
    """What the last full run of a claim found; None before the first."""
    path = folder / name / RESULTS
    return json.loads(path.read_text()) if path.exists() else None


def write(folder: pathlib.Path, name: str, claim: claims.Claim, outcome: claims.Outcome) -> dict[str, Any]:
    """Writes results, figure and page of a full run, and the table of all claims; returns the results."""
    results = claims.summary(outcome)
    place = folder / name
    (place / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
    plots.save(outcome.figure, place / FIGURE)
    write_pages(folder)
    return results


def entries(folder: pathlib.Path) -> dict[str, tuple[claims.Claim, dict[str, Any] | None]]:
    """Every claim of the lab with what its last full run found."""
    return {name: (load(folder, name).CLAIM, stored(folder, name)) for name in names(folder)}


def write_pages(folder: pathlib.Path) -> None:
    """Writes the README of every claim that was run, and the table of all."""
    found = entries(folder)
    for name, (claim, results) in found.items():
        if results is not None:
            (folder / name / README).write_text(pages.page(name, claim, results))
    (folder / README).write_text(pages.overview(found))
