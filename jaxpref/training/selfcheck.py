"""Cheap checks that every run makes of itself; a violated one stops the run and says what to look at."""

import math
import re
from collections.abc import Mapping

from jaxpref.errors import TrainingError

TOLERANCE = {"float64": 1e-6, "float32": 1e-4, "bfloat16": 2e-2, "float16": 1e-2}


def check_closed_form(closed_forms: Mapping[str, float], metrics: Mapping[str, float], dtype: str) -> None:
    """At step 0, with policy equal to reference, each term's loss has a known value (log 2 for logistic losses).

    Args:
        closed_forms: term -> value at policy = reference; terms without one are absent.
        metrics: the first step's metrics, holding ``loss/<term>``.
        dtype: compute dtype, which sets the relative tolerance.
    """
    for term, expected in closed_forms.items():
        value = metrics[f"loss/{term}"]
        if abs(value - expected) > TOLERANCE[dtype] * max(1.0, abs(expected)):
            raise TrainingError(
                f"step 0: objective {term!r} is {value:.6f} although policy and reference have equal parameters, where "
                f"it must be {expected:.6f}; both are not scored alike (layout, template, dropout or cache)."
            )


def check_finite(step: int, metrics: Mapping[str, float]) -> None:
    """No metric of a step is NaN or infinite."""
    broken = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    if broken:
        raise TrainingError(
            f"step {step}: {', '.join(broken)} became NaN or infinite; lower optimizer.learning_rate, set "
            "optimizer.clip_norm, or look at first_batch.txt for a broken row."
        )


def check_movement(
    before: Mapping[str, int],
    after: Mapping[str, int],
    trainable: Mapping[str, bool],
    invariant: list[str],
) -> None:
    """After the first steps every trainable leaf has moved and no frozen leaf has.

    Args:
        before, after: digest of every leaf (:func:`jaxpref.training.digest.leaf_digests`).
        trainable: whether each leaf is trained.
        invariant: regular expressions of leaves that no loss can move (a key bias under softmax, for example).
    """
    moved = {path for path in before if before[path] != after[path]}
    frozen_but_moved = sorted(path for path in moved if not trainable[path])
    if frozen_but_moved:
        raise TrainingError(
            f"frozen parameters have moved: {', '.join(frozen_but_moved[:5])}; this is a bug, please report it."
        )
    still = [p for p in before if trainable[p] and p not in moved and not any(re.search(r, p) for r in invariant)]
    if still:
        raise TrainingError(
            f"{len(still)} trainable parameters have not moved in the first steps, among them "
            f"{', '.join(sorted(still)[:5])}; "
            "no objective reaches them: freeze them with a group, or check the objectives."
        )
