"""Records made of other material: pairs out of treatments, of instructions, and of scored completions.

Pure functions on rows as a file holds them. What they return, :func:`jaxpref.data.records.parse` reads.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpref.errors import DataError, hint

Row = dict[str, Any]


def counterfactual_pairs(
    control_prompt: Any,
    treatment_prompt: Any,
    control_response: Any,
    treatment_response: Any,
    undesired_response: Any = None,
    *,
    mode: str = "encourage",
) -> Row:
    """One pair out of a response to a neutral prompt (control) and one to a prompt that asks for a style (treatment).

    ============  ================  ===================  ====================
    mode          prompt            chosen               rejected
    ============  ================  ===================  ====================
    encourage     control           treatment response   control response
    discourage    control           control response     treatment response
    contrastive   control           treatment response   undesired response
    negation      treatment         control response     treatment response
    ============  ================  ===================  ====================

    Nobody has to label anything. A policy is trained on the prompt of the table, whichever prompt the response was
    generated from; negation teaches it to ignore the instruction. The loss is plain DPO.

    See *Aligning Large Language Models with Counterfactual DPO* (https://arxiv.org/abs/2401.09566).

    Args:
        control_prompt, treatment_prompt: text or messages.
        control_response, treatment_response: what a model answered to each.
        undesired_response: of ``contrastive``, the answer to a prompt that asks for the opposite.
        mode: a row of the table.

    Returns:
        ``{"prompt", "chosen", "rejected"}``. A reader drops the pair where both responses are the same.

    Raises:
        DataError: an unknown mode, or ``contrastive`` without an undesired response.
    """
    table = {
        "encourage": (control_prompt, treatment_response, control_response),
        "discourage": (control_prompt, control_response, treatment_response),
        "contrastive": (control_prompt, treatment_response, undesired_response),
        "negation": (treatment_prompt, control_response, treatment_response),
    }
    if mode not in table:
        raise DataError(f"mode is {mode!r}, which does not exist; {hint(mode, table)}")
    if mode == "contrastive" and undesired_response is None:
        raise DataError("mode is 'contrastive', which needs undesired_response.")
    return dict(zip(("prompt", "chosen", "rejected"), table[mode], strict=True))


class Instruction(NamedTuple):
    """An instruction that a rule can check.

    Attributes:
        text: what a prompt says.
        check: ``response -> bool``, whether a response follows it.
    """

    text: str
    check: Callable[[str], bool]


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
    pairs = []
    for number, row in enumerate(rows):
        scores, count = np.asarray(row["scores"], float), len(row["completions"])
        if scores.shape != (count,) or count < 2 or not np.all(np.isfinite(scores)):
            raise DataError(
                f"row {number}: field 'scores' is {row['scores']!r} beside {count} completions; expected at least two "
                "completions and a finite number for each."
            )
        best = int(np.argmax(scores))
        lower = np.flatnonzero(scores < scores[best])
        if not lower.size:
            continue
        other = int(lower[np.random.default_rng((seed, number)).integers(lower.size)])
        kept = {key: value for key, value in row.items() if key not in ("completions", "scores")}
        pairs.append(
            kept
            | {
                "chosen": row["completions"][best],
                "rejected": row["completions"][other],
                "chosen_score": float(scores[best]),
                "rejected_score": float(scores[other]),
                "margin": float(scores[best] - scores[other]),
            }
        )
    return pairs, len(rows) - len(pairs)
