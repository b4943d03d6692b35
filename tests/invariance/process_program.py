"""The program of one process of ``test_processes.py``: a few steps and an evaluation of a small run, assembled from a
config; what came out goes to a file.

    python -m tests.invariance.process_program FOLDER REFERENCE_KIND DATA FSDP TENSOR
"""

import pathlib
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxpref import configuration, objectives
from jaxpref.training import assembly, heldout, mesh, precompute, trees

STEPS = 3
SMALL = dict(width=16, head_dim=4, mlp_width=24, max_positions=64)


def config(kind: str, axes: tuple[int, int, int]):
    made = configuration.default()
    made.model.name, made.model.overrides = "nano", SMALL
    made.model.dtype = made.model.param_dtype = "float64"
    made.model.chunk = 16
    made.tokenizer.path = "world:sentiment"
    made.length.prompt = made.length.response = 16
    made.data.pairs = dict(kind="pairs", source="world:sentiment", size=10)
    made.data.demonstrations = dict(kind="demonstrations", source="world:sentiment", size=7)
    made.data.heldout = dict(kind="pairs", source="world:sentiment", size=5, split="test")
    made.objectives.dpo = objectives.config("dpo", beta=0.5)
    made.objectives.sft = objectives.config("sft", weight=0.3)
    made.evals.heldout = dict(data="heldout")
    made.reference.kind = kind
    made.batch.examples, made.batch.layout, made.batch.rows = 6, "packed+shared", 4
    made.batch.prompt_length, made.batch.response_length, made.batch.short_length = 18, 20, 9
    made.optimizer.name, made.optimizer.learning_rate, made.optimizer.clip_norm = "sgd", 0.5, 0.0
    made.train.steps = STEPS
    made.mesh.data, made.mesh.fsdp, made.mesh.tensor = axes
    return made


def run(kind: str, axes: tuple[int, int, int], folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Parameters, metrics of every step and of the evaluation, by name; every process returns the same."""
    sections = configuration.sections(config(kind, axes))
    mesh.initialise_distributed(sections.mesh.distributed)
    parts = assembly.assemble(sections, str(folder), report=lambda _: None)
    evaluations = heldout.prepare_all(parts, report=lambda _: None)
    lengths = parts.inputs.batch(0).row_lengths
    assert len(lengths) > 1 and min(lengths) < max(lengths)
    found, state = {}, parts.state
    with jax.set_mesh(parts.mesh):
        if parts.cache is not None:
            precompute.fill_run(parts, evaluations, range(parts.inputs.steps), lambda _: None)
            parts = parts._replace(reference=None)
        step = parts.compile_step()
        for number in range(STEPS):
            state, metrics = step(state, parts.reference, jax.random.key(0), parts.place(number))
            found |= {f"step {number}, {name}": np.array(pair) for name, pair in metrics.items()}
        found |= {
            n: np.array(v) for evaluation in evaluations for n, v in heldout.run(evaluation, parts, state).items()
        }
        whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(parts.mesh, PartitionSpec()))
        found |= {name: np.array(leaf) for name, leaf in trees.leaves(whole(state.params)).items()}
    return found


if __name__ == "__main__":
    folder, kind, *axes = sys.argv[1:]
    outcome = run(kind, tuple(map(int, axes)), pathlib.Path(folder))
    np.savez(pathlib.Path(folder) / f"process-{jax.process_index()}-of-{jax.process_count()}.npz", **outcome)
