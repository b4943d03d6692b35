"""Methods that compare pairs without a reference."""

from jaxpref import losses
from jaxpref.objectives.registry import register

register(
    "simpo",
    losses.simpo_loss,
    feedback="pairs",
    title="SimPO: Simple Preference Optimization with a Reference-Free Reward",
    url="https://arxiv.org/abs/2405.14734",
    formula="-log sigmoid(beta (chosen - rejected average log-prob) - gamma)",
    disagreements="gamma = beta gamma_beta_ratio (official) unless gamma is given (other frameworks).",
)
register(
    "orpo",
    losses.orpo_loss,
    feedback="pairs",
    title="ORPO: Monolithic Preference Optimization without Reference Model",
    url="https://arxiv.org/abs/2403.07691",
    formula="average NLL(chosen) - lam log sigmoid(log odds ratio of average log-probs)",
    disagreements="NLL over the response only; the official code averages over prompt and response.",
    reward_scale="lam",
)
