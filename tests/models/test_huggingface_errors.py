"""Directories without torch: files of other savers, and broken or unsupported ones, each refused in one sentence."""

import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpref.errors import ModelError
from jaxpref.models import ModelConfig, Rope, Transformer, init
from jaxpref.models.huggingface import load_hf, load_hf_head, resolve_hf, save_hf

CONFIG = ModelConfig(
    vocab_size=23, width=16, layers=2, heads=4, key_value_heads=2, head_dim=4, mlp_width=24, max_positions=32
)


@pytest.fixture(scope="module")
def trained():
    model = Transformer(CONFIG)
    return model, init(model, jax.random.key(0))


@pytest.fixture
def directory(trained, tmp_path):
    """A good directory with several files."""
    save_hf(*trained, tmp_path, max_shard_bytes=4000)
    return tmp_path


def edit_config(directory, **fields):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def edit_tensors(directory, **changes):
    """Replaces tensors by what a function makes of them; None removes one."""
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    (directory / "model.safetensors.index.json").unlink()
    for name, change in changes.items():
        value = change(tensors.pop(name, None))
        tensors |= {} if value is None else {name: value}
    save_file(tensors, directory / "model.safetensors")


def assert_refused(directory, *words):
    with pytest.raises(ModelError) as caught:
        load_hf(directory)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_scratch_model_round_trips_in_several_files(trained, directory):
    model, params = trained
    assert len(list(directory.glob("model-*-of-*.safetensors"))) > 2
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert json.loads((directory / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    again, params_again = load_hf(directory)
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, params_again, params)


def test_second_export_leaves_nothing_of_the_first(trained, directory):
    save_hf(*trained, directory)
    assert [file.name for file in directory.glob("model*")] == ["model.safetensors"]
    load_hf(directory)


def test_bfloat16_survives_and_widens(directory, trained, tmp_path):
    model, params = load_hf(directory, dtype=jnp.bfloat16)
    assert model.dtype == model.param_dtype == jnp.bfloat16
    save_hf(model, params, tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {array.dtype for array in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    _, wide = load_hf(tmp_path / "half")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.float32)), wide, params)


def test_config_survives_json_between_processes(directory):
    edit_config(directory, eos_token_id=[7, 9], initializer_range=0.5)
    model, params = load_hf(directory)
    config = ModelConfig.from_dict(json.loads(json.dumps(model.config.to_dict())))
    save_hf(Transformer(config), params, directory / "export")
    fields = json.loads((directory / "export" / "config.json").read_text())
    assert fields["eos_token_id"] == [7, 9]
    assert fields["initializer_range"] == 0.5


@pytest.mark.parametrize("keep", [4, 100, 0.5, 0.999])
def test_truncated_file(directory, keep):
    file = directory / "model-00002-of-00003.safetensors"
    file = file if file.exists() else sorted(directory.glob("model-*.safetensors"))[1]
    content = file.read_bytes()
    file.write_bytes(content[: keep if keep > 1 else int(keep * len(content))])
    assert_refused(directory, file.name, "truncated")


def test_missing_tensor(directory):
    edit_tensors(directory, **{"model.layers.1.mlp.up_proj.weight": lambda array: None})
    assert_refused(directory, "model.layers.1.mlp.up_proj.weight", "lacks")


def test_unknown_tensor(directory):
    edit_tensors(directory, **{"model.layers.0.mlp.router.weight": lambda array: np.zeros((2, 2), np.float32)})
    assert_refused(directory, "model.layers.0.mlp.router.weight", "no place")


def test_surplus_layer(directory):
    edit_config(directory, num_hidden_layers=1)
    assert_refused(directory, "model.layers.1.")


def test_tensor_of_another_shape(directory):
    edit_tensors(directory, **{"model.norm.weight": lambda array: array[:-1]})
    assert_refused(directory, "model.norm.weight", "[15]", "[16]")


def test_quantised_tensor(directory):
    edit_tensors(directory, **{"model.norm.weight": lambda array: array.astype(np.int8)})
    assert_refused(directory, "model.norm.weight", "I8")


def test_missing_file_of_the_index(directory):
    file = sorted(directory.glob("model-*.safetensors"))[0]
    file.unlink()
    assert_refused(directory, file.name)


def test_index_that_misplaces_a_tensor(directory):
    file = directory / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"]
    file.write_text(json.dumps(index))
    assert_refused(directory, "model.norm.weight")


