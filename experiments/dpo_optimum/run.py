"""Tables trained on more and more preferences, against the closed form of the KL-regularised optimum."""

import functools
import itertools

import jax
import jax.numpy as jnp

from jaxpref import lab, losses
from jaxpref.analysis import plots
from jaxpref.lab import tabular

CLAIM = lab.Claim(
    statement="DPO recovers the optimum of KL-regularised reward maximisation from preferences alone",
    paper="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    url="https://arxiv.org/abs/2305.18290",
    reported="In theory the minimiser of DPO's loss is the policy that RLHF aims at, reference times "
    "exp(reward / beta) (equations 4 and 7); in experiments DPO lies on the best reward-KL frontier.",
    setting="Tabular policies, 6 states of 8 responses with normal rewards, a random reference from which pairs are "
    "drawn, Bradley-Terry labels, beta 0.5, Adam to convergence; 100 to 100 000 pairs.",
    minutes=0.5,
)
STATES, RESPONSES, BETA, STEPS = 6, 8, 0.5, 600
SIZES = (100, 1_000, 10_000, 100_000)


def learn(key, pairs: int) -> dict:
    """Trains one table with as many pairs; what it reaches beside what the optimum reaches."""
    drawn = jax.random.split(key, 3)
    rewards = jax.random.normal(drawn[0], (STATES, RESPONSES))
    reference = jax.nn.log_softmax(0.5 * jax.random.normal(drawn[1], (STATES, RESPONSES)))
    data = tabular.draw_pairs(drawn[2], rewards, reference, pairs)

    def loss(logits):
        return jnp.mean(losses.dpo_loss(*tabular.arrays(jax.nn.log_softmax(logits), reference, data), beta=BETA))

    logits, _ = tabular.descend(loss, reference, steps=STEPS, learning_rate=0.05)
    policy, optimum = jax.nn.log_softmax(logits), tabular.optimum(reference, rewards, BETA)
    aim = lambda p: tabular.expected_reward(p, rewards) - BETA * tabular.divergence(p, reference)  # noqa: E731
    return {
        "KL(optimum, policy)": tabular.divergence(optimum, policy),
        "share of the optimum's gain": (aim(policy) - aim(reference)) / (aim(optimum) - aim(reference)),
        "reward": tabular.expected_reward(policy, rewards),
        "KL(policy, reference)": tabular.divergence(policy, reference),
    }


def run(quick: bool) -> lab.Outcome:
    """A few data sizes for every seed, seeds in one program."""
    seeds, sizes = (4, SIZES[1:3]) if quick else (10, SIZES)
    keys = jax.random.split(jax.random.key(0), seeds)
    found = {size: jax.jit(jax.vmap(functools.partial(learn, pairs=size)))(keys) for size in sizes}
    distance = {size: row["KL(optimum, policy)"] for size, row in found.items()}
    checks = [
        lab.below(f"{more} pairs leave less distance to the optimum than {fewer}", distance[more], distance[fewer])
        for fewer, more in itertools.pairwise(sizes)
    ]
    if not quick:
        share = found[sizes[-1]]["share of the optimum's gain"]
        checks.append(lab.near(f"the gain with {sizes[-1]} pairs is the optimum's, within 2 %", share, 1.0, 0.02))
    figure = plots.groups(distance, title="Distance to the optimum", xlabel="pairs", ylabel="KL (nats)", log="y")
    return lab.Outcome({f"{size} pairs": row for size, row in found.items()}, checks, figure)
