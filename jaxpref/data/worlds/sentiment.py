"""Controlled sentiment: headline reviews from a grammar, whose sentiment is known exactly.

A prompt names a critic and a thing; the response is one to three opinions about it::

    Ann on film: not dull cast, very warm song but weak plot.

An opinion is ``[very | not] adjective aspect``. Its valence is that of the adjective (-2 to 2), times 1.5 after "very"
and times -0.5 after "not". Neighbouring opinions of opposite sign are joined by " but ", others by ", ". The **reward**
of a response is the mean valence of its opinions, in [-3, 3]: longer reviews are not better reviews, so that any growth
in length under training is a bias. Under the grammar its mean is 0.

Critics and things make 512 prompts, split into train, validation and test by a fixed shuffle. Prompt and response
together are at most 67 bytes (14 and 53), 38 on average. Since the grammar is known, so are its log-probabilities, its
entropy (the least possible test loss) and the best reward at every KL from it.

See *Direct Preference Optimization: Your Language Model is Secretly a Reward Model*
(https://arxiv.org/abs/2305.18290), section 6, for the experiment that this world makes exact.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxpref.data.worlds import annotation
from jaxpref.errors import DataError

NAME = "sentiment"
THINGS = {
    "film": ("cast", "plot", "song", "end"),
    "book": ("text", "plot", "tone", "end"),
    "meal": ("soup", "rice", "wine", "cake"),
    "game": ("art", "plot", "pace", "song"),
    "room": ("bed", "desk", "bath", "view"),
    "park": ("lake", "path", "cafe", "view"),
    "car": ("seat", "door", "ride", "cost"),
    "bar": ("wine", "beer", "song", "cost"),
}
VALENCES = {
    "epic": 2.0, "rich": 2.0, "good": 1.0, "nice": 1.0, "fine": 1.0, "warm": 1.0,
    "new": 0.0, "old": 0.0, "long": 0.0, "calm": 0.0,
    "dull": -1.0, "weak": -1.0, "poor": -1.0, "flat": -1.0, "vile": -2.0, "dire": -2.0,
}  # fmt: skip
MODIFIERS = {"": 1.0, "very": 1.5, "not": -0.5}
MODIFIER_PROBABILITIES = {"": 0.6, "very": 0.2, "not": 0.2}
COUNT_PROBABILITIES = {1: 0.25, 2: 0.5, 3: 0.25}
SPLIT_SIZES = {"train": 320, "validation": 64, "test": 128}
CRITICS = (
    "Abe Ada Al Amy Ann Bea Ben Bob Cal Cleo Dan Dee Ed Eli Eva Fay Finn Gus Hal Hana Hugo Ian Ida Ivan Jan Jim Joe "
    "Jun Kai Kate Ken Lea Leo Lina Lou Max May Mia Milo Nia Ned Nora Omar Otto Pam Paul Pia Ray Rita Rob Rosa Sam Sia "
    "Tess Theo Tim Tom Una Uma Vera Vic Wes Yara Zoe"
).split()


class Opinion(NamedTuple):
    """``[modifier] adjective aspect``; the modifier is "" when absent."""

    modifier: str
    adjective: str
    aspect: str

    @property
    def valence(self) -> float:
        return MODIFIERS[self.modifier] * VALENCES[self.adjective]


def prompts(split: str) -> list[str]:
    """All prompts of a split ("train", "validation", "test"); no prompt is in two."""
    everything = sorted(f"{critic} on {thing}: " for critic in CRITICS for thing in THINGS)
    draws = annotation.uniforms(0, 512)
    everything.sort(key=lambda _: next(draws))
    start = 0
    for name, size in SPLIT_SIZES.items():
        if name == split:
            return everything[start : start + size]
        start += size
    raise DataError(f"World '{NAME}' knows no split named '{split}'; choose one of {', '.join(SPLIT_SIZES)}.")


def phrases() -> list[str]:
    """What a word-level tokenizer makes one token of, with the spaces where they stand; see :mod:`.words`."""
    names = [f"{critic} on " for critic in CRITICS] + [f"{name}: " for name in THINGS]
    modifiers = [f"{modifier} " for modifier in MODIFIERS if modifier]
    return names + modifiers + [f"{word} " for word in VALENCES] + sorted(_ASPECTS) + [", ", " but "]


def records(
    kind: str,
    *,
    size: int,
    seed: int = 0,
    split: str = "train",
    tilt: float = 0.0,
    noise: float = 0.0,
    length_bias: float = 0.0,
    temperature: float = 1.0,
    annotators: Mapping[str, Mapping[str, Any]] | None = None,
    tie_margin: float = 0.0,
    threshold: float = 0.0,
    responses: int = 4,
) -> list[dict]:
    """Records with the fields of users' data, responses drawn from the grammar.

    Args:
        kind: "demonstrations", "pairs", "unpaired", "ranked" or "prompts".
        size: number of records; prompts come in shuffled passes, so ``size <= len(prompts(split))`` repeats none.
        seed: of texts and labels; each kind and split has streams of its own.
        split: "train", "validation" or "test", disjoint in prompts.
        tilt: adjectives are drawn with probability proportional to ``exp(tilt * valence)``; 0 is the grammar itself.
        noise, length_bias, temperature, annotators, tie_margin, threshold, responses: see
            :class:`jaxpref.data.worlds.annotation.Labelling`.

    Returns:
        Dicts with ``prompt`` and, by kind, ``completion``; ``chosen``, ``rejected`` and their true rewards
        ``chosen_score``, ``rejected_score`` (whatever the label says; ``tie`` where a margin is given); ``completion``
        and ``label``; ``completions`` and ``scores``. Labelled records carry ``user_id``, the annotator's number.
    """
    labelling = annotation.Labelling(noise, length_bias, temperature, annotators, tie_margin, threshold, responses)
    source = annotation.Source(NAME, prompts(split), lambda prompt, draws: sample(prompt, draws, tilt=tilt), _read)
    return annotation.make(source, kind, labelling, size=size, seed=seed, split=split)


def sample(prompt: str, draws: Iterator[float], *, tilt: float = 0.0) -> str:
    """One response from the grammar. ``draws`` yields uniforms from [0, 1)."""
    aspects = list(THINGS[thing(prompt)])
    opinions = []
    for _ in range(_draw(COUNT_PROBABILITIES, next(draws))):
        modifier = _draw(MODIFIER_PROBABILITIES, next(draws))
        adjective = _draw(_adjectives(tilt), next(draws))
        opinions.append(Opinion(modifier, adjective, aspects.pop(int(next(draws) * len(aspects)))))
    return render(opinions)


def render(opinions: list[Opinion]) -> str:
    """The text of a review, for example "not dull cast, very warm song but weak plot."."""
    text = ""
    for number, opinion in enumerate(opinions):
        if number:
            text += " but " if opinion.valence * opinions[number - 1].valence < 0 else ", "
        text += " ".join(word for word in opinion if word)
    return text + "."


def parse(response: str) -> list[Opinion] | None:
    """The opinions of a text that :func:`render` could have written, or None."""
    body = response.strip()
    opinions = []
    for part in body.removesuffix(".").replace(" but ", ", ").split(", "):
        words = part.split(" ")
        words = ["", *words] if len(words) == 2 else words
        if len(words) != 3 or words[0] not in MODIFIERS or words[1] not in VALENCES or words[2] not in _ASPECTS:
            return None
        opinions.append(Opinion(*words))
    return opinions if render(opinions) == body else None


def well_formed(response: str, *, prompt: str | None = None) -> bool:
    """Whether the grammar can write the text: known words, one to three opinions on different aspects, rightly joined.

    With a prompt, the aspects must also belong to the thing under review.
    """
    opinions = parse(response)
    if opinions is None or len(opinions) not in COUNT_PROBABILITIES:
        return False
    aspects = [opinion.aspect for opinion in opinions]
    on_topic = prompt is None or set(aspects) <= set(THINGS[thing(prompt)])
    return on_topic and len(set(aspects)) == len(aspects)


def reward(prompt: str, response: str) -> float:
    """True reward of any text: the mean valence of its opinions, in [-3, 3].

    For a well-formed response this is the mean over opinions. In other text every adjective is an opinion, a modifier
    counts only directly before an adjective, and each word that means nothing there (unknown, or a stray modifier) is
    an opinion of valence 0. Text without opinions has reward 0. The prompt does not matter; see :func:`well_formed`.
    """
    return _read(prompt, response, {})


def thing(prompt: str) -> str:
    """The thing under review.

    Raises:
        DataError: when the prompt is not one of this world's.
    """
    words = prompt.split()
    if len(words) == 3 and words[1] == "on" and words[2].removesuffix(":") in THINGS:
        return words[2].removesuffix(":")
    raise DataError(f"World '{NAME}' has no prompt '{prompt}'; its prompts look like 'Ann on film: '.")


def log_prob(prompt: str, response: str, *, tilt: float = 0.0) -> float:
    """Log-probability of a response under the grammar, in nats; -inf where it cannot be written."""
    if not well_formed(response, prompt=prompt):
        return -math.inf
    opinions, adjectives = parse(response), _adjectives(tilt)
    aspects = len(THINGS[thing(prompt)])
    total = math.log(COUNT_PROBABILITIES[len(opinions)])
    for place, opinion in enumerate(opinions):
        total += math.log(MODIFIER_PROBABILITIES[opinion.modifier] * adjectives[opinion.adjective] / (aspects - place))
    return total


def entropy() -> float:
    """Entropy of a response given its prompt, in nats: the least expected test loss per response of any model."""
    opinion = _entropy(MODIFIER_PROBABILITIES.values()) + math.log(len(VALENCES))
    aspects = {1: math.log(4), 2: math.log(4 * 3), 3: math.log(4 * 3 * 2)}
    rest = sum(share * (count * opinion + aspects[count]) for count, share in COUNT_PROBABILITIES.items())
    return _entropy(COUNT_PROBABILITIES.values()) + rest


def rewards() -> tuple[np.ndarray, np.ndarray]:
    """Distribution of the reward under the grammar, for any prompt: values ``[S]`` ascending, probabilities ``[S]``."""
    single: dict[float, float] = {}
    for modifier, factor in MODIFIERS.items():
        for valence in VALENCES.values():
            value = factor * valence + 0.0
            single[value] = single.get(value, 0.0) + MODIFIER_PROBABILITIES[modifier] / len(VALENCES)
    total, sums = {}, {0.0: 1.0}
    for count in sorted(COUNT_PROBABILITIES):
        longer: dict[float, float] = {}
        for value, share in sums.items():
            for step, part in single.items():
                longer[value + step] = longer.get(value + step, 0.0) + share * part
        sums = longer
        for value, share in sums.items():
            total[value / count] = total.get(value / count, 0.0) + share * COUNT_PROBABILITIES[count]
    values = np.array(sorted(total))
    return values, np.array([total[value] for value in values])


def optimum(beta: float) -> tuple[float, float]:
    """Expected reward and KL (nats) of the best policy for ``E[reward] - beta * KL(policy || grammar)``.

    The policy is ``grammar * exp(reward / beta) / Z``; over beta these points are the exact reward-KL frontier of a
    reference that has learned the grammar.
    """
    values, probabilities = rewards()
    logits = values / beta + np.log(probabilities)
    log_partition = np.logaddexp.reduce(logits)
    mean = float(np.exp(logits - log_partition) @ values)
    return mean, float(mean / beta - log_partition)


_ASPECTS = frozenset(aspect for aspects in THINGS.values() for aspect in aspects)


def _read(prompt: str, response: str, tastes: Mapping[str, float]) -> float:
    """Mean valence, each opinion weighted by the taste for its aspect (1 where the tastes name none)."""
    words = response.replace(",", " ").replace(".", " ").split()
    total, count = 0.0, 0
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        after = words[place + 1] if place + 1 < len(words) else ""
        if word in VALENCES:
            total += Opinion(before if before in MODIFIERS else "", word, after).valence * tastes.get(after, 1.0)
            count += 1
        elif not (word in _ASPECTS or word == "but" or word in MODIFIERS and after in VALENCES):
            count += 1
    return total / count if count else 0.0


def _adjectives(tilt: float) -> dict[str, float]:
    weights = {word: math.exp(tilt * valence) for word, valence in VALENCES.items()}
    total = sum(weights.values())
    return {word: weight / total for word, weight in weights.items()}


def _draw(probabilities: Mapping[Any, float], uniform: float) -> Any:
    for option, share in probabilities.items():
        uniform -= share
        if uniform < 0:
            return option
    return option


def _entropy(probabilities) -> float:
    return -sum(share * math.log(share) for share in probabilities)
