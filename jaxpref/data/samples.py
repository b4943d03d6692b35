"""Samples: further responses to an example's prompt, which a model gave.

Rows of pairs and demonstrations may have a list of them, ``samples``. They become the responses behind the row's own,
where an objective reads them; else they are a free field. Rows may have different numbers of samples, and none at all:
absent ones are empty responses, and so is a sample that the length rule drops.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxpref.batch import FIRST_SAMPLE, IDS
from jaxpref.data import fields, records
from jaxpref.data.examples import Ledger
from jaxpref.data.fields import Message, Text
from jaxpref.data.records import Record, Tokenized
from jaxpref.errors import DataError

FIELD = "samples"


def taken(group: Iterable[tuple[str, Record]], ledger: Ledger) -> list[tuple[str, Record]]:
    """Located records with the samples of their rows; a row whose field is no list of responses is a bad one."""
    found = []
    for origin, record in group:
        try:
            found.append((origin, _with_samples(record)))
        except DataError as error:
            ledger.bad(origin, error)
    return found


def joined(rows: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the samples that were drawn for their prompts.

    Args:
        rows: records with the field ``prompt``.
        lines: what ``jaxpref generate`` wrote: ``prompt`` and ``completion``.

    Raises:
        DataError: no line has the prompt of a row.
    """
    drawn: dict[str, list[Any]] = {}
    for line in lines:
        drawn.setdefault(_key(line["prompt"]), []).append(line["completion"])
    for number, row in enumerate(rows):
        if _key(row["prompt"]) not in drawn:
            raise DataError(f"row {number + 1}: no sample was drawn for its prompt; draw them from this file of rows.")
    return [{**row, FIELD: drawn[_key(row["prompt"])]} for row in rows]


def prepared(kind: str, examples: list[Tokenized], reads: Collection[str]) -> tuple[list[Tokenized], list[str]]:
    """Examples as objectives read them, all with as many responses, and what there is to know about it.

    Args:
        kind: of records, one of ``FIRST_SAMPLE``.
        examples: of a stream.
        reads: what objectives read beside the rows' own responses and numbers: ``samples``, and ``ids``, the place of
            each example in the data set.
    """
    notes: list[str] = []
    unread = sum(FIELD in example.meta for example in examples)
    if unread and FIELD not in reads:
        notes.append(f"{unread} of {len(examples)} examples have {FIELD!r}, which no objective reads.")
    if FIELD in reads:
        some = sum(len(example.responses) > FIRST_SAMPLE[kind] for example in examples)
        if some < len(examples):
            notes.append(f"{some} of {len(examples)} examples have samples.")
        most = max(len(example.responses) for example in examples)
        examples = [_filled(example, most) for example in examples]
    if IDS in reads:
        examples = [example._replace(side=example.side | {IDS: n}) for n, example in enumerate(examples)]
    return examples, notes


def _with_samples(record: Record) -> Record:
    if FIELD not in record.meta:
        return record
    given = record.meta[FIELD]
    if not isinstance(given, list | tuple) or not given:
        raise DataError(
            f"field {FIELD!r} is {fields.kind_of(given)}; expected a list of at least 1 response, like the row's own."
        )
    found = tuple(_sample(value, f"{FIELD}[{n}]", record.prompt) for n, value in enumerate(given))
    return record._replace(samples=found, meta={key: value for key, value in record.meta.items() if key != FIELD})


def _sample(value: Any, name: str, prompt: Text) -> Text:
    """A response, which may be empty: a model may have nothing to say."""
    if not isinstance(value, str):
        return records._response({name: value}, name, prompt)
    text = fields.text(value, name)
    return text if isinstance(prompt, str) else (Message("assistant", text),)


def _key(prompt: Any) -> str:
    return json.dumps(prompt, sort_keys=True)


def _filled(example: Tokenized, responses: int) -> Tokenized:
    absent = responses - len(example.responses)
    return example._replace(
        responses=example.responses + (np.zeros(0, np.int32),) * absent,
        masks=example.masks + (np.zeros(0, bool),) * absent,
    )
