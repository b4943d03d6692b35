"""Figures: what they show, in numbers read back from their axes."""

import matplotlib
import numpy as np
import pytest

from jaxpref.analysis import plots, series
from jaxpref.errors import DataError
from jaxpref.evaluation.statistics import Interval


def curve(values):
    return series.Curve(np.arange(len(values)), np.asarray(values, np.float64))


def labels(figure):
    return [line.get_label() for line in figure.axes[0].lines]


def test_run_figures_find_metrics_by_name():
    names = [
        "loss/dpo",
        "eval/test/loss/dpo",
        "margin/dpo",
        "reward_chosen/dpo",
        "displacement_chosen/dpo",
        "tokens/read",
    ]
    figures = plots.run_figures({name: curve([1.0, 2.0]) for name in names})
    assert list(figures) == ["loss", "margins", "displacement"]
    assert labels(figures["loss"]) == ["loss/dpo", "eval/test/loss/dpo"]
    assert labels(figures["margins"]) == ["margin/dpo", "reward_chosen/dpo"]


def test_no_figure_without_a_finite_value():
    assert plots.run_figures({"loss/dpo": curve([np.nan])}) == {} == plots.run_figures({})


def test_lines_hold_the_values_and_thin_long_runs():
    figure = plots.lines({"a": curve([1.0, np.nan, 3.0]), "b": curve(np.arange(5000))}, title="t", ylabel="y")
    first, second = figure.axes[0].lines
    assert first.get_xdata().tolist() == [0, 2] and first.get_ydata().tolist() == [1.0, 3.0]
    assert len(second.get_xdata()) == plots.POINTS and np.mean(second.get_ydata()) == pytest.approx(2499.5)


def test_frontier_shows_points_intervals_and_the_curve():
    kl, reward = Interval(2.0, 1.5, 2.5, 9, ""), Interval(1.0, 0.5, 1.2, 9, "")
    figure = plots.frontier({"DPO": (kl, reward), "SFT": (0.0, 0.1)}, curve=[(1.0, 1.0), (0.0, 0.0), (4.0, 2.0)])
    axes = figure.axes[0]
    assert axes.lines[0].get_xdata().tolist() == [0.0, 1.0, 4.0] and axes.lines[0].get_label() == "best possible"
    (segment,) = axes.containers[0].lines[2][0].get_segments()
    assert segment[:, 0].tolist() == [1.5, 2.5]
    (segment,) = axes.containers[0].lines[2][1].get_segments()
    assert segment[:, 1].tolist() == [0.5, 1.2]
    with pytest.raises(DataError, match="at least one policy"):
        plots.frontier({})


def test_margins_count_every_example():
    figure = plots.margins({"dpo": np.linspace(-1, 1, 50), "ipo": np.linspace(-2, 0, 30)})
    heights = [patch.get_xy()[:, 1] for patch in figure.axes[0].patches]
    assert [height.max() > 0 for height in heights] == [True, True]
    with pytest.raises(DataError, match="at least one example"):
        plots.margins({"dpo": np.zeros(0)})


def test_svg_is_reproducible_and_needs_no_file():
    texts = [plots.to_svg(plots.lines({"a": curve([1.0, 2.0])}, title="t", ylabel="y")) for _ in range(2)]
    assert texts[0] == texts[1] and texts[0].startswith("<svg") and 'href="http' not in texts[0]


def test_save_writes_a_png(tmp_path):
    plots.save(plots.lines({"a": curve([1.0])}, title="t", ylabel="y"), tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_global_settings_stay_as_they_were():
    before = dict(matplotlib.rcParams)
    plots.to_svg(plots.lines({"a": curve([1.0])}, title="t", ylabel="y"))
    assert dict(matplotlib.rcParams) == before


def test_paths_join_points_in_their_order():
    (axes,) = plots.paths({"front": np.array([[0, 2], [1, 1]])}, title="t", xlabel="x", ylabel="y").axes
    assert axes.lines[0].get_xydata().tolist() == [[0, 2], [1, 1]]
