"""Looking at runs: curves read back, figures, tables, and the report page."""

from jaxpref.analysis import plots, report, series, tables

__all__ = ["plots", "report", "series", "tables"]
