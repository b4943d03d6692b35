"""The didactic bandit: one hundred actions on a line, most of the reference's mass on the left, rewards with one peak.

The states are random vectors that say nothing about the reward. The policy is a small network over the states.

See *Preference Fine-Tuning of LLMs Should Leverage Suboptimal, On-Policy Data* (https://arxiv.org/abs/2404.14367).
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpref import losses
from jaxpref.lab import tabular

SIZE, SEEN, UNSEEN, SAMPLES = 100, 10, 100, 10  # of a state's vector; states; samples of each
WIDTHS = (50, 256, 256)
ALGORITHMS = ("best_of_n", "ipo", "reinforce")
# Reward -> where its peak is and how wide, in actions of a hundred.
PEAKS = {"reward4": (70, 10), "reward5": (20, 10), "reward8": (70, 20), "reward9": (70, 30)}


def make_bandit(*, num_actions: int = 100, loc: float = -0.7, scale: float = 0.4) -> dict[str, jax.Array]:
    """The reference's action probabilities and four rewards, each ``[num_actions]``.

    ``pi_data`` is the law of ``tanh(x)`` in equal bins of [-1, 1], x from a Cauchy distribution of that place and
    scale. ``reward4`` peaks where it is rare, ``reward5`` where it is frequent, ``reward8`` and ``reward9`` are wider
    than ``reward4``.
    """
    edges = jnp.arctanh(jnp.linspace(-1, 1, num_actions + 1)[1:-1])
    below = jnp.concatenate([jnp.zeros(1), 0.5 + jnp.arctan((edges - loc) / scale) / jnp.pi, jnp.ones(1)])
    actions = jnp.arange(num_actions) * 100 / num_actions
    rewards = {name: jnp.exp(-(((actions - peak) / width) ** 2)) for name, (peak, width) in PEAKS.items()}
    return {"pi_data": jnp.diff(below), **rewards}


@functools.partial(jax.jit, static_argnames=("algorithm", "reward", "rounds", "inner"))
def run_bandit(
    bandit: Mapping[str, jax.Array],
    *,
    algorithm: str = "ipo",
    on_policy: Any = True,
    seed: Any = 0,
    reward: str = "reward4",
    rounds: int = 20,
    inner: int = 15,
    fresh_samples: Any = True,
    learning_rate: Any = 1e-3,
    margin: Any = 10.0,
) -> dict[str, jax.Array]:
    """Fits the policy to ``pi_data``, then improves it in rounds of samples and updates.

    All but ``algorithm``, ``reward``, ``rounds`` and ``inner`` may be traced.

    Args:
        bandit: of :func:`make_bandit`.
        algorithm: ``best_of_n`` imitates the best of each state's samples; ``ipo`` learns from all ordered pairs of
            them, ``pi_data`` the reference; ``reinforce`` weighs them by their rewards, normalised over the batch.
        on_policy: samples come from the policy from the second round on; otherwise from ``pi_data`` in all rounds.
        seed: of the states, the network and the samples.
        reward: the name of a reward in ``bandit``.
        rounds, inner: rounds, and updates with the samples of each.
        fresh_samples: every round draws; otherwise the first round's samples serve in all (never on policy).
        learning_rate: of Adam.
        margin: of the log-ratios that IPO draws every pair to.

    Returns:
        ``reward [rounds + 1]``, expected over unseen states, at the start and after each round; ``logps
        [states, actions]`` at the end, for unseen states.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}; found {algorithm!r}.")
    rewards, reference = bandit[reward], jnp.log(bandit["pi_data"])
    keys = jax.random.split(jax.random.key(seed), 4)
    seen, unseen = jax.random.uniform(keys[0], (SEEN, SIZE)), jax.random.uniform(keys[1], (UNSEEN, SIZE))
    behaviour = jnp.broadcast_to(reference, (SEEN, len(reference)))
    params = _network(keys[2], len(reference))
    imitate = lambda params: tabular.divergence(_logps(params, seen), reference)  # noqa: E731
    params, _ = tabular.descend(imitate, params, steps=200, learning_rate=0.01)
    optimizer = optax.adam(learning_rate)
    loss = functools.partial(_loss, algorithm=algorithm, reference=reference, rewards=rewards, margin=margin)

    def update(carry, actions):
        params, moments = carry
        gradients = jax.grad(lambda params: loss(_logps(params, seen), actions))(params)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), moments

    def round_of(carry, number):
        source = jnp.where(on_policy & (number > 0), _logps(carry[0], seen), behaviour)
        key = jax.random.fold_in(keys[3], number * fresh_samples)
        actions = jax.random.categorical(key, source[:, None], shape=(SEEN, SAMPLES))
        carry = jax.lax.fori_loop(0, inner, lambda _, carry: update(carry, actions), carry)
        return carry, tabular.expected_reward(_logps(carry[0], unseen), rewards)

    start = tabular.expected_reward(_logps(params, unseen), rewards)
    (params, _), reached = jax.lax.scan(round_of, (params, optimizer.init(params)), jnp.arange(rounds))
    return {"reward": jnp.concatenate([start[None], reached]), "logps": _logps(params, unseen)}


def _loss(logps, actions, *, algorithm: str, reference, rewards, margin) -> jax.Array:
    """The loss of the policy ``logps [states, actions]`` on ``actions [states, samples]``."""
    taken, gained = jnp.take_along_axis(logps, actions, axis=1), rewards[actions]
    if algorithm == "best_of_n":
        best = jnp.take_along_axis(taken, jnp.argmax(gained, axis=1, keepdims=True), axis=1)
        return losses.sft_loss(best, jnp.ones_like(best))
    if algorithm == "reinforce":
        return -jnp.mean((gained - jnp.mean(gained)) / (jnp.std(gained) + 1e-8) * taken)
    first, second = jnp.array(list(itertools.permutations(range(actions.shape[1]), 2))).T
    prefers = (gained[:, first] > gained[:, second]).ravel()
    rows = [table[:, side].ravel() for table in (taken, reference[actions]) for side in (first, second)]
    values = losses.ipo_loss(*rows, tau=1 / (2 * margin), normalize="sum")
    return jnp.sum(jnp.where(prefers, values, 0)) / jnp.maximum(jnp.sum(prefers), 1)


def _network(key: jax.Array, actions: int) -> list[tuple[jax.Array, jax.Array]]:
    """Weights and biases of the layers; small, so that the policy starts uniform."""
    sizes = (SIZE, *WIDTHS, actions)
    draw = jax.nn.initializers.variance_scaling(1e-4, "fan_avg", "uniform")
    keys = jax.random.split(key, len(sizes) - 1)
    return [(draw(one, shape), jnp.zeros(shape[1])) for one, shape in zip(keys, itertools.pairwise(sizes), strict=True)]


def _logps(params, states: jax.Array) -> jax.Array:
    """Log-probabilities ``[states, actions]``; the first hidden layer is normalised."""
    (weight, bias), *hidden, (last, last_bias) = params
    x = jax.nn.relu(jax.nn.standardize(states @ weight + bias, epsilon=1e-5))
    for weight, bias in hidden:
        x = jax.nn.relu(x @ weight + bias)
    return jax.nn.log_softmax(x @ last + last_bias)
