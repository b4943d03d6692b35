"""Moments in the host's memory, and parameters in bfloat16: other places and types, the same run."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import configuration
from jaxpref.errors import ConfigError
from jaxpref.training import assembly, loop, metrics, offload, trees
from tests import compilations
from tests.training.test_loop import config


def quiet(_: str) -> None:
    """Says nothing."""


def small(steps: int):
    made = config()
    made.evals, made.train.steps, made.optimizer.clip_norm = {}, steps, 0.1
    del made.data.heldout
    return made


def lines(folder) -> list[dict]:
    found = [json.loads(line) for line in (folder / metrics.FILE).read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in found]


@pytest.mark.slow
def test_moments_on_the_host_change_nothing_and_survive_a_checkpoint(tmp_path):
    expected = loop.run(small(5), str(tmp_path / "device"), say=quiet).state
    made = small(3)
    made.optimizer.offload = True
    loop.run(made, str(tmp_path / "host"), say=quiet)
    made.train.steps = 5  # resumes after step 3
    found = loop.run(made, str(tmp_path / "host"), say=quiet).state
    assert lines(tmp_path / "host") == lines(tmp_path / "device")
    kinds = {path: leaf.sharding.memory_kind for path, leaf in trees.leaves(found).items() if leaf.ndim}
    assert {kind for path, kind in kinds.items() if path.startswith("optimizer/")} == {offload.HOST}
    assert {kind for path, kind in kinds.items() if path.startswith("params/")} == {offload.DEVICE}
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_devices_without_host_memory_are_refused():
    def memory(kind):
        raise ValueError(f"no {kind}")

    device = types.SimpleNamespace(memory=memory, device_kind="Abacus")
    with pytest.raises(ConfigError, match=r"config.optimizer.offload .*Abacus cannot reach; leave it out"):
        offload.check(types.SimpleNamespace(devices=np.array([device])), "optimizer.offload")


@pytest.mark.slow
@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon", "sgd"])
def test_bfloat16_parameters_train_without_another_compile(tmp_path, name, moments):
    made = small(3)
    made.model.dtype = made.model.param_dtype = "bfloat16"
    made.optimizer.name, made.optimizer.moment_dtype, made.optimizer.learning_rate = name, moments, 1e-2
    made.optimizer.momentum = 0.9 if name in ("sgd", "muon", "adafactor") else None
    parts = assembly.assemble(configuration.sections(made), str(tmp_path), report=quiet)
    kind = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree)  # noqa: E731
    with jax.set_mesh(parts.mesh), compilations.counted() as counts:
        step, state = parts.compile_step(), parts.state
        before = kind(state)
        start = jax.tree.map(np.array, state.params["model"])
        for number in range(3):
            state, measured = step(state, parts.reference, jax.random.key(0), parts.place(number))
            assert np.isfinite(float(measured["loss"][0]))
    assert counts["jit(step)"] == 1
    assert kind(state) == before
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params["model"])} == {jnp.dtype(jnp.bfloat16)}
    stored = {leaf.dtype.name for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim > 1}
    assert stored == {moments}
    moved = jax.tree.map(lambda a, b: np.any(np.asarray(a) != np.asarray(b)), start, state.params["model"])
    assert sum(jax.tree.leaves(moved)) > len(jax.tree.leaves(moved)) / 2
