"""Graded responses: of each response, versions with an increasing share of its key phrases left out."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from jaxpref.data.transforms import options
from jaxpref.data.transforms.options import Maker, Row
from jaxpref.errors import ConfigError

# Words that carry no content of their own, which end a phrase.
STOP_WORDS = frozenset(
    """
    a about above after again against all also although always am an and another any anybody anyone anything are
    around as at away back be because been before behind being below between both but by can cannot could did do
    does doing done down during each either else enough even ever every everybody everyone everything few for from
    further get gets getting give gives go goes going gone got had has have having he hence her here hers herself
    him himself his how however i if in indeed instead into is it its itself just least less let lets like made make
    makes making many may maybe me might mine more most much must my myself near neither never no nobody none nor
    not nothing now of off often on once one only onto or other others otherwise ought our ours ourselves out over
    own per perhaps put quite rather really same see seem seems several shall she should since so some somebody
    someone something sometimes soon still such take takes than that the their theirs them themselves then there
    therefore these they this those though through thus to together too toward towards under unless until up upon us
    use used uses using usually very was we well were what whatever when whenever where wherever whether which while
    who whoever whole whom whose why will with within without would yes yet you your yours yourself yourselves
    i'm i'd i'll i've you're you'd you'll you've he's he'd he'll she's she'd she'll it's it'd it'll we're we'd we'll
    we've they're they'd they'll they've that's there's here's what's who's where's how's let's isn't aren't wasn't
    weren't don't doesn't didn't haven't hasn't hadn't can't couldn't won't wouldn't shan't shouldn't mustn't
    """.split()
)
_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
TOO_FEW = "a response has too few key phrases for all levels"
NOTHING_ELSE = "a response has nothing but key phrases"


def key_phrases(text: str) -> list[str]:
    """The key phrases of a text, in lower case, the most important one first: rapid automatic keyword extraction.

    A phrase is a run of words between stop words and punctuation. A word scores the number of words in all phrases that
    it is in, itself included, by its number of occurrences; a phrase the sum of its words' scores. Of equal ones, the
    first comes first. The stop words are English; other languages are cut at their punctuation alone.

    See *Automatic Keyword Extraction from Individual Documents* (https://doi.org/10.1002/9780470689646.ch1).
    """
    phrases = [phrase.lower() for phrase, _, _ in _phrases(text)]
    occurrences, neighbours = Counter(), defaultdict(int)
    for phrase in phrases:
        words = _WORD.findall(phrase)
        occurrences.update(words)
        for word in words:
            neighbours[word] += len(words)
    score = {p: sum(neighbours[word] / occurrences[word] for word in _WORD.findall(p)) for p in dict.fromkeys(phrases)}
    return sorted(score, key=lambda phrase: -score[phrase])


def without(text: str, phrases: list[str]) -> str:
    """A text without all occurrences of some of its key phrases, and without the space before each."""
    gone, kept, end = set(phrases), [], 0
    for phrase, start, stop in _phrases(text):
        if phrase.lower() in gone:
            kept.append(text[end:start].rstrip(" "))
            end = stop
    return "".join(kept) + text[end:]


def graded(text: str, levels: int) -> list[str] | str:
    """Versions of a text with an increasing share of its key phrases left out, the most important ones first.

    Level j of J = levels - 1 lacks the first j / J of :func:`key_phrases`, rounded up; level 0 is the text itself.

    See *Self-supervised Preference Optimization: Enhance Your Language Model with Preference Degree Awareness*
    (https://arxiv.org/abs/2409.17791).

    Returns:
        The versions by level, all different, or why there are none.
    """
    phrases, last = key_phrases(text), levels - 1
    if len(phrases) < last:
        return TOO_FEW
    versions = [without(text, phrases[: -(-level * len(phrases) // last)]) for level in range(levels)]
    return versions if _WORD.search(versions[-1]) else NOTHING_ELSE


def degrees(*, levels: int = 4, chosen_weight: float = 1.0, rejected_weight: float = 1.0) -> Maker:
    """Rows of graded responses out of rows of pairs: ``prompt``, ``completion`` and ``degree``; see :func:`graded`.

    Args:
        levels: as many for each response, from 0, the response itself.
        chosen_weight, rejected_weight: weights of the rows of the one and the other response; 0 leaves them out.
    """
    options.whole("levels", levels, 2)
    weights = {"chosen_weight": chosen_weight, "rejected_weight": rejected_weight}
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise ConfigError(f"{name} is {weight!r}; expected a finite number, 0 or above.")

    def make(row: Row, place: int) -> Iterator[Row | str]:
        record = options.pair(row)
        if record.dropped:
            yield record.dropped
            return
        prompt, given = options.written(record.prompt), record.side.get("weight", 1.0)
        for response, weight in zip(record.responses, weights.values(), strict=True):
            versions = graded(options.last_words(response), levels) if weight else []
            if isinstance(versions, str):
                yield versions
                continue
            for degree, version in enumerate(versions):
                completion = options.written(options.replaced(response, version))
                yield {"prompt": prompt, "completion": completion, "degree": degree, "weight": weight * given}

    return make


def _phrases(text: str) -> Iterator[tuple[str, int, int]]:
    """(phrase, start, end) of every run of words that neither a stop word nor anything but spaces interrupts."""
    words = [match for match in _WORD.finditer(text) if match[0].lower().replace("\u2019", "'") not in STOP_WORDS]
    runs = []
    for match in words:
        if runs and not text[runs[-1][1] : match.start()].strip(" "):
            runs[-1][1] = match.end()
        else:
            runs.append([match.start(), match.end()])
    yield from ((text[start:stop], start, stop) for start, stop in runs)
