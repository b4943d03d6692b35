"""Architectures by name: small Llama-type ones for a laptop's CPU, and the shapes of published Llamas."""

from jaxpref.models.config import ModelConfig, Rope

VOCABULARY = 512  # 256 bytes, and room for special tokens


def _llama(*, width: int, layers: int, heads: int, key_value_heads: int, mlp_width: int, **others) -> ModelConfig:
    small = dict(vocab_size=VOCABULARY, max_positions=2048, tied_embeddings=True)
    sizes = dict(width=width, layers=layers, heads=heads, key_value_heads=key_value_heads, mlp_width=mlp_width)
    return ModelConfig(**(dict(head_dim=width // heads) | sizes | small | others))


def _llama3(*, factor: float = 8.0, tied_embeddings: bool = False, **sizes) -> ModelConfig:
    """Llama 3.1 and 3.2: a long context by slowing the low frequencies down."""
    return _llama(
        family="llama",
        vocab_size=128_256,
        max_positions=131_072,
        tied_embeddings=tied_embeddings,
        key_value_heads=8,
        rope=Rope(
            theta=500_000.0,
            scaling="llama3",
            factor=factor,
            low_frequency_factor=1.0,
            high_frequency_factor=4.0,
            original_positions=8192,
        ),
        **sizes,
    )


# About a hundred thousand, one million and five million parameters; then the sizes of their names.
# See *The Llama 3 Herd of Models* (https://arxiv.org/abs/2407.21783), and for 1B the config.json of Llama 3.2.
BUILTIN: dict[str, ModelConfig] = {
    "nano": _llama(width=64, layers=2, heads=4, key_value_heads=2, mlp_width=128),
    "micro": _llama(width=128, layers=5, heads=8, key_value_heads=4, mlp_width=384),
    "mini": _llama(width=256, layers=6, heads=8, key_value_heads=4, mlp_width=768),
    "llama3-1b": _llama3(width=2048, layers=16, heads=32, mlp_width=8192, factor=32.0, tied_embeddings=True),
    "llama3-8b": _llama3(width=4096, layers=32, heads=32, mlp_width=14_336),
    "llama3-70b": _llama3(width=8192, layers=80, heads=64, mlp_width=28_672),
    "llama3-405b": _llama3(width=16_384, layers=126, heads=128, mlp_width=53_248),
}
