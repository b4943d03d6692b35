"""Methods that compare pairs without a reference."""

from jaxpref import losses
from jaxpref.objectives.registry import register


def token_mean(weight):
    """A likelihood term per token of the batch, as a sum over examples: separable where its default would not be."""

    def reduction(hyperparameters):
        if hyperparameters["nll"] != "batch_token_mean":
            return {}, "examples"
        per_token = lambda value, counts: value * counts["examples"] / counts["tokens"]  # noqa: E731
        return {"nll": "sequence_sum", weight: per_token}, "examples"

    return reduction


def _sum(logps, lengths, hyperparameters):
    return hyperparameters["beta"] * logps


def _alphapo_reward(logps, lengths, hyperparameters):
    averages = losses.scores.average(logps, lengths)
    return hyperparameters["beta"] * losses.alphapo_reward(averages, hyperparameters["alpha"])


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
register(
    "slic",
    losses.slic_loss,
    feedback="pairs",
    title="SLiC-HF: Sequence Likelihood Calibration with Human Feedback",
    url="https://arxiv.org/abs/2305.10425",
    formula="max(0, delta - log p(chosen) + log p(rejected)) - lam log p(chosen)",
    disagreements="Sums of token log-probabilities. Hinges against a reference that bear this name are dpo_hinge.",
)
register(
    "cpo",
    losses.cpo_loss,
    feedback="pairs",
    title="Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation",
    url="https://arxiv.org/abs/2401.08417",
    formula="-log sigmoid(beta (chosen - rejected log-prob)) + cpo_alpha NLL(chosen)",
    disagreements="NLL per token of the batch (code), or summed over a response (paper, nll='sequence_sum').",
    reduction=token_mean("cpo_alpha"),
    reward=_sum,
)
register(
    "arpo",
    losses.arpo_loss,
    feedback="pairs",
    title="X-ALMA: Plug & Play Modules and Adaptive Rejection for Quality Translation at Scale",
    url="https://arxiv.org/abs/2410.03115",
    formula="cpo with the rejected log-prob scaled by min(eta1 exp(eta2 |difference of averages|) - 1, 1)",
    disagreements="Gradients flow through the scale, which may be negative, as in the official code.",
    reduction=token_mean("cpo_alpha"),
    reward=_sum,
)
register(
    "alphapo",
    losses.alphapo_loss,
    feedback="pairs",
    title="AlphaPO: Reward Shape Matters for LLM Alignment",
    url="https://arxiv.org/abs/2501.03884",
    formula="-log sigmoid(beta (r chosen - r rejected) - gamma), r = (1 - p^-alpha) / alpha, log p = average log-prob",
    disagreements="gamma is the margin itself, not its ratio to beta.",
    reward=_alphapo_reward,
)
register(
    "mapo",
    losses.mapo_lm_loss,
    feedback="pairs",
    title="Margin-aware Preference Optimization for Aligning Diffusion Models without Reference",
    url="https://arxiv.org/abs/2406.06424",
    formula="e(chosen) - beta log sigmoid(T (s(chosen) - s(rejected))), s = w e / (exp(w e) - 1), e = average NLL",
    disagreements="The paper has images only; this transfer to language models is a reconstruction.",
)
register(
    "semantic_preference",
    losses.semantic_preference_loss,
    feedback="pairs",
    title="Understanding the Logic of Direct Preference Alignment through Logic",
    url="https://arxiv.org/abs/2412.17696",
    formula="-log sigmoid(beta log(P(worlds where the preference holds) / P(worlds where it is broken)))",
    disagreements="p is the average's exponential. The tables of cCPO, sCPO and the fUNL family are less certain.",
)
