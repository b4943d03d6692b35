"""``jaxpref generate``: a file of prompts in, a file of completions out, or a dialogue at the terminal.

A line of the output holds ``prompt`` (text or messages, as it was given), ``completion``, ``tokens`` (how many, the
stop token included), ``finished`` (whether a stop token was produced) and ``logp`` (of the whole completion, in nats,
under the model's own distribution at temperature 1).
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

import jax

from jaxpref import data, models
from jaxpref.data import sources
from jaxpref.data.examples import Lengths
from jaxpref.data.templates import Template
from jaxpref.data.tokenizers import Tokenizer, check_vocabulary
from jaxpref.errors import ConfigError, DataError, ModelError
from jaxpref.generation import texts
from jaxpref.generation.sampler import Generated, stream

HINT = "One prompt a line; every line is answered by itself. End with ctrl-D."


def run(
    model: models.Transformer,
    params: Any,
    tokenizer: Tokenizer,
    *,
    template: str = "none",
    prompts: str | os.PathLike | None = None,
    output: str | os.PathLike | None = None,
    stop: Sequence[str] = (),
    prompt_limit: int = 0,
    seed: int = 0,
    batch_size: int = 32,
    samples: int = 1,
    **options: Any,
) -> None:
    """Answers a file of prompts, or without one the lines of the standard input.

    Args:
        model: the transformer.
        params: its parameter tree.
        tokenizer: the model's own.
        template: one of ``jaxpref.data.templates.NAMES``.
        prompts: file of records with ``prompt`` or ``messages``, in any format of :mod:`jaxpref.data.sources`.
        output: JSONL file to write, or None for the standard output. Needs ``prompts``.
        stop: tokens, as text, at which to stop besides those that the template names.
        prompt_limit: a longer prompt keeps its last tokens; 0 means no limit.
        seed: of the random key; with the same seed, the answers do not depend on ``batch_size``.
        batch_size: completions computed together.
        samples: completions of each prompt.
        **options: ``max_tokens``, ``temperature``, ``top_k`` and ``top_p`` of :func:`jaxpref.generation.generate`.

    Raises:
        UserError: a file, a row or an option cannot be used.
    """
    check_vocabulary(tokenizer, model.config.vocab_size)
    form = data.templates.load(template, tokenizer)
    length = Lengths(prompt=prompt_limit)
    options |= {"key": jax.random.key(seed), "stop_ids": stop_ids(tokenizer, form, stop), "samples": samples}
    if prompts is None:
        if output is not None:
            raise ConfigError(f"output is {os.fspath(output)!r}, but there is no file of prompts; give one.")
        converse(model, params, tokenizer, form, sys.stdin, sys.stdout, length=length, **options)
        return
    dataset = data.load_stream({"kind": "prompts", "path": prompts}, tokenizer, length, template=template)
    for reason, count in dataset.counts["truncated"].items():
        print(f"{count} times {reason}.", file=sys.stderr)
    lines = answer(model, params, tokenizer, dataset.examples, batch_size=batch_size, **options)
    with _opened(output, prompts) as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()


def answer(
    model: models.Transformer,
    params: Any,
    tokenizer: Tokenizer,
    examples: Sequence[data.Tokenized],
    *,
    samples: int,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Lines of the output, in the order of the prompts, as soon as a batch is done; options are checked at once."""
    found = stream(model, params, [example.prompt for example in examples], samples=samples, **options)
    asked = (example for example in examples for _ in range(samples))
    return (_line(tokenizer, example, generated) for example, generated in zip(asked, found, strict=True))


def converse(
    model: models.Transformer,
    params: Any,
    tokenizer: Tokenizer,
    template: Template,
    lines: Iterable[str],
    out: TextIO,
    **options: Any,
) -> None:
    """Answers every line by itself, without memory of earlier ones, until the lines end.

    A line that cannot be answered gets its error, and the next line may try again.
    """
    asks = getattr(lines, "isatty", bool)()
    if asks:
        print(HINT, file=out)
    for number, line in enumerate(_asked(lines, out) if asks else lines):
        try:
            found, _ = texts.generate_texts(
                model, params, tokenizer, template, [line.rstrip("\n")], rows=[number], **options
            )
        except (DataError, ModelError) as error:
            found = [f"error: {error}"]
        print("\n".join(found), file=out, flush=True)


def stop_ids(tokenizer: Tokenizer, template: Template, stop: Sequence[str] = ()) -> tuple[int, ...]:
    """Ids of the template's stop tokens and of further ones given as text.

    Raises:
        ConfigError: a text is not exactly one token.
    """
    further = []
    for text in stop:
        ids = [tokenizer.special[text]] if text in tokenizer.special else tokenizer.encode(text, continued=True)
        if len(ids) != 1:
            raise ConfigError(f"stop is {text!r}, which is {len(ids)} tokens; expected the text of one token.")
        further += ids
    return tuple(sorted({*template.stop_ids, *further}))


def _line(tokenizer: Tokenizer, example: data.Tokenized, generated: Generated) -> dict[str, Any]:
    return {
        "prompt": example.meta["prompt"],
        "completion": texts.decode(tokenizer, generated, prompt=example.prompt),
        "tokens": len(generated.tokens),
        "finished": generated.finished,
        "logp": round(float(generated.logps.sum()), 6),
    }


def _asked(lines: Iterable[str], out: TextIO) -> Iterator[str]:
    """Lines of a terminal, each asked for."""
    source = iter(lines)
    with contextlib.suppress(StopIteration):
        while True:
            print("> ", end="", file=out, flush=True)
            yield next(source)


@contextlib.contextmanager
def _opened(output: str | os.PathLike | None, prompts: str | os.PathLike) -> Iterator[TextIO]:
    """The file to write; of several processes the first one writes."""
    if jax.process_index() > 0:
        with open(os.devnull, "w") as file:
            yield file
        return
    if output is None:
        yield sys.stdout
        return
    path = sources.expand(output)
    if os.fspath(path) == os.fspath(sources.expand(prompts)):
        raise ConfigError(f"output {os.fspath(output)!r} is the file of prompts; give another file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"output {os.fspath(output)!r} cannot be written ({error.strerror or error}).") from error
    with file:
        yield file
