"""Looking at a reward model: is it as sure as it is right, and which tokens move its score?"""

import html
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jaxpref.analysis import plots
from jaxpref.errors import DataError
from jaxpref.evaluation import statistics

RISES, FALLS = (46, 125, 50), (198, 40, 40)  # colours of what raises and lowers a score


def calibration(margins: np.ndarray, *, bins: int = 10, title: str = "Calibration") -> Figure:
    """How often the chosen response is preferred, against how sure the model is: a reliability diagram.

    A pair of margin m (chosen minus rejected reward) is a prediction of probability ``sigmoid(|m|)`` that its favourite
    is right. Bins hold equally many pairs; a calibrated model lies on the diagonal. Intervals are Wilson's, 95 %.

    Args:
        margins: of held-out pairs, ``[N]``.
        bins: groups of pairs.
        title: of the figure.
    """
    margins = np.asarray(margins, np.float64)
    if margins.ndim != 1 or len(margins) < bins:
        raise DataError(f"A calibration of {bins} bins needs margins of as many pairs at least; found {margins.size}.")
    sure = 1 / (1 + np.exp(-np.abs(margins)))
    right = np.where(margins == 0, 0.5, margins > 0)
    groups = np.array_split(np.argsort(sure), bins)
    shares = [statistics.wilson(float(right[group].sum()), len(group)) for group in groups]
    with matplotlib.rc_context(plots.STYLE):
        figure, axes = plots.axes_of(title, "predicted probability", "share of pairs ranked as labelled")
        axes.plot([0.5, 1], [0.5, 1], color="0.5", linestyle="--", linewidth=1, label="calibrated")
        values = np.array([share.value for share in shares])
        ends = np.abs(np.array([[share.low, share.high] for share in shares]).T - values)
        axes.errorbar([sure[group].mean() for group in groups], values, yerr=ends, fmt="o", markersize=4, capsize=2)
        axes.legend(fontsize=8)
    return figure


def token_heat_map(tokens: Sequence[str], values: Sequence[float], *, title: str = "") -> str:
    """Tokens coloured by a number each, as HTML: green above zero, red below, as strong as the largest magnitude.

    For example the change of a reward from one token to the next (``numpy.diff``), so that a text shows what moved it.
    The number stands in a tooltip. The text is escaped; the page needs nothing else.

    Args:
        tokens: texts of the tokens, in order.
        values: one for each.
        title: a line above.
    """
    values = np.asarray(values, np.float64)
    if values.shape != (len(tokens),) or not np.all(np.isfinite(values)):
        raise DataError(f"A heat map needs a finite number for each of {len(tokens)} tokens; found {values.tolist()}.")
    strength = np.abs(values) / max(np.abs(values).max(initial=0), 1e-12)
    spans = "".join(
        f'<span title="{value:+.3g}" style="background:rgba{(*(RISES if value > 0 else FALLS), round(float(s), 2))}">'
        f"{html.escape(token)}</span>"
        for token, value, s in zip(tokens, values, strength, strict=True)
    )
    above = f"<p><b>{html.escape(title)}</b></p>" if title else ""
    return f'{above}<p style="font-family:monospace;line-height:1.8;white-space:pre-wrap">{spans}</p>'
