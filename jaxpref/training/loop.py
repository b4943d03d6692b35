"""The training loop: reads top to bottom.

    jaxpref train --config=configs/quickstart.py --workdir=runs/quickstart

The same command continues a run that was stopped, bit for bit.
"""

import contextlib
import signal
from typing import Any, NamedTuple

import jax
from etils import epath

from jaxpref import configuration
from jaxpref.errors import ConfigError
from jaxpref.training import (
    assembly,
    checkpoints,
    folder,
    heldout,
    mesh,
    metrics,
    precompute,
    samples,
    selfcheck,
    throughput,
)
from jaxpref.training.arrivals import Arrivals
from jaxpref.training.digest import leaf_digests
from jaxpref.training.state import reference_of

MOVEMENT_STEPS = 3  # by then every trainable leaf has moved


class Finished(NamedTuple):
    """How a run ended: its parts, the last state, the last metrics, and whether all its steps are done."""

    parts: assembly.Assembly
    state: Any
    results: dict[str, float]
    complete: bool


def run(config, workdir: str, *, dry_run: bool = False, stages: epath.Path | None = None, say=print) -> Finished:
    """Trains one stage, or continues it.

    Args:
        config: a checked config (:func:`jaxpref.configuration.load`).
        workdir: run folder; a run that it holds is continued.
        dry_run: compile and run one step, and write nothing.
        stages: folder with the runs of earlier stages, which ``init_from='stage:<name>'`` names.
        say: is given lines of text on what happens; the first process speaks.

    Raises:
        UserError: whatever a user can mend, in one sentence.
    """
    # -------------------------------------------------------------------------------------------- config, run folder
    sections = configuration.sections(config)
    mesh.initialise_distributed(sections.mesh.distributed)
    say = say if jax.process_index() == 0 else lambda *_: None
    files = folder.RunFolder(workdir, config, keep=not dry_run)

    # ------------------------------------------------------------------------- tokenizer, data, model, objective, mesh
    parts = assembly.assemble(sections, str(files.path), stages=stages, keep=not dry_run, report=say)
    evaluations = heldout.prepare_all(parts, report=say)
    _check_watched(sections, evaluations)
    say(assembly.summary(parts))

    with jax.set_mesh(parts.mesh), contextlib.ExitStack() as cleanup:
        # ----------------------------------------------------------------------------------------------------- resume
        state, progress, saver = parts.state, None, None
        if not dry_run:
            saver = cleanup.enter_context(
                checkpoints.Checkpoints(files.path, sections.checkpoint, identity=parts.identity())
            )
            state, progress = saver.restore(parts.shapes)
            if state is None:
                files.describe(parts)
                state = parts.state
        progress = progress or {"results": {}, "best": None, "waited": 0}
        first, results = int(state.step), dict(progress["results"])
        if "examples" in progress:
            parts = parts._replace(inputs=parts.inputs.after(first, progress["examples"]))
        steps = 1 if dry_run else parts.inputs.steps
        finished = first >= steps or progress["waited"] >= sections.early_stop.patience
        if finished:
            say(f"{workdir}: all {first} steps are done.")
            return Finished(parts, state, results, True)
        if first:
            say(f"{workdir}: continuing after step {first}.")

        # -------------------------------------------------------------------------------------------------- reference
        starts_at_reference = first == 0 and parts.starts_at_reference()
        parts = precompute.fill_run(parts, [] if dry_run else evaluations, range(first, steps), say)

        # ------------------------------------------------------------------------------------------------------ steps
        train_step = parts.compile_step()
        key = jax.random.key(sections.seed)
        digests = leaf_digests(state.params) if first == 0 else None
        writer = cleanup.enter_context(metrics.Writer(files.path, sections.log, first_step=first, keep=not dry_run))
        compares = reference_of(state, parts.reference) is not None
        clock = throughput.Clock(
            parts.mesh,
            examples=sum(parts.inputs.sizes.values()),
            passes=throughput.passes(
                state.params, parts.trainable, reference=compares, gradients=parts.objective.gradients or 1
            ),
        )
        forms = parts.objective.closed_forms(parts.inputs.batch(0).examples) if starts_at_reference else {}

        def take(done: int, values: dict[str, float], logged: bool) -> None:
            selfcheck.check_finite(done, values)
            if done == 1:
                selfcheck.check_closed_form(forms, values, parts.model.dtype.name)
            clock.arrived(values)
            if logged:
                writer.write(done, values | clock.lap())
                results.update(values)

        arrivals = Arrivals(take)
        advance = cleanup.enter_context(metrics.progress_bar(first, steps, sections.log))
        terminated = cleanup.enter_context(termination())
        batch = parts.place(first)
        for number in range(first, steps):
            done = number + 1
            with metrics.profile(sections.profile, number, files.path):
                state, measured = train_step(state, parts.reference, key, batch)
            measured |= {"learning_rate": (parts.learning_rate(number), 1)}  # also computed by the devices, in order
            arrivals.started(done, measured, logged=number == 0 or done % sections.log.every == 0 or done == steps)
            if done < steps:
                with clock.preparing_input(arrivals.running):
                    batch = parts.place(done)  # laid out on the host while the devices work

            # -------------------------------------------------------------------------------------- measure and check
            due = [evaluation for evaluation in evaluations if evaluation.due(done, steps)] if not dry_run else []
            arrivals.collect(newest=number == first or bool(due) or done == steps)
            if done == MOVEMENT_STEPS and digests is not None:
                parts.check_movement(digests, state)

            # ----------------------------------------------------------------------------------------------- evaluate
            for evaluation in due:
                scores = heldout.run(evaluation, parts, state)
                say(f"Held out after step {done}: {heldout.headline(scores)}")
                writer.write(done, scores)
                samples.write(evaluation, parts, state, files.path, done)
                results |= scores
            if due:
                progress |= heldout.patience(sections.early_stop, progress, results)
                clock.restart()
            interrupted = terminated(done)
            stopping = interrupted or progress["waited"] >= sections.early_stop.patience
            advance(done, results)

            # --------------------------------------------------------------------------------------------------- save
            if saver is not None and (saver.due(done) or done == steps or stopping):
                arrivals.collect(newest=True)
                best = results.get(sections.checkpoint.best.metric) if due else None
                writer.upload()
                progress |= {"results": results, "examples": parts.inputs.passed(done)}
                saver.save(done, state, progress, value=best)
                clock.restart()
            if stopping:
                more = "the same command continues" if interrupted else "no evaluation improved for long enough"
                say(f"{workdir}: stopped after step {done}; {more}.")
                return Finished(parts, state, results, not interrupted)
    return Finished(parts, state, results, True)


def _check_watched(sections, evaluations) -> None:
    """Raises ConfigError when the best checkpoint or early stopping watches what no evaluation measures."""
    prefixes = tuple(f"{evaluation.name}/" for evaluation in evaluations)
    watched = {
        "checkpoint.best.metric": sections.checkpoint.best.metric,
        "early_stop.metric": sections.early_stop.metric,
    }
    for field, metric in watched.items():
        if metric and not (prefixes and metric.startswith(prefixes)):
            raise ConfigError(
                f"config.{field} is {metric!r}, which no evaluation measures; expected "
                "<evaluation>/<metric>/<term> of one of config.evals."
            )


@contextlib.contextmanager
def termination():
    """Turns SIGTERM into a question that the loop asks after each step: preempted machines get time to save.

    With several processes jax's own notice is used, which agrees on a step that none of them has passed.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        yield multihost_utils.reached_preemption_sync_point
        return
    received: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, previous)
