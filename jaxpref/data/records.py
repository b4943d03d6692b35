"""Record types: what a row of preference data may look like, read into one normal form.

================ =====================================================================================
kind             fields of a row
================ =====================================================================================
demonstrations   ``messages`` or ``prompt``, ``completion``
pairs            ``prompt``, ``chosen``, ``rejected``, or two Anthropic HH transcripts ``chosen``, ``rejected``
unpaired         ``prompt``, ``completion``, ``label``, or ``messages``, ``label``
ranked           ``prompt``, ``completions``, and ``scores`` or ``ranks`` (1 is best); read best first
joint            ``chosen_prompt``, ``chosen``, ``rejected_prompt``, ``rejected``; or ``response`` in the place of both
                 responses; or a row of pairs
crossed          ``hi_prompt``, ``lo_prompt``, ``chosen``, ``rejected``: both responses under both prompts
graded           ``prompt``, ``completion``, ``degree``: how much of a response is left out, 0 for nothing
steps            ``prompt``, ``completions`` (or ``steps``), ``labels``; or ``prompt``, ``chosen``, ``rejected`` as
                 lists of steps, after the given ``steps`` where there are any
prompts          ``prompt`` or ``messages``
================ =====================================================================================

Every prompt and response is a string or a list of messages. A file of pairs also serves as demonstrations (the chosen
response), as unpaired data (two rows a pair) and as prompts. Rows of pairs and demonstrations may have ``samples``, a
list of further responses that a model gave to the prompt (:mod:`jaxpref.data.samples`).
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxpref.data import fields
from jaxpref.data.fields import Message, Text
from jaxpref.data.transcripts import ASSISTANT
from jaxpref.errors import DataError

KINDS = ("demonstrations", "pairs", "unpaired", "ranked", "joint", "crossed", "graded", "steps", "prompts")

# Numbers that objectives may read; a row's other fields go to ``meta``.
NUMBERS = {
    "weight": float, "user_id": int, "margin": float, "tie": bool, "chosen_score": float, "rejected_score": float,
    "chosen_win_prob": float, "rejected_win_prob": float, "preference_strength": float, "prob_desirable": float,
    "degree": int,
}  # fmt: skip
# Lists of numbers, as long in every row of a stream, and the only numbers in them where there are any such.
VECTORS = {"prefers": (1.0, -1.0), "prompt_embedding": ()}
SIDES = {
    "demonstrations": ("weight", "user_id"),
    "pairs": (*(name for name in NUMBERS if name not in ("prob_desirable", "degree")), *VECTORS),
    "unpaired": ("weight", "user_id", "prob_desirable", "prompt_embedding"),
    "ranked": ("weight", "user_id"),
    "joint": ("weight", "user_id"),
    "crossed": ("weight", "user_id"),
    "graded": ("weight", "user_id", "degree"),
    "steps": ("weight", "user_id"),
    "prompts": (),
}


class Tokenized(NamedTuple):
    """One example as tokens.

    Attributes:
        prompt: ``[P]`` int32, at least one token (beginning-of-sequence counts).
        responses: each ``[n]`` int32; ends with the end-of-turn or end-of-sequence token unless it was truncated.
        masks: each ``[n]`` bool, which response tokens are targets (False on the other side's turns).
        side: numbers that objectives read: label, margin, weight, tie, chosen_score, ...
        origin: where the row came from: ``'pairs.jsonl:17'``.
        meta: for evaluation: ``prompt`` and ``responses`` as they were written, and the row's free fields.
    """

    prompt: np.ndarray
    responses: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]
    side: dict[str, Any]
    origin: str
    meta: dict[str, Any] = {}


class Record(NamedTuple):
    """One example in normal form.

    Attributes:
        prompt: text, or the messages before the responses.
        responses: text, messages (from an assistant's turn to an assistant's turn), or a list of steps.
        side: numbers that objectives read.
        meta: the row's free fields.
        dropped: why a well-formed row is of no use; empty for a useful one.
        prompts: of each response, where responses have prompts of their own; ``prompt`` is empty then.
        samples: further responses to the prompt, of which an example may lack any (:mod:`jaxpref.data.samples`).
    """

    prompt: Text
    responses: tuple[Text | list[str], ...]
    side: dict[str, Any]
    meta: dict[str, Any]
    dropped: str = ""
    prompts: tuple[Text, ...] = ()
    samples: tuple[Text, ...] = ()


def parse(kind: str, row: Any, *, step_separator: str = "\n") -> list[Record]:
    """Reads one row: usually one record, two where a pair serves as unpaired data.

    Args:
        kind: one of ``KINDS``.
        row: an object with named fields.
        step_separator: put between steps.

    Raises:
        DataError: a field is missing, of the wrong type or empty; the message names the field, not the row.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"the row is {fields.kind_of(row)}; expected an object with named fields.")
    row = {key: value for key, value in row.items() if value is not None}
    used, records = _steps(row, step_separator) if kind == "steps" else _READERS[kind](row)
    given = [name for name in SIDES[kind] if name in row]
    side = {name: fields.number(row[name], name, NUMBERS[name]) for name in given if name in NUMBERS}
    side |= {name: fields.numbers(row[name], name, VECTORS[name]) for name in given if name in VECTORS}
    meta = {key: value for key, value in row.items() if key not in used and key not in side}
    return [record._replace(side=side | record.side, meta=meta | record.meta) for record in records]


