"""A language model of a hidden state that fades: small enough for hundreds of runs; responses share what they teach.

A model is a dictionary of embeddings of prompts ``[P, H]`` and words ``[V, H]`` and of an unembedding ``[V, H]``. The
state that predicts a word is the prompt's embedding and those of the words before, faded; all responses have T words.
"""

import jax
import jax.numpy as jnp

from jaxpref.lab import tabular

DECAY = 0.7

Model = dict[str, jax.Array]


def fitted(
    key: jax.Array, responses: jax.Array, asked: jax.Array, *, prompts: int, vocabulary: int, hidden: int
) -> Model:
    """A model of a corpus: responses ``[N, T]`` to prompts ``[N]``, of which there are as many."""
    sizes = {"prompts": prompts, "words": vocabulary, "unembedding": vocabulary}
    keys = jax.random.split(key, len(sizes))
    start = {
        name: 0.3 * jax.random.normal(one, (size, hidden))
        for (name, size), one in zip(sizes.items(), keys, strict=True)
    }
    unlikeliness = lambda model: -jnp.mean(logps(model, asked, responses))  # noqa: E731
    return tabular.descend(unlikeliness, start, steps=300, learning_rate=0.03)[0]


def hidden_states(model: Model, prompts: jax.Array, responses: jax.Array) -> jax.Array:
    """States ``[N, T, H]`` that predict the words of responses ``[N, T]``."""

    def step(state, word):
        return DECAY * state + model["words"][word], state

    return jax.lax.scan(step, model["prompts"][prompts], responses.T)[1].swapaxes(0, 1)


def token_logps(model: Model, prompts: jax.Array, responses: jax.Array) -> jax.Array:
    """Log-probabilities ``[N, T]`` of the words of responses."""
    rows = jax.nn.log_softmax(hidden_states(model, prompts, responses) @ model["unembedding"].T)
    return jnp.take_along_axis(rows, responses[..., None], axis=-1)[..., 0]


def logps(model: Model, prompts: jax.Array, responses: jax.Array) -> jax.Array:
    """Log-probabilities ``[N]`` of responses."""
    return jnp.sum(token_logps(model, prompts, responses), axis=-1)


def sample(key: jax.Array, model: Model, prompts: jax.Array, length: int) -> jax.Array:
    """Responses ``[N, length]`` of the model."""

    def step(state, key):
        word = jax.random.categorical(key, state @ model["unembedding"].T)
        return DECAY * state + model["words"][word], word

    return jax.lax.scan(step, model["prompts"][prompts], jax.random.split(key, length))[1].T
