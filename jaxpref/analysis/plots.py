"""Figures of a run: learning curves, rewards and margins, likelihood displacement, reward against KL.

Every function returns a ``matplotlib.figure.Figure`` and touches no global state: no window, no pyplot, no rcParams.
Metrics are found by name, ``<metric>/<term>`` with any prefix (``loss/dpo``, ``eval/test/loss/dpo``).
"""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxpref.analysis.series import Curve
from jaxpref.errors import DataError
from jaxpref.evaluation import statistics
from jaxpref.evaluation.statistics import Interval

SIZE = (6.4, 3.4)  # inches
POINTS = 200
SPARSE = 60  # a curve of fewer points shows each
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 110,
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxpref",
}


class Panel(NamedTuple):
    """One figure of a run: which metrics it shows, and what they mean."""

    title: str
    ylabel: str
    metrics: tuple[str, ...]
    note: str = ""


PANELS = {
    "loss": Panel("Loss", "loss", ("loss",)),
    "accuracy": Panel("Preference accuracy", "share of pairs", ("accuracy", "ranking_accuracy")),
    "margins": Panel(
        "Rewards and margin",
        "reward",
        ("reward_chosen", "reward_rejected", "margin", "reward_desirable", "reward_undesirable"),
    ),
    "displacement": Panel(
        "Likelihood displacement",
        "log-probability minus reference (nats)",
        ("displacement_chosen", "displacement_rejected", "displacement_response"),
        "A falling chosen log-probability under a rising margin is ordinary for log-ratio losses; "
        "look at generations before you worry.",
    ),
    "kl": Panel("Distance from the reference", "nats", ("kl_estimate", "kl")),
    "length": Panel("Response length", "tokens", ("length_chosen", "length_rejected", "length_response", "length")),
    "gold": Panel("True reward", "reward", ("gold_reward",)),
    "norms": Panel("Gradient and update norm", "norm", ("gradient_norm", "update_norm")),
    "speed": Panel("Throughput", "tokens per second", ("tokens_per_second",)),
}


def run_figures(curves: Mapping[str, Curve]) -> dict[str, Figure]:
    """The figures that a run has data for, by the names of :data:`PANELS`."""
    figures = {}
    for name, panel in PANELS.items():
        wanted = set(panel.metrics)
        shown = {metric: curve for metric, curve in curves.items() if wanted.intersection(metric.split("/"))}
        if any(len(curve.finite().steps) for curve in shown.values()):
            figures[name] = lines(shown, title=panel.title, ylabel=panel.ylabel)
    return figures


def lines(curves: Mapping[str, Curve], *, title: str, ylabel: str) -> Figure:
    """Curves over steps. Long ones are thinned to means of blocks; steps without a finite value are left out."""
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(title, "step", ylabel)
        for name, curve in curves.items():
            curve = curve.finite()
            marker = "o" if len(curve.steps) < SPARSE else None
            curve = curve.thinned(POINTS)
            axes.plot(curve.steps, curve.values, label=name, marker=marker, markersize=3, linewidth=1.4)
        axes.legend(fontsize=7, ncols=2 if len(curves) > 4 else 1)
    return figure


def frontier(
    points: Mapping[str, tuple[Interval | float, Interval | float]],
    *,
    curve: Sequence[tuple[float, float]] = (),
    curve_label: str = "best possible",
    title: str = "Reward against KL",
) -> Figure:
    """Reward over KL (nats): policies as points with their intervals, and a curve to compare with.

    Args:
        points: name -> (KL, reward), each an interval or a number.
        curve: (KL, reward) along the curve, for example ``world.optimum(beta)`` with its two values swapped.
        curve_label: what the curve is.
        title: of the figure.
    """
    if not points:
        raise DataError("A frontier needs at least one policy; found none.")
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(title, "KL from the reference (nats)", "true reward")
        if len(curve):
            kl, reward = np.array(sorted(curve), np.float64).T
            axes.plot(kl, reward, color="0.5", linewidth=1.2, label=curve_label)
        for name, (kl, reward) in points.items():
            (x, left), (y, down) = _bar(kl), _bar(reward)
            axes.errorbar([x], [y], xerr=left, yerr=down, fmt="o", markersize=5, capsize=2, label=name)
        axes.legend(fontsize=8)
    return figure


