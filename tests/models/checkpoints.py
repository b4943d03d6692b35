"""Small random checkpoints of every family, made with transformers and torch (imported only when one is made).

Every bias and norm scale is random, so that one that is dropped, or added where it should not be, shows.
"""

import functools

import numpy as np

VOCABULARY = 97
SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
WITHOUT_GROUPS = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
GPT_2 = dict(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)

LLAMA_3_ROPE = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)

LONG_ROPE = dict(
    rope_type="longrope",
    rope_theta=1e4,
    partial_rotary_factor=1.0,
    short_factor=[1.0, 1.1, 1.3, 1.6],
    long_factor=[1.5, 2.0, 4.0, 8.0],
    original_max_position_embeddings=32,
)

# Name of a variant: model_type and the fields of its config.
VARIANTS: dict[str, tuple[str, dict]] = {
    "llama2": ("llama", dict(SIZES)),
    "llama3": ("llama", dict(SIZES, rope_parameters=LLAMA_3_ROPE)),
    "llama-linear": ("llama", dict(SIZES, rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=3.0))),
    "llama-tied-wide-heads": ("llama", dict(SIZES, tie_word_embeddings=True, head_dim=12)),
    "llama-biases": ("llama", dict(SIZES, attention_bias=True, mlp_bias=True)),
    "mistral": ("mistral", dict(SIZES, sliding_window=5)),
    "mistral-no-window": ("mistral", dict(SIZES, sliding_window=None, head_dim=16)),
    "qwen2": ("qwen2", dict(SIZES)),
    "qwen2-window": ("qwen2", dict(SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1)),
    "qwen3": ("qwen3", dict(SIZES, head_dim=16, tie_word_embeddings=True)),
    "gemma": ("gemma", dict(SIZES, head_dim=16)),
    "gemma2": (
        "gemma2",
        dict(
            SIZES,
            head_dim=16,
            sliding_window=5,
            query_pre_attn_scalar=24,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
    ),
    "gemma3": (
        "gemma3_text",
        dict(
            SIZES,
            head_dim=16,
            sliding_window=5,
            query_pre_attn_scalar=24,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "full_attention": dict(rope_type="linear", rope_theta=5000.0, factor=8.0),
                "sliding_attention": dict(rope_type="default", rope_theta=100.0),
            },
        ),
    ),
    "olmo2": ("olmo2", dict(SIZES)),
    "phi3": ("phi3", dict(SIZES, sliding_window=6)),
    "phi3-partial": (
        "phi3",
        dict(SIZES, rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)),
    ),
    "phi3-long": ("phi3", dict(SIZES, rope_parameters=LONG_ROPE, original_max_position_embeddings=32)),
    "gpt2": ("gpt2", dict(GPT_2)),
    "gpt2-inner": ("gpt2", dict(GPT_2, n_inner=48, activation_function="relu")),
    "gpt_neox": (
        "gpt_neox",
        dict(WITHOUT_GROUPS, rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.25)),
    ),
    "gpt_neox-sequential": ("gpt_neox", dict(WITHOUT_GROUPS, use_parallel_residual=False, hidden_act="gelu_new")),
}
FAMILIES = ["llama3", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "olmo2", "phi3", "gpt2", "gpt_neox"]


def randomize(model) -> None:
    """Draws every parameter anew: matrices that keep activations near one, scales and biases far from their start."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                embedding = any(part in name for part in ("embed_tokens", "embed_in", "wte", "wpe"))
                parameter.copy_(noise * (0.4 if embedding else parameter.shape[1] ** -0.5))
            elif name.endswith("bias") or "Gemma" in type(model).__name__:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(1 + 0.3 * noise)


@functools.cache
def torch_model(variant: str, vocabulary: int = VOCABULARY):
    """The random torch model of a variant, in float32 on the CPU."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    model_type, fields = VARIANTS[variant]
    config = transformers.AutoConfig.for_model(model_type, **fields | {"vocab_size": vocabulary})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomize(model)
    return model


def save(variant: str, path, vocabulary: int = VOCABULARY, **arguments):
    """Writes the variant's checkpoint into a directory and returns its torch model."""
    model = torch_model(variant, vocabulary)
    model.save_pretrained(path, **arguments)
    return model


def ragged_tokens(seed: int = 0, length: int = 19, lengths=(19, 11, 4, 1)) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded rows of random tokens ``[B, T]`` and the mask of their valid positions; padding is token 0."""
    valid = np.arange(length) < np.asarray(lengths)[:, None]
    tokens = np.random.default_rng(seed).integers(3, VOCABULARY, valid.shape)
    return np.where(valid, tokens, 0).astype(np.int32), valid


def torch_logits(model, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Logits ``[B, T, V]`` of a causal torch model."""
    import torch

    with torch.no_grad():
        output = model(input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(valid).long())
    return output.logits.numpy()
