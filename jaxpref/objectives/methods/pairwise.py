"""Methods that compare pairs with a reference."""

import functools
import inspect
import math

import numpy as np

from jaxpref import losses
from jaxpref.objectives.registry import register


def _log_two(hyperparameters, side):
    return math.log(2)


def _reward_aware_rpo_at_reference(hyperparameters, side):
    """The distance of even odds from the target's, or the other way round."""
    target = hyperparameters["gt_reward_scale"] * (
        np.asarray(side["chosen_score"]) - np.asarray(side["rejected_score"])
    )
    win, loss = -np.logaddexp(0, -target), -np.logaddexp(0, target)
    return {
        "rpo_bwd_kl": np.exp(win) * win + np.exp(loss) * loss + math.log(2),
        "rpo_fwd_kl": -math.log(2) - (win + loss) / 2,
        "rpo_sq": target**2,
    }[hyperparameters["distance"]]


def _todo_at_reference(hyperparameters, side):
    alpha = hyperparameters["alpha"]
    win = np.logaddexp(0, alpha)
    return np.where(side["tie"], 2 * win - 2 * alpha - math.log1p(-math.exp(-2 * alpha)), win)


def _exo_at_reference(hyperparameters, side):
    epsilon, log_loss = hyperparameters["label_smoothing"], hyperparameters["log_epsilon"]
    targets = (math.log1p(-epsilon), math.log(epsilon)) if log_loss is None else (0, log_loss)
    return -math.log(2) - sum(targets) / 2


def _sppo_at_reference(hyperparameters, side):
    win = np.asarray(side["chosen_win_prob"])
    lose = np.asarray(side.get("rejected_win_prob", 1 - win))
    return ((win - 0.5) ** 2 + (lose - 0.5) ** 2) / (2 * hyperparameters["beta"] ** 2)


@functools.wraps(losses.cal_dpo_loss)
def _cal_dpo(*arrays, **bound):
    return losses.cal_dpo_loss(*arrays, **bound)


# The mean of a batch's squares, in the place of each pair's own, is the same objective.
_cal_dpo.__signature__ = inspect.signature(losses.cal_dpo_loss).replace(
    parameters=[
        p for n, p in inspect.signature(losses.cal_dpo_loss).parameters.items() if n not in ("where", "batch_mean")
    ]
)