def _demonstration(row: Mapping) -> tuple[set[str], list[Record]]:
    if "completion" in row:
        prompt = _prompt(row)
        return {*_prompt_fields(row), "completion"}, [_record(prompt, _response(row, "completion", prompt))]
    if "chosen" in row or "chosen_messages" in row:
        return _pair(row, lone=True)
    if name := _messages_field(row):
        prompt, response = _split_at_first_answer(fields.messages(row[name], name), name)
        return {name}, [_record(prompt, response)]
    raise fields.missing(row, "messages' or 'completion")


def _pair(row: Mapping, lone: bool = False) -> tuple[set[str], list[Record]]:
    """A pair, or with ``lone`` its chosen response alone."""
    names = [
        name + "_messages" if name + "_messages" in row and name not in row else name for name in ("chosen", "rejected")
    ]
    used, names = {*names, *_prompt_fields(row)}, names[: 1 if lone else 2]
    for name in names:
        if name not in row:
            raise fields.missing(row, name)
    whole = isinstance(row.get("prompt"), str) and all(_is_conversation(row.get(name)) for name in names)
    if _prompt_fields(row) and not whole:
        prompt = _prompt(row)
        responses = tuple(_response(row, name, prompt) for name in names)
        return used, [_record(prompt, *responses, dropped=_same(responses))]
    if all(isinstance(row[name], str) for name in names):
        return used, [_transcripts(*(fields.text(row[name], name) for name in names))]
    turns = [fields.messages(row[name], name) for name in names]
    for name, value in zip(names, turns, strict=True):
        if value[-1].role != "assistant":
            raise DataError(f"field {name!r} ends with a turn of the {value[-1].role}; expected the assistant's.")
    # Whole messages are compared, so that this prefix cannot eat the beginning of an answer.
    same = next(
        (n for n, together in enumerate(zip(*turns, strict=False)) if len(set(together)) > 1), min(map(len, turns)) - 1
    )
    if whole and row["prompt"].strip() not in [message.content.strip() for message in turns[0][:same]]:
        raise DataError(
            "field 'prompt' is none of the turns with which 'chosen' and 'rejected' begin; expected the same prompt."
        )
    if any(value[same].role != "assistant" for value in turns):
        return used, [_record(turns[0][:same], "", "", dropped="prompts differ")]
    return used, [_record(turns[0][:same], *(value[same:] for value in turns), dropped=_same(turns))]


def _is_conversation(value: Any) -> bool:
    """Whether a response repeats its prompt: messages that do not begin with the assistant's."""
    first = value[0] if isinstance(value, list | tuple) and value else None
    return isinstance(first, Mapping) and first.get("role", first.get("from")) in ("system", "user", "human")


def _transcripts(*texts: str) -> Record:
    """A record of one or two Anthropic HH transcripts, each split at its last assistant's turn."""
    if not all(ASSISTANT in text for text in texts):
        raise DataError(
            "field 'prompt' is missing; expected 'prompt', or transcripts with '\\n\\nHuman:' and "
            "'\\n\\nAssistant:' in 'chosen' "
            "and 'rejected' (the common beginning of two texts is never taken for a prompt)."
        )
    cuts = [text.rfind(ASSISTANT) + len(ASSISTANT) for text in texts]
    prompts = [text[:cut] for text, cut in zip(texts, cuts, strict=True)]
    responses = [text[cut:] for text, cut in zip(texts, cuts, strict=True)]
    dropped = "prompts differ" if len(set(prompts)) > 1 else _same(responses)
    if not dropped:
        for name, response in zip(("chosen", "rejected"), responses, strict=False):
            fields.not_empty(response, name)
    return _record(prompts[0], *responses, dropped=dropped)


