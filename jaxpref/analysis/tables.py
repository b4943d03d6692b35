"""Result tables: put together once, shown in a terminal, a page or a README."""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import rich.box
import rich.console
import rich.markup
import rich.table

from jaxpref.errors import DataError
from jaxpref.evaluation.gold import Gold
from jaxpref.evaluation.statistics import Interval

MISSING = "–"


class Table(NamedTuple):
    """A table of texts.

    Attributes:
        title: what it compares.
        columns: headings.
        rows: one text per column each.
        notes: sentences below it: how intervals were made, who the opponent is.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        return to_html(self)


class Score(NamedTuple):
    """One row of :func:`comparison`; None where a quantity does not apply.

    Attributes:
        name: of the model: base, SFT, reward model, DPO.
        reward: mean true reward of its generations.
        win_rate: against the opponent, a share.
        kl: from the reference, in nats.
        length: mean length of its responses.
        well_formed: share of responses that the world could have written.
        accuracy: share of held-out pairs ranked as labelled, by score (a reward model) or implicit reward.
    """

    name: str
    reward: Interval | None = None
    win_rate: Interval | None = None
    kl: Interval | float | None = None
    length: float | None = None
    well_formed: float | None = None
    accuracy: Interval | None = None


def score(name: str, gold: Gold, *, kl: Interval | float | None = None, accuracy: Interval | None = None) -> Score:
    """The row of a policy whose generations were scored by :func:`jaxpref.evaluation.gold.evaluate`."""
    return Score(name, gold.reward, gold.win_rate, kl, gold.length, gold.well_formed, accuracy)


def comparison(
    scores: Sequence[Score],
    *,
    title: str = "Results",
    opponent: str = "the base model",
    reference: str = "the SFT model",
    unit: str = "words",
    notes: Sequence[str] = (),
) -> Table:
    """The table at the end of a staged run: a row per model; columns that no model has are left out.

    Args:
        scores: rows in order.
        title: of the table.
        opponent: whose responses the win rate is against.
        reference: what the KL is taken from.
        unit: of the length.
        notes: further sentences, for example the path of the report.
    """
    if not scores:
        raise DataError("A comparison needs at least one model; found none.")
    columns = {
        "gold reward": [show(score.reward) for score in scores],
        "gold win rate": [show(score.win_rate, percent=True) for score in scores],
        "KL (nats)": [show(score.kl) for score in scores],
        f"length ({unit})": [show(score.length, digits=1) for score in scores],
        "well-formed": [show(score.well_formed, percent=True) for score in scores],
        "pair accuracy": [show(score.accuracy, percent=True) for score in scores],
    }
    columns = {name: texts for name, texts in columns.items() if any(text != MISSING for text in texts)}
    rows = zip([score.name for score in scores], *columns.values(), strict=True)
    means = {
        "gold reward": "",
        "gold win rate": f"against {opponent}, ties 1/2; ",
        "KL (nats)": f"from {reference}; ",
        "pair accuracy": "on held-out pairs, by score or implicit reward; ",
    }
    fields = {"gold reward": "reward", "gold win rate": "win_rate", "KL (nats)": "kl", "pair accuracy": "accuracy"}
    said = [f"{name}: {means[name]}{_methods(scores, fields[name])}".rstrip("; ") for name in fields if name in columns]
    return Table(title, ("model", *columns), tuple(rows), (*(f"{line}." for line in said if line[-1] != ":"), *notes))


def show(value: Interval | float | None, *, digits: int = 2, percent: bool = False) -> str:
    """A number as text; an interval as "value [low, high]"; None as a dash."""
    if value is None:
        return MISSING
    scale, digits, unit = (100, 1, "%") if percent else (1, digits, "")
    if isinstance(value, Interval):
        low, high = (f"{end * scale:.{digits}f}" for end in (value.low, value.high))
        return f"{value.value * scale:.{digits}f}{unit} [{low}, {high}]"
    return f"{value * scale:.{digits}f}{unit}"


def to_text(table: Table, *, width: int | None = None) -> str:
    """The table as drawn in a terminal, with its notes, without colours."""
    console = rich.console.Console(width=width or max(_width(table), 80), no_color=True, force_terminal=False)
    with console.capture() as capture:
        _draw(table, console)
    return capture.get()


def show_table(table: Table, console: rich.console.Console | None = None) -> None:
    """Prints the table and its notes; as wide as it needs to be where the output is no terminal."""
    console = console or rich.console.Console()
    if not console.is_terminal and console.width < _width(table):
        console.width = _width(table)
    _draw(table, console)


def to_markdown(table: Table) -> str:
    """The table in GitHub's Markdown, with its notes as a paragraph."""
    lines = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n\n".join(part for part in (f"**{table.title}**", body, " ".join(table.notes)) if part)


def to_html(table: Table) -> str:
    """The table as HTML, escaped."""

    def cells(line: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) + "</tr>"

    body = "".join(cells(row, "td") for row in table.rows)
    notes = "".join(f"<p class='note'>{html.escape(note)}</p>" for note in table.notes)
    caption = f"<caption>{html.escape(table.title)}</caption>"
    return f"<table>{caption}<thead>{cells(table.columns, 'th')}</thead><tbody>{body}</tbody></table>{notes}"


def _methods(scores: Sequence[Score], field: str) -> str:
    """How the intervals of a column were made, each method once."""
    values: list[Any] = [getattr(score, field) for score in scores]
    return ", ".join(dict.fromkeys(value.method for value in values if isinstance(value, Interval)))


def _width(table: Table) -> int:
    widths = [max(len(line[column]) for line in (table.columns, *table.rows)) for column in range(len(table.columns))]
    return sum(widths) + 3 * len(widths) + 1


def _draw(table: Table, console: rich.console.Console) -> None:
    drawn = rich.table.Table(title=table.title, title_justify="left", box=rich.box.SIMPLE_HEAD)
    for number, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if number == 0 else "right")
    for row in table.rows:
        drawn.add_row(*(rich.markup.escape(cell) for cell in row))
    console.print(drawn)
    for note in table.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