register(
    "dpo",
    losses.dpo_loss,
    feedback="pairs",
    title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    url="https://arxiv.org/abs/2305.18290",
    formula="-log sigmoid(beta (chosen log-ratio - rejected log-ratio))",
    disagreements="Sums of token log-probabilities. Label smoothing is cDPO's; some trainers accept and ignore it.",
    at_reference=_log_two,
)
register(
    "cdpo",
    losses.cdpo_loss,
    feedback="pairs",
    title="A note on DPO with noisy preferences & relationship to IPO",
    url="https://ericmitchell.ai/cdpo.pdf",
    formula="-(1 - e) log sigmoid(z) - e log sigmoid(-z), z as in dpo",
    disagreements="A convex mixture; robust DPO divides by 1 - 2e and subtracts. One fork calls 1 what is 0 here.",
    at_reference=_log_two,
)
register(
    "ipo",
    losses.ipo_loss,
    feedback="pairs",
    title="A General Theoretical Paradigm to Understand Learning from Human Preferences",
    url="https://arxiv.org/abs/2310.12036",
    formula="(chosen log-ratio - rejected log-ratio - 1 / (2 tau))^2, log-ratios per token",
    disagreements="Per token (the authors' results, default) or summed (the paper's equation): another tau.",
    reward_scale="tau",
    at_reference=lambda hyperparameters, side: (1 / (2 * hyperparameters["tau"])) ** 2,
)
register(
    "wpo",
    losses.wpo_loss,
    feedback="pairs",
    title="WPO: Enhancing RLHF with Weighted Preference Optimization",
    url="https://arxiv.org/abs/2406.11827",
    formula="min(1, w(chosen) w(rejected)) times dpo, log w = mean over tokens of log p - log sum_v p(v)^2",
    disagreements="The product of the weights is clamped at 1 (official); others do not clamp.",
)
register(
    "rdpo",
    losses.rdpo_loss,
    feedback="pairs",
    title="Provably Robust DPO: Aligning Language Models with Noisy Feedback",
    url="https://arxiv.org/abs/2403.00409",
    formula="(-(1 - e) log sigmoid(z) + e log sigmoid(-z)) / (1 - 2e), z as in dpo",
    disagreements="Unbiased for flipped labels and unbounded below; cdpo is the convex mixture.",
    at_reference=_log_two,
)
register(
    "soft_preference",
    losses.soft_preference_loss,
    feedback="pairs",
    title="Online Self-Preferring Language Models",
    url="https://arxiv.org/abs/2405.14103",
    formula="-p log sigmoid(z) - (1 - p) log sigmoid(-z), p = preference_strength, z as in dpo",
    disagreements="The column preference_strength may come from any judge; the paper's is the policy itself.",
    at_reference=_log_two,
)
register(
    "dno",
    losses.dno_loss,
    feedback="pairs",
    title="Direct Nash Optimization: Teaching Language Models to Self-Improve with General Preferences",
    url="https://arxiv.org/abs/2404.03715",
    formula="-p log sigmoid(z) - (1 - p) log sigmoid(-z), p = sigmoid(r_1 - r_2), z as in dpo with eta",
    disagreements="The general regression on win rates, which are the columns of scores; DNO in practice is dpo.",
    reward_scale="eta",
    at_reference=_log_two,
)
register(
    "mm_dpo",
    losses.mm_dpo_loss,
    feedback="pairs",
    title="MM-RLHF: The Next Step Forward in Multimodal LLM Alignment",
    url="https://arxiv.org/abs/2502.10391",
    formula="dpo with beta (1 + w (1 - exp(-k gap of scores))) for each pair",
    disagreements="The paper's scaling; the released trainer replaces it by a statistic of the batch.",
    at_reference=_log_two,
)
register(
    "reward_aware_rpo",
    losses.reward_aware_rpo_loss,
    feedback="pairs",
    title="Reward-aware Preference Optimization: A Unified Mathematical Framework for Model Alignment",
    url="https://arxiv.org/abs/2502.00203",
    formula="distance of z from gt_reward_scale (chosen - rejected score), z as in dpo",
    disagreements="backward is KL(target || policy), by the authors' names. Relative RPO and DPO+NLL are other losses.",
    at_reference=_reward_aware_rpo_at_reference,
)
register(
    "todo",
    losses.todo_loss,
    feedback="pairs",
    title="TODO: Enhancing LLM Alignment with Ternary Preferences",
    url="https://arxiv.org/abs/2411.02442",
    formula="-log sigmoid(z - alpha), or -log P(tie) where the pair is one, z as in dpo",
    disagreements="alpha is the negative of the code's parameter. Only wins are smoothed.",
    at_reference=_todo_at_reference,
)
register(
    "dpo_hinge",
    losses.dpo_hinge_loss,
    feedback="pairs",
    title="Statistical Rejection Sampling Improves Preference Optimization",
    url="https://arxiv.org/abs/2309.06657",
    formula="max(0, 1 - z), z as in dpo",
    disagreements="Some trainers call it SLiC, which has no reference and a likelihood term: slic.",
    at_reference=lambda hyperparameters, side: 1.0,
)
register(
    "f_dpo",
    losses.f_dpo_loss,
    feedback="pairs",
    title="Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints",
    url="https://arxiv.org/abs/2309.16240",
    formula="-log sigmoid(beta (f'(chosen ratio) - f'(rejected ratio)))",
    disagreements="alpha is the paper's; another framework's coefficient is 1 - alpha. Logged rewards are log-ratios.",
    at_reference=_log_two,
    relevant={"alpha": {"divergence": "alpha"}},
)
register(
    "exo_pair",
    losses.exo_pair_loss,
    feedback="pairs",
    title="Towards Efficient Exact Optimization of Language Model Alignment",
    url="https://arxiv.org/abs/2402.00856",
    formula="KL(sigmoid(z) || 1 - e), z as in dpo",
    disagreements="The official code's targets do not add up to 1; log_epsilon takes them.",
    at_reference=_exo_at_reference,
)
register(
    "discopop",
    losses.discopop_loss,
    feedback="pairs",
    title="Discovering Preference Optimization Algorithms with and for Large Language Models",
    url="https://arxiv.org/abs/2406.08414",
    formula="-(1 - m) log sigmoid(z) + m exp(-z), m = sigmoid(z / tau), z as in dpo",
    at_reference=lambda hyperparameters, side: (math.log(2) + 1) / 2,
)
register(
    "ln_dpo",
    losses.ln_dpo_loss,
    feedback="pairs",
    title="The Hitchhiker's Guide to Human Alignment with *PO",
    url="https://arxiv.org/abs/2407.15229",
    formula="-log sigmoid(beta (chosen - rejected log-ratio per token))",
    disagreements="Called dpo_norm and sigmoid_norm elsewhere. beta is some fifty times that of dpo.",
    at_reference=_log_two,
)
register(
    "r_dpo",
    losses.r_dpo_loss,
    feedback="pairs",
    title="Disentangling Length from Quality in Direct Preference Optimization",
    url="https://arxiv.org/abs/2403.19159",
    formula="-log sigmoid(z + alpha (chosen - rejected length)), z as in dpo",
    disagreements="The sign is plus, as the derivation has it; many copies flip it.",
)
register(
    "ld_dpo",
    losses.ld_dpo_loss,
    feedback="pairs",
    title="Length Desensitization in Direct Preference Optimization",
    url="https://arxiv.org/abs/2409.06411",
    formula="dpo with tokens beyond the shorter response's length weighted by ld_alpha",
    disagreements="Policy and reference are weighted; one framework weights the policy only.",
    at_reference=_log_two,
)
register(
    "apo",
    losses.apo_loss,
    feedback="pairs",
    title="Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment",
    url="https://arxiv.org/abs/2408.06266",
    formula="zero: 1 - sigmoid(R chosen) + sigmoid(R rejected); down: 1 + sigmoid(R chosen) - sigmoid(z)",
    disagreements="Trainers add 1 to the paper's form (offset); gradients are the same.",
    at_reference=lambda hyperparameters, side: float(hyperparameters["offset"]),
)
register(
    "nca_pair",
    losses.nca_pair_loss,
    feedback="pairs",
    title="Noise Contrastive Alignment of Language Models with Explicit Rewards",
    url="https://arxiv.org/abs/2402.05369",
    formula="-log sigmoid(R chosen) - (log sigmoid(-R chosen) + log sigmoid(-R rejected)) / 2",
    disagreements="biasedNCA is bco_pair without its shift; InfoNCA on pairs is dpo.",
    at_reference=lambda hyperparameters, side: 2 * math.log(2),
)
register(
    "dpop",
    losses.dpop_loss,
    feedback="pairs",
    title="Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive",
    url="https://arxiv.org/abs/2402.13228",
    formula="-log sigmoid(z - beta lam max(0, -chosen log-ratio)), z as in dpo",
    disagreements="The penalty stands inside the sigmoid, scaled by beta.",
    at_reference=_log_two,
)
register(
    "flex_dpo",
    losses.flex_dpo_loss,
    feedback="pairs",
    title="3D-Properties: Identifying Challenges in DPO and Charting a Path Forward",
    url="https://arxiv.org/abs/2406.07327",
    formula="-log sigmoid(beta_plus chosen - beta_minus rejected log-ratio) + sft_weight average NLL(chosen)",
    disagreements="The likelihood term is a token mean. Logged rewards of both responses have the scale beta_plus.",
    reward_scale="beta_plus",
)
register(
    "cal_dpo",
    _cal_dpo,
    feedback="pairs",
    title="Cal-DPO: Calibrated Direct Preference Optimization for Language Model Alignment",
    url="https://arxiv.org/abs/2412.14516",
    formula="-log sigmoid(a - b) + cal_weight ((a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2), log-ratios a and b",
    disagreements="cal_weight is 0.5 in the official code, 1 in the paper. The code's mean over the batch is the same.",
    at_reference=lambda hyperparameters, side: (
        math.log(2) + hyperparameters["cal_weight"] / (2 * hyperparameters["beta"] ** 2)
    ),
)
register(
    "sppo",
    losses.sppo_loss,
    feedback="pairs",
    title="Self-Play Preference Optimization for Language Model Alignment",
    url="https://arxiv.org/abs/2405.00675",
    formula="((a - (P(chosen) - 1/2) / beta)^2 + (b - (P(rejected) - 1/2) / beta)^2) / 2, log-ratios a and b",
    disagreements="Halved as in the official code. P(rejected) is 1 - P(chosen) where the data has one probability.",
    at_reference=_sppo_at_reference,
)
register(
    "sppo_hard",
    losses.sppo_hard_loss,
    feedback="pairs",
    title="Self-Play Preference Optimization for Language Model Alignment",
    url="https://arxiv.org/abs/2405.00675",
    formula="(a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2, log-ratios a and b",
    disagreements="Not halved: twice sppo with the probabilities 1 and 0.",
    at_reference=lambda hyperparameters, side: 1 / (2 * hyperparameters["beta"] ** 2),
)
