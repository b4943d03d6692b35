"""DPO of Llama 3.1 405B by low-rank adapters on bfloat16 weights, cached reference log-probs.

    JAXPREF_DATA=gs://bucket/pairs jaxpref train --config=configs/tpu/llama3_405b_dpo_lora.py --workdir=gs://bucket/runs/dpo

Slice: v5p:2x4x4 (32 chips); docs/performance.md has the plan. Only the factors have gradients and moments, so the
weights may be stored in the type they are used in.

See *LoRA: Low-Rank Adaptation of Large Language Models* (https://arxiv.org/abs/2106.09685).
"""

from jaxpref import configuration

llama3 = configuration.beside(__file__, "llama3.py")


def get_config():
    config = llama3.dpo("405b", examples=128, learning_rate=2e-5)
    config.model.param_dtype = "bfloat16"
    config.adapter.kind = "lora"
    config.adapter.rank = 32
    config.adapter.alpha = 64.0
    return config
