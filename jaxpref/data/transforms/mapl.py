"""Multi-level aware preferences: instructions that a rule can check, added to the prompts of pairs."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxpref.data import records
from jaxpref.data.examples import one_of
from jaxpref.data.transforms import options
from jaxpref.data.transforms.instructions import DEFAULT, Instruction, load
from jaxpref.data.transforms.options import Maker, Row
from jaxpref.errors import ConfigError, DataError

RELATIONS = ("all", "any")
RESPONSES = ("chosen", "rejected")


def mapl_intra_pair(
    prompt: str,
    response: str,
    instructions: Sequence[Instruction],
    *,
    count: int,
    rng: np.random.Generator,
    relation: str = "all",
    separator: str = "\n",
) -> Row | None:
    """Two prompts for one response, of which it fulfils the first better: multi-level aware preference learning.

    Both prompts get ``count`` of the instructions, in random order. With ``relation="all"`` the response follows all of
    the chosen prompt's and not all of the rejected prompt's; with ``"any"`` it follows at least one of the chosen
    prompt's and none of the rejected prompt's.

    See *Multi-Level Aware Preference Learning: Enhancing RLHF for Complex Multi-Instruction Tasks*
    (https://arxiv.org/abs/2505.12845).

    Args:
        prompt, response: texts; the response of any pair, chosen or rejected.
        instructions: what may be asked for.
        count: instructions in each prompt, >= 1.
        rng: draws them.
        relation: ``all`` or ``any``.
        separator: put before each instruction.

    Returns:
        ``{"chosen_prompt", "rejected_prompt", "response"}``, or None where the instructions do not suffice.
    """
    if relation not in ("all", "any"):
        raise DataError(f"relation is {relation!r}; expected 'all' or 'any'.")
    drawn = [instructions[n] for n in rng.permutation(len(instructions))]
    followed = [one for one in drawn if one.check(response)]
    broken = [one for one in drawn if not one.check(response)]
    if relation == "all":
        # One broken instruction at least, and whatever was drawn first for the rest.
        chosen, others = followed[:count], [one for one in drawn if one is not broken[0]] if broken else []
        rejected = broken[:1] + others[: count - 1]
    else:
        others = [one for one in drawn if one is not followed[0]] if followed else []
        chosen, rejected = followed[:1] + others[: count - 1], broken[:count]
    if min(len(chosen), len(rejected)) < count:
        return None
    prompts = [_instructed(prompt, asked, separator, rng) for asked in (chosen, rejected)]
    return {"chosen_prompt": prompts[0], "rejected_prompt": prompts[1], "response": response}


def mapl_inter_pair(
    prompt: str,
    chosen: str,
    rejected: str,
    instructions: Sequence[Instruction],
    *,
    count: int,
    rng: np.random.Generator,
    separator: str = "\n",
) -> Row | None:
    """Two prompts for one pair, of which the first tells its responses apart more: multi-level aware preferences.

    An instruction widens the gap of a pair where only the chosen response follows it, and narrows it where only the
    rejected one does. The first prompt gets the ``count`` instructions that widen it most, the second those that narrow
    it most; ties are drawn.

    See *Multi-Level Aware Preference Learning: Enhancing RLHF for Complex Multi-Instruction Tasks*
    (https://arxiv.org/abs/2505.12845).

    Args:
        prompt, chosen, rejected: texts of a pair.
        instructions: what may be asked for.
        count: instructions in each prompt, >= 1.
        rng: draws among instructions that do the same to the gap.
        separator: put before each instruction.

    Returns:
        ``{"hi_prompt", "lo_prompt", "chosen", "rejected"}``, or None where no two such prompts differ in their gap.
    """
    drawn = [instructions[n] for n in rng.permutation(len(instructions))]
    ordered = sorted(drawn, key=lambda one: one.check(rejected) - one.check(chosen))
    high, low = ordered[:count], ordered[::-1][:count]
    gaps = [sum(one.check(chosen) - one.check(rejected) for one in asked) for asked in (high, low)]
    if len(ordered) < count or gaps[0] == gaps[1]:
        return None
    prompts = [_instructed(prompt, asked, separator, rng) for asked in (high, low)]
    return {"hi_prompt": prompts[0], "lo_prompt": prompts[1], "chosen": chosen, "rejected": rejected}


def _instructed(prompt: str, instructions: list[Instruction], separator: str, rng: np.random.Generator) -> str:
    return prompt + "".join(separator + instructions[n].text for n in rng.permutation(len(instructions)))


def intra(
    *,
    count: int = 2,
    relation: str = "all",
    response: str = "chosen",
    instructions: Sequence[str] = DEFAULT,
    separator: str = "\n",
    seed: int = 0,
) -> Maker:
    """Rows of joint pairs out of rows of pairs; see :func:`mapl_intra_pair`.

    Args:
        count: instructions in each prompt.
        relation: ``all`` or ``any``.
        response: ``chosen`` or ``rejected``, the response of the pair that is taken.
        instructions: names of what may be asked for.
        separator: put before each instruction.
        seed: of the draws.
    """
    asked = _checked(instructions, count, seed)
    one_of("relation", relation, RELATIONS)
    one_of("response", response, RESPONSES)

    def make(row: Row, place: int) -> Iterator[Row | str]:
        record = options.pair(row)
        if record.dropped:
            yield record.dropped
            return
        answer = record.responses[RESPONSES.index(response)]
        made = mapl_intra_pair(
            options.last_words(record.prompt),
            options.last_words(answer),
            asked,
            count=count,
            rng=options.drawing(seed, place),
            relation=relation,
            separator=separator,
        )
        if made is None:
            yield "the response follows too many of the instructions, or too few"
            return
        yield _prompted(record, made, "chosen_prompt", "rejected_prompt") | {"response": options.written(answer)}

    return make


def inter(*, count: int = 2, instructions: Sequence[str] = DEFAULT, separator: str = "\n", seed: int = 0) -> Maker:
    """Rows of crossed pairs out of rows of pairs; see :func:`mapl_inter_pair`, and :func:`intra` for the options."""
    asked = _checked(instructions, count, seed)

    def make(row: Row, place: int) -> Iterator[Row | str]:
        record = options.pair(row)
        if record.dropped:
            yield record.dropped
            return
        texts = map(options.last_words, (record.prompt, *record.responses))
        drawing = options.drawing(seed, place)
        made = mapl_inter_pair(*texts, asked, count=count, rng=drawing, separator=separator)
        if made is None:
            yield "no instructions tell the two responses apart"
            return
        responses = dict(zip(RESPONSES, map(options.written, record.responses), strict=True))
        yield _prompted(record, made, "hi_prompt", "lo_prompt") | responses

    return make


def _checked(names: Sequence[str], count: int, seed: int) -> tuple[Instruction, ...]:
    asked = load(names)
    options.whole("seed", seed, 0)
    options.whole("count", count, 1)
    if count > len(asked):
        raise ConfigError(f"count is {count}, but there are {len(asked)} instructions to choose from.")
    return asked


def _prompted(record: records.Record, made: Row, *names: str) -> Row:
    """The other fields of the row, and the new prompts in the form of the old one."""
    prompts = {name: options.written(options.replaced(record.prompt, made[name])) for name in names}
    return record.meta | record.side | prompts
