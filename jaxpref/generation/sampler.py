"""The sampler: prompts in, sampled continuations and their log-probabilities out.

Prompts are padded on the left to one length, read at once into a key-value cache, and continued token by token inside
one compiled loop that ends when every row has stopped.
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref import models
from jaxpref.errors import ConfigError, DataError, ModelError
from jaxpref.generation import sampling

SHORTEST_BUCKET = 16


class Generated(NamedTuple):
    """One continuation.

    Attributes:
        tokens: ``[n]`` int32, without padding; ends with the stop token where one was produced.
        logps: ``[n]`` float32, log-probability of each token under the model's own distribution: temperature 1, nothing
            removed by top-k or top-p, whatever the tokens were drawn with. So the mean of policy minus reference
            log-probabilities of samples drawn at temperature 1 from all tokens is an unbiased estimate of their KL
            divergence.
        finished: whether a stop token was produced; False where ``max_tokens`` cut the continuation off.
    """

    tokens: np.ndarray
    logps: np.ndarray
    finished: bool


class _Inputs(NamedTuple):
    """One batch: ``tokens`` [B, P] padded on the left, ``lengths`` [B] (0 fills the batch up), ``rows`` and ``samples``
    [B], which name a row's random stream."""

    tokens: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray
    samples: np.ndarray


class _State(NamedTuple):
    """What the loop carries: ``step`` tokens are written; arrays lead with [B], written tokens are [B, max_tokens]."""

    step: jax.Array
    tokens: jax.Array
    logps: jax.Array
    lengths: jax.Array
    finished: jax.Array
    cache: models.Cache


def generate(
    model: models.Transformer,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    key: jax.Array,
    max_tokens: int,
    **options: Any,
) -> list[Generated]:
    """Continues every prompt.

    A continuation depends on the key, its prompt, its row number and its sample number, not on the batch it is computed
    in (up to rounding of the logits, which may differ between batch shapes).

    The sampler is compiled once for each (padded prompt length, batch size, ``max_tokens``, decoding rule). Parameters
    that lie on a mesh stay there, and the batch is divided over its ``data`` and ``fsdp`` axes; with several processes
    each must make the same call, and each gets all results.

    Args:
        model: the transformer.
        params: its parameter tree.
        prompts: token ids, at least one each (a beginning-of-sequence token counts).
        key: ``jax.random.key(seed)``.
        max_tokens: longest continuation, the stop token included.
        temperature, top_k, top_p: see :class:`jaxpref.generation.sampling.Rule`; all of the distribution by default.
        stop_ids: a continuation ends with the first of these; none by default.
        batch_size: rows computed together (32); on a mesh rounded up to a multiple of ``data * fsdp``.
        samples: continuations of each prompt (1).
        rows: number of each prompt, which names its random stream; by default its place in ``prompts``.
        prompt_length: prompts are padded to this length; by default to the power of two (16 at least) that holds the
            longest. Give it when several calls shall share one compilation.

    Returns:
        ``len(prompts) * samples`` continuations; those of prompt n begin at ``n * samples``.

    Raises:
        ConfigError: an argument is outside its domain.
        DataError: a prompt is empty or has a token outside the vocabulary.
        ModelError: prompt and continuation are longer than the model's table of positions, or the model gives NaN.
    """
    return list(stream(model, params, prompts, key=key, max_tokens=max_tokens, **options))


def stream(
    model: models.Transformer,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    key: jax.Array,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_ids: Sequence[int] = (),
    batch_size: int = 32,
    samples: int = 1,
    rows: Sequence[int] | None = None,
    prompt_length: int | None = None,
) -> Iterator[Generated]:
    """Like :func:`generate`, but hands over the continuations of a batch as soon as they are done."""
    rule = sampling.check(sampling.Rule(temperature, top_k, top_p))
    _check_counts(max_tokens=max_tokens, batch_size=batch_size, samples=samples)
    prompts = [np.asarray(prompt, np.int32).reshape(-1) for prompt in prompts]
    rows = range(len(prompts)) if rows is None else rows
    if len(rows) != len(prompts):
        raise ConfigError(f"rows has {len(rows)} numbers for {len(prompts)} prompts; expected one for each.")
    longest = max(map(len, prompts), default=1)
    _check_prompts(model.config, prompts, longest + max_tokens)
    length = bucket(longest) if prompt_length is None else prompt_length
    if length < longest:
        raise ConfigError(f"prompt_length is {length}, but a prompt has {longest} tokens.")
    jobs = [(prompt, row, sample) for prompt, row in zip(prompts, rows, strict=True) for sample in range(samples)]
    stops = np.array(sorted(set(stop_ids)), np.int32)

    def run(inputs: _Inputs) -> _State:
        with _mesh_of(params):
            return _sample(model, rule, max_tokens, params, inputs, key, stops)

    with _mesh_of(params):
        batches = _batches(jobs, min(batch_size, len(jobs)), length)
    return (each for inputs in batches for each in _cut(run(inputs), inputs))


