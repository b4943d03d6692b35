"""Tables trained on preferences of which some are ties, against the optimum that the ties' model has too."""

import functools

import jax
import jax.numpy as jnp

from jaxpref import lab, losses
from jaxpref.analysis import plots
from jaxpref.lab import tabular

CLAIM = lab.Claim(
    statement="TODO learns from ties what DPO loses, which takes them as pairs in random order",
    paper="TODO: Enhancing LLM Alignment with Ternary Preferences",
    url="https://arxiv.org/abs/2411.02442",
    reported="TODO models preferences better than DPO on in-distribution and out-of-distribution tests for Mistral-7B "
    "and Llama 3-8B, with 0 to 30 % of tied pairs in the data, which DPO takes as ordinary pairs in random order.",
    setting="Tabular policies, 6 states of 8 responses with normal rewards, 3000 pairs from a random reference, 300 "
    "steps of Adam at 0.05. Labels follow the Bradley-Terry model with ties (a win has the probability sigmoid(gap - "
    "a)) with a of 0.25, 0.5 and 1, that is 9, 18 and 34 % ties, or are ratings: each reward plus normal noise of "
    "0.5, rounded to a whole number, where equal ones tie (24 %). TODO's alpha is a, or the paper's 0.5 (also for "
    "ratings). DPO drops ties or takes them in random order. All run at beta 0.5 and at the best of six betas (0.35 "
    "to 2) for their gain: that of (reward - 0.5 KL) above the reference's, as a share of what the closed-form "
    "optimum gains.",
    minutes=4,
    notes="Of wins alone DPO learns margins that are too wide (it cannot know that a loss by less than a would have "
    "been a tie), with ties in random order some that are too narrow; the best beta makes up for much of this, not "
    "for all. Against ties in random order TODO's lead is small: a first run with 20 seeds could not tell it with 18 "
    "% ties (half a point, an interval that includes 0), 60 seeds do (one point). DPO without the ties counted "
    "towards the verdict then; the paper does not run it, and it is asked beyond now. alpha matters: with the "
    "published 0.5 where 0.25 is true (9 % ties) TODO is no better than random order, and where 1 is true (34 %) it "
    "loses two fifths of its lead over it. Ratings are surer than the Bradley-Terry model, so that every method goes "
    "too far at beta 0.5; the best beta is 1 for TODO and random order, 1.5 for DPO without ties, and TODO's lead is "
    "then one to two points.",
)
STATES, RESPONSES, PAIRS, BETA, STEPS, ALPHA, NOISE = 6, 8, 3000, 0.5, 300, 0.5, 0.5
BETAS = (0.35, 0.5, 0.75, 1.0, 1.5, 2.0)
TIES = {"9 % ties": 0.25, "18 % ties": 0.5, "34 % ties": 1.0}


def outcomes(key, one, other, alpha, ratings: bool):
    """Whether the first response wins and whether it is a tie, ``[N]`` each, from rewards."""
    if ratings:
        noise = NOISE * jax.random.normal(key, (2, one.size))
        gap = jnp.round(one + noise[0]) - jnp.round(other + noise[1])
        return gap > 0, gap == 0
    draw, gap = jax.random.uniform(key, one.shape), one - other
    win, loss = jax.nn.sigmoid(gap - alpha), jax.nn.sigmoid(-gap - alpha)
    return draw < win, (draw >= win) & (draw < 1 - loss)


def label(key, rewards, reference, alpha, ratings: bool) -> tuple[tabular.Pairs, jax.Array]:
    """Pairs with their ties; the two responses of a tie stand in random order."""
    drawn, decided = jax.random.split(key)
    pairs = tabular.draw_pairs(drawn, jnp.zeros_like(rewards), reference, PAIRS)
    win, tie = outcomes(decided, *tabular.read(rewards, pairs), alpha, ratings)
    keep = win | tie
    chosen, rejected = jnp.where(keep, pairs.chosen, pairs.rejected), jnp.where(keep, pairs.rejected, pairs.chosen)
    return tabular.Pairs(pairs.state, chosen, rejected), tie


