"""How each family writes its architecture in ``config.json``: names, defaults, and what all its models share.

And which fields, of any family, matter.
"""

from typing import Any, NamedTuple

Fields = dict[str, Any]

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}

# config.json's names of what ModelConfig has under another name; GPT-2 and GPT-NeoX differ in some.
NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "mlp_width",
    "max_position_embeddings": "max_positions",
    "rms_norm_eps": "norm_epsilon",
    "tie_word_embeddings": "tied_embeddings",
}
NAMES_GPT_2 = {
    "vocab_size": "vocab_size",
    "n_embd": "width",
    "n_layer": "layers",
    "n_head": "heads",
    "n_inner": "mlp_width",
    "n_positions": "max_positions",
    "layer_norm_epsilon": "norm_epsilon",
    "tie_word_embeddings": "tied_embeddings",
}
NAMES_GPT_NEOX = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "max_position_embeddings": "max_positions",
    "layer_norm_eps": "norm_epsilon",
    "tie_word_embeddings": "tied_embeddings",
}


class Family(NamedTuple):
    """How a family writes its architecture.

    Attributes:
        causal, reward: its classes in transformers.
        defaults: values of fields that a file may leave out. Files of transformers 4 leave out many.
        fixed: ModelConfig values that every model of the family has.
        names: config.json's names of ModelConfig's fields.
        activation: config.json's name of the activation.
        window: which layers are local: 'all', 'upper' (from ``max_window_layers`` on), 'pattern' (every n-th is not).
        pattern: that n, when the file gives none.
        partial: fraction of a head that is rotated when the file gives none; None where a family rotates all.
        attention_bias: whether a field of that name switches the biases of all four projections.
    """

    causal: str
    reward: str
    defaults: Fields
    fixed: Fields = {}
    names: dict[str, str] = NAMES
    activation: str = "hidden_act"
    window: str = ""
    pattern: int = 0
    partial: float | None = None
    attention_bias: bool = False


def _defaults(vocab_size, width, layers, heads, mlp_width, positions, **others) -> Fields:
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": None,
        "head_dim": None,
        "intermediate_size": mlp_width,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_theta": 1e4,
    } | others


_GEMMA = dict(num_key_value_heads=16, head_dim=256, tie_word_embeddings=True, attention_bias=False)
_GEMMA_2 = dict(
    _GEMMA,
    num_key_value_heads=4,
    hidden_activation="gelu_pytorch_tanh",
    query_pre_attn_scalar=256,
    sliding_window=4096,
)
_GEMMA_FIXED = dict(norm_offset=1.0, scale_embeddings=True)
_LAYER_NORM = dict(norm="layer", norm_bias=True, gated=False, mlp_bias=True)

FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        "LlamaForSequenceClassification",
        _defaults(32_000, 4096, 32, 32, 11_008, 2048, attention_bias=False, mlp_bias=False),
        attention_bias=True,
    ),
    "mistral": Family(
        "MistralForCausalLM",
        "MistralForSequenceClassification",
        _defaults(32_000, 4096, 32, 32, 14_336, 131_072, num_key_value_heads=8, sliding_window=4096),
        window="all",
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        "Qwen2ForSequenceClassification",
        _defaults(151_936, 4096, 32, 32, 22_016, 32_768, num_key_value_heads=32, sliding_window=4096),
        dict(attention_bias=True),
        window="upper",
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        "Qwen3ForSequenceClassification",
        _defaults(151_936, 4096, 32, 32, 22_016, 32_768, num_key_value_heads=32, head_dim=128, sliding_window=4096),
        dict(query_key_norm="head"),
        window="upper",
        attention_bias=True,
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        "GemmaForSequenceClassification",
        _defaults(256_000, 3072, 28, 16, 24_576, 8192, hidden_act="gelu_pytorch_tanh", **_GEMMA),
        _GEMMA_FIXED,
        attention_bias=True,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "Gemma2ForSequenceClassification",
        _defaults(256_000, 2304, 26, 8, 9216, 8192, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
        | _GEMMA_2,
        dict(_GEMMA_FIXED, post_norm=True),
        activation="hidden_activation",
        window="pattern",
        pattern=2,
        attention_bias=True,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        "Gemma3TextForSequenceClassification",
        _defaults(262_208, 2304, 26, 8, 9216, 131_072, attn_logit_softcapping=None, final_logit_softcapping=None)
        | dict(_GEMMA_2, rope_theta=1e6),
        dict(_GEMMA_FIXED, post_norm=True, query_key_norm="head"),
        activation="hidden_activation",
        window="pattern",
        pattern=6,
        attention_bias=True,
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        "Olmo2ForSequenceClassification",
        _defaults(50_304, 4096, 32, 32, 11_008, 2048, rms_norm_eps=1e-5, attention_bias=False),
        dict(pre_norm=False, post_norm=True, query_key_norm="all"),
        attention_bias=True,
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        "Phi3ForSequenceClassification",
        _defaults(32_064, 3072, 32, 32, 8192, 4096, rms_norm_eps=1e-5, sliding_window=None)
        | dict(original_max_position_embeddings=4096),
        window="all",
        partial=1.0,
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        "GPT2ForSequenceClassification",
        dict(
            vocab_size=50_257,
            n_embd=768,
            n_layer=12,
            n_head=12,
            n_inner=None,
            n_positions=1024,
            layer_norm_epsilon=1e-5,
            activation_function="gelu_new",
            tie_word_embeddings=True,
        ),
        dict(_LAYER_NORM, attention_bias=True, attention_out_bias=True, learned_positions=True, rope=None),
        names=NAMES_GPT_2,
        activation="activation_function",
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        "GPTNeoXForSequenceClassification",
        dict(
            vocab_size=50_432,
            hidden_size=6144,
            num_hidden_layers=44,
            num_attention_heads=64,
            intermediate_size=24_576,
            max_position_embeddings=2048,
            layer_norm_eps=1e-5,
            hidden_act="gelu",
            tie_word_embeddings=False,
            attention_bias=True,
            use_parallel_residual=True,
            rope_theta=1e4,
        ),
        _LAYER_NORM,
        names=NAMES_GPT_NEOX,
        partial=0.25,
        attention_bias=True,
    ),
}

# Fields that change the maths and are modelled for one value only.
REQUIRED = {
    "quantization_config": (None,),
    "use_bidirectional_attention": (None, False),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (None, False),
    "is_encoder_decoder": (None, False),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
}

# Fields without meaning for the maths: provenance, numerics of other implementations, dropout (never applied here),
# initialisation, token ids, and heads of other tasks.
NEUTRAL = frozenset(
    """
    model_type architectures dtype torch_dtype transformers_version _name_or_path auto_map use_cache
    cache_implementation initializer_range pretraining_tp reorder_and_upcast_attn gradient_checkpointing
    attention_dropout attn_pdrop embd_pdrop resid_pdrop hidden_dropout classifier_dropout
    bos_token_id eos_token_id pad_token_id sep_token_id n_ctx is_decoder torchscript
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj task_specific_params
    id2label label2id num_labels problem_type output_attentions output_hidden_states return_dict chunk_size_feed_forward
    tie_encoder_decoder
    """.split()
)
# Fields that are read where a family has them.
READ = frozenset(
    """
    rope_theta rope_scaling rope_parameters rope_local_base_freq rotary_emb_base rotary_pct partial_rotary_factor
    original_max_position_embeddings sliding_window use_sliding_window max_window_layers layer_types
    sliding_window_pattern _sliding_window_pattern attention_bias mlp_bias use_parallel_residual hidden_activation
    query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping hidden_act activation_function head_dim
    """.split()
)
# What each kind of rotary scaling cannot do without.
NEEDED = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
