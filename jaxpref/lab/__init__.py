"""The paper lab: claims of papers as folders of ``experiments/``, run by ``jaxpref reproduce``.

A claim is a folder with a ``run.py`` that holds ``CLAIM``, a :class:`Claim`, and ``run(quick) -> Outcome``. Everything
else in the folder (results, figure, README) is written by the command.
"""

from jaxpref.lab import claims, folders, pages, tabular
from jaxpref.lab.claims import Absent, Check, Claim, Outcome, above, below, near

__all__ = ["Absent", "Check", "Claim", "Outcome", "above", "below", "claims", "folders", "near", "pages", "tabular"]
