"""A world of length bias: responses of tokens, a known quality, and annotators who like the longer response.

A response is drawn token by token, from eight tokens and the end. A policy is a table with one distribution for each
prompt, so that log-probabilities add up over tokens, and its expected quality and length are exact.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from jaxpref.analysis import plots
from jaxpref.lab import claims, tabular

PROMPTS, TOKENS, LONGEST, PAIRS, STEPS = 4, 8, 40, 2000, 300
WORTH, ENDS = 4.0, 0.12  # standard deviation of the tokens' worth; the reference's probability to end
LIMITS = (8, 10, 14, 20, 28)  # tokens

SETTING = (
    "4 prompts; a response is drawn token by token, from 8 tokens and the end, until the end or 40 tokens. The policy "
    "is a table with one distribution for each prompt, so that log-probabilities add up over tokens; the reference "
    "ends with probability 0.12 (7.3 tokens on average). The true quality is the mean worth of the tokens (standard "
    "deviation 4), whatever their number. 2000 pairs from the reference, Bradley-Terry labels of quality + c times "
    "length with c = 0.1 (biased) or 0; 300 steps of Adam at 0.05. "
)


def draw(key: jax.Array, reference: jax.Array, prompts: jax.Array) -> jax.Array:
    """Token counts ``[N, 9]`` of responses from the reference; all that matters of them, the last one ends them."""
    tokens = jax.random.categorical(key, reference[prompts][:, None], shape=(prompts.size, LONGEST))
    before = jnp.cumsum(tokens == TOKENS, axis=1) - (tokens == TOKENS) == 0
    return jnp.sum(jax.nn.one_hot(tokens, TOKENS + 1) * before[..., None], axis=1)


def quality(counts: jax.Array, worth: jax.Array) -> jax.Array:
    """Mean worth of the tokens of responses with these counts, 0 of none."""
    content = counts[:, :TOKENS]
    return jnp.sum(content * worth, axis=1) / jnp.maximum(jnp.sum(content, axis=1), 1)


def judge(policy: jax.Array, worth: jax.Array) -> dict[str, jax.Array]:
    """Expected quality and number of tokens (the end not counted) of a policy's responses, mean over prompts."""
    goes_on = 1 - jnp.exp(policy[:, TOKENS])
    tokens = jnp.exp(policy[:, :TOKENS]) / goes_on[:, None]
    lengths = jnp.sum(goes_on[:, None] ** jnp.arange(1, LONGEST + 1), axis=1)
    return {"quality": jnp.mean(goes_on * jnp.sum(tokens * worth, axis=1)), "length": jnp.mean(lengths)}


def learn(key: jax.Array, bias: Any, beta: Any, *, loss: Callable[..., jax.Array]) -> dict[str, jax.Array]:
    """Trains one policy.

    Args:
        key: of the world and its pairs.
        bias: what a token more is worth to the annotators.
        beta: of the loss.
        loss: (the four arrays of log-probabilities, the two of lengths, beta, bias) -> ``[N]``.

    Returns:
        ``quality`` above the reference's and ``length`` after the last step, ``length of chosen`` responses, and
        ``best [limits]``, the best quality of any step whose policy writes no more than a limit's tokens.
    """
    drawn = jax.random.split(key, 6)
    worth = WORTH * jax.random.normal(drawn[0], (PROMPTS, TOKENS))
    first = jax.nn.log_softmax(0.5 * jax.random.normal(drawn[1], (PROMPTS, TOKENS)))
    reference = jnp.concatenate([first + jnp.log(1 - ENDS), jnp.full((PROMPTS, 1), jnp.log(ENDS))], axis=1)
    prompts = jax.random.randint(drawn[2], (PAIRS,), 0, PROMPTS)
    one, other = (draw(key, reference, prompts) for key in drawn[3:5])
    liked = [quality(counts, worth[prompts]) + bias * jnp.sum(counts, axis=1) for counts in (one, other)]
    wins = jax.random.uniform(drawn[5], (PAIRS, 1)) < jax.nn.sigmoid(liked[0] - liked[1])[:, None]
    chosen, rejected = jnp.where(wins, one, other), jnp.where(wins, other, one)
    lengths = jnp.sum(chosen, axis=1), jnp.sum(rejected, axis=1)

    def objective(logits):
        tables = jax.nn.log_softmax(logits)[prompts], reference[prompts]
        logps = [jnp.sum(counts * table, axis=1) for table in tables for counts in (chosen, rejected)]
        return jnp.mean(loss(logps, lengths, beta, bias))

    before = judge(reference, worth)["quality"]
    watch = lambda logits: judge(jax.nn.log_softmax(logits), worth)  # noqa: E731
    _, path = tabular.descend(objective, reference, steps=STEPS, learning_rate=0.05, watch=watch)
    within = path["length"][:, None] <= jnp.array(LIMITS)
    return {
        "quality": path["quality"][-1] - before,
        "length": path["length"][-1],
        "length of chosen": jnp.mean(lengths[0]) - 1,
        "best": jnp.max(jnp.where(within, path["quality"][:, None] - before, 0), axis=0),
    }


def sweep(keys: jax.Array, bias: float, loss: Callable[..., jax.Array], betas: Sequence[float]) -> dict:
    """What :func:`learn` finds, ``[seeds]``, under each beta, and ``best [seeds, limits]`` of all betas."""
    runs = jax.vmap(jax.vmap(functools.partial(learn, loss=loss), (0, None, None)), (None, None, 0))
    found = jax.jit(runs)(keys, bias, jnp.array(betas))
    best = jnp.max(found.pop("best"), axis=0)
    return {"best": best} | {beta: {name: rows[n] for name, rows in found.items()} for n, beta in enumerate(betas)}


def more_quality(found: Mapping[str, dict], method: str, limit: int, label: str) -> claims.Check:
    """A method against DPO at equal length: the best that either reaches within so many tokens."""
    pair = (found[name]["best"][:, LIMITS.index(limit)] for name in (method, "DPO"))
    return claims.above(f"{label}: {method} has more quality than DPO with {limit} tokens", *pair)


def figure(found: Mapping[str, dict]) -> Figure:
    """The best quality of each method's policies against how much they write."""
    return plots.bands(
        LIMITS,
        {method: runs["best"] for method, runs in found.items()},
        title="Best quality of policies that write no more than so much",
        xlabel="length (tokens)",
        ylabel="true quality above the reference's",
    )


def table(found: Mapping[str, dict], label: str) -> dict[str, dict]:
    """Rows of a result table: every beta after the last step, and the best with a number of tokens."""
    rows = {}
    for method, runs in found.items():
        rows |= {f"{label}: {method}, beta {beta:g}": run for beta, run in runs.items() if beta != "best"}
        best = {f"quality, {limit} tokens": runs["best"][:, n] for n, limit in enumerate(LIMITS)}
        rows[f"{label}: {method}, best"] = best
    return rows
