"""The training loop: reads top to bottom.

    jaxpref train --config=configs/quickstart.py --workdir=runs/quickstart

The same command continues a run that was stopped, bit for bit.
"""

import contextlib
import signal
import sys
from typing import Any

import jax
from etils import epath

from jaxpref import configuration
from jaxpref.errors import TrainingError
from jaxpref.training import assembly, checkpoints, folder, heldout, mesh, metrics, precompute, selfcheck
from jaxpref.training.digest import leaf_digests

MOVEMENT_STEPS = 3  # by then every trainable leaf has moved


def run(config, workdir: str, *, dry_run: bool = False, stages: epath.Path | None = None) -> dict[str, Any]:
    """Trains one stage, or continues it.

    Args:
        config: a checked config (:func:`jaxpref.configuration.load`).
        workdir: run folder; a run that it holds is continued.
        dry_run: compile, run one step, and save nothing of it.
        stages: folder with the runs of earlier stages, which ``init_from='stage:<name>'`` names.

    Returns:
        The last metrics by name, those of evaluations as ``<evaluation>/<metric>/<term>``.

    Raises:
        UserError: whatever a user can mend, in one sentence.
    """
    # -------------------------------------------------------------------------------------------- config, run folder
    sections = configuration.sections(config)
    mesh.initialise_distributed(sections.mesh.distributed)
    say = print if jax.process_index() == 0 else lambda *_: None
    files = folder.RunFolder(workdir, config)

    # -------------------------------------------------------------------------- tokenizer, data, model, objective, mesh
    parts = assembly.assemble(sections, workdir, stages=stages, report=say)
    evaluations = heldout.prepare_all(parts, report=say)
    steps = 1 if dry_run else parts.inputs.steps
    say(assembly.summary(parts))

    with jax.set_mesh(parts.mesh):
        # ----------------------------------------------------------------------------------------------------- resume
        saver = checkpoints.Checkpoints(files.path, sections.checkpoint, identity=assembly.identity(parts))
        state, progress = saver.restore(parts.shapes)
        if state is None:
            files.describe(parts)
            state, progress = parts.state, {"best": None, "waited": 0, "results": {}}
        first = int(state.step)
        results = dict(progress["results"])

        # -------------------------------------------------------------------------------------------------- reference
        starts_at_reference = first == 0 and parts.starts_at_reference()
        if parts.cache is not None and first < steps:
            everything = heldout.all_examples(parts, evaluations, first)
            precompute.fill(parts.cache, everything, parts.model, parts.reference, parts.inputs.shape, parts.mesh, say)
            parts = parts._replace(reference=None)

        # ------------------------------------------------------------------------------------------------------ steps
        train_step = parts.compile_step()
        key = jax.random.key(sections.seed)
        digests = leaf_digests(state.params) if first == 0 else None
        writer = metrics.Writer(files.path, sections.log, first_step=first)
        clock = metrics.Clock(parts)
        stopper = heldout.EarlyStop(sections.early_stop, progress)
        batch = parts.place(first) if first < steps else None
        with _termination() as terminated, metrics.progress_bar(first, steps, sections.log) as advance:
            for number in range(first, steps):
                done = number + 1
                state, measured = train_step(state, parts.reference, key, batch)
                if done < steps:
                    batch = parts.place(done)  # laid out on the host while the devices work
                if number % sections.log.every == 0 or done == steps or number == 0:
                    results |= metrics.means(measured) | {"learning_rate": float(parts.learning_rate(number))}
                    selfcheck.check_finite(number, results)
                    writer.write(done, metrics.means(measured) | clock.lap(done))
                if number == 0 and starts_at_reference:
                    forms = parts.objective.closed_forms(parts.inputs.batch(0).examples)
                    selfcheck.check_closed_form(forms, results, parts.model.dtype.name)
                if done == MOVEMENT_STEPS and digests is not None:
                    parts.check_movement(digests, state)
                for evaluation in evaluations:
                    if evaluation.due(done, steps):
                        results |= evaluation.run(parts, state)
                advance(results)
        saver.close()
    return results


@contextlib.contextmanager
def _termination():
    """Turns SIGTERM and SIGINT into a question that the loop asks between steps."""
    received: list[int] = []
    previous = {name: signal.signal(name, lambda number, _: received.append(number)) for name in (signal.SIGTERM,)}
    try:
        yield lambda: bool(received)
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