def test_pickle_is_never_read(directory):
    for file in directory.glob("model*"):
        file.unlink()
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert_refused(directory, "pytorch_model.bin", "save_pretrained")


def test_directory_without_weights_or_config(directory):
    for file in directory.glob("model*"):
        file.unlink()
    assert_refused(directory, "model.safetensors")
    assert_refused(directory / "nowhere", "config.json")


def test_broken_json(directory):
    (directory / "config.json").write_text("{")
    assert_refused(directory, "config.json", "JSON")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(model_type="mixtral"), ["model_type", "mixtral"]),
        (dict(model_type=None), ["model_type"]),
        (dict(quantization_config={"quant_method": "gptq"}), ["quantization_config", "gptq"]),
        (dict(hidden_act="quick_gelu"), ["hidden_act", "quick_gelu"]),
        (dict(num_local_experts=8), ["num_local_experts", "8"]),
        (dict(rope_scaling=dict(rope_type="yarn", factor=2.0)), ["rope_type", "yarn"]),
        (dict(rope_scaling=dict(type="dynamic", factor=2.0)), ["rope_type", "dynamic"]),
        (dict(rope_scaling=dict(type="linear", factor=2.0, beta_fast=1)), ["beta_fast"]),
        (dict(rope_scaling=dict(type="linear")), ["factor"]),
        (dict(rope_parameters=dict(rope_type="default", partial_rotary_factor=0.5)), ["partial_rotary_factor", "0.5"]),
        (dict(hidden_size="16"), ["hidden_size", "'16'"]),
        (dict(num_hidden_layers=None), ["num_hidden_layers", "None"]),
    ],
)
def test_unsupported_config(directory, fields, words):
    edit_config(directory, **fields)
    assert_refused(directory, *words)


def test_unknown_field_is_named_in_a_warning(directory):
    edit_config(directory, frobnication=3)
    with pytest.warns(UserWarning, match="frobnication"):
        load_hf(directory)


def test_older_rope_layout_is_read(directory):
    edit_config(
        directory,
        rope_parameters=None,
        rope_theta=5e5,
        rope_scaling=dict(
            type="llama3", factor=8, low_freq_factor=1, high_freq_factor=4, original_max_position_embeddings=16
        ),
    )
    expected = Rope(theta=5e5, scaling="llama3", factor=8, original_positions=16)
    assert load_hf(directory)[0].config.rope == expected


def test_buffers_of_older_files_are_ignored(directory):
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": lambda array: np.ones(2, np.float32)}
    edit_tensors(directory, **frequencies)
    load_hf(directory)


def test_older_gpt_2_files_have_no_prefix_and_carry_masks(tmp_path):
    config = ModelConfig(
        family="gpt2",
        vocab_size=23,
        width=16,
        layers=2,
        heads=4,
        key_value_heads=4,
        head_dim=4,
        mlp_width=24,
        max_positions=32,
        learned_positions=True,
        rope=None,
        norm="layer",
        norm_bias=True,
        attention_bias=True,
        attention_out_bias=True,
        activation="gelu_tanh",
        gated=False,
        mlp_bias=True,
        tied_embeddings=True,
    )
    model = Transformer(config)
    params = init(model, jax.random.key(0))
    save_hf(model, params, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    masks = {f"h.{layer}.attn.bias": np.ones((1, 1, 32, 32), np.uint8) for layer in range(2)}
    save_file(tensors | masks, tmp_path / "model.safetensors")
    again, params_again = load_hf(tmp_path)
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, params_again, params)


@pytest.mark.parametrize("layout", ["language_model.model.", "model.language_model."])
def test_text_model_inside_a_multimodal_gemma_3(layout, tmp_path):
    config = ModelConfig(
        family="gemma3_text",
        vocab_size=23,
        width=16,
        layers=2,
        heads=4,
        key_value_heads=2,
        head_dim=8,
        mlp_width=24,
        max_positions=32,
        window=4,
        local_layers=(True, False),
        rope=Rope(theta=1e6, scaling="linear", factor=8.0),
        local_rope=Rope(theta=1e4),
        norm_epsilon=1e-6,
        norm_offset=1.0,
        scale_embeddings=True,
        post_norm=True,
        query_key_norm="head",
        activation="gelu_tanh",
        tied_embeddings=True,
    )
    model = Transformer(config)
    params = init(model, jax.random.key(0))
    save_hf(model, params, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    whole = dict(model_type="gemma3", text_config=fields, vision_config={}, eos_token_id=[1, 106])
    (tmp_path / "config.json").write_text(json.dumps(whole))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {layout + name.removeprefix("model."): array for name, array in tensors.items()}
    vision = {layout.split("language_model")[0] + "vision_tower.patch.weight": np.ones((2, 2), np.float32)}
    save_file(tensors | vision, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="1 vision tensor"):
        again, params_again = load_hf(tmp_path)
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, params_again, params)
    save_hf(again, params_again, tmp_path / "export")
    assert json.loads((tmp_path / "export" / "config.json").read_text())["eos_token_id"] == [1, 106]


