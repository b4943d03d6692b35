"""Pairs out of scored completions, as UltraFeedback was made into pairs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxpref.data import fields
from jaxpref.data.examples import one_of
from jaxpref.data.transforms import options
from jaxpref.data.transforms.options import Maker, Row
from jaxpref.errors import DataError

MODES = ("overall", "mean_fine_grained")
ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
TIE = "all completions have the same score"


def best_against_random(rows: Sequence[Mapping[str, Any]], *, seed: int = 0) -> tuple[list[Row], int]:
    """Pairs out of scored completions: of each prompt the best one against one drawn from those with a lower score.

    So UltraFeedback was made into pairs. The draw of a row depends on the seed and its place alone.

    See *Zephyr: Direct Distillation of LM Alignment* (https://arxiv.org/abs/2310.16944) and, for the data,
    *UltraFeedback: Boosting Language Models with Scaled AI Feedback* (https://arxiv.org/abs/2310.01377).

    Args:
        rows: each with ``prompt``, ``completions`` and ``scores``, one number a completion.
        seed: of the draws.

    Returns:
        ``(pairs, ties)``: the rows with ``prompt``, ``chosen``, ``rejected``, ``chosen_score``, ``rejected_score`` and
        ``margin``, their difference; of completions with the best score the first is chosen. And the number of rows
        left out because all completions have the same score.

    Raises:
        DataError: fewer than two completions, another number of scores, or a score that is not finite.
    """
    make, pairs = best(seed=seed), []
    for number, row in enumerate(rows):
        try:
            pairs += [made for made in make(row, number) if made != TIE]
        except DataError as error:
            raise DataError(f"row {number}: {error}") from error
    return pairs, len(rows) - len(pairs)


def binarize_ultrafeedback(
    samples: Sequence[Mapping[str, Any]], *, mode: str = "overall", rng: np.random.Generator | None = None
) -> list[dict[str, Any]]:
    """Which completions of UltraFeedback's prompts make a pair.

    Args:
        samples: each with ``overall``, a score for each completion, and ``fine``, four ratings for each.
        mode: ``overall`` takes the first as they are, ``mean_fine_grained`` the mean of the four ratings. Some overall
            scores of 10 are known to be misprints of 1, which the ratings show.
        rng: draws ``rejected`` for each sample; without it there is none.

    Returns:
        For each sample ``scores``, ``chosen`` (the first of the best), ``rejected_candidates`` (those with a lower
        score), ``worst`` (the first of the worst) and ``skip``, whether all have the same score.
    """
    one_of("mode", mode, MODES)
    return [
        _choice([float(s) for s in sample["overall"]] if mode == "overall" else _means(sample["fine"]), rng)
        for sample in samples
    ]


def best(*, seed: int = 0) -> Maker:
    """Rows of pairs out of rows with ``prompt``, ``completions`` and ``scores`` or ``ranks``."""
    options.whole("seed", seed, 0)

    def make(row: Row, place: int) -> Iterator[Row | str]:
        name = "ranks" if "ranks" in row and "scores" not in row else "scores"
        for needed in ("completions", name):
            if needed not in row:
                raise fields.missing(row, "scores' or 'ranks" if needed == name else needed)
        if not isinstance(row["completions"], list | tuple):
            raise DataError(f"field 'completions' is {fields.kind_of(row['completions'])}; expected a list.")
        values = _numbers(row[name], name, len(row["completions"]))
        choice = _choice([-value for value in values] if name == "ranks" else values, options.drawing(seed, place))
        if choice["skip"]:
            yield TIE
            return
        (one, other), scores = (choice["chosen"], choice["rejected"]), choice["scores"]
        kept = {key: value for key, value in row.items() if key not in ("completions", name)}
        yield kept | {
            "chosen": row["completions"][one],
            "rejected": row["completions"][other],
            "chosen_score": scores[one],
            "rejected_score": scores[other],
            "margin": scores[one] - scores[other],
        }

    return make


def ultrafeedback(*, mode: str = "overall", seed: int = 0) -> Maker:
    """Rows of pairs out of UltraFeedback's own: ``instruction``, and ``completions`` that are objects.

    A completion has ``response`` and ``overall_score``, or ``annotations`` with a ``Rating`` for each of four aspects.

    Args:
        mode: as in :func:`binarize_ultrafeedback`.
        seed: of the draws.
    """
    one_of("mode", mode, MODES)
    pairs_of = best(seed=seed)

    def make(row: Row, place: int) -> Iterator[Row | str]:
        for name in ("instruction", "completions"):
            if name not in row:
                raise fields.missing(row, name)
        found = [_completion(each, f"completions[{n}]", mode) for n, each in enumerate(row["completions"])]
        kept = {key: value for key, value in row.items() if key != "instruction"}
        texts, scores = [text for text, _ in found], [score for _, score in found]
        yield from pairs_of(kept | {"prompt": row["instruction"], "completions": texts, "scores": scores}, place)

    return make


def _completion(completion: Any, name: str, mode: str) -> tuple[str, float]:
    """(response, score) of one of UltraFeedback's completions."""
    if not isinstance(completion, Mapping) or "response" not in completion:
        raise DataError(f"field {name!r} is {fields.kind_of(completion)}; expected an object with 'response'.")
    if mode == "overall":
        return completion["response"], fields.number(completion.get("overall_score"), f"{name}.overall_score", float)
    ratings = []
    for aspect in ASPECTS:
        rating = (completion.get("annotations") or {}).get(aspect, {}).get("Rating")
        if not str(rating).isdecimal():
            raise DataError(f"field '{name}.annotations.{aspect}.Rating' is {rating!r}; expected a whole number.")
        ratings.append(int(rating))
    return completion["response"], _means([ratings])[0]


def _numbers(values: Any, name: str, count: int) -> list[float]:
    """A finite number for each of the completions."""
    given = list(values) if isinstance(values, list | tuple | np.ndarray) else []
    numbers = [v for v in given if isinstance(v, int | float | np.number) and not isinstance(v, bool)]
    if len(given) != count or len(numbers) != count or count < 2 or not all(map(math.isfinite, numbers)):
        raise DataError(
            f"field {name!r} is {values!r} beside {count} completions; expected at least two completions and a finite "
            "number for each."
        )
    return [float(value) for value in numbers]


def _choice(scores: list[float], rng: np.random.Generator | None) -> dict[str, Any]:
    lower = [n for n, score in enumerate(scores) if score < max(scores)]
    drawn = {"rejected": lower[int(rng.integers(len(lower)))]} if rng is not None and lower else {}
    return {
        "scores": scores,
        "chosen": scores.index(max(scores)),
        "rejected_candidates": lower,
        "worst": scores.index(min(scores)),
        "skip": not lower,
    } | drawn


def _means(ratings: Sequence[Sequence[float]]) -> list[float]:
    return [float(sum(each)) / len(each) for each in ratings]