def bucket(length: int) -> int:
    """The power of two, 16 at least, that holds a prompt of this length."""
    return max(SHORTEST_BUCKET, 1 << (length - 1).bit_length())


@functools.partial(jax.jit, static_argnames=("model", "rule", "max_tokens"))
def _sample(model, rule, max_tokens, params, inputs: _Inputs, key, stops) -> _State:
    batch, width = inputs.tokens.shape
    streams = jax.vmap(lambda row, sample: jax.random.fold_in(jax.random.fold_in(key, row), sample))
    keys = streams(inputs.rows, inputs.samples)

    def write(state: _State, states) -> _State:
        """Chooses the token that the hidden states ``[B, D]`` predict, and writes it into rows that go on."""
        logits = models.head_logits(model, params, states)
        token = sampling.choose(jax.vmap(lambda k: jax.random.fold_in(k, state.step))(keys), logits, rule)
        logps = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)
        going = ~state.finished
        return state._replace(
            step=state.step + 1,
            tokens=state.tokens.at[:, state.step].set(jnp.where(going, token, 0)),
            logps=state.logps.at[:, state.step].set(jnp.where(going, logps[:, 0], 0).astype(jnp.float32)),
            lengths=state.lengths + going,
            finished=state.finished | (token[:, None] == stops).any(axis=1),
        )

    def read(state: _State) -> _State:
        """Reads the last written token and writes the next."""
        token = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
        positions = (inputs.lengths + state.step - 1)[:, None]
        states, cache = models.extend(model, params, token, positions, ~state.finished[:, None], state.cache)
        return write(state._replace(cache=cache), states[:, 0])

    places = jnp.arange(width) - (width - inputs.lengths[:, None])
    empty = models.init_cache(model, batch, width + max_tokens)
    states, cache = models.extend(model, params, inputs.tokens, jnp.maximum(places, 0), places >= 0, empty)
    shape = (batch, max_tokens)
    none = jnp.zeros(batch, jnp.int32)
    start = _State(jnp.int32(0), jnp.zeros(shape, jnp.int32), jnp.zeros(shape), none, inputs.lengths == 0, cache)
    end = jax.lax.while_loop(
        lambda state: (state.step < max_tokens) & ~state.finished.all(), read, write(start, states[:, -1])
    )
    # Whole copies everywhere, so that every process can look at the result.
    return jax.tree.map(models.replicate, end._replace(cache=None))


def _batches(jobs: list, size: int, length: int) -> list[_Inputs]:
    """Fixed shapes: prompts padded on the left, the last batch filled up with rows without a prompt."""
    shards = _batch_divisor()
    size = max(1, -(-size // shards)) * shards
    batches = []
    for first in range(0, len(jobs), size):
        inputs = _Inputs(np.zeros((size, length), np.int32), *np.zeros((3, size), np.int32))
        for place, (prompt, row, sample) in enumerate(jobs[first : first + size]):
            inputs.tokens[place, length - len(prompt) :] = prompt
            inputs.lengths[place], inputs.rows[place], inputs.samples[place] = len(prompt), row, sample
        batches.append(inputs)
    return batches


def _cut(state: _State, inputs: _Inputs) -> list[Generated]:
    """Rows without their padding; none of the rows that only fill up the batch."""
    tokens, logps, lengths, finished = map(np.asarray, (state.tokens, state.logps, state.lengths, state.finished))
    if np.isnan(logps).any():
        raise ModelError("the model gives NaN instead of log-probabilities; its parameters are damaged or diverged.")
    return [
        Generated(tokens[place, :n].copy(), logps[place, :n].copy(), bool(finished[place]))
        for place, n in enumerate(lengths)
        if inputs.lengths[place]
    ]


@contextlib.contextmanager
def _mesh_of(params: Any) -> Iterator[None]:
    """Sets the mesh on which the parameters lie, unless the caller has set one."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if isinstance(sharding, jax.sharding.NamedSharding) and jax.sharding.get_abstract_mesh().empty:
        with jax.set_mesh(sharding.mesh):
            yield
    else:
        yield


def _batch_divisor() -> int:
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return int(np.prod([sizes.get(axis, 1) for axis in models.BATCH]))


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise ConfigError(f"{name} is {count!r}; expected a whole number, 1 at least.")


def _check_prompts(config: models.ModelConfig, prompts: list[np.ndarray], needed: int) -> None:
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise DataError(f"prompt {number} has no tokens; expected at least a beginning-of-sequence token.")
        if prompt.min() < 0 or prompt.max() >= config.vocab_size:
            raise DataError(
                f"prompt {number} has tokens {prompt.min()} to {prompt.max()}, but the model's vocabulary holds "
                f"{config.vocab_size}; use the model's own tokenizer."
            )
    if needed <= config.longest_sequence:
        return
    found = f"the longest prompt and max_tokens together take {needed} positions, but the model was made for "
    found += f"{config.longest_sequence}; shorten the prompt, or lower max_tokens."
    if config.learned_positions:
        raise ModelError(found)
    warnings.warn(found, stacklevel=4)
