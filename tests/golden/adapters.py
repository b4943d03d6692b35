"""Evaluates any supported golden vector through jaxpref's public functions."""

import sys
from pathlib import Path
from typing import Any

# The group modules are siblings, found whether this file is imported as a module, as a package's, or from its path.
sys.path.insert(0, str(Path(__file__).parent))

import batchwise  # noqa: E402
import cases  # noqa: E402
import evaluation  # noqa: E402
import gradients  # noqa: E402
import lab  # noqa: E402
import likelihood  # noqa: E402
import multiple  # noqa: E402
import pairwise  # noqa: E402
import reference_free  # noqa: E402
import reward  # noqa: E402
import sampled  # noqa: E402
import scored  # noqa: E402
import stability  # noqa: E402

GROUPS = {
    pairwise: (*pairwise.PAIRS, *pairwise.SPECIAL),
    reference_free: reference_free.NAMES,
    batchwise: tuple(batchwise.VECTORS),
    reward: ("bt_rm", "bt_rm_soft_label"),
    evaluation: evaluation.NAMES,
    stability: ("stability_log1mexp", "stability_logsigmoid"),
    gradients: gradients.NAMES,
    lab: lab.NAMES,
    likelihood: likelihood.NAMES,
    multiple: multiple.NAMES,
    sampled: sampled.NAMES,
    scored: scored.NAMES,
}
SUPPORTED = {name: group for group, names in GROUPS.items() for name in names}


def evaluate(vector_name: str, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """Computes all that a case of a vector expects, in float64 under ``jax_enable_x64`` and in float32 otherwise.

    Args:
        vector_name: a file of ``vectors/`` without its suffix.
        inputs: the case's inputs as nested lists; the strings "inf", "-inf" and "nan" stand for those floats.
        params: the case's hyperparameters.

    Returns:
        name -> array (or a dict of arrays) for the names of the vector's ``expected``, and others.
    """
    if vector_name not in SUPPORTED:
        raise KeyError(f"no adapter for vector {vector_name!r}; supported are {', '.join(sorted(SUPPORTED))}")
    return SUPPORTED[vector_name].evaluate(vector_name, cases.parse(inputs), cases.parse(params))
