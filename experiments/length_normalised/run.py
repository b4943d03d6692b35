"""Losses of log-probabilities a token, against sums, where annotators like the longer response."""

import jax

from jaxpref import lab, losses
from jaxpref.lab import verbosity

CLAIM = lab.Claim(
    statement="Dividing log-probabilities by length, SimPO and LN-DPO are better than DPO at equal length",
    paper="SimPO: Simple Preference Optimization with a Reference-Free Reward",
    url="https://arxiv.org/abs/2405.14734",
    reported="SimPO, which divides by length and has no reference, is above DPO by up to 6.4 points of win rate at "
    "controlled length on AlpacaEval 2, without responses that are much longer; without the division models exploit "
    "length. LN-DPO, which divides DPO's log-ratios (The Hitchhiker's Guide to Human Alignment with *PO, "
    "https://arxiv.org/abs/2407.15229), writes shorter responses than DPO at equal quality.",
    setting=verbosity.SETTING + "SimPO has a target margin of half its beta. DPO runs at betas of 0.1, 0.2, 0.5, 1 and "
    "2, LN-DPO and SimPO at 1, 2, 5, 10 and 20. Quality is that above the reference's; the quality with a number of "
    "tokens is the best of all betas and steps whose policy writes no more than that. Quality and length of a policy "
    "are exact.",
    minutes=3,
    notes="Dividing by length turns the same pairs into much more quality, with a bias of the labels or without one: a "
    "sum of log-ratios grows with the number of tokens, so that long pairs teach DPO most. SimPO, which no reference "
    "holds, is ahead by much from 14 tokens on; at small betas all methods still fill most of the 40 tokens, so that "
    "what is better here is quality at equal length. A first run with 10 seeds, as a part of `length_bias`, could not "
    "tell SimPO from DPO with 10 tokens (0.36 [-0.13, 0.85]); 40 seeds do.",
)
BIAS, QUICK = 0.1, {"DPO": (0.2, 1.0), "LN-DPO": (5.0, 10.0)}
SUMS, MEANS = (0.1, 0.2, 0.5, 1.0, 2.0), (1.0, 2.0, 5.0, 10.0, 20.0)
BETAS = {"DPO": SUMS, "LN-DPO": MEANS, "SimPO": MEANS}
LOSSES = {
    "DPO": lambda logps, lengths, beta, bias: losses.dpo_loss(*logps, beta=beta),
    "LN-DPO": lambda logps, lengths, beta, bias: losses.ln_dpo_loss(*logps, *lengths, beta=beta),
    "SimPO": lambda logps, lengths, beta, bias: losses.simpo_loss(*logps[:2], *lengths, beta=beta),
}


def run(quick: bool) -> lab.Outcome:
    """All methods on biased labels; in full also on labels without a bias."""
    keys, grids = jax.random.split(jax.random.key(0), 4 if quick else 40), QUICK if quick else BETAS
    found, measured, checks = {}, {}, []
    for label, bias, limits in (("biased", BIAS, (10, 20)), ("no bias", 0.0, (20,)))[: 1 if quick else 2]:
        found[label] = {method: verbosity.sweep(keys, bias, LOSSES[method], betas) for method, betas in grids.items()}
        measured |= verbosity.table(found[label], label)
        checks += [
            verbosity.more_quality(found[label], method, limit, label) for limit in limits for method in list(grids)[1:]
        ]
    return lab.Outcome(measured, checks, verbosity.figure(found["biased"]))
