"""Plans as a table for people and as JSON for programs."""

import json
from collections.abc import Callable, Sequence

from rich.table import Table

from jaxpref.planning.plans import Plan

_SENT = {
    "all-gather": "gathers",
    "reduce-scatter": "scatters",
    "all-reduce": "reductions",
    "all-to-all": "exchanges",
    "collective-permute": "permutations",
}


def table(plans: Sequence[Plan], title: str = "") -> Table:
    """One column a plan."""
    made = Table(title=title, title_justify="left")
    made.add_column("per chip, unless said otherwise")
    for plan in plans:
        made.add_column(f"{plan.slices} x {plan.topology}" if plan.slices > 1 else plan.topology, justify="right")
    for name, values in rows(plans):
        made.add_row(name, *values)
    return made


def rows(plans: Sequence[Plan]) -> list[tuple[str, list[str]]]:
    """The lines of the table: ``(what, one text a plan)``."""

    def each(read: Callable[[Plan], str]) -> list[str]:
        return [read(plan) for plan in plans]

    def timed(read: Callable[[Plan], str]) -> list[str]:
        return ["-" if plan.roofline is None else read(plan) for plan in plans]

    lines = [
        ("chips", each(lambda plan: str(plan.chips))),
        ("mesh", each(lambda plan: " x ".join(f"{name} {size}" for name, size in plan.mesh.items()))),
        ("examples a step, all chips", each(lambda plan: str(plan.examples))),
        ("layout, all chips", each(lambda plan: plan.layout)),
        ("parameters", each(lambda plan: size(plan.memory.parameters))),
        ("optimizer", each(lambda plan: size(plan.memory.optimizer))),
        ("reference, batch, averages", each(lambda plan: size(plan.memory.others))),
        ("temporaries", each(lambda plan: size(plan.memory.temporaries))),
        ("all of memory", each(lambda plan: f"{size(plan.memory.used)} of {size(plan.memory.capacity)}")),
        ("fits", each(lambda plan: "yes" if plan.fits else "NO")),
        ("model FLOPs a step, all chips", each(lambda plan: f"{plan.flops.model:.3g}")),
        ("computed FLOPs a step, all chips", each(lambda plan: f"{plan.flops.hardware:.3g}")),
    ]
    for kind, name in _SENT.items():
        if any(kind in plan.sent for plan in plans):
            lines.append((f"sent by {name}", timed(lambda plan, kind=kind: size(plan.sent.get(kind, 0)))))
    for cause in ("compute", "memory", "links"):
        lines.append((f"least time, {cause}", timed(lambda plan, c=cause: duration(getattr(plan.roofline, c)))))
    lines += [
        ("bound by", timed(lambda plan: plan.roofline.bound)),
        ("tokens a second at best, all chips", timed(lambda plan: f"{plan.tokens / plan.roofline.seconds:,.0f}")),
        ("model FLOPs utilisation at best", timed(lambda plan: f"{plan.utilisation:.0%}")),
        ("compiled in", each(lambda plan: duration(plan.compile_seconds))),
    ]
    return lines


def size(number: float) -> str:
    """Bytes as text: ``3.74 GiB``, ``12.0 MiB``."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**28 else f"{number / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds as text: ``1.25 s``, ``3.1 ms``."""
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.2g} ms"


def to_json(plans: Sequence[Plan]) -> str:
    """The plans with every number, in bytes, FLOPs and seconds."""
    return json.dumps([as_dict(plan) for plan in plans], indent=2)


def as_dict(plan: Plan) -> dict:
    """A plan as plain values."""
    return plan._asdict() | {
        "memory": plan.memory._asdict() | {"used": plan.memory.used},
        "flops": plan.flops._asdict(),
        "roofline": None if plan.roofline is None else plan.roofline._asdict() | {"bound": plan.roofline.bound},
        "fits": plan.fits,
    }
