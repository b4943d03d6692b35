"""Every case of every vector, in float64 and in float32: values, parts and gradients."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.golden import adapters

VECTORS = Path(__file__).parent / "vectors"
TEXT = ("note", "layout", "grad_note")
# Two sources log different rewards of the same inputs, so that these vectors decide nothing about them.
UNDECIDED = {vector: ("chosen_rewards", "rejected_rewards") for vector in ("f_dpo_alpha", "f_dpo_js")}
CASES = [
    pytest.param(path.stem, case, id=f"{path.stem}-{number}")
    for path in sorted(VECTORS.glob("*.json"))
    for number, case in enumerate(json.loads(path.read_text())["cases"])
]


def compare(actual, expected, rtol, path=""):
    for name, value in expected.items():
        if name in TEXT:
            continue
        if isinstance(value, dict):
            compare(actual[name], value, rtol, f"{path}{name}.")
            continue
        if isinstance(value, list) and value and isinstance(value[0], dict):  # batches of a stateful method
            assert len(actual[name]) == len(value)
            for number, step in enumerate(value):
                compare(actual[name][number], step, rtol, f"{path}{name}[{number}].")
            continue
        value = np.asarray(value, float)
        # Entries near zero beside large ones are held to the array's own scale.
        scale = np.max(np.abs(value[np.isfinite(value)]), initial=0)
        # An array that is zero but for the rounding of its source is zero but for ours.
        atol = np.finfo(actual[name].dtype).eps if name.startswith("grad") and scale < 1e-15 else 1e-3 * rtol * scale
        np.testing.assert_allclose(
            np.asarray(actual[name], float), value, rtol=rtol, atol=atol, err_msg=f"{path}{name}"
        )


@pytest.mark.parametrize(("precision", "rtol"), [("float64", 1e-6), ("float32", 1e-4)])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_vector(name, case, precision, rtol):
    with jax.enable_x64(precision == "float64"):
        outputs = adapters.evaluate(name, case["inputs"], case["params"])
        for leaf in jax.tree.leaves(outputs):
            assert leaf.dtype in (precision, "bool", "int32", "int64")
        decided = {key: value for key, value in case["expected"].items() if key not in UNDECIDED.get(name, ())}
        compare(outputs, decided, rtol)


def test_every_supported_vector_has_its_file():
    assert {path.stem for path in VECTORS.glob("*.json")} == set(adapters.SUPPORTED)
