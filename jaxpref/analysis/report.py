"""A run as one page: ``report.html``, self-contained, with inline figures and no script."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import markupsafe
from etils import epath
from matplotlib.figure import Figure

import jaxpref
from jaxpref.analysis import plots, series, tables
from jaxpref.errors import DataError

NAME = "report.html"
CONFIG = "config.json"
SAMPLES = "samples.jsonl"
PLOTS = "plots"


class Grid(NamedTuple):
    """Free texts as rows under columns."""

    columns: list[str]
    rows: list[list[str]]


def write(
    workdir: str | epath.Path,
    *,
    title: str | None = None,
    stages: Sequence[str] | None = None,
    results: Sequence[tables.Table] = (),
    figures: Sequence[Figure] = (),
    samples: Iterable[Mapping[str, Any]] | None = None,
    notes: Sequence[str] = (),
) -> epath.Path:
    """Writes ``report.html`` and ``plots/*.png`` of a run folder, from what it holds and what is given.

    Args:
        workdir: a run folder, with ``config.json`` and ``metrics.jsonl``, or one whose subfolders are stages.
        title: heading; the folder's name by default.
        stages: names of the stages' subfolders in order; by default those that hold metrics, by name.
        results: tables for the top of the page.
        figures: further figures for the top, for example :func:`jaxpref.analysis.plots.frontier`.
        samples: rows of texts (prompt, one field per model, scores); by default the last step of ``samples.jsonl``.
        notes: sentences below the heading.

    Returns:
        The path of the page.
    """
    workdir = epath.Path(workdir)
    runs = {name: workdir / name for name in stages} if stages is not None else _runs(workdir)
    sections = []
    for name, folder in runs.items():
        curves = series.read(folder)
        drawn = plots.run_figures(curves)
        for kind, figure in drawn.items():
            plots.save(figure, folder / PLOTS / f"{kind}.png")
        sections.append(
            {
                "name": name or "Training",
                "figures": [_panel(kind, figure) for kind, figure in drawn.items()],
                "last": [(metric, *_last(curve)) for metric, curve in sorted(curves.items())],
                "config": _config(folder),
            }
        )
    page = _template().render(
        title=title or workdir.name or "jaxpref",
        version=jaxpref.__version__,
        notes=notes,
        tables=[markupsafe.Markup(tables.to_html(table)) for table in results],
        figures=[markupsafe.Markup(plots.to_svg(figure)) for figure in figures],
        samples=_grid(_last_samples(workdir) if samples is None else samples),
        runs=sections,
    )
    path = workdir / NAME
    path.write_text(page)
    return path


def _runs(workdir: epath.Path) -> dict[str, epath.Path]:
    if (workdir / series.METRICS).exists():
        return {"": workdir}
    if not workdir.is_dir():
        raise DataError(f"{workdir} is no run folder; give the --workdir of a training.")
    children = sorted((child for child in workdir.iterdir() if (child / series.METRICS).exists()), key=str)
    return {child.name: child for child in children} or {"": workdir}


def _panel(kind: str, figure: Figure) -> dict[str, Any]:
    return {"svg": markupsafe.Markup(plots.to_svg(figure)), "note": plots.PANELS[kind].note}


def _last(curve: series.Curve) -> tuple[str, str]:
    return str(int(curve.steps[-1])), f"{curve.values[-1]:.6g}"


def _config(folder: epath.Path) -> str:
    path = folder / CONFIG
    return json.dumps(json.loads(path.read_text()), indent=2) if path.exists() else ""


def _last_samples(workdir: epath.Path) -> list[dict[str, Any]]:
    path = workdir / SAMPLES
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    last = max((row.get("step", 0) for row in rows), default=0)
    return [row for row in rows if row.get("step", 0) == last]


def _grid(samples: Iterable[Mapping[str, Any]]) -> Grid:
    samples = list(samples)
    columns = list(dict.fromkeys(name for row in samples for name in row))
    return Grid(columns, [[_text(row.get(name, "")) for name in columns] for row in samples])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _template() -> jinja2.Template:
    # Undefined names are errors: a page must not lose a part in silence.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxpref.analysis", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.jinja")
