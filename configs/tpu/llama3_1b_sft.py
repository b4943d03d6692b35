"""SFT of Llama 3.2 1B: full fine-tuning, packed demonstrations of up to 4,096 tokens.

    JAXPREF_DATA=gs://bucket/demonstrations jaxpref train --config=configs/tpu/llama3_1b_sft.py --workdir=gs://bucket/runs/sft

Slice: v5e:2x2 (4 chips); docs/performance.md has the plan.
"""

from jaxpref import configuration

llama3 = configuration.beside(__file__, "llama3.py")


def get_config():
    return llama3.sft("1b", examples=64)
