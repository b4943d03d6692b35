"""Reward models."""

from jaxpref import losses
from jaxpref.objectives.registry import register

register(
    "bradley_terry",
    losses.bradley_terry_loss,
    feedback="pairs",
    title="Training language models to follow instructions with human feedback",
    url="https://arxiv.org/abs/2203.02155",
    formula="-log sigmoid((chosen reward - rejected reward - margin) / temperature)",
    disagreements="Centring takes the raw sum of rewards. margin and target_prob are used where the data has them.",
)
