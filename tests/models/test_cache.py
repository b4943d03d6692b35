"""Reading through the cache, token by token or in pieces, gives what the whole forward pass gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import models
from jaxpref.batch import Layout, Rows
from tests.models.families import FAMILIES, build

LENGTHS = (6, 3)
PROMPTS = np.asarray([[3, 1, 4, 1, 5, 9], [2, 7, 1, 0, 0, 0]])
ANSWERS = np.asarray([[2, 6, 5, 3], [8, 2, 8, 1]])


def without_cache(model, params):
    """Hidden states of each (prompt, answer) alone, at the last prompt token and the answer's tokens."""
    states = []
    for prompt, length, answer in zip(PROMPTS, LENGTHS, ANSWERS, strict=True):
        tokens = jnp.asarray(np.concatenate([prompt[:length], answer]))[None]
        rows = Rows(tokens, tokens, jnp.arange(tokens.shape[1])[None], jnp.ones_like(tokens))
        states.append(models.hidden(model, params, rows, Layout(0, 1, tokens.shape[1]))[0, length - 1 :])
    return jnp.stack(states)


def padded_prompts(side: str):
    tokens, positions, valid = (np.zeros(PROMPTS.shape, int) for _ in range(3))
    for row, length in enumerate(LENGTHS):
        place = slice(0, length) if side == "right" else slice(PROMPTS.shape[1] - length, None)
        tokens[row, place], positions[row, place], valid[row, place] = PROMPTS[row, :length], range(length), 1
    return tokens, positions, valid.astype(bool)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_gives_what_the_whole_pass_gives(family, side):
    model, params = build(FAMILIES[family])
    extend = jax.jit(lambda *arguments: models.extend(model, params, *arguments))
    tokens, positions, valid = padded_prompts(side)
    states, cache = extend(tokens, positions, valid, models.init_cache(model, 2, 12))
    last = np.asarray(LENGTHS) - 1 if side == "right" else np.full(2, PROMPTS.shape[1] - 1)
    collected = [states[np.arange(2), last]]
    for t in range(ANSWERS.shape[1]):
        places = np.asarray(LENGTHS)[:, None] + t
        states, cache = extend(ANSWERS[:, t : t + 1], places, np.ones((2, 1), bool), cache)
        collected.append(states[:, 0])
    assert int(cache.length) == 10
    np.testing.assert_allclose(jnp.stack(collected, 1), without_cache(model, params), atol=2e-5)


def test_head_logits_of_cached_states_are_the_logits():
    model, params = build(FAMILIES["gemma2"])
    cache = models.init_cache(model, 2, 8)
    ones = np.ones_like(ANSWERS, dtype=bool)
    states, _ = models.extend(model, params, ANSWERS, np.arange(4) * ones, ones, cache)
    logits = models.head_logits(model, params, states)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, models.logits(model, params, ANSWERS), atol=2e-5)
