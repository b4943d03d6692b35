"""Chat templates: a record becomes spans of text, of which each is tokenised by itself.

A prompt and a response are never tokenised together: their tokens are concatenated. So no token straddles the boundary,
nothing is cut off a word, and training sees the prompt exactly as generation will.

=============== ====================================================================================================
template        writes
=============== ====================================================================================================
none            texts as they are, one after another, with an end-of-sequence token after each answer
chatml          ``<|im_start|>role`` newline, the content, the end of the turn, newline
human-assistant ``\\n\\nHuman: ...\\n\\nAssistant: ...`` as in Anthropic HH, an end-of-sequence token after an answer
tokenizer       what the tokenizer's own Jinja template writes
=============== ====================================================================================================

The end of a turn in *chatml* is the token ``<|im_end|>`` where the vocabulary has it, else end-of-sequence. In *chatml*
and *human-assistant* the text of a special token inside a message is only text; in *none* and *tokenizer* it stands for
the token.
"""

import datetime
import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxpref.data.records import Message, Text
from jaxpref.data.tokenizers import Tokenizer
from jaxpref.data.transcripts import HUMAN, transcript_messages
from jaxpref.errors import ConfigError, DataError

NAMES = ("none", "chatml", "human-assistant", "tokenizer")


class Span(NamedTuple):
    """A piece of a rendered record.

    Attributes:
        text: to be tokenised by itself; empty where ``ids`` are given.
        trained: whether its tokens are targets.
        markup: whether the text of a special token stands for that token.
        ids: tokens that end a turn, left out where the text before already ended with them.
    """

    text: str
    trained: bool = False
    markup: bool = False
    ids: tuple[int, ...] = ()


class Template(NamedTuple):
    """How records become spans.

    Attributes:
        name: one of ``NAMES``.
        prompt: text or messages -> spans up to where the answer begins.
        response: (prompt, response) -> spans of the answer, the last one ending its turn.
        bos: whether a beginning-of-sequence token is put first, unless the text has one.
        stop_ids: tokens at which generation stops.
    """

    name: str
    prompt: Callable[[Text], list[Span]]
    response: Callable[[Text, Text], list[Span]]
    bos: bool
    stop_ids: tuple[int, ...]


class _Turns(NamedTuple):
    """A template made of turns.

    Attributes:
        headers: text before the content, by role.
        gap: text between header and content, tokenised together with the content.
        ends: tokens after the content, by role.
        footer: text between the end of a turn and the next header.
        markup: whether special tokens may be written as text inside messages.
    """

    headers: dict[str, str]
    gap: str
    ends: dict[str, tuple[int, ...]]
    footer: str = ""
    markup: bool = False


def load(name: str, tokenizer: Tokenizer) -> Template:
    """The template of a name.

    Raises:
        ConfigError: unknown name.
        DataError: ``'tokenizer'`` for a tokenizer without a chat template.
    """
    eos, roles = (tokenizer.eos_id,), ("system", "user", "assistant", "tool")
    if name == "none":
        turns = _Turns(dict.fromkeys(roles, ""), "", {"assistant": eos}, markup=True)
    elif name == "chatml":
        end = (tokenizer.special.get("<|im_end|>", tokenizer.eos_id),)
        turns = _Turns({role: f"<|im_start|>{role}\n" for role in roles}, "", dict.fromkeys(roles, end), "\n")
    elif name == "human-assistant":
        turns = _Turns({"system": "", "user": "\n\nHuman:", "assistant": "\n\nAssistant:"}, " ", {"assistant": eos})
    elif name == "tokenizer":
        return _own_template(tokenizer)
    else:
        raise ConfigError(f"tokenizer.template is {name!r}; expected one of {', '.join(NAMES)}.")
    raw = name == "none"
    return Template(
        name,
        lambda prompt: _write(turns, _messages(prompt, "user", raw)) + _header(turns, "assistant"),
        lambda prompt, answer: _write_answer(turns, _messages(answer, "assistant", raw or not _is_transcript(prompt))),
        bos=tokenizer.bos_id is not None,
        stop_ids=tuple(sorted({*eos, *turns.ends["assistant"]})),
    )


