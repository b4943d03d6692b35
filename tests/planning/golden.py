"""Plans of the shipped recipes, recorded in ``golden.json``: ``python -m tests.planning.golden [recipe ...]``.

The compiler decides part of these numbers, so that another one may move them a little; a change of ours that moves them
shows in review.
"""

import json
import pathlib
import sys

from jaxpref import configuration, planning

HERE = pathlib.Path(__file__).resolve().parent
RECIPES = HERE.parent.parent / "configs" / "tpu"
FILE = HERE / "golden.json"


def recorded() -> dict[str, dict[str, float]]:
    """``"<recipe> <topology>"`` -> numbers."""
    return json.loads(FILE.read_text())


def measured(name: str) -> dict[str, float]:
    """The numbers of a plan today."""
    recipe, topology = name.split()
    plan = planning.plan(configuration.load(str(RECIPES / f"{recipe}.py")), topology)
    sent = {f"sent by {kind}": number for kind, number in plan.sent.items()}
    memory = {f"{part} bytes": number for part, number in plan.memory._asdict().items() if part != "capacity"}
    return memory | sent | {"model FLOPs": plan.flops.model, "computed FLOPs": plan.flops.hardware}


if __name__ == "__main__":
    plans = recorded()
    for entry in sys.argv[1:] or list(plans):
        plans[entry] = measured(entry)
        FILE.write_text(json.dumps(plans, indent=2, sort_keys=True) + "\n")
        print(entry, json.dumps(plans[entry]))
