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
    add(
        "--workdir",
        default="",
        metavar="D",
        help="run folder of the pipeline with its earlier stages (default: untrained)",
    )
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
    folder = starting.expand(options.workdir) if options.workdir else None
    if stages:
        config = stages[options.stage or next(iter(stages))]
        config = config if folder else untrained(config, stages)
    sections = configuration.sections(config)
    loaded = assembly.load_inputs(sections, mesh.make_mesh(sections.mesh), folder, say)
    if not 0 <= options.step < loaded.inputs.steps:
        raise ConfigError(f"--step={options.step}: the run has the steps 0 to {loaded.inputs.steps - 1}.")
    colour = options.color == "always" or (options.color == "auto" and sys.stdout.isatty())
    batch = loaded.inputs.batch(options.step)
    print(show.batch(batch, loaded.tokenizer, limit=options.examples, colour=colour), end="")


def untrained(config, stages):
    """The config of a stage as if no stage before it had moved any weight: it starts where the first of them does."""
    earlier = stages.get(config.init_from.removeprefix("stage:"))
    if earlier is None:
        return config
    earlier, begun = untrained(earlier, stages), config.copy_and_resolve_references()
    begun.init_from, begun.model = earlier.init_from, earlier.model
    begun.tokenizer.path = config.tokenizer.path or earlier.tokenizer.path
    begun.tokenizer.template = config.tokenizer.template or earlier.tokenizer.template
    return begun


def say(line: str) -> None:
    """What was read and dropped goes to the standard error."""
    print(line, file=sys.stderr)