def encode(
    tokenizer: Tokenizer, jobs: Sequence[tuple[list[Span], bool]]
) -> list[tuple[list[int], list[bool], list[int]]]:
    """Tokens, target masks and ends of the spans of many lists of spans; every text is tokenised once.

    Args:
        tokenizer: of the model.
        jobs: (spans, whether text comes before them).
    """
    keys = [_keys(spans, continued) for spans, continued in jobs]
    wanted: dict[tuple[bool, bool], dict[str, list[int]]] = {}
    for job in keys:
        for text, *kind in filter(None, job):
            wanted.setdefault(tuple(kind), {})[text] = []
    for (continued, markup), texts in wanted.items():
        found = tokenizer.encode_batch(list(texts), continued=continued, markup=markup)
        texts.update(zip(list(texts), found, strict=True))
    rendered = []
    for (spans, _), job in zip(jobs, keys, strict=True):
        ids, mask, ends = [], [], []
        for span, key in zip(spans, job, strict=True):
            more = wanted[key[1:]][key[0]] if key else span.ids
            if not (span.ids and tuple(ids[-len(span.ids) :]) == span.ids):
                ids.extend(more)
                mask.extend([span.trained] * len(more))
            ends.append(len(ids))
        rendered.append((ids, mask, ends))
    return rendered


def _keys(spans: list[Span], continued: bool) -> list[tuple[str, bool, bool] | None]:
    keys: list[tuple[str, bool, bool] | None] = []
    for span in spans:
        keys.append((span.text, continued, span.markup) if span.text else None)
        continued = continued or bool(span.text)
    return keys


def _is_transcript(prompt: Text) -> bool:
    return isinstance(prompt, str) and prompt.startswith(HUMAN)


def _messages(text: Text, role: str, raw: bool) -> tuple[Message, ...]:
    """A string as one message; an Anthropic HH transcript as its stripped turns, unless ``raw``."""
    if not isinstance(text, str):
        return text
    if role == "user" and not raw and _is_transcript(text):
        return transcript_messages(text)
    return (Message(role, text if raw or role == "user" else text.strip()),)


def _header(turns: _Turns, role: str) -> list[Span]:
    if role not in turns.headers:
        raise DataError(
            f"template 'human-assistant' has no turn for the role {role!r}; use another tokenizer.template."
        )
    return [Span(turns.headers[role], markup=True)]


def _content(turns: _Turns, message: Message, trained: bool) -> list[Span]:
    gap = turns.gap if turns.headers[message.role] else ""
    end = turns.ends.get(message.role, ())
    return [Span(gap + message.content, trained, turns.markup), *([Span("", trained, ids=end)] if end else [])]


def _write(turns: _Turns, messages: Sequence[Message]) -> list[Span]:
    written = []
    for message in messages:
        written += [*_header(turns, message.role), *_content(turns, message, False), Span(turns.footer, markup=True)]
    return written


def _write_answer(turns: _Turns, messages: Sequence[Message]) -> list[Span]:
    first, *rest = messages
    written = _content(turns, first, first.trained)
    for message in rest:
        trained = message.role == "assistant" and message.trained
        written += [Span(turns.footer, markup=True), *_header(turns, message.role), *_content(turns, message, trained)]
    return written


