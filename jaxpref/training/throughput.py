"""How fast a run is: tokens and examples a second, and model FLOPs utilisation (MFU).

MFU = FLOPs that the model's mathematics needs / (seconds x peak FLOPs of the devices). Recomputation (remat) and
padding are not needed, so they lower it. Everything here is wall-clock: its names start with ``time/``.
"""

import contextlib
import time
from collections.abc import Mapping

import jax

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

FORWARD_AND_BACKWARD = 3  # the backward pass costs twice the forward pass


def peak_flops(kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of a device kind (``jax.Device.device_kind``); None where it is not known (CPUs)."""
    words = kind.replace("-", " ").split()
    for name, peak in PEAKS.items():
        if name in kind if " " in name else name in words:
            return peak
    return None


def flops_per_token(config, context: float, *, vocabulary: bool = True) -> float:
    """Floating-point operations of a forward pass for one token; a training step needs three times as many.

    Per layer, with D width, H query heads, G key-value heads of size d, F MLP width, and C keys that a token attends to
    (a multiplication and an addition are two operations)::

        query, key, value, out   2·D·d·(2H + 2G)
        scores and mixing        4·H·d·C
        MLP                      2·D·F·(3 when gated, else 2)

    and 2·D·V for the vocabulary, once. Norms, activations, rotations and the embedding lookup are left out.

    Args:
        config: ``jaxpref.models.ModelConfig``.
        context: C, the mean number of keys that a token attends to: (T + 1) / 2 for causal sequences of T tokens. Local
            layers see at most their window.
        vocabulary: whether the token meets the vocabulary (a reward model's does not).
    """
    heads = config.heads * config.head_dim
    projections = 2 * config.width * config.head_dim * (2 * config.heads + 2 * config.key_value_heads)
    mlp = 2 * config.width * config.mlp_width * (3 if config.gated else 2)
    contexts = [min(context, config.window) if local and config.window else context for local in config.local]
    layers = sum(projections + mlp + 4 * heads * keys for keys in contexts)
    return float(layers + 2 * config.width * config.vocab_size * vocabulary)


class Clock:
    """Measures a run between log lines. The first lap holds the compilation and is reported as such."""

    def __init__(self, config, mesh, *, examples: int = 0, context: float = 0.0, passes: float = FORWARD_AND_BACKWARD):
        """Starts the clock.

        Args:
            config: ``jaxpref.models.ModelConfig``.
            mesh: the device mesh.
            examples: examples of a batch; 0 leaves examples a second out.
            context: mean number of keys that a token attends to; 0 counts no attention scores.
            passes: forward passes that a token's step is worth: 3, and one more for a reference that runs along.
        """
        devices = mesh.devices.ravel()
        peak = peak_flops(devices[0].device_kind)
        self._peak = None if peak is None else peak * len(devices)
        self._flops = passes * flops_per_token(config, context)
        self._examples = examples
        self._compiled = False
        self._waited = 0.0
        self._step: int | None = None
        self._start = time.perf_counter()

    def restart(self, step: int) -> None:
        """Leaves out the time since the last lap (an evaluation, a checkpoint); ``step`` steps are finished."""
        self._step, self._start, self._waited = step, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting_for_input(self):
        """Time inside is time in which no new step was started."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def lap(self, step: int, measured: Mapping[str, tuple]) -> dict[str, float]:
        """Numbers of the steps since the last lap or restart.

        Args:
            step: number of finished steps; their results must have arrived, or the clock stops too early.
            measured: (sum, count) of the last step, of which ``tokens/read`` and, if present, ``tokens/unique`` (a
                prompt that two responses share counts once) stand for each of the steps.
        """
        seconds, waited, last = time.perf_counter() - self._start, self._waited, self._step
        self.restart(step)
        if not self._compiled:
            self._compiled = True
            return {"time/first_step_seconds": seconds}
        if last is None or step <= last or seconds <= 0:
            return {}
        steps = step - last
        numbers = {"time/seconds_per_step": seconds / steps, "time/input_share": waited / seconds}
        if self._examples:
            numbers["time/examples_per_second"] = self._examples * steps / seconds
        for metric, infix in (("tokens/read", ""), ("tokens/unique", "unique_")):
            if metric in measured:
                rate = float(jax.device_get(measured[metric][0])) * steps / seconds
                numbers[f"time/{infix}tokens_per_second"] = rate
                if self._peak is not None:
                    numbers[f"time/{infix}mfu"] = rate * self._flops / self._peak
        return numbers
