"""Methods on pairs that see the whole batch or carry a running state."""

import functools
import math

import jax.numpy as jnp

from jaxpref import losses
from jaxpref.objectives.methods.reference_free import token_mean
from jaxpref.objectives.registry import register


def _log_two(hyperparameters, side):
    return math.log(2)


@functools.wraps(losses.beta_dpo_loss)
def _beta_dpo(*arrays, **bound):
    """Values that have the mean over the selected examples as their mean over all."""
    values, state, aux = losses.beta_dpo_loss(*arrays, **bound)
    share = jnp.sum(aux.selection_mask) / losses.arrays.at_least_one(jnp.sum(bound["where"]))
    selected = jnp.where(aux.selection_mask, values, 0)
    return selected / jnp.where(share > 0, share, 1), state, aux


def _relative_rpo(
    chosen_logps,
    rejected_logps,
    ref_chosen_logps,
    ref_rejected_logps,
    prompt_embeddings=None,
    where=None,
    *,
    beta: float = 0.1,
    distance_temperature: float = 0.5,
    variant: str = "diagonal",
    diagonal_weight: float = 0.8,
):
    losses.domains.choice(("diagonal", "paired"), variant=variant)
    options = dict(beta=beta, distance_temperature=distance_temperature, diagonal_weight=diagonal_weight)
    pair = chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    return losses.relative_rpo_loss(*pair, prompt_embeddings, where=where, variant=variant, **options)


def _unpaired_relative_rpo(
    logps, ref_logps, labels, prompt_embeddings, where=None, *, beta: float = 0.1, distance_temperature: float = 0.5
):
    """Relative preference optimisation without pairs: every desirable response against every undesirable one.

    ``variant="unpaired"`` of ``losses.relative_rpo_loss``, with its ``beta`` and ``distance_temperature``, for arrays
    ``logps, ref_logps, labels, where [N]`` and ``prompt_embeddings [N, E]`` of a batch of both. Values of desirable
    responses are such that their mean over all rows is the function's mean over the desirable ones; others are 0.

    See *Relative Preference Optimization: Enhancing LLM Alignment through Contrasting Responses across Identical and
    Diverse Prompts* (https://arxiv.org/abs/2402.10958).
    """
    rows = jnp.ones(labels.shape, bool) if where is None else where
    desirable, undesirable = rows & labels, rows & ~labels
    both = logps, logps, ref_logps, ref_logps, prompt_embeddings, prompt_embeddings, desirable, undesirable
    options = dict(beta=beta, distance_temperature=distance_temperature)
    values = losses.relative_rpo_loss(*both, variant="unpaired", **options)
    return values * jnp.sum(rows) / losses.arrays.at_least_one(jnp.sum(desirable))


_relative_rpo.__doc__ = losses.relative_rpo_loss.__doc__
_relative_rpo.__name__ = _unpaired_relative_rpo.__name__ = "relative_rpo_loss"


def _lcpo_at_reference(hyperparameters, side):
    if hyperparameters["base"] == "ipo" and hyperparameters["m_step"] == "raw":
        return (1 / (2 * hyperparameters["tau"])) ** 2
    return math.log(2)


def _lcpo_reward(logps, lengths, hyperparameters):
    """Without a reference: sums in CPO, averages in SimPO."""
    score = logps if hyperparameters["base"] == "cpo" else losses.scores.average(logps, lengths)
    return hyperparameters["beta"] * score


