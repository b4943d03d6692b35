"""Token distributions trained on pairs of which annotators like the longer response more than its quality deserves."""

import jax

from jaxpref import lab, losses
from jaxpref.lab import verbosity

CLAIM = lab.Claim(
    statement="DPO lengthens responses far beyond what annotators saw; R-DPO reaches its quality with shorter ones",
    paper="Disentangling Length from Quality in Direct Preference Optimization",
    url="https://arxiv.org/abs/2403.19159",
    reported="DPO writes responses much longer than either response of the data, and charging for length in the loss "
    "(R-DPO) keeps the length with little or no loss of quality, up to 20 points of win rate at equal length.",
    setting=verbosity.SETTING + "R-DPO has alpha = c; DPO and R-DPO run at betas of 0.1, 0.2, 0.5, 1 and 2. Quality is "
    "that above the reference's; the quality with a number of tokens is the best of all betas and steps whose policy "
    "writes no more than that. Quality and length of a policy are exact.",
    minutes=0.7,
    notes="DPO lengthens without any bias of the labels too: a sum of log-ratios grows with the number of tokens, so "
    "that long pairs teach most, and at beta 0.5 it writes 32 tokens where the reference writes 7. Charging for "
    "length as much as the labels reward it (R-DPO) brings this back to about what DPO does without the bias, not to "
    "the reference's length: at small betas it still fills all 40 tokens. SimPO and LN-DPO were part of this claim at "
    "first; they are other papers' and have a claim of their own, `length_normalised`.",
)
BIAS, BETAS, QUICK = 0.1, (0.1, 0.2, 0.5, 1.0, 2.0), (0.2, 1.0)
LOSSES = {
    "DPO": lambda logps, lengths, beta, bias: losses.dpo_loss(*logps, beta=beta),
    "R-DPO": lambda logps, lengths, beta, bias: losses.r_dpo_loss(*logps, *lengths, beta=beta, alpha=bias),
}


def run(quick: bool) -> lab.Outcome:
    """Both methods on biased labels; in full DPO also on labels without a bias."""
    keys, betas = jax.random.split(jax.random.key(0), 4 if quick else 10), QUICK if quick else BETAS
    found = {name: verbosity.sweep(keys, BIAS, loss, betas) for name, loss in LOSSES.items()}
    measured = verbosity.table(found, "biased")
    if not quick:
        measured |= verbosity.table({"DPO": verbosity.sweep(keys, 0.0, LOSSES["DPO"], betas)}, "no bias")
    return lab.Outcome(measured, judge(found), verbosity.figure(found))


def judge(found: dict) -> list[lab.Check]:
    """What both should do on biased labels."""
    plain, charged = found["DPO"][1.0], found["R-DPO"][1.0]
    ratio = plain["length"] / plain["length of chosen"]
    return [
        lab.above("biased: DPO at beta 1 writes more than twice as many tokens as chosen responses have", ratio, 2),
        lab.below("biased: R-DPO writes fewer tokens than DPO, both at beta 1", charged["length"], plain["length"]),
        lab.above(
            "biased: R-DPO's quality is above DPO's less 0.1, both at beta 1",
            charged["quality"],
            plain["quality"] - 0.1,
        ),
        verbosity.more_quality(found, "R-DPO", 10, "biased"),
        verbosity.more_quality(found, "R-DPO", 20, "biased"),
    ]
