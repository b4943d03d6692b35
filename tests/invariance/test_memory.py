"""Trap 72: neither the train step nor the evaluation holds an array of tokens x vocabulary.

The compiled program is read as text. The vocabulary is so large that every other array is smaller than the logits of
one micro-batch on one device.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxpref import models, objectives
from jaxpref.training import mesh, state
from tests.invariance.cases import Case, mesh_of, plan, shard
from tests.invariance.test_full_steps import SIZES, examples
from tests.models import families

CHUNK, VOCABULARY = 5, 128_256
CONFIG = dataclasses.replace(families.LLAMA, vocab_size=VOCABULARY)
TERMS = {"dpo": {}, "kto": {}, "bradley_terry": {}, "sft": {}}
ONE, SEVERAL = Case("padded", False, 1), Case("packed+shared", True, 8)
slow = pytest.mark.slow


def assemble(names, case: Case):
    """``(model, objective, state, reference, shape, batch)`` on a mesh."""
    model, tree = families.build(CONFIG, chunk=CHUNK)
    total = objectives.build({name: objectives.config(name) for name in names})
    heads, objective_state = total.init(jax.random.key(0), model)
    devices, final = mesh_of(case), "bradley_terry" in names
    shape, batch = plan(examples(total, SIZES, 0), case, final=final)
    params = {"model": tree, "heads": heads}
    with jax.set_mesh(devices):
        fresh = state.create(
            params, jax.tree.map(lambda _: True, params), optax.adamw(1e-3), objective_state, average=False
        )
        fresh = jax.device_put(fresh, mesh.state_shardings(fresh, model, devices))
        return model, total, fresh, shard(tree, model, devices), shape, mesh.place_batch(batch, devices)


def step_program(names, case: Case):
    model, total, fresh, reference, shape, batch = assemble(names, case)
    mask = jax.tree.map(lambda _: True, fresh.params)
    step = jax.jit(state.make_step(model, total, optax.adamw(1e-3), mask, shape.layout), donate_argnums=0)
    with jax.set_mesh(mesh_of(case)):
        return step.lower(fresh, reference, jax.random.key(0), batch).compile(), shape


def evaluation_program(names, case: Case):
    model, total, fresh, reference, shape, batch = assemble(names, case)
    evaluate = jax.jit(state.make_evaluation(model, total, shape.layout))
    with jax.set_mesh(mesh_of(case)):
        arguments = fresh.params, fresh.objective, reference, jax.random.key(0), 0, batch
        return evaluate.lower(*arguments).compile(), shape


def largest_array(compiled) -> int:
    """Elements of the largest floating-point array that an optimized program names, on one device."""
    shapes = re.findall(r"\b(?:f64|f32|f16|bf16)\[([\d,]+)\]", compiled.as_text())
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def logits_size(shape, case: Case) -> int:
    """Elements of one micro-batch's logits, on one of the devices that divide rows (4) and vocabulary (2)."""
    return shape.rows * shape.layout.length * VOCABULARY // (8 if case.devices == 8 else 1)


@pytest.mark.parametrize(
    ("names", "case"),
    [
        (("dpo", "sft"), ONE),
        pytest.param(("kto",), SEVERAL, marks=slow),
        pytest.param(("dpo", "sft", "bradley_terry"), SEVERAL, marks=slow),
    ],
    ids=str,
)
def test_trap_72_no_logits_in_the_train_step(names, case):
    compiled, shape = step_program(names, case)
    assert largest_array(compiled) < logits_size(shape, case)


@pytest.mark.parametrize("case", [ONE, pytest.param(SEVERAL, marks=slow)], ids=str)
def test_trap_72_trap_73_no_logits_in_the_evaluation(case):
    compiled, shape = evaluation_program(("dpo", "kto"), case)
    assert largest_array(compiled) < logits_size(shape, case)


def test_whole_logits_would_be_found():
    model, tree = families.build(CONFIG)
    tokens = jnp.zeros((4, 12), int)
    compiled = jax.jit(lambda tree: models.logits(model, tree, tokens).sum()).lower(tree).compile()
    assert largest_array(compiled) >= tokens.size * VOCABULARY
