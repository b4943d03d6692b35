"""Generation: the jitted sampler, texts made with it, and the command that answers files of prompts.

>>> template = data.templates.load("chatml", tokenizer)
>>> texts, generated = generate_texts(
...     model, params, tokenizer, template, ["How are you?"], key=jax.random.key(0), max_tokens=64
... )
"""

from jaxpref.generation import command, sampling
from jaxpref.generation.sampler import Generated, bucket, generate, stream
from jaxpref.generation.texts import decode, encode, generate_texts, rows

__all__ = [
    "Generated",
    "bucket",
    "command",
    "decode",
    "encode",
    "generate",
    "generate_texts",
    "rows",
    "sampling",
    "stream",
]
