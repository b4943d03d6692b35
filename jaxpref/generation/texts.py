"""From prompts as text or messages to completions as text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpref import models
from jaxpref.data import records
from jaxpref.data.examples import Ledger, Lengths, tokenise
from jaxpref.data.templates import Template
from jaxpref.data.tokenizers import Tokenizer, check_vocabulary
from jaxpref.errors import ConfigError
from jaxpref.generation.sampler import Generated, generate

Prompt = str | Sequence[Mapping[str, str]]


def generate_texts(
    model: models.Transformer,
    params: Any,
    tokenizer: Tokenizer,
    template: Template,
    prompts: Sequence[Prompt],
    *,
    samples: int = 1,
    stop_ids: Sequence[int] | None = None,
    length: Lengths | None = None,
    **options: Any,
) -> tuple[list[str], list[Generated]]:
    """Continues every prompt, with text on both sides.

    Args:
        model: the transformer.
        params: its parameter tree.
        tokenizer: the model's own.
        template: see :func:`jaxpref.data.templates.load`.
        prompts: strings, or lists of messages with ``role`` and ``content``.
        samples: completions of each prompt.
        stop_ids: as in :func:`generate`; by default the template's.
        length: how long a prompt may be, and what happens to a longer one; by default there is no limit.
        **options: of :func:`generate`: ``key`` and ``max_tokens``, and those with a default.

    Returns:
        ``(texts, generated)``, ``len(prompts) * samples`` each; those of prompt n begin at ``n * samples``.

    Raises:
        ConfigError, DataError, ModelError: as :func:`encode` and :func:`generate` do.
    """
    check_vocabulary(tokenizer, model.config.vocab_size)
    tokens = encode(tokenizer, template, prompts, length=length)
    stop_ids = template.stop_ids if stop_ids is None else stop_ids
    generated = generate(model, params, tokens, samples=samples, stop_ids=stop_ids, **options)
    texts = [decode(tokenizer, each, prompt=tokens[n // samples]) for n, each in enumerate(generated)]
    return texts, generated


def encode(
    tokenizer: Tokenizer, template: Template, prompts: Sequence[Prompt], *, length: Lengths | None = None
) -> list[np.ndarray]:
    """Token ids of prompts, exactly as training sees them, up to where the answer begins.

    Raises:
        DataError: a prompt cannot be written by the template, is empty, or is too long (where ``length`` says so).
    """
    rule = Lengths() if length is None else length
    if rule.on_long == "drop":
        raise ConfigError("length.on_long is 'drop', but every prompt wants an answer; set 'truncate' or 'error'.")
    parsed = [
        (f"prompt {number}", record)
        for number, prompt in enumerate(prompts)
        for record in records.parse("prompts", {"prompt": prompt})
    ]
    return [example.prompt for example in tokenise(parsed, tokenizer, template, rule, Ledger("error"))]


def rows(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts and their responses as rows ``[N, width]``: token ids, 0 behind the end, and which are the response's."""
    tokens, mask = np.zeros((len(prompts), width), np.int32), np.zeros((len(prompts), width), bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt) + len(response)
        tokens[row, :end] = [*prompt, *response]
        mask[row, len(prompt) : end] = True
    return tokens, mask


def decode(tokenizer: Tokenizer, generated: Generated, *, prompt: Sequence[int]) -> str:
    """Text of a continuation, without the token that stopped it and other special tokens.

    It is what the tokens add to the prompt's text, so a leading space is there exactly where the prompt needs one.
    """
    tokens = generated.tokens[:-1] if generated.finished else generated.tokens
    return tokenizer.decode(tokens, after=prompt)
