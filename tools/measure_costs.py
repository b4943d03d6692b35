"""Measures a platform's row of ``jaxpref.training.costs.PLATFORMS``, from which packed layouts choose their rows.

    python tools/measure_costs.py --model=mini

Times the gradient of log-probs over rows of several lengths. With the same number of tokens in all of them, time grows
with the query-key pairs alone: a straight line through these times gives what a pair costs beside a token, and dividing
both by their floating-point operations gives ``attention``. One row of fewer and fewer tokens gives ``least``, and
adding a gradient to another ``micro_batch``. Run it on an idle machine.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from jaxpref import models  # noqa: E402
from jaxpref.batch import Layout, Rows  # noqa: E402
from jaxpref.training import costs, throughput  # noqa: E402

AS_FAST = 1.25  # a micro-batch is large enough when a token takes no longer than this times one of a large one


def gradient(model, length: int):
    """The jitted gradient of all log-probs of rows."""
    layout = Layout(0, 1, length)

    def loss(params, rows):
        return jnp.sum(models.channels(model, {"model": params}, rows, layout, frozenset({"logps"}))["logps"])

    return jax.jit(jax.grad(loss))


def rows_of(number: int, length: int, vocabulary: int) -> Rows:
    """Full rows of random tokens."""
    tokens = np.random.default_rng(0).integers(0, vocabulary, (number, length), np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return jax.tree.map(jnp.asarray, Rows(tokens, np.roll(tokens, -1, axis=1), positions, np.ones_like(tokens)))


def seconds(function, *inputs, repeats: int) -> float:
    """Least wall-clock time of a call that is compiled already."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(function(*inputs))
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def main() -> None:
    """Prints the measured row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", choices=models.BUILTIN)
    parser.add_argument("--attention", default="xla")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=4096, help="of the rows that are compared")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model = models.Transformer(
        models.BUILTIN[options.model], dtype=options.dtype, param_dtype=options.dtype, attention=options.attention
    )
    params = jax.jit(lambda key: models.init(model, key))(jax.random.key(0))

    def measure(number: int, length: int) -> float:
        rows = rows_of(number, length, model.config.vocab_size)
        taken = seconds(gradient(model, length), params, rows, repeats=options.repeats)
        print(f"{number:4d} rows of {length:5d} tokens: {taken:.4f} s, {taken / number / length * 1e6:.1f} us a token")
        return taken

    lengths = np.array(options.lengths)
    times = np.array([measure(options.tokens // length, length) for length in options.lengths]) / options.tokens
    pair, token = np.polyfit(lengths / 2, times, 1)  # a query meets half of its row's keys
    token_flops = throughput.flops_per_token(model.config, 0.0)
    pair_flops = throughput.flops_per_token(model.config, 1.0) - token_flops
    attention = (pair / pair_flops) / (token / token_flops)
    small = [32 << n for n in range(6)]
    alone = [measure(1, length) / (token * length + pair * length**2 / 2) for length in small]
    least = next((length for length, factor in zip(small, alone, strict=True) if factor < AS_FAST), None)
    add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
    total = jax.tree.map(jnp.copy, params)
    start = time.perf_counter()
    for _ in range(10):
        total = add(total, params)
    jax.block_until_ready(total)
    micro_batch = (time.perf_counter() - start) / 10 / token
    print(f"a token {token * 1e6:.1f} us ({token_flops * 3 / token / 1e9:.1f} GFLOP/s), a pair {pair * 1e9:.2f} ns")
    print(f"one row against the straight line: {dict(zip(small, np.round(alone, 2).tolist(), strict=True))}")
    found = costs.Platform(round(float(attention), 2), least, round(float(micro_batch), 1))
    print(f"{jax.devices()[0].platform} ({jax.devices()[0].device_kind}), {options.model}: {found}")


if __name__ == "__main__":
    main()
