"""Methods that stand beside others: they teach the policy something of which no response is preferred."""

from jaxpref import losses
from jaxpref.objectives.registry import register

register(
    "preference_degree",
    losses.preference_degree_loss,
    feedback="graded",
    title="Self-supervised Preference Optimization: Enhance Your Language Model with Preference Degree Awareness",
    url="https://arxiv.org/abs/2409.17791",
    formula="-log softmax(head of the last state)[degree], the share of the key phrases that was left out",
    disagreements="No official code; weight 0.1 to 1 beside a loss on pairs. Degraded texts enter no other term.",
    classes=("degree", "levels"),
    state_hyperparameters={"levels": 4},
)
