"""DPO of Llama 3.2 1B: full fine-tuning, cached reference log-probs, pairs of up to 2,048 + 2,048 tokens.

    JAXPREF_DATA=gs://bucket/pairs jaxpref train --config=configs/tpu/llama3_1b_dpo.py --workdir=gs://bucket/runs/dpo

Slice: v5e:2x2 (4 chips); docs/performance.md has the plan.
"""

from jaxpref import configuration

llama3 = configuration.beside(__file__, "llama3.py")


def get_config():
    return llama3.dpo("1b", examples=64)
