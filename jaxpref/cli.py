"""The command line: ``jaxpref <command> --help``.

Every command imports what it needs when it runs, so that help and typing errors are answered at once.
"""

import argparse
import io
import os
import re
import sys
from collections.abc import Sequence

from jaxpref import __version__
from jaxpref.commands import convert, evaluate, generate, methods, plan, reproduce, show_batch, train
from jaxpref.errors import ConfigError, UserError, hint

COMMANDS = {
    "train": train,
    "eval": evaluate,
    "generate": generate,
    "plan": plan,
    "convert": convert,
    "show-batch": show_batch,
    "methods": methods,
    "reproduce": reproduce,
}
USER_ERROR, INTERRUPTED = 2, 130

CONFIG_HELP = "config file, with an argument for its get_config after a colon: configs/X.py:argument"
OVERRIDES = """\
Any field of the config is set by --config.<field>=<value>, read as the type that the field has:
  --config.train.steps=100 --config.objectives.dpo.beta=0.2 --config.log.progress=false
"""
RUN_OVERRIDES = """\
Fields of the run's config are set by --config.<field>=<value>:
  --config.evals.heldout.data=heldout --config.data.heldout.limit=100
"""


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
            help=command.SUMMARY,
            description=command.__doc__,
            epilog={"file": OVERRIDES, "run": RUN_OVERRIDES}.get(command.CONFIG),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if command.CONFIG == "file":
            made[name].add_argument("--config", required=True, metavar="F", help=CONFIG_HELP)
        command.add_options(made[name])
    return parser, made


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separates ``--config.<field>=<value>`` (or two words) from the rest, whose options may have ``_`` for ``-``."""
    others, overrides, rest = [], {}, list(arguments)
    while rest:
        argument = rest.pop(0)
        name, separator, value = argument.partition("=")
        if not name.startswith("--config."):
            others.append((name.replace("_", "-") if name.startswith("--") else name) + separator + value)
            continue
        if not separator:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{name} has no value; write {name}=<value>.")
            value = rest.pop(0)
        overrides[name.removeprefix("--config.")] = value
    return others, overrides


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options of a command line, with ``overrides`` of the config."""
    others, overrides = split_overrides(arguments)
    parser, commands = make_parsers()
    if others and not others[0].startswith("-") and others[0] not in COMMANDS:
        raise UserError(f"there is no command {others[0]!r}; {hint(others[0], COMMANDS)}")
    options, unread = parser.parse_known_args(others)
    name = options.command
    if unread:
        existing = re.findall(r"--[\w-]+", commands[name].format_usage())
        option = unread[0].partition("=")[0]
        raise UserError(f"`jaxpref {name}` has no option {option!r}; {hint(option, existing)}")
    if overrides and not COMMANDS[name].CONFIG:
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


def show_at_once() -> None:
    """Shows every line when it is printed, also in a file: in order beside errors, and even if the run is killed."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; what a user can mend is one line on the standard error."""
    provide_threads()
    show_at_once()
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
