"""Methods that compare pairs with a reference which is not simply the policy before training."""

from jaxpref import losses
from jaxpref.objectives.registry import register

register(
    "hybrid_dpo",
    losses.hybrid_dpo_loss,
    feedback="pairs",
    title="Mitigating Mismatch within Reference-based Preference Optimization",
    url="https://arxiv.org/abs/2602.11902",
    formula="-log sigmoid(beta (log p(chosen) - log p(rejected) - max(0, the same of the reference)))",
    disagreements="The paper calls it HyPO, a name that DPO with an online KL divergence has as well.",
)