def _unpaired(row: Mapping) -> tuple[set[str], list[Record]]:
    if "label" not in row:
        if "chosen" in row and "rejected" in row:
            used, (pair,) = _pair(row)
            both = zip(pair.responses, (1.0, 0.0), strict=True)
            return used, [pair._replace(responses=(response,), side={"label": label}) for response, label in both]
        raise fields.missing(row, "label")
    side = {"label": float(fields.number(row["label"], "label", bool))}
    if "prompt" not in row and (name := _messages_field(row)):
        turns = fields.messages(row[name], name)
        if len(turns) < 2 or turns[-1].role != "assistant":
            raise DataError(
                f"field {name!r} ends without an answer; expected a turn of the assistant after its prompt."
            )
        return {name, "label"}, [_record(turns[:-1], turns[-1:], side=side)]
    prompt = _prompt(row)
    return {*_prompt_fields(row), "completion", "label"}, [
        _record(prompt, _response(row, "completion", prompt), side=side)
    ]


def _ranked(row: Mapping) -> tuple[set[str], list[Record]]:
    prompt, completions = _prompt(row), row.get("completions")
    if completions is None:
        raise fields.missing(row, "completions")
    if not isinstance(completions, list | tuple) or len(completions) < 2:
        raise DataError(
            f"field 'completions' is {fields.kind_of(completions)}; expected a list of at least 2 responses."
        )
    name = next((name for name in ("scores", "ranks") if name in row), None)
    if name is None:
        raise fields.missing(row, "scores' or 'ranks")
    if not isinstance(row[name], list | tuple) or len(row[name]) != len(completions):
        raise DataError(
            f"field {name!r} is {fields.kind_of(row[name])}; expected {len(completions)} numbers, one a completion."
        )
    values = np.array([fields.number(value, name, float) for value in row[name]], np.float32)
    responses = [_response({f"completions[{n}]": c}, f"completions[{n}]", prompt) for n, c in enumerate(completions)]
    scores = values if name == "scores" else -values
    best_first = np.argsort(-scores, kind="stable")
    record = _record(prompt, *(responses[n] for n in best_first), side={"scores": scores[best_first]})
    return {*_prompt_fields(row), "completions", name}, [record]


def _joint(row: Mapping) -> tuple[set[str], list[Record]]:
    """A response under its prompt against another one, or the same, under another prompt."""
    if row.keys().isdisjoint(("chosen_prompt", "rejected_prompt")):
        used, (pair,) = _pair(row)
        return used, [pair._replace(prompt="", prompts=(pair.prompt,) * 2)]
    responses = ("response",) * 2 if "response" in row and "chosen" not in row else ("chosen", "rejected")
    return _under_own_prompts(row, zip(("chosen_prompt", "rejected_prompt"), responses, strict=True))


def _crossed(row: Mapping) -> tuple[set[str], list[Record]]:
    return _under_own_prompts(row, itertools.product(("hi_prompt", "lo_prompt"), ("chosen", "rejected")))


def _under_own_prompts(row: Mapping, names: Iterable[tuple[str, str]]) -> tuple[set[str], list[Record]]:
    """A record of responses with prompts of their own, by the names of both."""
    names = list(names)
    prompts = tuple(_prompt(row, name) for name, _ in names)
    responses = [_response(row, name, prompt) for (_, name), prompt in zip(names, prompts, strict=True)]
    return {name for both in names for name in both}, [_record("", *responses)._replace(prompts=prompts)]


def _graded(row: Mapping) -> tuple[set[str], list[Record]]:
    if "degree" not in row:
        raise fields.missing(row, "degree")
    prompt = _prompt(row)
    return {*_prompt_fields(row), "completion"}, [_record(prompt, _response(row, "completion", prompt))]


