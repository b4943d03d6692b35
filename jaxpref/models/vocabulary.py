"""Everything that needs the whole vocabulary, as functions of one chunk of logits inside one checkpointed scan.

``[tokens, V]`` never exists: the scan cuts the tokens into chunks, applies functions ``[n, V] -> [n]`` to each, and the
backward pass computes each chunk's logits again.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxpref.errors import ModelError
from jaxpref.models.sharding import BATCH, axis_size, batch_shards, constrain


class Scores(NamedTuple):
    """One chunk of a model's output.

    Attributes:
        logits: ``[..., V]``, after soft cap and temperature, float32 at least.
        normalizer: ``[...]``, log-sum-exp of the logits.
        targets: ``[...]`` int, the token to score at each position.
    """

    logits: jax.Array
    normalizer: jax.Array
    targets: jax.Array


Function = Callable[[Scores, Scores | None], jax.Array]  # (policy, reference) -> [...]


def scan(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    functions: Mapping[str, Function],
    *,
    chunk: int,
    soft_cap: float | None = None,
    temperature: float = 1.0,
    reference: tuple[jax.Array, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """Evaluates functions of the next-token distribution at every position, chunk by chunk.

    Args:
        hidden: ``[n, D]``; multiplied with ``kernel`` in its own dtype, accumulated in float32.
        kernel: ``[D, V]``; may be divided over the mesh axis ``tensor``. Its gradient is summed over chunks in float32,
            whatever its dtype.
        targets: ``[n]`` int.
        functions: ``{name: (policy, reference) -> values}`` such as those in ``FUNCTIONS``.
        chunk: tokens of a chunk on each data-parallel device; results do not depend on it.
        soft_cap: logits become ``soft_cap * tanh(logits / soft_cap)``.
        temperature: logits are divided by it, after the soft cap and before normalisation.
        reference: ``(hidden [n, D'], kernel [D', V])`` of a second model; no gradient flows into it.

    Returns:
        ``{name: [n]}``, float32 (float64 when ``hidden`` is).
    """
    count = hidden.shape[0]
    shards = batch_shards(count)
    chunks = max(1, math.ceil(count / shards / chunk))
    models = [(hidden, kernel)] if reference is None else [(hidden, kernel), jax.lax.stop_gradient(reference)]
    kernels = [_kernels(kernel, hidden.dtype, shards) for hidden, kernel in models]

    def body(_, piece):
        *inputs, targets = piece
        scores = [_scores(h, *k, targets, soft_cap, temperature) for h, k in zip(inputs, kernels, strict=True)]
        policy, other = (*scores, None)[:2]
        return None, {name: function(policy, other) for name, function in functions.items()}

    pieces = [_cut(x, shards, chunks) for x in (*(hidden for hidden, _ in models), targets)]
    _, values = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), None, pieces)
    return {name: _join(value, count) for name, value in values.items()}


def logps(policy: Scores, reference: Scores | None = None) -> jax.Array:
    """Log-probability of the target, ``logits[target] - logsumexp(logits)``.

    The target is selected by comparison and sum instead of indexing, which would gather a divided vocabulary.
    """
    chosen = jax.lax.broadcasted_iota(policy.targets.dtype, policy.logits.shape, policy.logits.ndim - 1)
    chosen = chosen == policy.targets[..., None]
    return jnp.sum(jnp.where(chosen, policy.logits, 0), axis=-1) - policy.normalizer


def entropy(policy: Scores, reference: Scores | None = None) -> jax.Array:
    """Entropy of the next-token distribution, ``- sum_v p_v log p_v``, in nats."""
    return policy.normalizer - jnp.sum(_probabilities(policy) * policy.logits, axis=-1)


def sum_p2(policy: Scores, reference: Scores | None = None) -> jax.Array:
    """Probability of drawing the same token twice, ``sum_v p_v^2``."""
    return jnp.sum(jnp.square(_probabilities(policy)), axis=-1)


def kl(policy: Scores, reference: Scores | None) -> jax.Array:
    """``KL(reference || policy) = sum_v p_ref(v) (log p_ref(v) - log p(v))``, in nats; note the order."""
    difference = _log_probabilities(_needed(reference)) - _log_probabilities(policy)
    return jnp.sum(_probabilities(reference) * difference, axis=-1)


def ref_logps(policy: Scores, reference: Scores | None) -> jax.Array:
    """Log-probability of the target under the reference."""
    return logps(_needed(reference))


FUNCTIONS: dict[str, Function] = {
    "logps": logps,
    "entropy": entropy,
    "sum_p2": sum_p2,
    "kl": kl,
    "ref_logps": ref_logps,
}
OF_REFERENCE = frozenset({"kl", "ref_logps"})


def cap(logits: jax.Array, soft_cap: float | None) -> jax.Array:
    """``soft_cap * tanh(logits / soft_cap)``; the logits themselves without a cap."""
    return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


def _needed(reference: Scores | None) -> Scores:
    if reference is None:
        raise ModelError("kl and ref_logps compare with a reference model; pass reference=.")
    return reference


def _log_probabilities(scores: Scores) -> jax.Array:
    return scores.logits - scores.normalizer[..., None]


def _probabilities(scores: Scores) -> jax.Array:
    return jnp.exp(_log_probabilities(scores))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _spread(kernel: jax.Array, shards: int) -> jax.Array:
    """The kernel once for each batch shard, ``[shards, D, V]``: a device holds one copy and sums its own gradient.

    Without this axis XLA adds the kernel's gradient over all devices once per chunk instead of once.
    """
    kernel = constrain(kernel, "fsdp", "tensor")
    return constrain(jnp.broadcast_to(kernel, (shards, *kernel.shape)), BATCH, None, "tensor")


def _spread_forward(kernel, shards):
    return _spread(kernel, shards), None


def _spread_backward(shards, _, cotangent):
    """Adds up the copies' gradients; over ``fsdp`` every device gets its own part only, before ``data`` adds parts."""
    _, width, vocabulary = cotangent.shape
    if shards == 1 or axis_size("fsdp") == 1 or width % axis_size("fsdp"):
        return (constrain(jnp.sum(cotangent, axis=0), "fsdp", "tensor"),)
    copies = ("data",) if axis_size("data") > 1 else ()
    divided = "tensor" if axis_size("tensor") > 1 and vocabulary % axis_size("tensor") == 0 else None

    def add(own):
        return jax.lax.psum(jax.lax.psum_scatter(own[0], "fsdp", tiled=True), copies)

    specs = PartitionSpec((*copies, "fsdp"), None, divided), PartitionSpec("fsdp", divided)
    return (jax.shard_map(add, in_specs=specs[0], out_specs=specs[1])(cotangent),)


