"""The forward pass: against transformers' Llama, under padding, in bfloat16, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import models
from jaxpref.batch import Layout, Rows
from jaxpref.errors import ModelError
from tests.models.families import FAMILIES, LLAMA, build, tree_close
from tests.models.test_vocabulary import buffer_sizes

TOKENS = jnp.asarray([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


@pytest.fixture(scope="module")
def torch():
    """torch, with transformers' Llama imported as well: the import takes longer than the test."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers").LlamaForCausalLM  # noqa: B018
    return torch


def torch_llama(torch, config: models.ModelConfig, params):
    """transformers' Llama with our parameters."""
    import transformers

    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.key_value_heads,
            head_dim=config.head_dim,
            intermediate_size=config.mlp_width,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": config.rope.theta,
                "factor": config.rope.factor,
                "low_freq_factor": config.rope.low_frequency_factor,
                "high_freq_factor": config.rope.high_frequency_factor,
                "original_max_position_embeddings": config.rope.original_positions,
            },
        )
    ).double()
    width, layers = config.width, params["layers"]
    weights = {
        "model.embed_tokens.weight": params["embed"]["tokens"],
        "model.norm.weight": params["norm"]["scale"],
        "lm_head.weight": params["head"]["kernel"].T,
    }
    for n in range(config.layers):
        prefix = f"model.layers.{n}."
        for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
            kernel = layers["attention"][name]["kernel"][n].reshape(width, -1)
            weights[f"{prefix}self_attn.{short}_proj.weight"] = kernel.T
        weights[f"{prefix}self_attn.o_proj.weight"] = layers["attention"]["out"]["kernel"][n].reshape(-1, width).T
        for name in ("gate", "up", "down"):
            weights[f"{prefix}mlp.{name}_proj.weight"] = layers["mlp"][name]["kernel"][n].T
        weights[f"{prefix}input_layernorm.weight"] = layers["attention_norm"]["scale"][n]
        weights[f"{prefix}post_attention_layernorm.weight"] = layers["mlp_norm"]["scale"][n]
    theirs.load_state_dict({name: torch.tensor(np.array(value)) for name, value in weights.items()}, strict=True)
    return theirs


@pytest.mark.torch
def test_llama_is_transformers_llama(torch):
    """Grouped-query attention, llama3 rope, RMSNorm and the gated MLP, in values and in gradients."""
    with jax.enable_x64(True):
        model, params = build(FAMILIES["llama3"], dtype=jnp.float64)
        theirs = torch_llama(torch, model.config, params)
        tokens = torch.tensor(np.array(TOKENS))
        output = theirs(input_ids=tokens).logits
        # transformers computes norms, rotations and softmax in float32 even for a double model.
        np.testing.assert_allclose(models.logits(model, params, TOKENS), output.detach().numpy(), atol=2e-5)

        ours = jax.jit(jax.grad(lambda p: jnp.sum(models.token_logps(model, p, TOKENS, jnp.ones_like(TOKENS))[0])))
        theirs_logps = torch.log_softmax(output[:, :-1], -1).gather(-1, tokens[:, 1:, None]).sum()
        theirs_logps.backward()
        gradient = ours(params)
        expected = theirs.model.layers[1].self_attn.k_proj.weight.grad.numpy().T
        actual = gradient["layers"]["attention"]["key"]["kernel"][1].reshape(expected.shape)
        np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_causal_finite_and_moves_all_its_parameters(family):
    model, params = build(FAMILIES[family], remat="full")

    def sum_of_first(params, tokens):
        states = models.hidden(model, params, *plain(tokens))
        return jnp.sum(jnp.sin(jnp.arange(16) + states[:, :5])), states

    step = jax.jit(jax.grad(sum_of_first, has_aux=True))
    gradient, states = step(params, TOKENS)
    later, changed = step(params, TOKENS.at[:, 5:].add(3))
    assert bool(jnp.all(jnp.isfinite(states)))
    np.testing.assert_array_equal(states[:, :5], changed[:, :5])
    assert not np.array_equal(states[:, 5:], changed[:, 5:])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient | {"head": {}}):
        assert bool(jnp.all(jnp.isfinite(leaf))) and bool(leaf.any()), jax.tree_util.keystr(path)


