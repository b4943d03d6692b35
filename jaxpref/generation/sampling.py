"""Decoding rules: how the next token is chosen from the model's logits.

The rules apply in this order: temperature, then top-k, then top-p of what top-k left.
"""

import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpref.errors import ConfigError


class Rule(NamedTuple):
    """A decoding rule; hashable, because it is compiled into the sampler.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token (of several, the lowest id).
        top_k: only the k most likely tokens are drawn; 0 draws from all.
        top_p: only the smallest set of most likely tokens with this mass is drawn; 1 draws from all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def check(rule: Rule) -> Rule:
    """The rule with plain numbers; ConfigError where one lies outside its domain."""
    temperature, k, p = rule
    if not isinstance(temperature, numbers.Real) or not 0 <= temperature < math.inf:
        raise ConfigError(f"temperature is {temperature!r}; expected a finite number from 0 (greedy) on.")
    if not isinstance(k, numbers.Integral) or k < 0:
        raise ConfigError(f"top_k is {k!r}; expected a number of tokens, or 0 for all of them.")
    if not isinstance(p, numbers.Real) or not 0 < p <= 1:
        raise ConfigError(f"top_p is {p!r}; expected a probability mass above 0, at most 1.")
    return Rule(float(temperature), int(k), float(p))


def top_k(logits: jax.Array, k: int) -> jax.Array:
    """Keeps the k largest logits of each row.

    Args:
        logits: ``[n, V]``.
        k: how many to keep, exactly: of equal logits the lowest ids stay. At 0, or from V on, all stay.

    Returns:
        ``[n, V]``, minus infinity where a token was removed.
    """
    if k == 0 or k >= logits.shape[-1]:
        return logits
    values, places = jax.lax.top_k(logits, k)
    rows = jnp.arange(logits.shape[0])[:, None]
    return jnp.full_like(logits, -jnp.inf).at[rows, places].set(values)


def top_p(logits: jax.Array, p: float) -> jax.Array:
    """Keeps the smallest set of most likely tokens whose mass is at least p, and never less than one token.

    A token stays when the mass of the more likely ones is below p; of equal logits the lowest ids come first. See *The
    Curious Case of Neural Text Degeneration* (https://arxiv.org/abs/1904.09751).

    Args:
        logits: ``[n, V]``.
        p: mass in ``(0, 1]``; at 1 all tokens stay.

    Returns:
        ``[n, V]``, minus infinity where a token was removed.
    """
    if p >= 1:
        return logits
    order = jnp.argsort(-logits, axis=-1, stable=True)
    probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # The difference may round to slightly more than 0, and so remove even the first token at a tiny p.
    kept = (before < p).at[:, 0].set(True)
    rows = jnp.arange(logits.shape[0])[:, None]
    return jnp.where(jnp.zeros_like(kept).at[rows, order].set(kept), logits, -jnp.inf)


def choose(keys: jax.Array, logits: jax.Array, rule: Rule) -> jax.Array:
    """The next token of each row.

    Args:
        keys: ``[n]`` random keys, one a row: a row's token depends on its own key and logits alone.
        logits: ``[n, V]``.
        rule: see :class:`Rule`.

    Returns:
        ``[n]`` int32 token ids.
    """
    if rule.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    allowed = top_p(top_k(logits / rule.temperature, rule.top_k), rule.top_p)
    return jax.vmap(jax.random.categorical)(keys, allowed).astype(jnp.int32)