_spread.defvjp(_spread_forward, _spread_backward)


def _kernels(kernel: jax.Array, dtype: Any, shards: int) -> tuple[jax.Array, jax.Array]:
    """The kernel that is multiplied, in the compute dtype, and one in float32 that nothing reads but its gradient."""
    wide = kernel.astype(jnp.promote_types(dtype, jnp.float32))
    return _spread(jax.lax.stop_gradient(kernel).astype(dtype), shards), _spread(wide, shards)


@jax.custom_vjp
def _product(hidden: jax.Array, kernel: jax.Array, wide: jax.Array) -> jax.Array:
    """Logits ``[s, m, V]``, float32 at least, of hidden states ``[s, m, D]`` and kernels ``[s, D, V]``.

    ``wide`` stands for the kernel's gradient, which is never rounded to less than float32. All products are of arrays
    in the compute dtype and accumulate in float32: products with float32 cotangents, which the derived rule would make,
    cost accelerators twice the time or more.
    """
    return _multiply("smd,sdv->smv", hidden, kernel)


def _product_forward(hidden, kernel, wide):
    return _multiply("smd,sdv->smv", hidden, kernel), (hidden, kernel)


def _product_backward(kept, cotangent):
    hidden, kernel = kept
    cotangent = constrain(cotangent.astype(hidden.dtype), BATCH, None, "tensor")
    to_hidden = _multiply("smv,sdv->smd", cotangent, kernel).astype(hidden.dtype)
    to_kernel = _multiply("smd,smv->sdv", hidden, cotangent)
    return constrain(to_hidden, BATCH, None, None), None, constrain(to_kernel, BATCH, None, "tensor")


_product.defvjp(_product_forward, _product_backward)


def _multiply(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _scores(hidden, kernel, wide, targets, soft_cap, temperature) -> Scores:
    logits = cap(constrain(_product(hidden, kernel, wide), BATCH, None, "tensor"), soft_cap) / temperature
    return Scores(logits, jax.nn.logsumexp(logits, axis=-1), targets)


def _cut(x: jax.Array, shards: int, chunks: int) -> jax.Array:
    """``[n, ...]`` to ``[chunks, shards, m, ...]`` so that every chunk holds tokens of every device; no token moves."""
    x = x.reshape(shards, -1, *x.shape[1:])
    padding = -x.shape[1] % chunks
    x = jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))
    x = jnp.moveaxis(x.reshape(shards, chunks, -1, *x.shape[2:]), 1, 0)
    return constrain(x, None, BATCH, *(None,) * (x.ndim - 2))


def _join(x: jax.Array, count: int) -> jax.Array:
    """Undoes :func:`_cut` for ``[chunks, shards, m]``."""
    shards = x.shape[1]
    return jnp.moveaxis(x, 1, 0).reshape(shards, -1)[:, : count // shards].reshape(count)
