"""The sampler against the model without a cache, and its promises about stops, batches and shapes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxpref import models
from jaxpref.errors import ConfigError, DataError, ModelError
from jaxpref.generation import generate, sampler
from tests import compilations
from tests.models.families import FAMILIES, LLAMA, build

KEY = jax.random.key(7)
MODEL, PARAMS = build(LLAMA)


def prompts_of(*lengths, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(LLAMA.vocab_size, size=length) for length in lengths]


PROMPTS = prompts_of(5, 1, 9, 3)


def same(first, second, tolerance=0.0):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.finished == other.finished
        np.testing.assert_allclose(one.logps, other.logps, rtol=0, atol=tolerance)


def without_cache(model, params, prompts, max_tokens):
    """Greedy continuations from whole forward passes over sequences padded on the right."""
    logits = jax.jit(lambda params, tokens: models.logits(model, params, tokens))
    lengths = np.array([len(prompt) for prompt in prompts])
    tokens = np.zeros((len(prompts), lengths.max() + max_tokens), np.int32)
    rows = np.arange(len(prompts))
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    for step in range(max_tokens):
        tokens[rows, lengths + step] = np.argmax(logits(params, tokens)[rows, lengths + step - 1], axis=-1)
    return tokens, lengths


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "gpt2", "gpt_neox", "olmo2", "phi3"])
def test_greedy_decoding_equals_decoding_without_a_cache(family):
    model, params = build(FAMILIES[family])
    max_tokens = 10
    found = generate(model, params, PROMPTS, key=KEY, max_tokens=max_tokens, temperature=0)
    tokens, lengths = without_cache(model, params, PROMPTS, max_tokens)
    mask = np.arange(tokens.shape[1]) >= lengths[:, None]
    logps, _ = models.token_logps(model, params, tokens, mask & (np.arange(tokens.shape[1]) < lengths[:, None] + 10))
    for row, (one, length) in enumerate(zip(found, lengths, strict=True)):
        assert one.tokens.tolist() == tokens[row, length : length + max_tokens].tolist()
        np.testing.assert_allclose(one.logps, logps[row, length : length + max_tokens], rtol=0, atol=1e-5)


def test_trap_46_learned_positions_ignore_the_padding_of_a_prompt():
    model, params = build(FAMILIES["gpt2"])
    alone = [generate(model, params, [p], key=KEY, max_tokens=6, rows=[n])[0] for n, p in enumerate(PROMPTS)]
    together = generate(model, params, PROMPTS, key=KEY, max_tokens=6, prompt_length=23)
    same(alone, together, 1e-5)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.7, "top_k": 9, "top_p": 0.8}], ids=["plain", "cut"])
def test_logps_are_those_of_the_model_whatever_the_decoding_rule(options):
    found = generate(MODEL, PARAMS, PROMPTS, key=KEY, max_tokens=8, **options)
    for prompt, one in zip(PROMPTS, found, strict=True):
        whole = np.concatenate([prompt, one.tokens])
        padded = np.zeros((1, 20), np.int32)
        padded[0, : len(whole)] = whole
        mask = (np.arange(20) >= len(prompt)) & (np.arange(20) < len(whole))
        logps, _ = models.token_logps(MODEL, PARAMS, padded, mask[None])
        np.testing.assert_allclose(one.logps, logps[0][mask], rtol=0, atol=1e-5)
        assert one.logps.dtype == np.float32


def test_samples_do_not_depend_on_batches_or_order():
    options = dict(key=KEY, max_tokens=7, samples=2, stop_ids=(3, 4, 5, 6))
    whole = generate(MODEL, PARAMS, PROMPTS, **options)
    same(generate(MODEL, PARAMS, PROMPTS, batch_size=3, **options), whole, 1e-5)
    turned = generate(MODEL, PARAMS, PROMPTS[::-1], rows=[3, 2, 1, 0], **options)
    same([turned[2 * n + sample] for n in (3, 2, 1, 0) for sample in (0, 1)], whole, 1e-5)


def test_rows_samples_and_keys_have_streams_of_their_own():
    options = dict(max_tokens=12, samples=2)
    twice = generate(MODEL, PARAMS, [PROMPTS[0]] * 2, key=KEY, **options)
    other = generate(MODEL, PARAMS, [PROMPTS[0]] * 2, key=jax.random.key(8), **options)
    assert len({tuple(one.tokens.tolist()) for one in twice + other}) == 8
    same(generate(MODEL, PARAMS, [PROMPTS[0]] * 2, key=KEY, **options), twice)


def test_frequencies_of_first_tokens_match_the_model():
    draws, prompt = 4000, PROMPTS[2]
    found = generate(MODEL, PARAMS, [prompt], key=KEY, max_tokens=1, samples=draws, batch_size=1000)
    expected = np.asarray(jax.nn.softmax(models.logits(MODEL, PARAMS, prompt[None])[0, -1])) * draws
    counts = np.bincount([one.tokens[0] for one in found], minlength=len(expected))
    usual = expected >= 5  # the others are counted together, as the chi-square approximation wants it
    counts = np.append(counts[usual], counts[~usual].sum())
    expected = np.append(expected[usual], expected[~usual].sum())
    freedom = len(counts) - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 4 * np.sqrt(2 * freedom)


def test_the_stop_token_is_included_and_nothing_follows_it():
    free = generate(MODEL, PARAMS, PROMPTS, key=KEY, max_tokens=12, temperature=0)
    stops = (int(free[0].tokens[4]), int(free[2].tokens[2]))
    stopped = generate(MODEL, PARAMS, PROMPTS, key=KEY, max_tokens=12, temperature=0, stop_ids=stops)
    assert any(one.finished for one in stopped)
    for one, other in zip(stopped, free, strict=True):
        places = np.flatnonzero(np.isin(other.tokens, stops))
        length = places[0] + 1 if len(places) else 12
        assert one.finished == (len(places) > 0)
        assert one.tokens.tolist() == other.tokens[:length].tolist()
        np.testing.assert_allclose(one.logps, other.logps[:length], rtol=0, atol=1e-5)


def test_the_loop_ends_when_every_row_has_stopped(monkeypatch):
    steps, sample = [], sampler._sample

    def watched(*arguments):
        state = sample(*arguments)
        steps.append(int(state.step))
        return state

    monkeypatch.setattr(sampler, "_sample", watched)
    everything = tuple(range(LLAMA.vocab_size))
    first = generate(MODEL, PARAMS, PROMPTS, key=KEY, max_tokens=12, stop_ids=everything)
    assert [len(one.tokens) for one in first] == [1] * 4
    found = generate(MODEL, PARAMS, PROMPTS, key=KEY, max_tokens=12, stop_ids=everything[:19])
    assert steps == [1, max(len(one.tokens) for one in found)]
    assert steps[1] < 12


def test_one_compilation_serves_all_prompt_lengths_of_a_bucket():
    sampler._sample.clear_cache()
    with compilations.counted() as counts:
        for lengths in ((16, 2, 7), (1, 1, 1), (4, 15, 3)):
            generate(MODEL, PARAMS, prompts_of(*lengths), key=KEY, max_tokens=3, batch_size=3)
        generate(MODEL, PARAMS, prompts_of(2, 3, 4, 5, 6, 7, 8), key=jax.random.key(1), max_tokens=3, batch_size=3)
    assert counts["jit(_sample)"] == 1
    assert [sampler.bucket(length) for length in (1, 16, 17, 32, 33)] == [16, 16, 32, 32, 64]


def test_a_mesh_changes_nothing():
    config = dataclasses.replace(LLAMA, vocab_size=40)
    model, params = build(config)
    alone = generate(model, params, PROMPTS[:3], key=KEY, max_tokens=8, stop_ids=(3, 4, 5))
    axes = ("data", "fsdp", "tensor", "sequence")
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2, 1), axes, axis_types=(AxisType.Auto,) * 4)
    specs = models.shard_specs(models.sharding_rules(model), params, mesh)
    placed = jax.tree.map(lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), params, specs)
    same(generate(model, placed, PROMPTS[:3], key=KEY, max_tokens=8, stop_ids=(3, 4, 5)), alone, 1e-5)


def test_bfloat16_gives_float32_logps():
    model, params = build(LLAMA, dtype=jnp.bfloat16)
    (one,) = generate(model, params, PROMPTS[:1], key=KEY, max_tokens=3)
    assert one.logps.dtype == np.float32
    assert (one.logps != one.logps.astype(jnp.bfloat16)).any()


def test_no_prompts_give_no_continuations():
    assert generate(MODEL, PARAMS, [], key=KEY, max_tokens=3) == []


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_tokens": 0}, "max_tokens is 0; expected a whole number, 1 at least"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"samples": True}, "samples is True"),
        ({"top_p": 0}, "top_p is 0"),
        ({"rows": [1]}, "rows has 1 numbers for 4 prompts"),
        ({"prompt_length": 8}, "prompt_length is 8, but a prompt has 9 tokens"),
    ],
)
def test_arguments_outside_their_domain_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        generate(MODEL, PARAMS, PROMPTS, **{"key": KEY, "max_tokens": 3} | options)


@pytest.mark.parametrize(
    "prompt, message", [([], "prompt 1 has no tokens"), ([3, 37], "prompt 1 has tokens 3 to 37"), ([-1], "-1 to -1")]
)
def test_prompts_that_the_model_cannot_read_are_refused(prompt, message):
    with pytest.raises(DataError, match=message):
        generate(MODEL, PARAMS, [[1], prompt], key=KEY, max_tokens=3)


def test_more_positions_than_the_model_has_are_refused_or_warned_of():
    gpt, params = build(FAMILIES["gpt2"])
    message = "take 65 positions, but the model was made for 64; shorten the prompt, or lower max_tokens"
    with pytest.raises(ModelError, match=message):
        generate(gpt, params, PROMPTS, key=KEY, max_tokens=56)
    with pytest.warns(UserWarning, match=message):
        generate(MODEL, PARAMS, PROMPTS, key=KEY, max_tokens=56, stop_ids=range(37))


def test_a_diverged_model_is_told_apart_from_a_silent_one():
    damaged = jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS)
    with pytest.raises(ModelError, match="NaN"):
        generate(MODEL, damaged, PROMPTS, key=KEY, max_tokens=2)
