"""How fast a run is: tokens and examples a second, and model FLOPs utilisation (MFU).

Of every batch the train step measures (:func:`workload`)

* ``tokens/read``: tokens that the model reads, a prompt as often as the layout repeats it;
* ``tokens/unique``: the same with every prompt once; it does not depend on the layout, so it compares layouts;
* ``tokens/scored``: target tokens;
* ``tokens/context``: mean number of keys that a token attends to in a layer without a window, itself included;
* ``tokens/padding_share``: share of the computed positions that hold no token;
* ``flops/read``, ``flops/unique``: floating-point operations of one forward pass over these tokens, without
  recomputation and padding (:func:`forward_flops`); mismatched responses, which need no gradient, count for less.

Wall-clock names start with ``time/``. The clock runs from one arrival of results to another: the results of a step are
awaited after the next one was started, so that devices never wait for the host, and ``time/seconds_per_step`` is what a
step takes when they are busy. Between two log lines, with n steps, s seconds and peak FLOP/s p of all devices::

    time/seconds_per_step       s / n
    time/tokens_per_second      sum of tokens/read / s                          (time/unique_tokens_per_second)
    time/mfu                    passes x sum of flops/read / (s p)              (time/unique_mfu: of flops/unique)
    time/input_share            seconds spent on batches with idle devices / s  (no step was running any more)

where ``passes`` (:func:`passes`) says how many forward passes a step is worth. Recomputation (remat) and padding are
not needed, so they lower MFU.
"""

import contextlib
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from jaxpref.batch import Batch, Layout, computed_tokens
from jaxpref.data.layouts import NOWHERE

# Peak dense bfloat16 FLOP/s of one jax device, by a part of its kind, the more special names first. Data sheets of GPUs
# print twice as much, with structured sparsity. A TPU v3 and a TPU7x chip are two jax devices each.
# Sources: https://cloud.google.com/tpu/docs/v3, /v4, /v5e, /v5p, /v6e, /tpu7x (peak compute per chip, bf16);
# https://www.nvidia.com/en-us/data-center/a100/, /h100/, /h200/, /l4/, /l40s/, /hgx/ (BF16 Tensor Core, halved).
PEAKS = {
    "TPU v3": 123e12 / 2,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 2307e12 / 2,
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "GH200": 989e12,
    "H100": 989e12,
    "H200": 989e12,
    "GB200": 2500e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "L4": 121e12,
}

FORWARD_AND_BACKWARD = 3  # the backward pass costs twice the forward pass: gradients of activations, and of weights
TOTALS = ("tokens/read", "tokens/unique", "flops/read", "flops/unique")  # what the clock adds up


