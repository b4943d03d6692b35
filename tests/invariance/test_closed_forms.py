"""Traps 1 and 2: with the reference equal to the policy, a loss is its closed form in every layout."""

import jax
import numpy as np
import pytest

from jaxpref import objectives
from jaxpref.data import layouts
from jaxpref.objectives import registry
from jaxpref.training import mesh, state
from tests.invariance.cases import Case, mesh_of, parameters, plan, shard
from tests.invariance.test_full_steps import RAGGED, SIZES, examples

REFERENCED = sorted(name for name, method in registry.METHODS.items() if method.at_reference is not None)
CASES = [*(Case(layout) for layout in layouts.LAYOUTS), Case("packed+shared", True, 8)]
ZERO = ("reward", "margin", "displacement", "kl_estimate")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_trap_01_trap_02_losses_at_the_reference_are_closed_forms(case):
    """All referenced objectives at once, float32: rewards are zero in every bit."""
    model, params, _ = parameters("plain", np.float32)
    total = objectives.build({name: objectives.config(name) for name in REFERENCED})
    streams = examples(total, RAGGED, 1)
    shape, batch = plan(streams, case, {name: SIZES[name] for name in streams})
    devices = mesh_of(case.devices)
    with jax.set_mesh(devices):
        evaluate = jax.jit(state.make_evaluation(model, total, shape.layout))
        placed = shard(params, model, devices)
        outputs, metrics = evaluate(placed, {}, placed["model"], None, 0, mesh.place_batch(batch, devices))
    forms = total.closed_forms(batch.examples)
    assert set(forms) == set(REFERENCED)
    for name, expected in forms.items():
        loss, count = metrics[f"loss/{name}"]
        assert float(loss / count) == pytest.approx(expected, rel=1e-6), name
        np.testing.assert_array_equal(outputs[name]["logps"], outputs[name]["ref_logps"])
    for name, (value, _) in metrics.items():
        if name.startswith(ZERO):
            assert value == 0, name
