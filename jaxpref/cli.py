"""The command line: ``jaxpref <command> --help``.

Every command imports what it needs when it runs, so that help and typing errors are answered at once.
"""

import argparse
import difflib
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxpref import __version__
from jaxpref.errors import ConfigError, UserError

USER_ERROR, INTERRUPTED = 2, 130

OVERRIDES = """\
Any field of the config is set by --config.<field>=<value>, read as the type that the field has:
  --config.train.steps=100 --config.objectives.dpo.beta=0.2 --config.log.progress=false
"""


class Command(NamedTuple):
    """One command: what it says about itself, its options, and what it does."""

    summary: str
    description: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]
    configured: bool = False


# ------------------------------------------------------------------------------------------------ train


def train_options(parser: argparse.ArgumentParser) -> None:
    where = "run folder, local or gs://; a run in it is continued"
    parser.add_argument("--workdir", required=True, metavar="D", help=where)
    parser.add_argument("--dry-run", action="store_true", help="compile and run one step, and write nothing")


def train(options: argparse.Namespace) -> None:
    config = load_config(options)
    if not options.dry_run:
        check_writable(options.workdir)
    from jaxpref.training import loop

    loop.run(config, options.workdir, dry_run=options.dry_run)


def check_writable(workdir: str) -> None:
    """Raises ConfigError unless a file can be written into the run folder, which is made when it does not exist."""
    from etils import epath

    probe = epath.Path(workdir) / ".writable"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--workdir={workdir} cannot be written ({reason}); give a folder that you own.") from error


# ------------------------------------------------------------------------------------------------ methods


def methods_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="show everything about one method")
    parser.add_argument("--feedback", help="only methods for this type of feedback")


def methods(options: argparse.Namespace) -> None:
    from jaxpref import objectives

    rows = objectives.catalogue()
    if options.name:
        row = known(options.name, {row.name: row for row in rows}, "method")
        print(method_page(row), end="")
        return
    if options.feedback:
        types = {row.feedback: row.feedback for row in rows}
        rows = [row for row in rows if row.feedback == known(options.feedback, types, "feedback type")]
    width = max(len(row.name) for row in rows)
    for row in rows:
        print(f"{row.name:{width}}  {row.feedback:14}  {row.title}")


def method_page(row) -> str:
    """A method of the catalogue as text."""
    fields = ", ".join(f"{name}={value!r}" for name, value in row.defaults.items())
    traits = [trait for trait in ("coupled", "stateful") if getattr(row, trait)]
    lines = [
        f"{row.name}: {row.title}",
        f"  {row.url}",
        f"  formula   {row.formula}",
        f"  config    objectives.config({row.name!r}{', ' if fields else ''}{fields})",
        f"  feedback  {row.feedback}",
        f"  needs     {', '.join(row.needs)}",
    ]
    lines += [f"  {'batch':9} {', '.join(traits)}"] if traits else []
    notes = textwrap.wrap(row.disagreements, 110)
    lines += [f"  {'note' if n == 0 else '':9} {line}" for n, line in enumerate(notes)]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------ the frame

COMMANDS = {
    "train": Command(
        "train a model from a config, or continue a run",
        "Runs a config in a run folder. The same command continues a run that was stopped, bit for bit.",
        train_options,
        train,
        configured=True,
    ),
    "methods": Command(
        "list the alignment methods that a config can name",
        "The catalogue, from the registry: every method that objectives.config(...) accepts.",
        methods_options,
        methods,
    ),
}


def make_parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the command line, and those of the commands."""
    parser = argparse.ArgumentParser(
        prog="jaxpref",
        description="Preference alignment of language models, native to JAX.",
        epilog="`jaxpref <command> --help` explains a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"jaxpref {__version__}")
    subparsers, made = parser.add_subparsers(dest="command", metavar="<command>", required=True), {}
    for name, command in COMMANDS.items():
        made[name] = subparsers.add_parser(
            name,
            help=command.summary,
            description=command.description,
            epilog=OVERRIDES if command.configured else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if command.configured:
            help_text = "config file, with an argument for its get_config after a colon: configs/X.py:argument"
            made[name].add_argument("--config", required=True, metavar="F", help=help_text)
        command.add_options(made[name])
    return parser, made


def load_config(options: argparse.Namespace):
    """The config that ``--config`` and its overrides name."""
    from jaxpref import configuration

    return configuration.load(options.config, options.overrides)


def known(name: str, table: dict, what: str):
    """The entry of a name; UserError with the nearest name when there is none."""
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(table))}."
        raise UserError(f"there is no {what} {name!r}; {hint}")
    return table[name]


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separates ``--config.<field>=<value>`` (or two words) from the other arguments."""
    others, overrides, rest = [], {}, list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--config."):
            others.append(argument)
            continue
        field, separator, value = argument.removeprefix("--config.").partition("=")
        if not separator:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--config.{field} has no value; write --config.{field}=<value>.")
            value = rest.pop(0)
        overrides[field] = value
    return others, overrides


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options of a command line, with ``overrides`` of the config."""
    others, overrides = split_overrides(arguments)
    parser, commands = make_parsers()
    if others and not others[0].startswith("-"):
        known(others[0], COMMANDS, "command")
    options, unread = parser.parse_known_args(others)
    name = options.command
    if unread:
        existing = re.findall(r"--[\w-]+", commands[name].format_usage())
        near = difflib.get_close_matches(unread[0].partition("=")[0], existing, n=1)
        hint = f"did you mean {near[0]}?" if near else f"`jaxpref {name} --help` lists them."
        raise UserError(f"`jaxpref {name}` has no option {unread[0]!r}; {hint}")
    if overrides and not COMMANDS[name].configured:
        raise UserError(f"`jaxpref {name}` reads no config, so --config.{next(iter(overrides))} sets nothing.")
    options.overrides = overrides
    return options


def provide_threads() -> None:
    """Gives XLA more CPU threads than virtual devices.

    Every all-reduce in flight holds one thread per device; with no more threads than devices, two independent ones wait
    for each other for ever. XLA reads NPROC when jax first touches a device.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in os.environ:
        os.environ.setdefault("NPROC", "32")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; what a user can mend is one line on the standard error."""
    provide_threads()
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        return COMMANDS[options.command].run(options) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; pointing it elsewhere keeps the interpreter's own flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
