"""SFT of Llama 3.1 8B: full fine-tuning, packed demonstrations of up to 4,096 tokens.

    JAXPREF_DATA=gs://bucket/demonstrations jaxpref train --config=configs/tpu/llama3_8b_sft.py --workdir=gs://bucket/runs/sft

Slice: v5p:2x2x4 or v6e:4x4 (16 chips); docs/performance.md has the plan.
"""

from jaxpref import configuration

llama3 = configuration.beside(__file__, "llama3.py")


def get_config():
    return llama3.sft("8b", examples=128)