def bands(
    x: Sequence[float],
    curves: Mapping[str, np.ndarray],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    log: str = "",
    target: Sequence[float] | None = None,
) -> Figure:
    """Curves over ``x``, each the mean of seeds ``[S, X]`` with its 95 % interval (Student's t) as a band.

    Args:
        x: ``[X]``.
        curves: name -> ``[S, X]``.
        title, xlabel, ylabel: texts.
        log: axes with a logarithmic scale: ``"x"``, ``"y"`` or ``"xy"``.
        target: ``[X]``, what is ideal, drawn dashed.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(title, xlabel, ylabel)
        _scale(axes, log)
        for name, values in curves.items():
            middle = [statistics.student(column) for column in np.asarray(values, np.float64).T]
            (line,) = axes.plot(x, [m.value for m in middle], label=name, linewidth=1.4, marker="o", markersize=3)
            axes.fill_between(x, [m.low for m in middle], [m.high for m in middle], alpha=0.2, color=line.get_color())
        if target is not None:
            axes.plot(x, target, color="0.5", linestyle="--", linewidth=1, label="ideal")
        axes.legend(fontsize=8)
    return figure


def groups(values: Mapping[str, Sequence[float]], *, title: str, xlabel: str, ylabel: str, log: str = "") -> Figure:
    """One column for each condition: every seed a dot, their mean with its 95 % interval (Student's t) beside them."""
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(title, xlabel, ylabel)
        _scale(axes, log)
        for place, seeds in enumerate(values.values()):
            mean, bar = _bar(statistics.student(np.asarray(seeds)))
            axes.plot(np.full(len(seeds), place - 0.1), seeds, "o", color="0.6", markersize=3)
            axes.errorbar([place + 0.1], [mean], yerr=bar, fmt="o", markersize=5, capsize=3)
        axes.set_xticks(range(len(values)), list(values))
    return figure


def paths(curves: Mapping[str, np.ndarray], *, title: str, xlabel: str, ylabel: str) -> Figure:
    """Points ``[N, 2]`` in a plane, those of a curve joined in their order: fronts, trajectories."""
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(title, xlabel, ylabel)
        for name, points in curves.items():
            axes.plot(*np.asarray(points, np.float64).T, label=name, marker="o", markersize=3, linewidth=1.2)
        axes.legend(fontsize=8)
    return figure


def margins(values: Mapping[str, np.ndarray], *, title: str = "Margins", xlabel: str = "reward margin") -> Figure:
    """Distribution of per-example margins ``[N]`` of each model, on common bins, with a line at 0."""
    if not values or not all(np.size(value) for value in values.values()):
        raise DataError("A histogram of margins needs at least one example of each model; found none.")
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(title, xlabel, "examples")
        bins = np.histogram_bin_edges(np.concatenate([np.ravel(value) for value in values.values()]), bins=40)
        for name, value in values.items():
            axes.hist(np.ravel(value), bins=bins, histtype="step", linewidth=1.4, label=name)
        axes.axvline(0, color="0.5", linewidth=1)
        axes.legend(fontsize=8)
    return figure


def to_svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element to put into a page: the same text for the same figure."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def save(figure: Figure, path: str | epath.Path) -> None:
    """Writes a PNG."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", metadata={"Software": None})
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def axes_of(title: str, xlabel: str, ylabel: str):
    """A new figure with its one pair of axes."""
    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def _scale(axes, log: str) -> None:
    if "x" in log:
        axes.set_xscale("log")
    if "y" in log:
        axes.set_yscale("log")


def _bar(estimate: Interval | float) -> tuple[float, list | None]:
    """A point and its error bar."""
    if not isinstance(estimate, Interval):
        return float(estimate), None
    return estimate.value, [[max(estimate.value - estimate.low, 0)], [max(estimate.high - estimate.value, 0)]]
