"""Tiny architectures of every supported family, with random parameters: no norm or bias has its neutral value."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref import models
from jaxpref.models import ModelConfig, Rope

LLAMA = ModelConfig(
    vocab_size=37,
    width=16,
    layers=2,
    heads=4,
    key_value_heads=2,
    head_dim=4,
    mlp_width=24,
    max_positions=64,
    rope=Rope(theta=100.0),
)
_GEMMA = dataclasses.replace(
    LLAMA, norm_offset=1.0, activation="gelu_tanh", scale_embeddings=True, tied_embeddings=True, head_dim=6
)
_GEMMA_2 = dataclasses.replace(
    _GEMMA,
    post_norm=True,
    attention_scalar=9.0,
    attention_soft_cap=2.0,
    final_soft_cap=3.0,
    window=3,
    local_layers=(True, False),
)
_GPT = dict(norm="layer", norm_bias=True, gated=False, mlp_bias=True, attention_bias=True, attention_out_bias=True)
FAMILIES: dict[str, ModelConfig] = {
    "llama3": dataclasses.replace(LLAMA, rope=Rope(theta=100.0, scaling="llama3", factor=4.0, original_positions=16)),
    "mistral": dataclasses.replace(LLAMA, window=4),
    "qwen2": dataclasses.replace(LLAMA, attention_bias=True, tied_embeddings=True),
    "qwen3": dataclasses.replace(LLAMA, query_key_norm="head"),
    "gemma": _GEMMA,
    "gemma2": _GEMMA_2,
    "gemma3": dataclasses.replace(
        _GEMMA_2,
        attention_soft_cap=None,
        final_soft_cap=None,
        query_key_norm="head",
        rope=Rope(theta=1000.0, scaling="linear", factor=2.0),
        local_rope=Rope(theta=50.0),
    ),
    "olmo2": dataclasses.replace(LLAMA, pre_norm=False, post_norm=True, query_key_norm="all"),
    "phi3": dataclasses.replace(
        LLAMA,
        rope=Rope(
            scaling="longrope",
            original_positions=32,
            short_factors=(1.0, 1.5),
            long_factors=(2.0, 4.0),
            attention_factor=1.2,
        ),
    ),
    "gpt2": dataclasses.replace(
        LLAMA,
        **_GPT,
        key_value_heads=4,
        rope=None,
        learned_positions=True,
        activation="gelu_tanh",
        tied_embeddings=True,
    ),
    "gpt_neox": dataclasses.replace(
        LLAMA, **_GPT, key_value_heads=4, head_dim=8, rotary_dim=2, parallel_residual=True, activation="gelu"
    ),
}


def build(config: ModelConfig, *, dtype=jnp.float32, seed: int = 0, **options):
    """A transformer and random parameters, drawn by numpy because compiling the initializers takes longer."""
    model = models.Transformer(config, dtype=dtype, param_dtype=dtype, **options)
    random = np.random.default_rng(seed)

    def draw(leaf):
        neutral = 1.0 - config.norm_offset if leaf.ndim == 1 + (leaf.shape[0] == config.layers) else 0.0
        return jnp.asarray(neutral + 0.3 * random.normal(size=leaf.shape), leaf.dtype)

    return model, jax.tree.map(draw, jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0)))


def tree_close(actual, expected, tolerance: float):
    """Asserts that two trees differ by at most ``tolerance`` times the largest entry of the expected one."""
    actual, expected = jax.tree.map(np.asarray, (actual, expected))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: np.abs(a - b), actual, expected)):
        assert leaf.max() <= tolerance * largest, jax.tree_util.keystr(path)
