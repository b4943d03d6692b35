"""Scores a trained run on the evaluations of its config, and prints the metrics as JSON.

The best checkpoint is scored if the run measured which one is, else the newest; its moving average where it kept one.
"""

import argparse
import json
import sys

from jaxpref.errors import CheckpointError, ConfigError

SUMMARY = "score a trained run on held-out records"
CONFIG = "run"
CHANGEABLE = ("batch.", "data.", "evals.", "mesh.")  # fields that say what is scored and where, not what was trained


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--workdir", required=True, metavar="D", help="run folder; of a pipeline, that of one stage")
    parser.add_argument("--step", type=int, metavar="N", help="score this checkpoint")
    parser.add_argument("--output", metavar="F", help="write the metrics into this file too")


def run(options: argparse.Namespace) -> None:
    """Evaluates."""
    config = run_config(options.workdir, options.overrides)
    import jax
    from etils import epath

    from jaxpref import configuration
    from jaxpref.training import assembly, checkpoints, heldout, mesh, precompute, starting

    sections = configuration.sections(config)
    if not sections.evals:
        raise ConfigError(f"{options.workdir} has no evaluations; give one, --config.evals.heldout.data=<data stream>.")
    mesh.initialise_distributed(sections.mesh.distributed)
    folder = starting.expand(options.workdir)
    parts = assembly.assemble(sections, options.workdir, stages=folder.parent, report=say)
    evaluations = heldout.prepare_all(parts, report=say)
    with jax.set_mesh(parts.mesh):
        parts = precompute.fill_run(parts, evaluations, range(0), say)
        params = checkpoints.load_params(folder, parts.shapes.params, step=options.step)
        beside = checkpoints.load_beside(folder, parts.shapes, step=options.step)
        state = parts.state._replace(params=params, average=(), **beside)
        results = {}
        for evaluation in evaluations:
            results |= heldout.run(evaluation, parts, state)
    if jax.process_index() == 0:
        text = json.dumps(results, indent=2)
        print(text)
        if options.output:
            epath.Path(options.output).write_text(text + "\n")


def run_config(workdir: str, overrides: dict[str, str]):
    """The config of a run, with other fields for what is scored."""

    from jaxpref import configuration
    from jaxpref.training import starting

    folder = starting.expand(workdir)
    file = folder / "config.json"
    if not file.exists():
        stages = sorted(path.parent.name for path in folder.glob("*/config.json")) if folder.exists() else []
        inside = f"it holds the stages {', '.join(stages)}: name one" if stages else "train there first"
        raise CheckpointError(f"--workdir={workdir} holds no run (no config.json); {inside}.")
    trained = configuration.from_json(file.read_text())
    config = configuration.from_json(file.read_text())
    for field, text in overrides.items():
        configuration.override(config, field, text, str(file))
    for change in configuration.difference(trained, config):
        if not change.field.startswith(CHANGEABLE):
            allowed = ", ".join(name.rstrip(".") for name in CHANGEABLE)
            raise ConfigError(f"--config.{change.field}: evaluation may change only fields of {allowed}.")
    return config


def say(line: str) -> None:
    """Progress goes to the standard error, so that the output is JSON alone."""
    print(line, file=sys.stderr)
