"""Plans: the real train step of a config compiled for a TPU slice that nobody has to own."""

from jaxpref.planning.plans import Plan, plan
from jaxpref.planning.report import table, to_json

__all__ = ["Plan", "plan", "table", "to_json"]
