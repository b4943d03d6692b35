"""Pipelines: the stages of a config one after another, each in its own run folder, each resumable."""

from typing import Any

import jax
from etils import epath

from jaxpref import configuration
from jaxpref.analysis import report
from jaxpref.training import comparison, loop, mesh, starting


def run(config, workdir: str, *, dry_run: bool = False) -> dict[str, Any]:
    """Runs a config: its stages in order and the comparison of them, or the one run that it is.

    A stage that is complete is not run again, so the same command continues a pipeline wherever it was stopped.

    Returns:
        The last metrics of each stage (of the run itself without stages).
    """
    folder = starting.expand(workdir)
    stages = dict(configuration.stages(config))
    mesh.initialise_distributed(next(iter(stages.values()), config).mesh.distributed)
    say = print if jax.process_index() == 0 else lambda *_: None
    if not stages:
        finished = loop.run(config, workdir, dry_run=dry_run)
        if finished.complete and not dry_run:
            _write_report(folder)
        return finished.results
    compare = configuration.plain(config.compare)
    comparison.check(compare)
    results, steps = {}, {}
    for number, (name, stage) in enumerate(stages.items(), 1):
        say(f"\n== Stage {number} of {len(stages)}: {name} ==")
        finished = loop.run(stage, str(folder / name), dry_run=dry_run, stages=folder)
        results[name], steps[name] = finished.results, int(finished.state.step)
        if not finished.complete:
            return results
        if dry_run:
            say("A dry run ends with the first stage; later ones start from its checkpoint.")
            return results
    if compare:
        say("\n== Comparison ==")
        pipeline = comparison.Pipeline(folder, stages, steps)
        if not comparison.show(compare, pipeline):
            comparison.run(compare, pipeline)
    else:
        _write_report(folder)
    return results


def _write_report(folder: epath.Path) -> None:
    if jax.process_index() == 0:
        print(f"Report: {report.write(folder)}")
