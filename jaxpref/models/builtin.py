"""Small Llama-type architectures for a laptop's CPU, over bytes: 256 of them, and room for special tokens."""

from jaxpref.models.config import ModelConfig

VOCABULARY = 512


def _llama(*, width: int, layers: int, heads: int, key_value_heads: int, mlp_width: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCABULARY,
        width=width,
        layers=layers,
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=width // heads,
        mlp_width=mlp_width,
        max_positions=2048,
        tied_embeddings=True,
    )


# About a hundred thousand, one million and five million parameters.
BUILTIN: dict[str, ModelConfig] = {
    "nano": _llama(width=64, layers=2, heads=4, key_value_heads=2, mlp_width=128),
    "micro": _llama(width=128, layers=5, heads=8, key_value_heads=4, mlp_width=384),
    "mini": _llama(width=256, layers=6, heads=8, key_value_heads=4, mlp_width=768),
}