def test_bare_model_without_prefix(trained, tmp_path):
    model, params = trained
    tied = Transformer(ModelConfig.from_dict(CONFIG.to_dict() | {"tied_embeddings": True}))
    params = {name: leaf for name, leaf in params.items() if name != "head"}
    save_hf(tied, params, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({name.removeprefix("model."): a for name, a in tensors.items()}, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load_hf(tmp_path)[1], params)


def test_tied_copy_must_equal_the_embedding(directory):
    edit_config(directory, tie_word_embeddings=True)
    assert_refused(directory, "tie_word_embeddings", "lm_head.weight")
    embedding = {}
    edit_tensors(directory, **{"model.embed_tokens.weight": lambda array: embedding.setdefault("same", array)})
    save_file(
        load_file(directory / "model.safetensors") | {"lm_head.weight": embedding["same"]},
        directory / "model.safetensors",
    )
    assert "head" not in load_hf(directory)[1]


def test_model_that_no_family_expresses(trained, tmp_path):
    _, params = trained
    values = CONFIG.to_dict() | {"parallel_residual": True}
    with pytest.raises(ModelError, match="parallel_residual"):
        save_hf(Transformer(ModelConfig.from_dict(values)), params, tmp_path)


def test_message_names_the_family_that_would_do(trained, tmp_path):
    _, params = trained
    values = CONFIG.to_dict() | {"query_key_norm": "head"}
    with pytest.raises(ModelError, match=re.escape("set family to qwen3")):
        save_hf(Transformer(ModelConfig.from_dict(values)), params, tmp_path)


def test_tree_of_another_model(trained, tmp_path):
    model, params = trained
    with pytest.raises(ModelError, match="params\\['model'\\]"):
        save_hf(model, {"model": params, "heads": {}}, tmp_path)


def test_trap_43_reward_export_refuses_a_padding_token_that_ends_texts(directory, tmp_path):
    edit_config(directory, bos_token_id=1, eos_token_id=1, pad_token_id=1)
    model, params = load_hf(directory)
    head = {"kernel": np.ones((16, 1), np.float32)}
    with pytest.raises(ModelError, match="pad_token_id"):
        save_hf(model, params, tmp_path / "reward", head=head)
    with pytest.raises(ModelError, match="pad_token_id"):
        save_hf(model, params, tmp_path / "reward", head=head, pad_token_id=1)
    save_hf(model, params, tmp_path / "reward", head=head, pad_token_id=0)
    assert json.loads((tmp_path / "reward" / "config.json").read_text())["pad_token_id"] == 0


def test_trap_44_head_dimension_is_kept(directory, tmp_path):
    model, params = load_hf(directory)
    for outputs in (1, 3):
        kernel = np.arange(16 * outputs, dtype=np.float32).reshape(16, outputs)
        save_hf(model, params, tmp_path / "reward", head=kernel, pad_token_id=0)
        np.testing.assert_array_equal(load_hf_head(tmp_path / "reward")["kernel"], kernel)
        assert len(json.loads((tmp_path / "reward" / "config.json").read_text())["id2label"]) == outputs
    with pytest.raises(ModelError, match=re.escape("[16, d]")):
        save_hf(model, params, tmp_path / "reward", head=np.ones(16), pad_token_id=0)


def test_directory_without_a_head(directory):
    with pytest.raises(ModelError, match="score.weight"):
        load_hf_head(directory)


def test_hub_paths(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    assert resolve_hf(tmp_path) == tmp_path
    asked = {}

    def download(name, revision, allow_patterns):
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_hf("hf://org/name@v1") == tmp_path
    assert asked["name"] == "org/name" and asked["revision"] == "v1"
    assert not any(pattern.endswith((".bin", ".pt")) for pattern in asked["patterns"])

    def fail(name, revision, allow_patterns):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match="no route"):
        resolve_hf("hf://org/name")
