"""Configs: ml_collections files, strict overrides, and the schema that every field belongs to.

config = configuration.default()
config = configuration.load("configs/quickstart.py:small", {"train.steps": "10"})
sections = configuration.sections(config)
"""

from jaxpref.configuration.building import bind, build
from jaxpref.configuration.checks import complete, default, plain, sections, stages
from jaxpref.configuration.dumps import Change, difference, flatten, to_json, to_text
from jaxpref.configuration.files import beside, from_json, load, override
from jaxpref.configuration.schema import Sections

__all__ = [
    "Change", "Sections", "beside", "bind", "build", "complete", "default", "difference", "flatten", "from_json",
    "load", "override", "plain", "sections", "stages", "to_json", "to_text",
]  # fmt: skip
