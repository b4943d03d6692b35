"""Log-linear policies: one weight for each feature of a response, learnt in some states and judged in others."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpref.lab import tabular


class World(NamedTuple):
    """States of which everything is known.

    Attributes:
        features: ``[S, K, F]`` of every response.
        rewards: ``[S, K]``, linear in the features.
        reference: ``[S, K]``, log-probabilities of the reference, which is log-linear too.
    """

    features: jax.Array
    rewards: jax.Array
    reference: jax.Array


def make_worlds(
    key: jax.Array,
    *,
    seen: int = 64,
    unseen: int = 256,
    responses: int = 8,
    features: int = 16,
    scale: float = 3.0,
) -> tuple[World, World, jax.Array]:
    """States to learn in, states to be judged in, and the weights ``[F]`` of the reference.

    Features are normal; rewards have a standard deviation of about ``scale``, logits of the reference of about a half.
    """
    drawn = jax.random.split(key, 3)
    table = jax.random.normal(drawn[0], (seen + unseen, responses, features))
    worth, initial = (jax.random.normal(one, (features,)) / features**0.5 for one in drawn[1:])
    weights = initial / 2
    whole = World(table, scale * table @ worth, log_policy(weights, table))
    return World(*(part[:seen] for part in whole)), World(*(part[seen:] for part in whole)), weights


def log_policy(weights: jax.Array, features: jax.Array) -> jax.Array:
    """Log-probabilities ``[S, K]`` of the policy with these weights ``[F]``."""
    return jax.nn.log_softmax(features @ weights)


def judge(policy: jax.Array, world: World, beta: Any, *, reference_free: bool = False) -> dict[str, jax.Array]:
    """What a policy ``[S, K]`` is worth, exact.

    Returns:
        ``gain``: (reward - beta KL) above the reference's, as a share of what the optimum gains; ``accuracy``: the
        share of response pairs that the implicit reward puts in their true order, which is the log-ratio, or the
        log-probability of a policy that was learnt without a reference.
    """
    reference, rewards = world.reference, world.rewards
    aim = lambda p: tabular.expected_reward(p, rewards) - beta * tabular.divergence(p, reference)  # noqa: E731
    best = aim(tabular.optimum(reference, rewards, beta))
    implicit = policy if reference_free else policy - reference
    ahead, ranked = (table[:, :, None] > table[:, None] for table in (rewards, implicit))
    return {
        "gain": (aim(policy) - aim(reference)) / (best - aim(reference)),
        "accuracy": jnp.sum(ahead & ranked) / jnp.sum(ahead),
    }
