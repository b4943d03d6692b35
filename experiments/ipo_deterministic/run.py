"""Tables trained for long on preferences without noise, with every strength of regularisation in one program."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref import lab, losses
from jaxpref.analysis import plots
from jaxpref.lab import tabular

CLAIM = lab.Claim(
    statement="IPO does not overfit deterministic preferences, while DPO ends in a deterministic policy whatever beta",
    paper="A General Theoretical Paradigm to Understand Learning from Human Preferences",
    url="https://arxiv.org/abs/2310.12036",
    reported="Where one response always wins, DPO's optimum is a deterministic policy for any strength of the KL "
    "constraint, since the logit of a sure preference is infinite; IPO's is reference times exp(share of comparisons "
    "won / tau). In bandits of three actions, DPO's curves meet at determinism and IPO's keep apart by tau.",
    setting="Tabular policies, 4 states of 5 responses, random references. Every pair of responses of a state is in "
    "the data once and the better one always wins. DPO with beta, and IPO on plain log-ratios with tau, each 0.1, 0.3, "
    "1 and 3; 20 000 steps of Adam (0.02) on all pairs, which does not end DPO's growth, from the reference.",
    minutes=0.5,
    notes="IPO with a small tau is sure as well (0.86 on the best response with tau 0.1): its optimum allows odds of "
    "exp(1 / (5 tau)) between neighbours of 5 ranked responses. DPO's policies differ in the time they take: the "
    "larger beta, the slower the margin grows, so that training that stops early may hide the claim.",
)
STATES, RESPONSES, LEARNING_RATE = 4, 5, 0.02
STRENGTHS = (0.1, 0.3, 1.0, 3.0)
BEST, WORST, GROWTH = "probability of the best", "of the worst", "margin's growth in the second half (nats)"
DISTANCE = "KL(IPO's optimum, policy)"
LOSSES = {
    "DPO": lambda arrays, strength: losses.dpo_loss(*arrays, beta=strength),
    "IPO": lambda arrays, strength: losses.ipo_loss(*arrays, tau=strength, normalize="sum"),
}


def every_pair(rewards) -> tabular.Pairs:
    """All pairs of responses of all states, the better one chosen."""
    one, other = np.triu_indices(RESPONSES, 1)
    state = np.repeat(np.arange(STATES), len(one))
    one, other = np.tile(one, STATES), np.tile(other, STATES)
    better = rewards[state, one] > rewards[state, other]
    return tabular.Pairs(state, jnp.where(better, one, other), jnp.where(better, other, one))


def learn(key, strength, loss, steps: int) -> tuple[dict, jax.Array]:
    """Trains one table; what it comes to, and the probability of the best responses after every step."""
    drawn = jax.random.split(key)
    rewards = jax.random.normal(drawn[0], (STATES, RESPONSES))
    reference = jax.nn.log_softmax(0.5 * jax.random.normal(drawn[1], (STATES, RESPONSES)))
    data, best = every_pair(rewards), jnp.argmax(rewards, axis=-1)

    def objective(logits):
        return jnp.mean(loss(tabular.arrays(jax.nn.log_softmax(logits), reference, data), strength))

    def watch(logits):
        policy = jax.nn.log_softmax(logits)
        chosen, rejected = tabular.read(policy, data)
        return jnp.mean(jnp.exp(policy[jnp.arange(STATES), best])), jnp.mean(chosen - rejected)

    logits, (found, margin) = tabular.descend(
        objective, reference, steps=steps, learning_rate=LEARNING_RATE, watch=watch
    )
    policy = jax.nn.log_softmax(logits)
    won = (jnp.sum(rewards[:, :, None] > rewards[:, None, :], axis=-1) + 0.5) / RESPONSES
    measured = {
        BEST: found[-1],
        WORST: jnp.mean(jnp.exp(policy[jnp.arange(STATES), jnp.argmin(rewards, axis=-1)])),
        GROWTH: margin[-1] - margin[steps // 2],
        "KL(policy, reference)": tabular.divergence(policy, reference),
        DISTANCE: tabular.divergence(tabular.optimum(reference, won, strength), policy),
    }
    return measured, found


def run(quick: bool) -> lab.Outcome:
    """Both losses, seeds and strengths in one program each."""
    seeds, steps, strengths = (4, 5_000, STRENGTHS[:3:2]) if quick else (10, 20_000, STRENGTHS)
    keys = jax.random.split(jax.random.key(0), seeds)
    measured, curves = {}, {}
    shown = np.unique(np.geomspace(1, steps, 40).astype(int))
    for name, loss in LOSSES.items():
        learned = jax.vmap(lambda key, strength, loss=loss: learn(key, strength, loss, steps), (0, None))
        rows, found = jax.jit(jax.vmap(learned, (None, 0)))(keys, jnp.array(strengths))
        if name == "DPO":
            del rows[DISTANCE]
        for place, strength in enumerate(strengths):
            condition = f"{name}, {'beta' if name == 'DPO' else 'tau'} {strength:g}"
            measured[condition] = {metric: values[place] for metric, values in rows.items()}
            if strength in STRENGTHS[:3:2]:
                curves[condition] = found[place][:, shown - 1]
    checks = []
    for strength in strengths:
        dpo, ipo = measured[f"DPO, beta {strength:g}"], measured[f"IPO, tau {strength:g}"]
        if not quick:
            checks += [
                lab.near(f"DPO with beta {strength:g} puts all on the best response", dpo[BEST], 1.0, 0.02),
                lab.near(f"IPO with tau {strength:g} is at its optimum", ipo[DISTANCE], 0.0, 1e-3),
            ]
        checks += [
            lab.above(f"strength {strength:g}: DPO's margin still grows in the second half", dpo[GROWTH]),
            lab.near(f"strength {strength:g}: IPO's margin does not", ipo[GROWTH], 0.0, 0.01),
        ]
    checks += [
        lab.below(
            f"IPO with tau {more:g} is less sure of the best than with {less:g}",
            *(measured[f"IPO, tau {strength:g}"][BEST] for strength in (more, less)),
        )
        for less, more in itertools.pairwise(strengths)
    ]
    figure = plots.bands(
        shown, curves, title="Training on sure preferences", xlabel="step", ylabel="probability of the best", log="x"
    )
    return lab.Outcome(measured, checks, figure)
