"""The engine: from a batch to the exact gradient of any objective, whatever the layout and the number of micro-batches.

    records -> batch -> channels (per-token values) -> loss -> update

The forward turns rows into channels; one gather turns channels into example order; the objective sees only that. Three
ways to the same gradient:

* one micro-batch: plain ``value_and_grad``;
* several, separable objective: one pass, each micro-batch scored alone against the global denominators; what a loss
  reads of mismatched responses (KTO), which never get a gradient, is computed for the whole batch before;
* several, coupled objective (an example's gradient depends on other examples): two passes. The first keeps channels
  only; the objective's cotangents on them then drive one vector-Jacobian product per micro-batch. One extra forward.

The number of micro-batches that hold anything is dynamic (a ``fori_loop``), and so is which of them have short rows (a
``cond``): one compile serves every batch of a shape.

Where a method combines the gradients of several losses, each of these ways gives all of them, stacked: the forward is
shared, and the backward passes run one after another.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpref.batch import Batch, Examples, gather, gather_last
from jaxpref.data.layouts import NOWHERE
from jaxpref.models import replicate
from jaxpref.training import trees

Channels = dict[str, jax.Array]
Forward = Callable[[Any, Any, bool], Channels]  # (params, Rows [R, T], whether they are short) -> {name: [R, T, ...]}


class Evaluation(NamedTuple):
    """What one evaluation of the objective gives: loss, metrics as global (sum, count), the objective's new state."""

    loss: jax.Array
    metrics: dict[str, tuple[jax.Array, jax.Array]]
    state: Any


def read(channels: Channels, examples: Examples, needs: frozenset[str], term: str) -> dict[str, jax.Array]:
    """Brings the channels that a term needs into example order; ``score`` is read at each response's last token.

    A channel that travels with the examples (cached reference log-probs) is taken from there.
    """
    outputs = {}
    for need in needs:
        if need in examples.side:
            values = examples.side[need]
            mask = examples.mask.reshape(examples.mask.shape + (1,) * (values.ndim - examples.mask.ndim))
            outputs[need] = jax.lax.stop_gradient(jnp.where(mask, values, 0))
        elif need == "score":
            outputs[need] = gather_last(channels[f"score/{term}"], examples)
        else:
            outputs[need] = gather(channels[need], examples)
    return outputs


def channel_names(objective: Any, cached: frozenset[str] = frozenset()) -> frozenset[str]:
    """Names of the channels that the forward must compute for the terms of an objective."""
    return frozenset(
        f"score/{name}" if need == "score" else need
        for name, term in objective.terms.items()
        for need in term.needs - cached
    )


def read_all(objective, channels: Channels, examples: dict[str, Examples]) -> dict[str, dict[str, jax.Array]]:
    """Term -> what :func:`read` gives for it."""
    channels = {name: replicate(values) for name, values in channels.items()}
    return {name: read(channels, examples[term.stream], term.needs, name) for name, term in objective.terms.items()}


def evaluate(
    objective, channels: Channels, examples: dict[str, Examples], denominators, state, key, step
) -> Evaluation:
    """Evaluates the objective on channels ``[M, R, T, ...]``."""
    outputs = read_all(objective, channels, examples)
    return Evaluation(*objective.loss(outputs, examples, denominators, state, key, step))


def all_channels(forward: Forward, params, batch: Batch, first=0) -> Channels:
    """Channels ``[M, R, T, ...]`` of a global batch, micro-batch by micro-batch, from the ``first`` on; else zero."""

    def keep(micro, channels):
        values = _by_length(batch, micro, lambda short: forward(params, _micro(batch.rows, micro), short))
        return {name: channels[name].at[micro].set(values[name]) for name in values}

    shapes = jax.eval_shape(lambda: forward(params, _micro(batch.rows, 0), False))
    micro_batches = batch.rows.tokens.shape[0]
    channels = {name: jnp.zeros((micro_batches, *s.shape), s.dtype) for name, s in shapes.items()}
    return jax.lax.fori_loop(first, batch.count, keep, channels)


def gradient(
    objective, forward: Forward, params, batch: Batch, state, key, step, *, apart: bool = False
) -> tuple[Evaluation, Any]:
    """Gradient of the objective on a global batch with respect to ``params``.

    Args:
        objective: ``jaxpref.objectives.Total``.
        forward: computes the channels of one micro-batch.
        params: tree to differentiate; ``forward`` closes over whatever is frozen.
        batch: rows ``[M, R, T]`` of which the first ``count`` micro-batches hold anything.
        state, key, step: the objective's running state, a key for this step, and the step's number (for schedules).
        apart: whether to give the gradient of each of ``objective.losses`` instead of the total's.

    Returns:
        ``(Evaluation, gradients)``; gradients have at least float32 precision, and with ``apart`` a leading axis of
        losses.
    """
    denominators = objective.denominators(batch.examples)
    scored = (objective, forward, params, batch, denominators, state, key, step, apart)
    if batch.rows.tokens.shape[0] == 1:
        return _single(*scored)
    return _two_pass(*scored) if objective.coupled else _one_pass(*scored)


