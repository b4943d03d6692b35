"""A real trained model: the forward pass and the cache give the published text and independently computed numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import models
from jaxpref.models.huggingface import load_hf


@pytest.fixture(scope="module")
def folder(data_dir):
    return data_dir / "stories260k"


@pytest.fixture(scope="module")
def expected(folder):
    return json.loads((folder / "expected.json").read_text())["ours"]


def test_log_probs_and_logits_are_the_expected_ones(folder, expected):
    with jax.enable_x64(True):
        model, params = load_hf(folder / "hf", dtype=jnp.float64)
        tokens = jnp.asarray(expected["input_ids_32"])[None]
        logps, _ = jax.jit(lambda p: models.token_logps(model, p, tokens, jnp.ones_like(tokens)))(params)
        np.testing.assert_allclose(logps[0, 1:], expected["next_token_logprobs"], atol=2e-6)
        logits = models.logits(model, params, tokens)[0, -1]
        np.testing.assert_allclose(logits, expected["logits_last_position"], atol=2e-6)


def test_greedy_decoding_through_the_cache_gives_the_published_text(folder, expected):
    model, params = load_hf(folder / "hf")
    published = np.asarray(expected["greedy_ids"])

    def step(carry, position):
        token, cache = carry
        one = jnp.ones((1, 1), jnp.int32)
        states, cache = models.extend(model, params, one * token, one * position, one > 0, cache)
        following = jnp.argmax(models.head_logits(model, params, states)).astype(jnp.int32)
        return (following, cache), following

    start = (jnp.int32(published[0]), models.init_cache(model, 1, len(published)))
    _, decoded = jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(len(published) - 1)))()
    np.testing.assert_array_equal(decoded, published[1:])
