"""A reward model from Llama 3.1 8B: full fine-tuning on pairs of up to 2,048 + 2,048 tokens.

    JAXPREF_DATA=gs://bucket/pairs jaxpref train --config=configs/tpu/llama3_8b_reward.py --workdir=gs://bucket/runs/reward

Slice: v5p:2x2x4 or v6e:4x4 (16 chips); docs/performance.md has the plan.
"""

from jaxpref import configuration

llama3 = configuration.beside(__file__, "llama3.py")


def get_config():
    return llama3.reward("8b", examples=128)
