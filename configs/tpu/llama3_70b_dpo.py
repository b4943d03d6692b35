"""DPO of Llama 3.1 70B: full fine-tuning, cached reference log-probs, pairs of up to 2,048 + 2,048 tokens.

    JAXPREF_DATA=gs://bucket/pairs jaxpref train --config=configs/tpu/llama3_70b_dpo.py --workdir=gs://bucket/runs/dpo

Slice: v5p:2x4x4 (32 chips); docs/performance.md has the plan.
"""

from jaxpref import configuration

llama3 = configuration.beside(__file__, "llama3.py")


def get_config():
    return llama3.dpo("70b", examples=128)
