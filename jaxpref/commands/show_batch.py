"""Prints a training batch as text, exactly the tokens that the model sees: what is trained stands out.

In colour, trained tokens are green and untrained ones of a response yellow; in plain text they stand in [[ ]] and
(( )).
"""

import argparse
import sys

from jaxpref.errors import ConfigError, hint

SUMMARY = "print a batch with its masks"
CONFIG = "file"
COLOURS = ("auto", "always", "never")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--step", type=int, default=0, metavar="N", help="which batch (default: the first)")
    add("--examples", type=int, default=4, metavar="N", help="examples of each data stream (default: %(default)s)")
    add("--stage", default="", metavar="NAME", help="of a config with stages (default: the first)")
    add("--workdir", default="", metavar="D", help="run folder of the pipeline, where earlier stages lie")
    add("--color", choices=COLOURS, default="auto", help="auto: on a terminal (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    """Shows a batch."""

    from jaxpref import configuration
    from jaxpref.data import show
    from jaxpref.training import assembly, mesh, starting

    config = configuration.load(options.config, options.overrides)
    stages = dict(configuration.stages(config))
    if options.stage and options.stage not in stages:
        raise ConfigError(f"--stage={options.stage}: no such stage; {hint(options.stage, stages)}")
    if stages:
        config = stages[options.stage or next(iter(stages))]
    folder = starting.expand(options.workdir) if options.workdir else None
    sections = configuration.sections(config)
    loaded = assembly.load_inputs(sections, mesh.make_mesh(sections.mesh), folder, say)
    if not 0 <= options.step < loaded.inputs.steps:
        raise ConfigError(f"--step={options.step}: the run has the steps 0 to {loaded.inputs.steps - 1}.")
    colour = options.color == "always" or (options.color == "auto" and sys.stdout.isatty())
    batch = loaded.inputs.batch(options.step)
    print(show.batch(batch, loaded.tokenizer, limit=options.examples, colour=colour), end="")


def say(line: str) -> None:
    """What was read and dropped goes to the standard error."""
    print(line, file=sys.stderr)
