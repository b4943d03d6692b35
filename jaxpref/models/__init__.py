"""The transformer: parameters, forward pass, channels, cache and sharding.

>>> model = Transformer(BUILTIN["nano"])
>>> params = init(model, jax.random.key(0))
>>> logps, mask = token_logps(model, params, tokens, response_mask)
"""

from jaxpref.models import adapters, quantization, vocabulary
from jaxpref.models.builtin import BUILTIN
from jaxpref.models.cache import Cache, extend, init_cache
from jaxpref.models.channels import channels, head_kernel, head_logits, logits, token_logps
from jaxpref.models.config import ModelConfig, Rope, Transformer
from jaxpref.models.huggingface import describe_hf, load_hf, load_hf_head, resolve_hf, save_hf
from jaxpref.models.huggingface_adapters import save_peft
from jaxpref.models.parameters import count, init, invariant_leaves
from jaxpref.models.sharding import BATCH, constrain, replicate, shard_specs, sharding_rules
from jaxpref.models.transformer import hidden

__all__ = [
    "BATCH",
    "BUILTIN",
    "Cache",
    "ModelConfig",
    "Rope",
    "Transformer",
    "adapters",
    "channels",
    "constrain",
    "count",
    "describe_hf",
    "extend",
    "head_kernel",
    "head_logits",
    "hidden",
    "init",
    "init_cache",
    "invariant_leaves",
    "load_hf",
    "load_hf_head",
    "logits",
    "quantization",
    "replicate",
    "resolve_hf",
    "save_hf",
    "save_peft",
    "shard_specs",
    "sharding_rules",
    "token_logps",
    "vocabulary",
]
