"""Objectives: what a config names. A loss bound to channels, side inputs, hyperparameters, heads and running state.

config.objectives.dpo = objectives.config("dpo", beta=0.1, weight=0.8)
config.objectives.sft = objectives.config("sft", weight=0.2)
total = objectives.build(config.objectives)
"""

from jaxpref.objectives import methods as _methods  # noqa: F401  fills the registry
from jaxpref.objectives.objective import build
from jaxpref.objectives.registry import Row, catalogue, config, register
from jaxpref.objectives.schedules import Schedule
from jaxpref.objectives.total import Objective, Total

__all__ = ["Objective", "Row", "Schedule", "Total", "build", "catalogue", "config", "register"]
