"""Descriptions of architectures: what they refuse, and that they survive JSON."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import models
from jaxpref.errors import ModelError
from jaxpref.models import ModelConfig, Rope, Transformer
from tests.models.families import FAMILIES, LLAMA


@pytest.mark.parametrize("family", FAMILIES)
def test_configs_survive_json_and_hash(family):
    config = FAMILIES[family]
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and hash(again) == hash(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(width=0), "width is 0; expected a positive number"),
        (dict(key_value_heads=3), "heads is 4 and key_value_heads is 3"),
        (dict(activation="swish"), "'swish'; expected one of silu"),
        (dict(pre_norm=False), "at least one"),
        (dict(parallel_residual=True, post_norm=True), "parallel_residual"),
        (dict(rotary_dim=3), "3 dimensions are rotated"),
        (dict(rope=None, rotary_dim=2), "must be None too"),
        (dict(local_layers=(True,), window=2), "1 entries; expected 2"),
        (dict(local_layers=(True, False)), "window and local_rope are both None"),
        (dict(local_rope=Rope()), "no layer is local"),
        (dict(rope=Rope(scaling="longrope", original_positions=8, short_factors=(1.0,))), "1 entries; expected 2"),
        (dict(final_soft_cap=-1.0), "final_soft_cap is -1.0"),
    ],
)
def test_impossible_architectures_are_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        dataclasses.replace(LLAMA, **changes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(scaling="yarn"), "'yarn'; expected one of default"),
        (dict(scaling="llama3"), "original_positions is 0"),
        (dict(scaling="llama3", original_positions=8, low_frequency_factor=9.0), "0 < low < high"),
        (dict(theta=0.0), "rope.theta"),
    ],
)
def test_impossible_ropes_are_refused(fields, message):
    with pytest.raises(ModelError, match=message):
        Rope(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(attention="flash"), "attention is 'flash'; expected one of auto, xla, splash, cudnn"),
        (dict(remat="some"), "remat"),
        (dict(dtype="int32"), "floating-point"),
        (dict(chunk=0), "chunk"),
    ],
)
def test_impossible_computations_are_refused(fields, message):
    with pytest.raises(ModelError, match=message):
        Transformer(LLAMA, **fields)


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(ModelError, match=r"no field \['hidden'\] and lacks .*'width'"):
        ModelConfig.from_dict({"hidden": 3})


def test_dtypes_may_be_names():
    assert Transformer(LLAMA, dtype="bfloat16") == Transformer(LLAMA, dtype=jnp.bfloat16)


def test_the_longest_sequence_of_short_rope_factors_is_the_original_one():
    assert FAMILIES["phi3"].longest_sequence == 32
    assert dataclasses.replace(FAMILIES["phi3"].rope, long_context=True) and LLAMA.longest_sequence == 64


@pytest.mark.parametrize(("name", "size"), [("nano", 1e5), ("micro", 1e6), ("mini", 5e6)])
def test_built_in_models_have_the_size_that_they_say(name, size):
    shapes = jax.eval_shape(lambda: models.init(Transformer(models.BUILTIN[name]), jax.random.key(0)))
    assert 0.9 * size < models.count(shapes) < 1.1 * size


def test_init_is_reproducible_near_uniform_and_in_the_asked_dtype():
    model = Transformer(models.BUILTIN["nano"], param_dtype=jnp.bfloat16)
    init = jax.jit(lambda key: models.init(model, key))
    first, second, other = init(jax.random.key(0)), init(jax.random.key(0)), init(jax.random.key(1))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(first))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, second))
    assert not (first["embed"]["tokens"] == other["embed"]["tokens"]).all()
    tokens = jnp.arange(64)[None]
    logps, _ = models.token_logps(model, first, tokens, jnp.ones_like(tokens))
    np.testing.assert_allclose(-logps[:, 1:].mean(), np.log(512), atol=0.1)
