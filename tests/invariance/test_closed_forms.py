"""Traps 1 and 2: with the reference equal to the policy, a loss is its closed form in every layout."""

import functools

import jax
import numpy as np
import pytest

from jaxpref import objectives
from jaxpref.data import layouts
from jaxpref.objectives import registry
from jaxpref.training import mesh, state
from tests.invariance.cases import Case, mesh_of, parameters, plan, shard
from tests.invariance.test_full_steps import RAGGED, SIZES, examples

# Without a state, and with no other columns than the streams here have.
REFERENCED = sorted(
    name
    for name, method in registry.METHODS.items()
    if method.at_reference is not None
    and method.init_state is None
    and method.per_example
    and method.sides <= {"label"}
)
CASES = [*(Case(layout) for layout in layouts.LAYOUTS), Case("packed+shared", True, 8)]
ZERO = ("reward", "margin", "displacement", "kl_estimate")


@functools.cache
def scored(case: Case, at_reference: bool):
    """``(objective, batch, outputs, metrics)`` of all referenced objectives at once, float32."""
    devices = mesh_of(case)
    total, batch, evaluate, policy, reference = compiled(case)
    with jax.set_mesh(devices):
        arguments = (
            policy,
            {},
            policy["model"] if at_reference else reference,
            None,
            0,
            mesh.place_batch(batch, devices),
        )
        return total, batch, *jax.tree.map(np.array, evaluate(*arguments))


@functools.cache
def compiled(case: Case):
    model, params, reference = parameters("plain", np.float32)
    total = objectives.build({name: objectives.config(name) for name in REFERENCED})
    streams = examples(total, RAGGED, 1)
    shape, batch = plan(streams, case, {name: SIZES[name] for name in streams})
    devices = mesh_of(case)
    evaluate = jax.jit(state.make_evaluation(model, total, shape.layout))
    return total, batch, evaluate, shard(params, model, devices), shard(reference, model, devices)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_trap_01_trap_02_losses_at_the_reference_are_closed_forms(case):
    """Rewards are zero in every bit."""
    total, batch, outputs, metrics = scored(case, at_reference=True)
    forms = total.closed_forms(batch.examples)
    assert set(forms) == set(REFERENCED)
    for name, expected in forms.items():
        loss, count = metrics[f"loss/{name}"]
        assert loss / count == pytest.approx(expected, rel=1e-6), name
        np.testing.assert_array_equal(outputs[name]["logps"], outputs[name]["ref_logps"])
    for name, (value, _) in metrics.items():
        if name.startswith(ZERO):
            assert value == 0, name


@pytest.mark.parametrize("case", CASES[1:], ids=str)
def test_trap_12_losses_away_from_the_reference_do_not_depend_on_the_layout(case):
    *_, expected = scored(CASES[0], at_reference=False)
    *_, metrics = scored(case, at_reference=False)
    for name in REFERENCED:
        np.testing.assert_allclose(metrics[f"loss/{name}"], expected[f"loss/{name}"], rtol=1e-5, err_msg=name)