def peak_flops(kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of a device kind (``jax.Device.device_kind``); None where it is not known (CPUs)."""
    words = kind.replace("-", " ").split()
    for name, peak in PEAKS.items():
        if name in kind if " " in name else name in words:
            return peak
    return None


def flops_per_token(config, context: float, *, vocabulary: bool = True) -> float:
    """Floating-point operations of a forward pass for one token that attends to ``context`` keys.

    The mean context of causal sequences of T tokens is (T + 1) / 2; local layers see at most their window. See
    :func:`forward_flops`.
    """
    local = context if config.window is None else min(context, config.window)
    return float(forward_flops(config, 1.0, context, local, vocabulary=vocabulary))


def forward_flops(config, tokens, keys, local_keys, *, vocabulary: bool = True):
    """Floating-point operations of a forward pass; a training step needs about three times as many (:func:`passes`).

    Per layer, with D width, H query heads, G key-value heads of size d, F MLP width (a multiplication and an addition
    are two operations)::

        query, key, value, out   2·D·d·(2H + 2G)                 a token
        MLP                      2·D·F·(3 when gated, else 2)    a token
        scores and mixing        4·H·d                           a key that a token attends to

    and 2·D·V for the vocabulary, once a token. Norms, activations, rotations and the embedding lookup are left out.

    Args:
        config: ``jaxpref.models.ModelConfig``.
        tokens: number of tokens.
        keys: sum over tokens of the keys that each attends to.
        local_keys: the same in layers with a window.
        vocabulary: whether tokens meet the vocabulary (those of a reward model do not).
    """
    heads = config.heads * config.head_dim
    projections = 2 * config.width * config.head_dim * (2 * config.heads + 2 * config.key_value_heads)
    mlp = 2 * config.width * config.mlp_width * (3 if config.gated else 2)
    token = config.layers * (projections + mlp) + 2 * config.width * config.vocab_size * vocabulary
    local = sum(config.local)
    return float(token) * tokens + 4.0 * heads * ((config.layers - local) * keys + local * local_keys)


def passes(params, trainable, *, reference: bool, gradients: int = 1) -> float:
    """How many forward passes a training step is worth.

    One for the forward pass, one for the gradients of activations, one for those of weights times the share of the
    model's weights that are trained (none of them under an adapter, whose own are not counted), and one for a reference
    that runs along. What the engine or remat compute twice does not count.

    Args:
        params: ``{"model": ..., ...}``, arrays or shapes.
        trainable: tree of bools like it.
        reference: whether a reference runs along.
        gradients: of how many losses; each needs a backward pass.
    """
    weights, trained = jax.tree.leaves(params["model"]), jax.tree.leaves(trainable["model"])
    share = sum(w.size for w, t in zip(weights, trained, strict=True) if t) / sum(w.size for w in weights)
    return 1 + gradients * (FORWARD_AND_BACKWARD - 2 + share) + reference


def workload(
    batch: Batch, layout: Layout, config, *, vocabulary: bool, apart: Mapping[str, float] | None = None
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """What a batch asks of the model, as (sum, count) pairs; described at the top of this module.

    A token at position p attends to p + 1 keys in every layout. An example's prompt is read once for each response that
    holds anything, where responses share it only its last token.

    Args:
        batch: rows ``[M, R, T]``.
        layout: regions of a row.
        config: ``jaxpref.models.ModelConfig``.
        vocabulary: whether any term of the objective reads the vocabulary.
        apart: partnered stream -> what a FLOP without a gradient counts, in FLOPs with one.
    """
    apart = apart or {}
    real = batch.rows.segments > 0
    read, one = jnp.sum(real, dtype=float), jnp.ones(())
    computed = computed_tokens(batch).astype(float)
    scored = sum(jnp.sum(examples.mask, dtype=float) for examples in batch.examples.values())
    copied = {name: _prompt_copies(batch, layout, examples) for name, examples in batch.examples.items()}

    def tokens_and_keys(most: float, weigh: Mapping[str, float]) -> tuple[jax.Array, ...]:
        """Tokens, and keys when a token attends to at most so many; then both without those read again."""
        share = min(weigh.values(), default=1.0)
        weight = jnp.where(jnp.arange(real.shape[0]) < batch.trained, 1.0, share)[:, None, None]
        tokens, keys = jnp.sum(real * weight), jnp.sum(real * weight * jnp.minimum(batch.rows.positions + 1, most))
        tokens_again = keys_again = 0.0
        for name, (prompts, whole, last) in copied.items():
            near, whole = jnp.minimum(prompts, most), whole * weigh.get(name, 1.0)
            tokens_again += jnp.sum(whole * prompts + last)
            keys_again += jnp.sum(whole * (near * (near + 1) / 2 + (prompts - near) * near) + last * near)
        return tokens, keys, tokens - tokens_again, keys - keys_again

    nearby = jnp.inf if config.window is None else config.window
    tokens, keys, unique, unique_keys = tokens_and_keys(jnp.inf, apart)
    _, near, _, unique_near = tokens_and_keys(nearby, apart)
    plain = tokens_and_keys(jnp.inf, {})
    return {
        "tokens/read": (read, one),
        "tokens/unique": (plain[2], one),
        "tokens/scored": (scored, one),
        "tokens/context": (plain[1], read),
        "tokens/padding_share": (computed - read, computed),
        "flops/read": (forward_flops(config, tokens, keys, near, vocabulary=vocabulary), one),
        "flops/unique": (forward_flops(config, unique, unique_keys, unique_near, vocabulary=vocabulary), one),
    }


def _prompt_copies(batch: Batch, layout: Layout, examples) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each example ``[N]``: tokens of its prompt, and how often more than once all of it, or its last, is read."""
    first = examples.index[:, :, 0]
    last_of_prompt = batch.rows.positions.reshape(-1).at[first].get(mode="fill", fill_value=-1)
    present = first != NOWHERE
    row = jnp.where(present, first // layout.length, -1)
    # The responses of one row share its copy of the prompt; a mismatched one lies elsewhere.
    shares = present & (row == jnp.max(row, axis=1, keepdims=True)) if layout.shared else jnp.zeros_like(present)
    together = jnp.maximum(jnp.sum(shares, axis=1, dtype=float) - 1, 0)
    copies = jnp.maximum(jnp.sum(present, axis=1, dtype=float) - 1, 0)
    return jnp.max(last_of_prompt, axis=1).astype(float) + 1, copies - together, together


class Clock:
    """Measures a run between log lines. The first step, which holds the compilation, is reported apart."""

    def __init__(self, mesh, *, examples: int = 0, passes: float = FORWARD_AND_BACKWARD):
        """Starts the clock.

        Args:
            mesh: the device mesh.
            examples: examples of a batch; 0 leaves examples a second out.
            passes: forward passes that a step is worth.
        """
        devices = mesh.devices.ravel()
        peak = peak_flops(devices[0].device_kind)
        self._peak = None if peak is None else peak * len(devices)
        self._passes, self._examples = passes, examples
        self._compiled, self._unreported = False, {}
        self.restart()

    def restart(self) -> None:
        """Leaves out the time since the last lap (an evaluation, a checkpoint), in which no step was running."""
        self._steps, self._idle, self._totals = 0, 0.0, dict.fromkeys(TOTALS, 0.0)
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def preparing_input(self, running: Callable[[], bool]):
        """Time inside is spent on the next batch; it counts as idle when no step is running any more at its end.

        That overstates idleness by up to the time that the last step still took.
        """
        start = time.perf_counter()
        yield
        if not running():
            self._idle += time.perf_counter() - start

    def arrived(self, values: Mapping[str, float]) -> None:
        """The results of one more step are there, among them those of :func:`workload`."""
        if not self._compiled:
            self._compiled, self._unreported = True, {"time/first_step_seconds": time.perf_counter() - self._start}
            self.restart()
            return
        self._steps += 1
        self._totals = {name: total + values.get(name, 0.0) for name, total in self._totals.items()}

    def lap(self) -> dict[str, float]:
        """Numbers of the steps whose results arrived since the last lap or restart."""
        seconds, steps, idle, totals = time.perf_counter() - self._start, self._steps, self._idle, self._totals
        numbers, self._unreported = self._unreported, {}
        self.restart()
        if not steps or seconds <= 0:
            return numbers
        numbers |= {"time/seconds_per_step": seconds / steps, "time/input_share": idle / seconds}
        if self._examples:
            numbers["time/examples_per_second"] = self._examples * steps / seconds
        for kind, infix in (("read", ""), ("unique", "unique_")):
            if totals[f"tokens/{kind}"]:
                numbers[f"time/{infix}tokens_per_second"] = totals[f"tokens/{kind}"] / seconds
            if totals[f"flops/{kind}"] and self._peak is not None:
                numbers[f"time/{infix}mfu"] = self._passes * totals[f"flops/{kind}"] / seconds / self._peak
        return numbers
