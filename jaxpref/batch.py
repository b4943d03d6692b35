"""The batch: rows of tokens that the model sees, and examples that objectives see.

Shape letters, used across the library:
    M micro-batches, R rows of a micro-batch, T tokens of a row,
    N examples of the global batch, K responses of an example, L target tokens of a response,
    D model width, V vocabulary.

Only attention, the planner and :func:`gather` know how examples lie in rows. Everything else sees *example order*:
arrays that lead with ``[N, K]``, the same in every layout.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# What the data room writes and objectives read.
PROMPT_LENGTHS = "prompt_lengths"  # side input: tokens of each response that are its own prompt's
IDS = "ids"  # side input: the place of an example in its data set, where the data set is trained on
FIRST_SAMPLE = {"demonstrations": 1, "pairs": 2}  # kind of examples that may have samples -> the first one's response


class Layout(NamedTuple):
    """Static regions of a row: ``[prompt | response_0 | ... | response_{K-1}]``.

    Attributes:
        prompt: tokens of the prompt region; 0 when every segment holds prompt and response together.
        responses: number of response regions; 1 when ``prompt`` is 0.
        response: tokens of each response region.
        short: tokens of each response region in short rows, of which only the beginning is computed; 0: there are none.
    """

    prompt: int
    responses: int
    response: int
    short: int = 0

    @property
    def length(self) -> int:
        return self.prompt + self.responses * self.response

    @property
    def shared(self) -> bool:
        """Whether the responses of an example share one copy of its prompt."""
        return self.prompt > 0

    @property
    def shortened(self) -> "Layout":
        """The regions of a short row."""
        return Layout(self.prompt, self.responses, self.short)


class Rows(NamedTuple):
    """What the model reads: int32 arrays ``[..., R, T]``.

    Attributes:
        tokens: input token ids; padding holds 0, which means nothing by itself.
        targets: the token that each position predicts (0 where none is scored).
        positions: position of the token inside its own sequence.
        segments: 1, 2, ... number the examples' sequences inside a row; 0 is padding. Equal ids attend to each other.
    """

    tokens: Any
    targets: Any
    positions: Any
    segments: Any


class Examples(NamedTuple):
    """What an objective reads beside the channels: arrays in example order.

    Attributes:
        index: ``[N, K, L]`` int32, flat position in ``[M * R * T]`` of the token that predicts each response token.
        mask: ``[N, K, L]`` bool, which of them are targets (end of sequence included; padding and foreign turns not).
        last: ``[N, K]`` int32, flat position of the last response token itself (read by reward heads).
        micro: ``[N]`` int32, the micro-batch that holds the example (of a partnered one, its own response).
        where: ``[N]`` bool, False for the rows that pad a ragged last batch.
        side: arrays ``[N, ...]`` of labels, margins, weights, ids, and cached channels ``[N, K, L]``.
    """

    index: Any
    mask: Any
    last: Any
    micro: Any
    where: Any
    side: dict[str, Any]


class Batch(NamedTuple):
    """One global batch.

    Attributes:
        rows: ``[M, R, T]``.
        count: how many micro-batches, from the first on, hold anything.
        trained: how many of these need a gradient; the rest hold mismatched responses, which never get one.
        examples: data stream -> its examples.
        row_lengths: ``[M]`` int32, tokens of a micro-batch's rows that are computed; None where all are.
    """

    rows: Rows
    count: Any
    trained: Any
    examples: dict[str, Examples]
    row_lengths: Any = None


def computed_tokens(batch: Batch) -> jax.Array:
    """Number of token positions that the model computes, padding included."""
    micro_batches, rows, length = batch.rows.tokens.shape
    computed = length if batch.row_lengths is None else batch.row_lengths
    return jnp.sum(jnp.where(jnp.arange(micro_batches) < batch.count, rows * computed, 0))


def lengths(examples: Examples) -> jax.Array:
    """Number of target tokens of every response, ``[N, K]`` float32."""
    return jnp.sum(examples.mask, axis=-1, dtype=jnp.float32)


def gather(channel: jax.Array, examples: Examples) -> jax.Array:
    """Turns a per-token channel ``[..., R, T]`` into example order ``[N, K, L]``, exactly zero where masked."""
    values = channel.reshape(-1).at[examples.index].get(mode="fill", fill_value=0)
    return jnp.where(examples.mask, values, 0)


def gather_last(channel: jax.Array, examples: Examples) -> jax.Array:
    """Picks a per-token channel ``[M, R, T, ...]`` at each response's last token: ``[N, K, ...]``, zero without one."""
    flat = channel.reshape(-1, *channel.shape[3:])
    values = flat.at[examples.last].get(mode="fill", fill_value=0)
    present = jnp.any(examples.mask, axis=-1)
    return jnp.where(present.reshape(present.shape + (1,) * (values.ndim - 2)), values, 0)