def _own_template(tokenizer: Tokenizer) -> Template:
    if not tokenizer.chat_template:
        raise DataError(
            f"tokenizer {tokenizer.name!r} has no chat template; set tokenizer.template to one of "
            f"{', '.join(name for name in NAMES if name != 'tokenizer')}."
        )
    names = {i: text for text, i in tokenizer.special.items()}
    tokens = {
        "tools": None,
        "documents": None,
        "eos_token": names.get(tokenizer.eos_id, tokenizer.decode([tokenizer.eos_id], special=True)),
    }
    if tokenizer.bos_id is not None:
        tokens["bos_token"] = names.get(tokenizer.bos_id, tokenizer.decode([tokenizer.bos_id], special=True))
    compiled = _compile(tokenizer.chat_template)

    @functools.lru_cache(maxsize=4096)
    def render(messages: tuple[Message, ...], generate: bool) -> str:
        rows = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return compiled.render(messages=rows, add_generation_prompt=generate, **tokens)
        except Exception as error:  # a template may fail in any way
            raise DataError(f"the tokenizer's chat template cannot write this conversation: {error}.") from error

    ends = sorted({*tokenizer.special, tokens["eos_token"]}, key=len, reverse=True)
    special = "|".join(map(re.escape, ends))
    closing = re.compile(rf"(.*?)({special})(?:\s|{special})*\Z", re.DOTALL)

    def prompt_spans(prompt: Text) -> list[Span]:
        return [Span(render(_messages(prompt, "user", False), True), markup=True)]

    def answer_spans(prompt: Text, answer: Text) -> list[Span]:
        before = _messages(prompt, "user", False)
        return _answer_spans(render, closing, before, _messages(answer, "assistant", not _is_transcript(prompt)))

    return Template("tokenizer", prompt_spans, answer_spans, False, _stop_ids(tokenizer, closing, render))


def _answer_spans(render, closing: re.Pattern, before: tuple[Message, ...], answer: tuple[Message, ...]) -> list[Span]:
    """Spans of an answer in what a Jinja template writes, from ever longer beginnings of the conversation."""
    conversation = before + answer
    whole, written, spans = render(conversation, False), len(render(before, True)), []
    for turn in range(len(before), len(conversation)):
        message = conversation[turn]
        if message.role != "assistant":
            continue
        start, upto = render(conversation[:turn], True), render(conversation[: turn + 1], False)
        if not upto.startswith(start):
            raise DataError(
                "the tokenizer's chat template writes a conversation differently once it is answered, so that "
                "the answer's tokens "
                "cannot be told from the prompt's; use a built-in tokenizer.template."
            )
        closed = closing.match(upto, len(start))
        if not closed:
            raise DataError(
                "the tokenizer's chat template writes no special token after the answer, so that a model could "
                "never learn to "
                "stop; use a built-in tokenizer.template."
            )
        body, content, end = closed[1].rstrip(), message.content.strip(), closed.end(2)
        if not body.endswith(content):
            raise DataError(
                "the tokenizer's chat template changes the answer's text; use a built-in tokenizer.template."
            )
        first = len(start) + len(body) - len(content)
        if not whole.startswith(upto[:end]) or len(start) < written:
            raise DataError(
                "the tokenizer's chat template rewrites earlier turns, so that they cannot be trained together "
                "with later ones; "
                "set turns='last' in the stream, or use a built-in tokenizer.template."
            )
        # Text that the template puts before the answer, such as an empty thought, is not the model's to learn.
        spans += [Span(whole[written:first], markup=True), Span(whole[first:end], message.trained, True)]
        written = end
    return spans


def _stop_ids(tokenizer: Tokenizer, closing: re.Pattern, render) -> tuple[int, ...]:
    """End of sequence, and the token that ends a turn of the template."""
    try:
        *_, last = _answer_spans(render, closing, (Message("user", "a"),), (Message("assistant", "b"),))
    except DataError:
        return (tokenizer.eos_id,)  # told again, with its place, when a record is written
    return tuple(sorted({tokenizer.eos_id, tokenizer.encode(last.text, continued=True)[-1]}))


def _compile(source: str) -> Any:
    """A Jinja template with what Hugging Face templates expect.

    ``strftime_now`` gives no date of today but a fixed one: data must not depend on the day of the run.
    """
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """``{% generation %}`` marks the answer; prefixes rendered one after another find it without."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str):
        raise jinja2.exceptions.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = datetime.datetime(2024, 7, 26).strftime
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"the tokenizer's chat template is no valid Jinja: {error}.") from error
