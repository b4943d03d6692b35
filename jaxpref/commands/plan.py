"""Compiles a config's real train step for TPU slices that need not exist, on a CPU.

Prints bytes per chip against its memory, FLOPs, bytes between chips, and the least time of a step. Nothing is loaded:
every example counts as long as config.length allows, and config.model.name (or a local init_from) says what the model
is. Exit code 1 when the step does not fit one of the slices.

  jaxpref plan --config=configs/tpu/llama3_8b_dpo.py --topology=v5p:2x2x4,v6e:4x4
"""

import argparse
import pathlib
import sys

from jaxpref.errors import ConfigError, hint

SUMMARY = "compile a config for TPU slices without having one"
CONFIG = "file"
DOES_NOT_FIT = 1


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add(
        "--topology", required=True, metavar="T,...", help="v5e:4x4, v5p:2x2x4, v6e:4x4, tpu7x:2x2x4; several by commas"
    )
    add("--slices", type=int, default=1, metavar="N", help="slices of each topology (default: %(default)s)")
    add("--examples-per-chip", type=int, default=0, metavar="N", help="batch.examples in proportion to the chips")
    add("--stage", default="", metavar="NAME", help="of a config with stages")
    add("--json", default="", metavar="FILE", help="write every number to a file; - for the standard output")


def run(options: argparse.Namespace) -> int:
    """Plans."""
    from jaxpref import configuration

    config = configuration.load(options.config, options.overrides)
    stages = dict(configuration.stages(config))
    if options.stage or stages:
        if options.stage not in stages:
            raise ConfigError(f"--stage={options.stage}: no such stage; {hint(options.stage, stages)}")
        config = stages[options.stage]

    from rich.console import Console

    from jaxpref import planning

    plans = []
    for topology in options.topology.split(","):
        print(f"Compiling for {topology} ...", file=sys.stderr)
        plans.append(planning.plan(config, topology, count=options.slices, examples_per_chip=options.examples_per_chip))
    if options.json != "-":
        title = f"{options.config}: {plans[0].parameters / 1e9:.2f} billion parameters"
        # In a file or a pipe there is no width to fit.
        Console(width=None if sys.stdout.isatty() else 60 + 40 * len(plans)).print(planning.table(plans, title))
    if options.json == "-":
        print(planning.to_json(plans))
    elif options.json:
        pathlib.Path(options.json).write_text(planning.to_json(plans) + "\n")
    return 0 if all(plan.fits for plan in plans) else DOES_NOT_FIT
