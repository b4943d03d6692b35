"""Pages of the lab, generated: one for each claim, and the table of all."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpref.analysis import tables
from jaxpref.evaluation import statistics
from jaxpref.evaluation.statistics import Interval
from jaxpref.lab.claims import PARTLY, REPRODUCED, Claim

NEVER = "not run yet"


def measurements(results: Mapping[str, Any]) -> tables.Table:
    """The result table: a row for each condition, a column for each metric, means with 95 % intervals over seeds."""
    metrics = list(dict.fromkeys(metric for row in results["measured"].values() for metric in row))
    rows = [
        (condition, *(_mean(row[metric]) if metric in row else tables.MISSING for metric in metrics))
        for condition, row in results["measured"].items()
    ]
    note = f"Means of {results['seeds']} seeds [95 % interval of the mean, Student's t]."
    return tables.Table("", ("", *metrics), tuple(rows), (note,))


def checks(found: Sequence[Mapping[str, Any]]) -> tables.Table:
    """Checks (``results["checks"]`` or ``results["beyond"]``), what was found, and whether they hold."""
    rows = [
        (check["statement"], number(_interval(check)), _wanted(check), "yes" if check["holds"] else "no")
        for check in found
    ]
    return tables.Table("", ("check", "found", "wanted", "holds"), tuple(rows))


def page(name: str, claim: Claim, results: Mapping[str, Any]) -> str:
    """The README of a claim."""
    parts = [
        f"# {claim.statement}",
        f"[{claim.paper}]({claim.url})",
        f"**They report.** {claim.reported}",
        f"**Here.** {claim.setting}",
        f"    jaxpref reproduce {name}            # about {duration(claim.minutes)} on two CPU cores\n"
        f"    jaxpref reproduce {name} --quick",
        f"**Verdict: {verdict(results)}.** {claim.notes}".rstrip(),
        _body(checks(results["checks"])),
        *(("**Asked beyond the claim.**", _body(checks(results["beyond"]))) if results["beyond"] else ()),
        "![](figure.png)",
        _body(measurements(results)),
    ]
    return "\n\n".join(parts) + "\n"


def overview(entries: Mapping[str, tuple[Claim, Mapping[str, Any] | None]]) -> str:
    """``experiments/README.md``: claim -> (Claim, results or None)."""
    reproduced = [results["verdict"] for _, results in entries.values() if results].count(REPRODUCED)
    lines = [
        "# Papers' claims, put to the test",
        "",
        "Each folder is a claim; `jaxpref reproduce <folder>` runs it and writes what it finds, `--quick` asks only",
        "whether its direction still holds, `--all` runs all. This page is written by `jaxpref reproduce --table`.",
        "",
        f"Of {len(entries)} claims {reproduced} reproduce in every check; the pages of the others say why.",
        "",
        "| claim | paper | verdict | seeds | minutes |",
        "| --- | --- | --- | ---: | ---: |",
    ]
    for name, (claim, results) in entries.items():
        seeds = results["seeds"] if results else ""
        lines.append(
            f"| [{claim.statement}]({name}/README.md) | [{claim.paper}]({claim.url}) | {verdict(results)} | {seeds} "
            f"| {claim.minutes:g} |"
        )
    return "\n".join(lines) + "\n"


def listing(entries: Mapping[str, tuple[Claim, Mapping[str, Any] | None]]) -> tables.Table:
    """The same for a terminal."""
    rows = [
        (name, verdict(results), duration(claim.minutes), claim.statement) for name, (claim, results) in entries.items()
    ]
    return tables.Table("", ("claim", "verdict", "takes", "statement"), tuple(rows))


def verdict(results: Mapping[str, Any] | None) -> str:
    """The verdict as text; of one in between, how many checks hold."""
    if results is None:
        return NEVER
    if results["verdict"] != PARTLY:
        return results["verdict"]
    held = [check["holds"] for check in results["checks"]]
    return f"{PARTLY}: {sum(held)} of {len(held)} checks hold"


def duration(minutes: float) -> str:
    """Minutes as text, seconds below one."""
    return f"{minutes * 60:.0f} s" if minutes < 1 else f"{minutes:.0f} min"


def number(value: Interval | float) -> str:
    """Three digits that say something, of an estimate and the ends of its interval."""
    if not isinstance(value, Interval):
        return f"{value:.3g}"
    return f"{value.value:.3g} [{value.low:.3g}, {value.high:.3g}]"


def _mean(values: Sequence[float]) -> str:
    return number(statistics.student(np.asarray(values)))


def _wanted(check: Mapping[str, Any]) -> str:
    low, high = check["wanted"]
    if high is None:
        return f"above {low:g}"
    return f"below {high:g}" if low is None else f"{low:.4g} to {high:.4g}"


def _interval(check: Mapping[str, Any]) -> Interval:
    return Interval(check["mean"], check["low"], check["high"], 0, "")


def _body(table: tables.Table) -> str:
    """The table in Markdown, without a title."""
    return tables.to_markdown(table).removeprefix("****\n\n")
