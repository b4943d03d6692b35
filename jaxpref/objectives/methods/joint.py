"""Methods on responses with prompts of their own."""

import math

from jaxpref import losses
from jaxpref.objectives.registry import register


def _log_two(hyperparameters, side):
    return math.log(2)


register(
    "dove",
    losses.dove_loss,
    feedback="joint",
    title="Comparing Bad Apples to Good Oranges: Aligning Large Language Models via Joint Preference Optimization",
    url="https://arxiv.org/abs/2404.00530",
    formula="-log sigmoid(beta (chosen - rejected log-ratio)), log-ratios of prompt and response together",
    disagreements="The template's tokens count as the prompt's; the first token, the same in both, has no probability.",
    at_reference=_log_two,
)
register(
    "mapl_intra",
    losses.mapl_intra_loss,
    feedback="joint",
    title="Multi-Level Aware Preference Learning: Enhancing RLHF for Complex Multi-Instruction Tasks",
    url="https://arxiv.org/abs/2505.12845",
    formula="-log sigmoid(beta (log-ratio of the response under the chosen - under the rejected prompt))",
    disagreements="The prompts' partition functions, which do not cancel, are left out, as the paper does.",
    at_reference=_log_two,
)
register(
    "mapl_inter",
    losses.mapl_inter_loss,
    feedback="crossed",
    title="Multi-Level Aware Preference Learning: Enhancing RLHF for Complex Multi-Instruction Tasks",
    url="https://arxiv.org/abs/2505.12845",
    formula="-log sigmoid(z(hi) - z(lo)), z as in dpo, of one pair under two prompts",
    disagreements="A reconstruction from the paper's description. Add it to mapl_intra and dpo, each with weight 1.",
    at_reference=_log_two,
)
