"""Records to token examples: rendered by a template, tokenised, cut to length, and counted."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpref.batch import PROMPT_LENGTHS
from jaxpref.data import records, templates
from jaxpref.data.records import Record, Tokenized
from jaxpref.data.templates import Span, Template
from jaxpref.data.tokenizers import Tokenizer
from jaxpref.errors import ConfigError, DataError, hint

PROBLEMS_KEPT = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """The length rule of a run, in tokens; 0 means no limit.

    Attributes:
        prompt: longest prompt, beginning-of-sequence included.
        response: longest response, end-of-sequence included.
        prompt_keep: ``'end'`` keeps a long prompt's last tokens (and the beginning-of-sequence), ``'start'`` its first.
        response_keep: ``'start'`` keeps a long response's first tokens, and no end-of-sequence; ``'end'`` its last.
        on_long: ``'truncate'``, ``'drop'`` the whole example, or ``'error'``.
    """

    prompt: int = 0
    response: int = 0
    prompt_keep: str = "end"
    response_keep: str = "start"
    on_long: str = "truncate"

    def __post_init__(self):
        for name in ("prompt", "response"):
            value = getattr(self, name)
            if (
                not isinstance(value, int)
                or value < 0
                or (name == "prompt" and value == 1 and self.on_long == "truncate")
            ):
                raise ConfigError(
                    f"length.{name} is {value!r}; expected a number of tokens, at least 2, or 0 for no limit."
                )
        for name, allowed in (
            ("prompt_keep", ("start", "end")),
            ("response_keep", ("start", "end")),
            ("on_long", ("truncate", "drop", "error")),
        ):
            one_of(f"length.{name}", getattr(self, name), allowed)


class Ledger:
    """Counts what happens to rows; a bad row raises or is counted, as ``on_bad_row`` says."""

    def __init__(self, on_bad_row: str):
        self.skip = on_bad_row == "skip"
        self.read = self.skipped = 0
        self.dropped, self.truncated, self.problems = Counter(), Counter(), []
        self._widths: dict[str, int] = {}

    def bad(self, origin: str, error: DataError) -> None:
        if not self.skip:
            raise DataError(f"{origin}: {error}") from error
        self.skipped += 1
        if len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(f"{origin}: {error}")

    def check_widths(self, record: Record) -> None:
        """Raises DataError where a list of numbers is not as long as in the rows before."""
        for key in records.VECTORS:
            size = len(record.side.get(key, ()))
            if size and self._widths.setdefault(key, size) != size:
                expected = self._widths[key]
                raise DataError(f"field {key!r} holds {size} numbers; expected {expected}, as in the rows before it.")

    def counts(self, kept: int) -> dict[str, Any]:
        return {
            "read": self.read, "kept": kept, "skipped": self.skipped,
            "dropped": dict(self.dropped), "truncated": dict(self.truncated),
        }  # fmt: skip


def tokenise(
    group: list[tuple[str, Record]], tokenizer: Tokenizer, template: Template, rule: Lengths, ledger: Ledger
) -> list[Tokenized]:
    """Renders all records, tokenises every text once, and assembles the examples."""
    jobs, places = [], []
    for origin, record in group:
        try:
            texts = record.prompts or (record.prompt,)
            prompts = [template.prompt(text) for text in texts]
            given = record.responses + record.samples
            answers = [_answer(template, *both) for both in zip(itertools.cycle(texts), given, strict=False)]
        except DataError as error:
            ledger.bad(origin, error)
            continue
        places.append((origin, record, len(jobs)))
        jobs += [(prompt, False) for prompt in prompts]
        for prompt, answer in zip(itertools.cycle(prompts), answers, strict=False):
            jobs.append((answer, any(span.text for span in prompt)))
    encoded = templates.encode(tokenizer, jobs)
    examples = []
    for origin, record, first in places:
        parts = encoded[first : first + (len(record.prompts) or 1) + len(record.responses) + len(record.samples)]
        try:
            example = _assemble(origin, record, parts, tokenizer, template, rule, ledger)
        except DataError as error:
            ledger.bad(origin, error)
            continue
        if example is not None:
            examples.append(example)
    return examples


def _answer(template: Template, prompt: records.Text, response: Any) -> list[Span]:
    if not isinstance(response, list):
        return template.response(prompt, response)
    # Steps are tokenised one by one, so that each ends at a token.
    whole, spans = "".join(response), []
    written = template.response(prompt, whole)
    if not any(whole in span.text for span in written):
        raise DataError("the template changes the text of the steps; use another tokenizer.template.")
    for span in written:
        before, found, after = span.text.partition(whole)
        pieces = [before + response[0], *response[1:]] if found else [span.text]
        pieces[-1] += after
        spans += [span._replace(text=piece) for piece in pieces]
    return spans


def _assemble(
    origin, record: Record, parts, tokenizer: Tokenizer, template: Template, rule: Lengths, ledger: Ledger
) -> Tokenized | None:
    count, bos = len(record.prompts) or 1, [tokenizer.bos_id]
    written, answers = [ids for ids, *_ in parts[:count]], parts[count:]
    required = len(record.responses)
    if template.bos:
        written = [ids if ids[:1] == bos else bos + ids for ids in written]
    for prompt in written:
        _check_beginning(prompt, answers, tokenizer)
    longest = max((len(ids) for ids, *_ in answers[:required]), default=0)
    if not _fits({"prompt": max(map(len, written)), "response": longest}, rule, ledger):
        return None
    fitting = [sample for sample in answers[required:] if _fits({"sample": len(sample[0])}, rule, ledger)]
    answers = answers[:required] + fitting
    cuts = Counter()
    prompts = [_cut_prompt(prompt, rule, prompt[:1] == bos, cuts) for prompt in written]
    responses = [_cut(ids, rule.response, rule.response_keep) for ids, *_ in answers]
    masks = [_cut(mask, rule.response, rule.response_keep) for _, mask, _ in answers]
    for ids, *_ in answers:
        if rule.response and len(ids) > rule.response:
            lost = " (and lost its end-of-sequence token)" if rule.response_keep == "start" else ""
            cuts[f"a response was cut to its {'first' if lost else 'last'} {rule.response} tokens{lost}"] += 1
    if not all(map(any, masks[:required])):
        ledger.dropped["no target token left"] += 1
        return None
    if (record.prompts or required == 2) and _repeated(prompts, responses[:required]):
        whole = _repeated(written, [ids for ids, *_ in answers[:required]])
        ledger.dropped["identical responses" if whole else "identical responses after truncation"] += 1
        return None
    prompt, side, shown = prompts[0], record.side, {"prompt": _shown(record.prompt)}
    if record.prompts:
        prompt, own = _split_first(prompts)
        responses = [before + ids for before, ids in zip(own, responses, strict=True)]
        masks = [[True] * len(before) + mask for before, mask in zip(own, masks, strict=True)]
        side = side | {PROMPT_LENGTHS: np.array([len(before) for before in own], np.float32)}
        shown = {"prompts": tuple(map(_shown, record.prompts))}
    ledger.truncated.update(cuts)
    return Tokenized(
        np.array(prompt, np.int32),
        tuple(np.array(ids, np.int32) for ids in responses),
        tuple(np.array(mask, bool) for mask in masks),
        side,
        origin,
        record.meta | shown | {"responses": tuple(map(_shown, record.responses))} | _step_ends(record, answers, rule),
    )


def _repeated(prompts: list[list[int]], responses: list[list[int]]) -> bool:
    """Whether the same response stands twice under the same prompt."""
    distinct = {tuple(map(tuple, both)) for both in zip(itertools.cycle(prompts), responses, strict=False)}
    return len(distinct) < len(responses)


def _split_first(prompts: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """The one token with which prompts of their own begin, which nothing predicts, and the rest of each."""
    if len({prompt[0] for prompt in prompts}) > 1:
        raise DataError(
            "the prompts begin with different tokens, of which the first has no probability, and the tokenizer puts no "
            "beginning-of-sequence token before them; expected one, or another tokenizer.template, which begins alike."
        )
    return prompts[0][:1], [prompt[1:] for prompt in prompts]


def _check_beginning(prompt: list[int], answers, tokenizer: Tokenizer) -> None:
    bos = tokenizer.bos_id
    if not prompt:
        raise DataError(
            "field 'prompt' is empty, and the tokenizer has no beginning-of-sequence token; expected some text."
        )
    if bos in (None, tokenizer.eos_id):
        return
    if prompt.count(bos) > 1 or any(bos in ids for ids, *_ in answers):
        raise DataError(
            "the text has a second beginning-of-sequence token; remove the special tokens from it, or choose "
            "another template."
        )


def _fits(sizes: dict[str, int], rule: Lengths, ledger: Ledger) -> bool:
    """Whether parts of an example stay, be they cut later; one that is too long raises, or is dropped and counted."""
    for part, size in sizes.items():
        field = "prompt" if part == "prompt" else "response"
        allowed = getattr(rule, field)
        if not allowed or size <= allowed or rule.on_long == "truncate":
            continue
        if rule.on_long == "error":
            raise DataError(
                f"the {part} has {size} tokens; length.{field} allows {allowed} (length.on_long may be 'truncate' or "
                "'drop')."
            )
        ledger.dropped[f"{part} longer than {allowed} tokens"] += 1
        return False
    return True


def _cut_prompt(ids: list[int], rule: Lengths, has_bos: bool, cuts: Counter) -> list[int]:
    if not rule.prompt or len(ids) <= rule.prompt:
        return ids
    cuts[f"a prompt was cut to its {'last' if rule.prompt_keep == 'end' else 'first'} {rule.prompt} tokens"] += 1
    if rule.prompt_keep == "end" and has_bos:
        return ids[:1] + _cut(ids[1:], rule.prompt - 1, "end")
    return _cut(ids, rule.prompt, rule.prompt_keep)


def _cut(values: list, limit: int, keep: str) -> list:
    """The first or last ``limit`` values; all of them for limit 0."""
    if not limit or len(values) <= limit:
        return values
    return values[:limit] if keep == "start" else values[len(values) - limit :]


def _shown(text: Any) -> Any:
    """What evaluation reads: a string, or messages as plain dicts."""
    if isinstance(text, list):
        return "".join(text)
    return text if isinstance(text, str) else [{"role": message.role, "content": message.content} for message in text]


def _step_ends(record: Record, answers, rule: Lengths) -> dict[str, Any]:
    """For each response made of steps, the position of the last token of each step that is left."""
    if not any(isinstance(response, list) for response in record.responses):
        return {}
    ends = []
    for response, (ids, mask, spans) in zip(record.responses, answers, strict=True):
        first = mask.index(True)
        limit = rule.response or len(ids)
        lost = len(ids) - limit if rule.response_keep == "end" and len(ids) > limit else 0
        last = [*[end for end in spans if end > first][: len(response) - 1], len(ids)]
        ends.append(tuple(end - 1 - lost for end in last if lost < end <= lost + limit))
    return {"step_ends": tuple(ends)}


def one_of(path: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{path} is {value!r}; {hint(value, allowed)}")
