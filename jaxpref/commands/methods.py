"""The catalogue, from the registry: every method that a config can name with ``objectives.config(...)``."""

import argparse
import textwrap

from jaxpref.errors import UserError, hint

SUMMARY = "list the alignment methods that a config can name"
CONFIG = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("name", nargs="?", help="show everything about one method")
    parser.add_argument("--feedback", metavar="TYPE", help="only methods for this type of feedback, for example pairs")


def run(options: argparse.Namespace) -> None:
    """Prints one line for each method, or the page of one."""
    from jaxpref import objectives

    rows = {row.name: row for row in objectives.catalogue()}
    if options.name:
        print(page(_known(options.name, rows, "method")), end="")
        return
    chosen = list(rows.values())
    if options.feedback:
        types = {row.feedback: row.feedback for row in chosen}
        chosen = [row for row in chosen if row.feedback == _known(options.feedback, types, "feedback type")]
    width = max(map(len, rows))
    for row in chosen:
        print(f"{row.name:{width}}  {row.feedback:14}  {row.title}")


def page(row) -> str:
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
    notes = textwrap.wrap(row.disagreements, 108)
    lines += [f"  {'' if n else 'note':9} {line}" for n, line in enumerate(notes)]
    return "\n".join(lines) + "\n"


def _known(name: str, table: dict, what: str):

    if name not in table:
        raise UserError(f"there is no {what} {name!r}; {hint(name, table)}")
    return table[name]