def _single(objective, forward, params, batch, denominators, state, key, step, apart):
    def loss(params, short):
        channels = {name: values[None] for name, values in forward(params, _micro(batch.rows, 0), short).items()}
        outputs = read_all(objective, channels, batch.examples)
        return _scored(objective, apart, outputs, batch.examples, denominators, state, key, step)

    gradients, result = _by_length(batch, 0, lambda short: _gradients(lambda params: loss(params, short), params))
    return result, jax.tree.map(trees.widen, gradients)


def _one_pass(objective, forward, params, batch, denominators, state, key, step, apart):
    partners = {}
    if objective.partnered:
        known = jax.lax.stop_gradient(all_channels(forward, params, batch, batch.trained))
        partners = read_all(objective, known, batch.examples)

    def loss(params, micro, short):
        channels = {name: values[None] for name, values in forward(params, _micro(batch.rows, micro), short).items()}
        examples = {
            name: _only(stream, micro, batch.rows, name in objective.partnered)
            for name, stream in batch.examples.items()
        }
        outputs = read_all(objective, channels, examples)
        for name, term in objective.terms.items():
            if term.stream in objective.partnered:
                outputs[name] = {need: v.at[:, 1].set(partners[name][need][:, 1]) for need, v in outputs[name].items()}
        value, result = _scored(objective, apart, outputs, examples, denominators, state, key, step)
        return value, (result.loss, result.metrics)

    def score(micro, short):
        gradients, values = _gradients(lambda params: loss(params, micro, short), params)
        return values, _added_up(gradients)

    def accumulate(micro, total):
        return jax.tree.map(jnp.add, total, _by_length(batch, micro, lambda short: score(micro, short)))

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(lambda: score(0, False)))
    (value, metrics), gradients = jax.lax.fori_loop(0, batch.trained, accumulate, zeros)
    return Evaluation(value, metrics, state), gradients


def _two_pass(objective, forward, params, batch, denominators, state, key, step, apart):
    channels = all_channels(forward, params, batch)

    def loss(channels):
        outputs = read_all(objective, channels, batch.examples)
        return _scored(objective, apart, outputs, batch.examples, denominators, state, key, step)

    cotangents, result = _gradients(loss, channels)

    def pulled(micro, short):
        _, pull = jax.vjp(lambda params: forward(params, _micro(batch.rows, micro), short), params)
        of_micro = {name: values[:, micro] if apart else values[micro] for name, values in cotangents.items()}
        return _added_up(_pulled(pull, of_micro, apart))

    def accumulate(micro, total):
        return jax.tree.map(jnp.add, total, _by_length(batch, micro, lambda short: pulled(micro, short)))

    stack = jax.tree.leaves(cotangents)[0].shape[: int(apart)]
    zeros = jax.tree.map(lambda p: jnp.zeros((*stack, *p.shape), trees.widen(p).dtype), params)
    return result, jax.lax.fori_loop(0, batch.trained, accumulate, zeros)


def _scored(objective, apart, *arguments):
    """``(what is differentiated, Evaluation)``: the total, or the losses whose gradients are to stay apart."""
    result = Evaluation(*objective.loss(*arguments))
    return objective.losses(*arguments) if apart else result.loss, result


def _gradients(loss, at):
    """``jax.grad(loss, has_aux=True)(at)``; where the loss is a vector, the gradients of its entries, stacked."""
    value, pull, aux = jax.vjp(loss, at, has_aux=True)
    apart = value.ndim > 0
    ones = jnp.eye(value.size, dtype=value.dtype) if apart else jnp.ones_like(value)
    return _pulled(pull, ones, apart), aux


def _pulled(pull, cotangents, apart: bool):
    """The gradient of a cotangent; of stacked ones all gradients, one by one: together they would need all memory."""
    if apart:
        return jax.lax.map(lambda each: pull(each)[0], cotangents)
    return pull(cotangents)[0]


def _added_up(gradients):
    """A micro-batch's gradients, added up over the devices before they are added to those of other micro-batches.

    XLA would rather add up over the devices once, after the loop over micro-batches: every device would then hold whole
    gradients of what each of them contributes to (the vocabulary's), instead of its part.
    """
    return jax.lax.optimization_barrier(jax.tree.map(trees.widen, gradients))


def _by_length(batch: Batch, micro, compute):
    """``compute(short)`` of a micro-batch; where some have short rows, one of two programs runs."""
    if batch.row_lengths is None:
        return compute(False)
    short = batch.row_lengths[micro] < batch.rows.tokens.shape[-1]
    return jax.lax.cond(short, lambda: compute(True), lambda: compute(False))


def _micro(rows, micro):
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, micro, keepdims=False), rows)


def _only(examples: Examples, micro, rows, partnered: bool) -> Examples:
    """The examples as one micro-batch sees them: the others are not there, but for their mismatched responses."""
    here = examples.where & (examples.micro == micro)
    mask = examples.mask & here[:, None, None]
    first = micro * rows.tokens[0].size
    return examples._replace(
        index=jnp.where(mask, examples.index - first, NOWHERE),
        mask=examples.mask if partnered else mask,
        last=jnp.where(here[:, None] & (examples.last != NOWHERE), examples.last - first, NOWHERE),
        where=here,
    )
