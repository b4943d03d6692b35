"""A reference that follows the policy (TR-DPO): part of the state, moved after the optimiser, saved with it."""

import jax
import numpy as np
import pytest

from jaxpref import configuration, losses
from jaxpref.errors import ConfigError
from jaxpref.training import assembly, loop, trees
from tests.training.test_offload import lines, quiet, small


def following(steps: int, **fields):
    made = small(steps)
    made.reference.kind = "moving"
    for name, value in fields.items():
        setattr(made.reference, name, value)
    return made


def stepped(made, folder, steps: int):
    """States after 0, 1, ... steps, and the metrics of each step."""
    parts = assembly.assemble(configuration.sections(made), str(folder), report=lambda *_: None)
    assert parts.starts_at_reference()
    with jax.set_mesh(parts.mesh):
        step, current = parts.compile_step(), parts.state
        states, measured = [jax.tree.map(np.array, current)], []
        for number in range(steps):
            current, metrics = step(current, parts.reference, jax.random.key(0), parts.place(number))
            states.append(jax.tree.map(np.array, current))
            measured.append(metrics)
    return states, measured


def test_it_takes_its_share_of_the_policy_every_so_many_steps(tmp_path):
    states, _ = stepped(following(4, alpha=0.25, every=2), tmp_path, 4)
    for number, (before, after) in enumerate(zip(states, states[1:], strict=False), start=1):
        expected = losses.update_reference(
            before.reference["model"], after.params["model"], number, alpha=0.25, every=2
        )
        found, kept = trees.leaves(after.reference["model"]), trees.leaves(before.reference["model"])
        for name, leaf in trees.leaves(expected).items():
            np.testing.assert_array_equal(found[name], leaf)
        moved = [name for name in found if np.any(found[name] != kept[name])]
        assert bool(moved) == (number % 2 == 0)


def test_replaced_in_every_step_it_leaves_the_loss_at_log_two(tmp_path):
    """The runaway of the specification: policy and reference are equal whenever the loss is computed."""
    _, measured = stepped(following(3, mode="hard"), tmp_path, 3)
    for metrics in measured:
        assert float(metrics["loss"][0]) == pytest.approx(np.log(2), rel=1e-6)
        assert float(metrics["margin/dpo"][0]) == 0


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_moved_reference(tmp_path):
    expected = loop.run(following(5), str(tmp_path / "whole"), say=quiet).state
    made = following(3)
    loop.run(made, str(tmp_path / "parts"), say=quiet)
    made.train.steps = 5
    found = loop.run(made, str(tmp_path / "parts"), say=quiet).state
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_cannot_move_is_refused():
    made = following(3)
    made.adapter.kind = "lora"
    with pytest.raises(ConfigError, match="'moving', but an adapter is trained"):
        configuration.sections(made)
    made = following(3, mode="hard", alpha=0.5)
    with pytest.raises(ConfigError, match=r"reference.alpha"):
        configuration.sections(made)
    made = small(3)
    made.reference.every = 5
    with pytest.raises(ConfigError, match=r"reference.every"):
        configuration.sections(made)
