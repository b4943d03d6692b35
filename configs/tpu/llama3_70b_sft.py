"""SFT of Llama 3.1 70B: full fine-tuning, packed demonstrations of up to 4,096 tokens.

    JAXPREF_DATA=gs://bucket/demonstrations jaxpref train --config=configs/tpu/llama3_70b_sft.py --workdir=gs://bucket/runs/sft

Slice: v5p:2x4x4 (32 chips); docs/performance.md has the plan.
"""

from jaxpref import configuration

llama3 = configuration.beside(__file__, "llama3.py")


def get_config():
    return llama3.sft("70b", examples=128)