def plain(tokens, before: int = 0, after: int = 0):
    """Rows of one sequence each, with padding on either side."""
    count, length = tokens.shape
    pad = lambda x: jnp.pad(x, ((0, 0), (before, after)))  # noqa: E731
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    rows = Rows(pad(tokens), pad(tokens), pad(positions), pad(jnp.ones_like(tokens)))
    return rows, Layout(0, 1, before + length + after)


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_trap_46_padding_on_either_side_changes_nothing(family):
    model, params = build(FAMILIES[family])
    expected = models.hidden(model, params, *plain(TOKENS))
    for before, after in ((3, 0), (0, 3), (2, 2)):
        rows, layout = plain(TOKENS, before, after)
        states = models.hidden(model, params, rows, layout)
        np.testing.assert_allclose(states[:, before : before + 8], expected, atol=1e-5)


def test_padding_gets_no_gradient_and_gives_none():
    """The huge embedding of a token that only padding uses reaches no other: nothing real attends to padding."""
    model, params = build(LLAMA)
    rows, layout = plain(TOKENS, 0, 3)
    poisoned = params | {"embed": {"tokens": params["embed"]["tokens"].at[0].set(1e4)}}
    real = rows.segments > 0

    def loss(params):
        states = models.hidden(model, params, rows, layout)
        return jnp.sum(jnp.where(real[..., None], jnp.sin(states), 0))

    a, b = jax.jit(jax.grad(loss))(params), jax.jit(jax.grad(loss))(poisoned)
    tree_close(b, a, 1e-6)
    assert not a["embed"]["tokens"][0].any()


def test_bfloat16_computes_near_float32_and_keeps_wide_what_must_be():
    model, params = build(LLAMA)
    half = dataclasses.replace(model, dtype=jnp.bfloat16)
    mask = jnp.ones_like(TOKENS)
    exact, _ = models.token_logps(model, params, TOKENS, mask)
    rounded, _ = models.token_logps(half, params, TOKENS, mask)
    assert models.hidden(half, params, *plain(TOKENS)).dtype == jnp.bfloat16
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=0.2)


def test_token_logps_score_the_token_at_their_own_position():
    model, params = build(FAMILIES["gemma2"], chunk=3)
    mask = jnp.asarray([[1, 1, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1]], bool)
    logps, scored = models.token_logps(model, params, TOKENS, mask)
    full = jax.nn.log_softmax(models.logits(model, params, TOKENS))
    expected = jnp.take_along_axis(full[:, :-1], TOKENS[:, 1:, None], -1)[..., 0]
    np.testing.assert_array_equal(scored, mask.at[:, 0].set(False))
    np.testing.assert_allclose(logps[:, 1:], jnp.where(mask[:, 1:], expected, 0), atol=1e-5)
    assert not logps[:, 0].any()


def test_trap_72_a_gradient_through_the_model_holds_no_logits():
    model, params = build(dataclasses.replace(LLAMA, vocab_size=1000, tied_embeddings=True), chunk=16, remat="full")
    tokens = jnp.zeros((4, 64), int)
    loss = lambda p: jnp.sum(models.token_logps(model, p, tokens, tokens == 0)[0])  # noqa: E731
    sizes = buffer_sizes(jax.jit(jax.grad(loss)).lower(params).compile().as_text())
    assert 16 * 1000 in sizes and max(sizes) < 4 * 64 * 1000


def test_tokens_and_positions_outside_their_tables_are_loud():
    model, params = build(FAMILIES["gpt2"])
    assert bool(jnp.isnan(models.hidden(model, params, *plain(TOKENS.at[0, 3].set(37)))).any())
    assert bool(jnp.isnan(models.hidden(model, params, *plain(jnp.ones((1, 65), int)))).any())


@pytest.mark.parametrize(
    ("needs", "message"),
    [({"logits"}, "unknown"), ({"score/reward"}, "head"), ({"kl"}, "reference")],
)
def test_channels_that_cannot_be_computed_are_refused(needs, message):
    model, params = build(LLAMA)
    with pytest.raises(ModelError, match=message):
        models.channels(model, {"model": params, "heads": {}}, *plain(TOKENS), frozenset(needs))


def test_a_mask_of_another_shape_is_refused():
    model, params = build(LLAMA)
    with pytest.raises(ModelError, match="response_mask"):
        models.token_logps(model, params, TOKENS, TOKENS[:, 1:])
