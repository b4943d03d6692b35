"""Runs a config in a run folder, all its stages one after another.

The same command continues what was stopped, bit for bit.
"""

import argparse

SUMMARY = "train a model from a config, or continue a run"
CONFIG = "file"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    where = "run folder, local or gs://; a run in it is continued"
    parser.add_argument("--workdir", required=True, metavar="D", help=where)
    parser.add_argument("--dry-run", action="store_true", help="compile and run one step, and write nothing")


def run(options: argparse.Namespace) -> None:
    """Trains."""
    from jaxpref import configuration

    config = configuration.load(options.config, options.overrides)
    from jaxpref.training import stages

    stages.run(config, options.workdir, dry_run=options.dry_run)
