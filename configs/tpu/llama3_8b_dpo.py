"""DPO of Llama 3.1 8B: full fine-tuning, AdamW, cached reference log-probs, prompts and responses of 2,048 tokens each.

    JAXPREF_DATA=gs://bucket/pairs jaxpref train --config=configs/tpu/llama3_8b_dpo.py --workdir=gs://bucket/runs/dpo

Slice: v5p:2x2x4, v6e:4x4 or v5e:4x8; docs/performance.md has the plans. The same command on every worker, and again
after a preemption.

See *Direct Preference Optimization: Your Language Model is Secretly a Reward Model* (https://arxiv.org/abs/2305.18290).
"""

from jaxpref import configuration

llama3 = configuration.beside(__file__, "llama3.py")


def get_config():
    return llama3.dpo("8b", examples=128)
