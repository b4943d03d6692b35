"""Looking at runs: curves read back, figures, tables, the report page, and which pairs displace likelihood."""

from jaxpref.analysis import ches, plots, report, rewards, series, tables
from jaxpref.analysis.ches import ches_filter, ches_score, displacement_toy

__all__ = [
    "ches",
    "ches_filter",
    "ches_score",
    "displacement_toy",
    "plots",
    "report",
    "rewards",
    "series",
    "tables",
]
