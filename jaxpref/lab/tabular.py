"""Policies as tables, where everything is exact: a softmax over K responses in each of S states.

Arrays lead with ``[S, K]``; responses are single decisions, so that a response's summed log-probability is an entry of
the table. Everything is pure JAX, to be vmapped over seeds and hyperparameters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Pairs(NamedTuple):
    """Preferences, each ``[N]`` int32: the state, the response that was preferred in it, and the other one."""

    state: jax.Array
    chosen: jax.Array
    rejected: jax.Array


def draw_pairs(
    key: jax.Array, rewards: jax.Array, log_policy: jax.Array, count: int, *, flipped: Any = 0.0, temperature: Any = 1.0
) -> Pairs:
    """Pairs of responses drawn from a policy, labelled by the Bradley-Terry model of the rewards.

    Args:
        key: of the draws.
        rewards, log_policy: ``[S, K]``.
        count: number of pairs; states are drawn uniformly, the two responses of a pair differ.
        flipped: share of labels that are turned round at random afterwards.
        temperature: of the labels: the better response is preferred with probability ``sigmoid(gap / temperature)``; 0
            prefers it always.
    """
    states, first, second, label, flip = jax.random.split(key, 5)
    state = jax.random.randint(states, (count,), 0, rewards.shape[0])
    one = jax.random.categorical(first, log_policy[state])
    rest = jnp.where(jax.nn.one_hot(one, rewards.shape[1], dtype=bool), -jnp.inf, log_policy[state])
    other = jax.random.categorical(second, rest)
    gap = rewards[state, one] - rewards[state, other]
    sure = jnp.asarray(temperature) <= 0
    probability = jnp.where(sure, gap > 0, jax.nn.sigmoid(gap / jnp.where(sure, 1, temperature)))
    preferred = jax.random.uniform(label, (count,)) < probability
    preferred ^= jax.random.uniform(flip, (count,)) < flipped
    return Pairs(state, jnp.where(preferred, one, other), jnp.where(preferred, other, one))


def read(table: jax.Array, pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    """Entries ``[N]`` of the chosen and of the rejected responses."""
    return table[pairs.state, pairs.chosen], table[pairs.state, pairs.rejected]


def arrays(log_policy: jax.Array, log_reference: jax.Array, pairs: Pairs) -> tuple[jax.Array, ...]:
    """The four arrays ``[N]`` that referenced losses on pairs begin with."""
    return *read(log_policy, pairs), *read(log_reference, pairs)


def expected_reward(log_policy: jax.Array, rewards: jax.Array) -> jax.Array:
    """Expected reward, mean over the states."""
    return jnp.mean(jnp.sum(jnp.exp(log_policy) * rewards, axis=-1))


def divergence(log_policy: jax.Array, log_reference: jax.Array) -> jax.Array:
    """``KL(policy || reference)`` in nats, mean over the states."""
    probabilities = jnp.exp(log_policy)
    return jnp.mean(jnp.sum(jnp.where(probabilities > 0, probabilities * (log_policy - log_reference), 0), axis=-1))


def optimum(log_reference: jax.Array, rewards: jax.Array, beta: Any) -> jax.Array:
    """Log-probabilities of the policy that maximises ``E[reward] - beta KL``: ``reference exp(reward / beta) / Z``."""
    return jax.nn.log_softmax(log_reference + rewards / beta)


def best_of(probabilities: jax.Array, rewards: jax.Array, count: int) -> jax.Array:
    """Probabilities ``[K]`` of the response with the highest reward among as many draws."""
    order = jnp.argsort(rewards)
    cumulative = jnp.concatenate([jnp.zeros(1), jnp.cumsum(probabilities[order])])
    return jnp.zeros_like(probabilities).at[order].set(jnp.diff(cumulative**count))


def descend(
    loss: Callable[[Any], jax.Array],
    start: Any,
    *,
    steps: int,
    learning_rate: Any = 0.1,
    watch: Callable[[Any], Any] | None = None,
) -> tuple[Any, Any]:
    """Minimises a loss of some parameters by Adam, full batch.

    Args:
        loss: parameters -> scalar.
        start: the parameters to begin with.
        steps: updates.
        learning_rate: a number.
        watch: parameters -> tree of numbers, recorded after every step.

    Returns:
        ``(parameters, records [steps, ...])``; records are the loss before every step where nothing is watched.
    """
    params, _, records = descend_with_state(
        lambda params, state: (loss(params), state), start, (), steps=steps, learning_rate=learning_rate, watch=watch
    )
    return params, records


def descend_with_state(
    loss: Callable[[Any, Any], tuple[jax.Array, Any]],
    start: Any,
    state: Any,
    *,
    steps: int,
    learning_rate: Any = 0.1,
    watch: Callable[[Any], Any] | None = None,
) -> tuple[Any, Any, Any]:
    """:func:`descend` for a loss with a running state: ``(parameters, state) -> (scalar, new state)``.

    Returns:
        ``(parameters, state, records [steps, ...])``, the state after the last step.
    """
    optimizer = optax.adam(learning_rate)

    def step(carry, _):
        params, moments, state = carry
        (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(params, state)
        updates, moments = optimizer.update(gradients, moments)
        params = optax.apply_updates(params, updates)
        return (params, moments, state), value if watch is None else watch(params)

    (params, _, state), records = jax.lax.scan(step, (start, optimizer.init(start), state), length=steps)
    return params, state, records