def _steps(row: Mapping, separator: str) -> tuple[set[str], list[Record]]:
    prompt = _prompt(row)
    if not isinstance(prompt, str):
        raise DataError("field 'prompt' holds messages; expected a string beside steps.")
    if "chosen" in row or "rejected" in row:
        before = "".join(step + separator for step in _step_list(row, "steps")) if "steps" in row else ""
        both = [_separated(_step_list(row, name), separator) for name in ("chosen", "rejected")]
        return {"prompt", "steps", "chosen", "rejected"}, [_record(prompt + before, *both, dropped=_same(both))]
    name = "completions" if "completions" in row else "steps"
    steps, labels = _step_list(row, name), row.get("labels")
    if labels is None:
        raise fields.missing(row, "labels")
    if not isinstance(labels, list | tuple) or len(labels) != len(steps):
        raise DataError(f"field 'labels' is {fields.kind_of(labels)}; expected {len(steps)} labels, one for each step.")
    numbers = (int(label) if isinstance(label, bool) else label for label in labels)
    values = tuple(fields.number(label, "labels", float) for label in numbers)
    return {"prompt", name, "labels"}, [
        _record(prompt, _separated(steps, separator))._replace(meta={"step_labels": values})
    ]


def _separated(steps: list[str], separator: str) -> list[str]:
    return [step + separator for step in steps[:-1]] + steps[-1:]


def _prompts(row: Mapping) -> tuple[set[str], list[Record]]:
    if _prompt_fields(row):
        return set(_prompt_fields(row)), [_record(_prompt(row))]
    if "chosen" in row:
        used, (pair,) = _pair(row, lone=True)
        return used, [pair._replace(responses=())]
    raise fields.missing(row, "prompt")


_READERS = {
    "demonstrations": _demonstration,
    "pairs": _pair,
    "unpaired": _unpaired,
    "ranked": _ranked,
    "joint": _joint,
    "crossed": _crossed,
    "graded": _graded,
    "prompts": _prompts,
}


def _record(prompt: Text, *responses: Text | list[str], side: dict | None = None, dropped: str = "") -> Record:
    return Record(prompt, responses, side or {}, {}, dropped)


def _same(responses) -> str:
    return "identical responses" if len(responses) == 2 and responses[0] == responses[1] else ""


def _messages_field(row: Mapping) -> str | None:
    return next((name for name in ("messages", "conversations") if name in row), None)


def _prompt_fields(row: Mapping) -> list[str]:
    return ["prompt"] if "prompt" in row else [name] if (name := _messages_field(row)) else []


def _prompt(row: Mapping, name: str = "") -> Text:
    """The prompt in the field of a name, or in that of whichever name prompts have."""
    name = name or next(iter(_prompt_fields(row)), "prompt")
    if name not in row:
        raise fields.missing(row, name)
    if isinstance(row[name], str):
        return fields.text(row[name], name)
    turns = fields.messages(row[name], name)
    if turns[-1].role == "assistant":
        raise DataError(
            f"field {name!r} ends with a turn of the assistant; expected the user's, which the response answers."
        )
    return turns


def _response(row: Mapping, name: str, prompt: Text) -> Text:
    """A response in the prompt's form: text to text, messages to messages."""
    if name not in row:
        raise fields.missing(row, name)
    value = row[name]
    if isinstance(value, str):
        text = fields.not_empty(fields.text(value, name), name)
        return text if isinstance(prompt, str) else (Message("assistant", text),)
    turns = fields.messages(value, name)
    if turns[0].role != "assistant" or turns[-1].role != "assistant":
        raise DataError(f"field {name!r} must begin and end with a turn of the assistant.")
    if isinstance(prompt, str):
        raise DataError(
            f"field {name!r} holds messages, but 'prompt' is a string; expected both as messages or both as strings."
        )
    return turns


def _split_at_first_answer(turns: tuple[Message, ...], name: str) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    answers = [n for n, message in enumerate(turns) if message.role == "assistant" and message.trained]
    if not answers:
        raise DataError(f"field {name!r} has no turn of the assistant to learn from; expected at least one.")
    if turns[-1].role != "assistant":
        raise DataError(f"field {name!r} ends with a turn of the {turns[-1].role}; expected the assistant's.")
    if answers[0] == 0:
        raise DataError(f"field {name!r} begins with a turn of the assistant; expected a prompt before it.")
    return turns[: answers[0]], turns[answers[0] :]


def _step_list(row: Mapping, name: str) -> list[str]:
    if name not in row:
        raise fields.missing(row, name)
    if not isinstance(row[name], list | tuple) or not row[name]:
        raise DataError(f"field {name!r} is {fields.kind_of(row[name])}; expected a list of steps, each a string.")
    return [fields.not_empty(fields.text(step, f"{name}[{n}]"), f"{name}[{n}]") for n, step in enumerate(row[name])]
