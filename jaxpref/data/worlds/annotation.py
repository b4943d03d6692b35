"""Who labels a world's responses, and with which faults: utilities, Bradley-Terry choices, flips, and records.

A world supplies prompts, responses and the true reward. Everything that makes labels imperfect is here and shared:

* *choice temperature* ``T``: the annotator prefers the first of two responses with probability
  ``sigmoid((u_1 - u_2) / T)``, a Bradley-Terry choice; ``T = 0`` always picks the larger utility.
* *noise*: afterwards the label is flipped with this probability.
* *length bias*: utility gained per word, whatever the words say.
* *annotator mix*: several annotators with shares, tastes, noise and temperature of their own.

Only ``Generator.random()`` is drawn from, so that records are the same on every machine. Texts and labels have separate
streams with a fixed number of draws per record: changing noise, bias or annotators changes labels, never texts.

See *Rank Analysis of Incomplete Block Designs: I. The Method of Paired Comparisons* (https://doi.org/10.2307/2334029).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpref.errors import DataError, hint

SPLITS = ("train", "validation", "test")


class Annotator(NamedTuple):
    """One labeller.

    Attributes:
        share: relative frequency among the labels; the shares of a mix are normalised.
        reward: weight of the world's reward in the utility; -1 prefers what everybody else rejects.
        length: utility per word, added to the records' ``length_bias``.
        noise: probability of flipping a label; None takes the records' ``noise``.
        temperature: of the Bradley-Terry choice; None takes the records' ``temperature``.
        tastes: weight of every named aspect in the annotator's own reading of the reward; 1 where not named.
    """

    share: float = 1.0
    reward: float = 1.0
    length: float = 0.0
    noise: float | None = None
    temperature: float | None = None
    tastes: Mapping[str, float] = {}


class Labelling(NamedTuple):
    """How responses become labels; the keyword arguments of a world's ``records`` (see the module's docstring).

    Attributes:
        noise: probability that a label is flipped (that a whole ranking is reversed).
        length_bias: utility per word of the response.
        temperature: of the Bradley-Terry choice, in units of reward.
        annotators: name to the fields of :class:`Annotator`; None is one annotator who follows the reward.
        tie_margin: a pair whose utilities differ by less than this is a tie (``tie=True``, order by coin).
        threshold: utility at which an unpaired response is as likely to be labelled good as bad.
        responses: length of a ranked list.
    """

    noise: float = 0.0
    length_bias: float = 0.0
    temperature: float = 1.0
    annotators: Mapping[str, Mapping[str, Any]] | None = None
    tie_margin: float = 0.0
    threshold: float = 0.0
    responses: int = 4


class Source(NamedTuple):
    """What a world supplies.

    Attributes:
        name: of the world, for errors.
        prompts: of the split asked for.
        sample: (prompt, uniforms) -> one response.
        reward: (prompt, response, tastes) -> the reward as someone with these tastes reads it; no tastes: the truth.
    """

    name: str
    prompts: Sequence[str]
    sample: Callable[[str, Iterator[float]], str]
    reward: Callable[[str, str, Mapping[str, float]], float]


def uniforms(seed: int, *path: int) -> Iterator[float]:
    """Endless uniform draws from [0, 1), a stream of its own for every (seed, path)."""
    generator = np.random.default_rng([seed, *path])
    while True:
        yield from generator.random(256).tolist()


def prefers(first: float, second: float, temperature: float, uniform: float) -> bool:
    """Bradley-Terry choice between two utilities: True with probability ``sigmoid((first - second) / temperature)``."""
    return uniform < probability(first - second, temperature)


def probability(difference: float, temperature: float) -> float:
    """``sigmoid(difference / temperature)``; at temperature 0 a step with 1/2 in the middle."""
    if difference == 0:
        return 0.5
    if temperature == 0 or abs(difference) > 500 * temperature:
        return float(difference > 0)
    return 1.0 / (1.0 + math.exp(-difference / temperature))


def make(source: Source, kind: str, labelling: Labelling, *, size: int, seed: int, split: str) -> list[dict]:
    """Records of one kind, see ``records`` of the worlds. A longer list begins with the shorter one.

    Raises:
        DataError: for an unknown kind or split, a negative size, or labelling outside its domain.
    """
    _check(source.name, "kind", kind, KINDS)
    _check(source.name, "split", split, SPLITS)
    if size < 0 or labelling.responses < 2:
        raise DataError(
            f"World '{source.name}' was asked for {size} records of {labelling.responses} responses; "
            "give a size of at least 0 and at least 2 responses."
        )
    crowd = annotators(source.name, labelling)
    stream = (KINDS.index(kind), SPLITS.index(split))
    texts, labels = uniforms(seed, *stream, 0), uniforms(seed, *stream, 1)
    prompts = _passes(source.prompts, uniforms(seed, *stream, 2))
    return [_BUILDERS[kind](source, next(prompts), texts, labels, crowd, labelling) for _ in range(size)]


def annotators(world: str, labelling: Labelling) -> list[Annotator]:
    """The crowd with every field filled in, in the order of its names (a config may come back with its keys sorted).

    Raises:
        DataError: for an unknown field or a value outside its domain.
    """
    crowd = []
    for name, fields in sorted((labelling.annotators or {"reward": {}}).items()):
        for field in fields:
            _check(world, f"field of annotator '{name}'", field, Annotator._fields)
        person = Annotator(**fields)
        noise = labelling.noise if person.noise is None else person.noise
        temperature = labelling.temperature if person.temperature is None else person.temperature
        if not 0 <= noise <= 1 or temperature < 0 or person.share < 0:
            raise DataError(
                f"Annotator '{name}' of world '{world}' has noise {noise}, temperature {temperature} and share "
                f"{person.share}; noise lies in [0, 1], the other two are at least 0."
            )
        length = person.length + labelling.length_bias
        crowd.append(person._replace(noise=noise, temperature=temperature, length=length))
    if sum(person.share for person in crowd) <= 0:
        raise DataError(
            f"The annotators of world '{world}' have shares that sum to 0; give one of them a positive share."
        )
    return crowd


def _check(world: str, what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise DataError(f"World '{world}' knows no {what} named '{value}'; {hint(value, known)}")


def _passes(prompts: Sequence[str], draws: Iterator[float]) -> Iterator[str]:
    """Every prompt once, shuffled, before any comes again."""
    while True:
        order = list(prompts)
        for last in range(len(order) - 1, 0, -1):
            other = int(next(draws) * (last + 1))
            order[last], order[other] = order[other], order[last]
        yield from order


def _appoint(crowd: list[Annotator], uniform: float) -> tuple[int, Annotator]:
    place = uniform * sum(person.share for person in crowd)
    for number, person in enumerate(crowd):
        place -= person.share
        if place < 0:
            return number, person
    return len(crowd) - 1, crowd[-1]


def _utility(source: Source, person: Annotator, prompt: str, response: str) -> float:
    return person.reward * source.reward(prompt, response, person.tastes) + person.length * len(response.split())


def _distinct(source: Source, prompt: str, texts: Iterator[float], count: int) -> list[str]:
    """Different responses to one prompt; gives up where the world has too few."""
    found: list[str] = []
    for _ in range(1000):
        response = source.sample(prompt, texts)
        if response not in found:
            found.append(response)
        if len(found) == count:
            return found
    raise DataError(f"World '{source.name}' has fewer than {count} different responses to '{prompt}'; ask for fewer.")


def _prompt(source, prompt, texts, labels, crowd, labelling) -> dict:
    return {"prompt": prompt}


def _demonstration(source, prompt, texts, labels, crowd, labelling) -> dict:
    return {"prompt": prompt, "completion": source.sample(prompt, texts)}


def _pair(source, prompt, texts, labels, crowd, labelling) -> dict:
    first, second = _distinct(source, prompt, texts, 2)
    number, person = _appoint(crowd, next(labels))
    choice, flip = next(labels), next(labels)
    utilities = [_utility(source, person, prompt, response) for response in (first, second)]
    tie = abs(utilities[0] - utilities[1]) < labelling.tie_margin
    kept = prefers(*utilities, person.temperature, choice) ^ (flip < person.noise) if not tie else choice < 0.5
    chosen, rejected = (first, second) if kept else (second, first)
    record = {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "chosen_score": source.reward(prompt, chosen, {}),
        "rejected_score": source.reward(prompt, rejected, {}),
        "user_id": number,
    }
    return record | {"tie": tie} if labelling.tie_margin > 0 else record


def _unpaired(source, prompt, texts, labels, crowd, labelling) -> dict:
    response = source.sample(prompt, texts)
    number, person = _appoint(crowd, next(labels))
    choice, flip = next(labels), next(labels)
    liked = prefers(_utility(source, person, prompt, response), labelling.threshold, person.temperature, choice)
    return {"prompt": prompt, "completion": response, "label": bool(liked ^ (flip < person.noise)), "user_id": number}


def _ranked(source, prompt, texts, labels, crowd, labelling) -> dict:
    """Scores are utilities plus Gumbel noise of the choice temperature: their order is a Plackett-Luce draw."""
    responses = _distinct(source, prompt, texts, labelling.responses)
    number, person = _appoint(crowd, next(labels))
    flip = next(labels)
    scores = []
    for response in responses:
        gumbel = -math.log(-math.log(max(next(labels), 1e-300)))
        scores.append(_utility(source, person, prompt, response) + person.temperature * gumbel)
    if flip < person.noise:
        middle = min(scores) + max(scores)
        scores = [middle - score for score in scores]
    return {"prompt": prompt, "completions": responses, "scores": scores, "user_id": number}


_BUILDERS = {
    "demonstrations": _demonstration,
    "pairs": _pair,
    "unpaired": _unpaired,
    "ranked": _ranked,
    "prompts": _prompt,
}
KINDS = tuple(_BUILDERS)