def learn(key, beta, alpha, model, *, method: str, ratings: bool = False) -> dict:
    """Trains one table; ``alpha`` is that of the labels, ``model`` that of the loss."""
    drawn = jax.random.split(key, 3)
    rewards = jax.random.normal(drawn[0], (STATES, RESPONSES))
    reference = jax.nn.log_softmax(0.5 * jax.random.normal(drawn[1], (STATES, RESPONSES)))
    data, tie = label(drawn[2], rewards, reference, alpha, ratings)

    def loss(logits):
        logps = tabular.arrays(jax.nn.log_softmax(logits), reference, data)
        if method == "TODO":
            return jnp.mean(losses.todo_loss(*logps, tie, beta=beta, alpha=model))
        values = losses.dpo_loss(*logps, beta=beta)
        return jnp.mean(values, where=~tie) if method == DROPPED else jnp.mean(values)

    logits, _ = tabular.descend(loss, reference, steps=STEPS, learning_rate=0.05)
    policy, optimum = jax.nn.log_softmax(logits), tabular.optimum(reference, rewards, BETA)
    aim = lambda p: tabular.expected_reward(p, rewards) - BETA * tabular.divergence(p, reference)  # noqa: E731
    first, second = tabular.read(policy - reference, data)
    implicit, ahead = policy - reference, rewards[:, :, None] > rewards[:, None]
    return {
        "gain": (aim(policy) - aim(reference)) / (aim(optimum) - aim(reference)),
        "KL(optimum, policy)": tabular.divergence(optimum, policy),
        "accuracy": jnp.sum(ahead & (implicit[:, :, None] > implicit[:, None])) / jnp.sum(ahead),
        "margin of ties": beta * jnp.mean(jnp.abs(first - second), where=tie),
        "ties": jnp.mean(tie),
    }


DROPPED, AT_RANDOM = "DPO, ties dropped", "DPO, ties at random"
METHODS = ("TODO", DROPPED, AT_RANDOM)


def grid(keys, betas, alphas, models, **options) -> list[dict]:
    """Rows of the result table for each alpha: at beta 0.5, and at the best beta for the mean gain if it is another."""
    seeds = jax.vmap(functools.partial(learn, **options), (0, None, None, None))
    runs = jax.jit(jax.vmap(jax.vmap(seeds, (None, 0, None, None)), (None, None, 0, 0)))
    found = runs(keys, jnp.array(betas), jnp.array(alphas), jnp.array(models))
    rows = []
    for place in range(len(alphas)):
        best = int(jnp.argmax(jnp.mean(found["gain"][place], axis=1)))
        picked = {"": betas.index(BETA)} | ({", best beta": best} if betas[best] != BETA else {})
        rows.append({name: {metric: table[place, n] for metric, table in found.items()} for name, n in picked.items()})
    return rows


def compare(kind: str, rows: dict, other: str) -> list[lab.Check]:
    """TODO against a DPO, both at beta 0.5, and both at their best beta where it is another one for either."""
    checks = []
    for suffix in ("", ", best beta"):
        names = [f"{kind}: {method}" for method in ("TODO", other)]
        if any(f"{name}{suffix}" in rows for name in names):
            gains = (rows.get(f"{name}{suffix}", rows[name])["gain"] for name in names)
            checks.append(lab.above(f"{kind}: TODO gains more than {other}{suffix}", *gains))
    return checks


def run(quick: bool) -> lab.Outcome:
    """Methods on every kind of labels."""
    keys = jax.random.split(jax.random.key(0), 10 if quick else 60)
    betas, kinds = ((BETA,), {"34 % ties": 1.0}) if quick else (BETAS, TIES)
    alphas, measured = list(kinds.values()), {}
    for method in METHODS:
        for kind, row in zip(kinds, grid(keys, betas, alphas, alphas, method=method), strict=True):
            measured |= {f"{kind}: {method}{suffix}": metrics for suffix, metrics in row.items()}
    if not quick:
        for kind, row in zip(kinds, grid(keys, (BETA,), alphas, [ALPHA] * 3, method="TODO"), strict=True):
            measured[f"{kind}: TODO, alpha 0.5"] = row[""]
        for method in METHODS:
            (row,) = grid(keys, betas, [ALPHA], [ALPHA], method=method, ratings=True)
            measured |= {f"ratings: {method}{suffix}": metrics for suffix, metrics in row.items()}
    margins = [measured[f"34 % ties: {method}"]["margin of ties"] for method in METHODS[:2]]
    kinds = (*kinds, *(() if quick else ("ratings",)))
    checks, beyond = ([c for kind in kinds for c in compare(kind, measured, other)] for other in (AT_RANDOM, DROPPED))
    beyond.append(lab.below("34 % ties: TODO's margins of tied pairs are below those of DPO, ties dropped", *margins))
    shown = {
        name.removeprefix("34 % ties: ").replace(", ", ",\n").replace(" at", "\nat"): 100 * (1 - metrics["gain"])
        for name, metrics in measured.items()
        if name.startswith("34 % ties") and "alpha" not in name and (not quick or "best" not in name)
    }
    title, missed = "Short of the optimum, 34 % ties", "gain missed (% of the optimum's)"
    return lab.Outcome(measured, checks, plots.groups(shown, title=title, xlabel="", ylabel=missed, log="y"), beyond)
