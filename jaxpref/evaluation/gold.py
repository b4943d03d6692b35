"""Scores of generated text in a world whose true reward is known."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpref.errors import DataError
from jaxpref.evaluation import statistics, wins


class Gold(NamedTuple):
    """A policy's generations, scored by the truth.

    Attributes:
        reward: mean true reward; bootstrap over prompts.
        win_rate: share of responses with a higher true reward than the opponent's to the same prompt, ties 1/2; None
            without an opponent. Bootstrap over prompts.
        length: mean number of words.
        well_formed: share of responses that the world itself could have written.
        rewards: true reward of each response, ``[N]``.
    """

    reward: statistics.Interval
    win_rate: statistics.Interval | None
    length: float
    well_formed: float
    rewards: np.ndarray


def rewards(world: Any, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """True reward of each response, ``[N]`` float64. ``world`` is one of :mod:`jaxpref.data.worlds`."""
    if len(prompts) != len(responses):
        raise DataError(
            f"Every prompt needs one response; found {len(prompts)} prompts and {len(responses)} responses."
        )
    return np.array([world.reward(prompt, response) for prompt, response in zip(prompts, responses, strict=True)])


def evaluate(
    world: Any,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    opponent: Sequence[str] | None = None,
    **options,
) -> Gold:
    """Scores one response per entry of ``prompts``; a prompt may come several times, and is resampled as a whole.

    Args:
        world: with ``reward(prompt, response)`` and ``well_formed(response, prompt=)``.
        prompts, responses: ``[N]`` texts.
        opponent: responses of whom to beat, to the same prompts in the same order.
        **options: of :func:`jaxpref.evaluation.statistics.clustered`.
    """
    own = rewards(world, prompts, responses)
    clusters = np.asarray(prompts)
    win_rate = None
    if opponent is not None:
        win_rate = statistics.clustered(wins.outcomes(own, rewards(world, prompts, opponent)), clusters, **options)
    formed = [world.well_formed(response, prompt=prompt) for prompt, response in zip(prompts, responses, strict=True)]
    return Gold(
        reward=statistics.clustered(own, clusters, **options),
        win_rate=win_rate,
        length=float(np.mean([len(response.split()) for response in responses])),
        well_formed=float(np.mean(formed)),
        rewards=own,
    )
