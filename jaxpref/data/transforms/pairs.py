"""Pairs out of responses that nobody has compared, and out of votes on two responses; numbers for annotators."""

from collections.abc import Iterator, Sequence
from typing import Any

from jaxpref.data import fields
from jaxpref.data.examples import one_of
from jaxpref.data.transforms.options import Maker, Row
from jaxpref.errors import ConfigError, DataError, hint

MODES = ("encourage", "discourage", "contrastive", "negation")


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


def counterfactual(*, mode: str = "encourage") -> Maker:
    """Rows of pairs out of rows with the arguments of :func:`counterfactual_pairs` as fields."""
    one_of("mode", mode, MODES)
    names = ["control_prompt", "treatment_prompt", "control_response", "treatment_response"]
    names += ["undesired_response"] if mode == "contrastive" else []

    def make(row: Row, place: int) -> Iterator[Row]:
        for name in names:
            if name not in row:
                raise fields.missing(row, name)
        rest = {key: value for key, value in row.items() if key not in (*names, "undesired_response")}
        yield rest | counterfactual_pairs(**{name: row[name] for name in names}, mode=mode)

    return make


def comparison(*, first: Any = "a", second: Any = "b", tie: Any = "tie") -> Maker:
    """Rows of pairs out of votes: ``prompt``, ``response_a``, ``response_b`` and ``winner``, or ``probability_a``.

    ``probability_a`` is the probability that the first response is the better one, or several that are averaged, such
    as those of a judge that sees the responses in both orders. The pair then has a ``preference_strength``; with a
    winner it has ``tie``.

    Args:
        first, second, tie: what ``winner`` says where the first response wins, the second, or neither.
    """
    verdicts = [verdict for each in (first, second, tie) for verdict in _several(each)]
    if len(set(verdicts)) < len(verdicts):
        raise ConfigError(f"first, second and tie are {first!r}, {second!r} and {tie!r}; expected different words.")

    def make(row: Row, place: int) -> Iterator[Row]:
        for name in ("response_a", "response_b"):
            if name not in row:
                raise fields.missing(row, name)
        if "winner" in row:
            if row["winner"] not in verdicts:
                raise DataError(f"field 'winner' is {fields.kind_of(row['winner'])}; {hint(row['winner'], verdicts)}")
            swapped, said = row["winner"] in _several(second), {"tie": row["winner"] in _several(tie)}
        elif "probability_a" in row:
            strength = _probability(row["probability_a"])
            swapped, said = strength < 0.5, {"preference_strength": max(strength, 1 - strength)}
        else:
            raise fields.missing(row, "winner' or 'probability_a")
        responses = (row["response_b"], row["response_a"]) if swapped else (row["response_a"], row["response_b"])
        used = ("response_a", "response_b", "winner", "probability_a")
        rest = {key: value for key, value in row.items() if key not in used}
        yield rest | dict(zip(("chosen", "rejected"), responses, strict=True)) | said

    return make


def annotators(*, names: Sequence[str] = ()) -> Maker:
    """The same rows with a number for the annotator that ``user_id`` names: the place in ``names``, from 0 on.

    A list in the config gives an annotator the same number in every stream, file and run.
    """
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise ConfigError(f"names is {names!r}; expected a list of different names of annotators.")
    places = {name: place for place, name in enumerate(names)}

    def make(row: Row, place: int) -> Iterator[Row]:
        if "user_id" not in row:
            raise fields.missing(row, "user_id")
        if not isinstance(row["user_id"], str | int) or row["user_id"] not in places:
            raise DataError(f"field 'user_id' is {fields.kind_of(row['user_id'])}; {hint(row['user_id'], places)}")
        yield row | {"user_id": places[row["user_id"]]}

    return make


def _several(words: Any) -> tuple[Any, ...]:
    return tuple(words) if isinstance(words, list | tuple) else (words,)


def _probability(value: Any) -> float:
    """The mean of one or several probabilities."""
    values = [fields.number(each, "probability_a", float) for each in _several(value)]
    if not values or not all(0 <= each <= 1 for each in values):
        raise DataError(f"field 'probability_a' is {value!r}; expected numbers between 0 and 1.")
    return sum(values) / len(values)