register(
    "dpo_nll",
    losses.dpo_nll_loss,
    feedback="pairs",
    title="Iterative Reasoning Preference Optimization",
    url="https://arxiv.org/abs/2404.19733",
    formula="dpo + alpha average NLL(chosen)",
    disagreements="One of four called RPO. NLL per response (paper), or per token of the batch (another framework).",
    reduction=token_mean("alpha"),
)
register(
    "mpo",
    losses.mpo_loss,
    feedback="pairs",
    title="Enhancing the Reasoning Ability of Multimodal Large Language Models via Mixed Preference Optimization",
    url="https://arxiv.org/abs/2411.10442",
    formula="w_p dpo + w_q bco_pair + w_g average NLL(chosen)",
    disagreements="NLL per response (description) or per token of the batch (code). Newer ports leave the shift out.",
    coupled=True,
    init_state=lambda hyperparameters: losses.bco_state(),
    state_metrics=("delta",),
)
register(
    "bco_pair",
    losses.bco_pair_loss,
    feedback="pairs",
    title="Binary Classifier Optimization for Large Language Model Alignment",
    url="https://arxiv.org/abs/2404.04656",
    formula="-log sigmoid(R chosen - delta) - log sigmoid(delta - R rejected), R = beta log-ratio, delta its mean",
    disagreements="delta is the mean of the batches' means; a newer version of one framework leaves it out.",
    coupled=True,
    init_state=lambda hyperparameters: losses.bco_state(),
    state_metrics=("delta",),
    at_reference=lambda hyperparameters, side: 2 * math.log(2),
)
register(
    "aot",
    losses.aot_loss,
    feedback="pairs",
    title="Distributional Preference Alignment of LLMs via Optimal Transport",
    url="https://arxiv.org/abs/2406.05882",
    formula="-log sigmoid(beta (sorted policy margins - sorted reference margins))",
    disagreements="paired=False sorts log-ratios of either side: aot_pair or aot_unpaired elsewhere. Global sort.",
    coupled=True,
    per_example=False,
    at_reference=_log_two,
)
register(
    "relative_rpo",
    _relative_rpo,
    feedback="pairs",
    title="Relative Preference Optimization: Enhancing LLM Alignment through Contrasting Responses across "
    "Identical and Diverse Prompts",
    url="https://arxiv.org/abs/2402.10958",
    formula="w dpo + (1 - w) mean over other pairs' rejected responses of -log sigmoid(beta (a_i - b_j))",
    disagreements="variant='paired' is the paper's: -log sigmoid(beta w_ij (a_i - b_j)), w_i by nearness of prompts, "
    "of which rows have a prompt_embedding. The weights are inside the sigmoid, so that beta falls with the batch.",
    coupled=True,
    at_reference=_log_two,
    relevant={"distance_temperature": {"variant": "paired"}},
)
register(
    "relative_rpo_unpaired",
    _unpaired_relative_rpo,
    feedback="unpaired",
    title="Relative Preference Optimization: Enhancing LLM Alignment through Contrasting Responses across "
    "Identical and Diverse Prompts",
    url="https://arxiv.org/abs/2402.10958",
    formula="mean over desirable i, undesirable j of -log sigmoid(beta w_ij (a_i - b_j)), w_i by nearness of prompts",
    disagreements="A batch without desirable or without undesirable responses has the loss 0. As in relative_rpo, beta "
    "falls with the number of undesirable responses.",
    coupled=True,
)
register(
    "beta_dpo",
    _beta_dpo,
    feedback="pairs",
    title="β-DPO: Direct Preference Optimization with Dynamic β",
    url="https://arxiv.org/abs/2407.08639",
    formula="dpo with beta0 (1 + a (mean margin - its moving average)), on a subset drawn around that average",
    disagreements="One beta for each global batch, as the paper finds best; the official code's batch is a device's.",
    coupled=True,
    reward_scale="beta0",
    init_state=lambda hyperparameters: losses.beta_dpo_state(),
    state_metrics=("gap_mean", "gap_std"),
    at_reference=_log_two,
    aux_metrics={"beta_used": "beta", "selection_mask": "selected"},
    relevant={"min_beta": {"beta0": 1e-4, "a": 0.0}},
)
register(
    "lcpo",
    losses.lcpo_loss,
    feedback="pairs",
    title="Latent Collective Preference Optimization: A General Framework for Robust LLM Alignment",
    url="https://arxiv.org/abs/2509.24159",
    formula="-w log p - (1 - w) log(1 - p), p = sigmoid(loss of the flipped pair - loss), w from p and the annotator",
    disagreements="The likelihood of the Gibbs probability (published), or weighted raw losses (an early version).",
    coupled=True,
    init_state=lambda hyperparameters: losses.lcpo_state(hyperparameters["annotators"], hyperparameters["eta0"]),
    state_metrics=("eta",),
    state_hyperparameters={"annotators": 1, "eta0": 0.9},
    at_reference=_lcpo_at_reference,
    reference_free=lambda hyperparameters: hyperparameters["base"] in ("simpo", "cpo"),
    reward=_lcpo_reward,
    aux_metrics={"p": "label_probability", "w": "label_weight"},
    relevant={"tau": {"base": "ipo"}, "gamma": {"base": "simpo"}},
)
