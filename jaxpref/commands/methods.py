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
    parser.add_argument("--markdown", action="store_true", help="the whole catalogue as a page (docs/methods.md)")


def run(options: argparse.Namespace) -> None:
    """Prints one line for each method, or the page of one."""
    from jaxpref import objectives

    rows = {row.name: row for row in objectives.catalogue()}
    if options.markdown:
        if options.name or options.feedback:
            raise UserError("--markdown writes the whole catalogue; leave out the name and --feedback.")
        print(document(list(rows.values())), end="")
        return
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
    traits = [trait for trait in ("coupled", "stateful", "surrogate") if getattr(row, trait)]
    lines = [
        f"{row.name}: {row.title}",
        f"  {row.url}",
        f"  formula   {row.formula}",
        f"  config    objectives.config({row.name!r}{', ' if fields else ''}{fields})",
        f"  feedback  {row.feedback}",
        f"  needs     {', '.join(row.needs)}",
    ]
    lines += [f"  {'traits':9} {', '.join(traits)}"] if traits else []
    notes = textwrap.wrap(row.disagreements, 108)
    lines += [f"  {'' if n else 'note':9} {line}" for n, line in enumerate(notes)]
    return "\n".join(lines) + "\n"


def document(rows) -> str:
    """The catalogue as a Markdown page: a table of contents, and a section for each method, by type of feedback."""
    lines = [
        "# Methods",
        "",
        f"The {len(rows)} methods that a config can name, from the registry (`jaxpref methods --markdown`). Each is a",
        "pure function of `jaxpref.losses`, whose docstring gives shapes, domains and the variant that it is.",
    ]
    for feedback in sorted({row.feedback for row in rows}):
        chosen = [row for row in rows if row.feedback == feedback]
        lines += ["", f"**{feedback}**: {', '.join(f'[`{row.name}`](#{row.name})' for row in chosen)}"]
    for row in sorted(rows, key=lambda row: (row.feedback, row.name)):
        lines += ["", *_section(row)]
    return "\n".join(lines) + "\n"


def _section(row) -> list[str]:
    fields = ", ".join(f"{name}={value!r}" for name, value in row.defaults.items())
    lines = [
        f"## {row.name}",
        "",
        f"[{row.title}]({row.url})",
        "",
        f"    {row.formula}",
        "",
        f"- config: `objectives.config({row.name!r}{', ' if fields else ''}{fields})`",
        f"- function: `losses.{row.function}`",
        f"- learns from {row.feedback}; reads {', '.join(f'`{need}`' for need in row.needs)}"
        + (f"; fields of a row: {', '.join(f'`{side}`' for side in row.sides)}" if row.sides else ""),
    ]
    if row.coupled:
        lines.append("- an example's gradient depends on the whole batch, which it sees whatever the micro-batches")
    if row.stateful:
        lines.append("- carries a running state, which checkpoints hold")
    if row.surrogate:
        lines.append("- its value is a surrogate: factors of its gradient are constants, so that the value may rise")
    return [*lines, f"- {row.disagreements}"] if row.disagreements else lines


def _known(name: str, table: dict, what: str):
    if name not in table:
        raise UserError(f"there is no {what} {name!r}; {hint(name, table)}")
    return table[name]
