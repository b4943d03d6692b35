"""The train state, and the jitted step that moves it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpref import models
from jaxpref.batch import Batch, Layout, Rows
from jaxpref.training import engine, throughput, trees


class TrainState(NamedTuple):
    """Everything that a step changes, as one checkpointed tree.

    Attributes:
        step: number of finished steps.
        params: ``{"model": ..., "heads": {term: ...}}``, and ``"adapter"`` where one is trained.
        optimizer: optax state of the trainable leaves.
        objective: running state of each term.
        average: exponential moving average of the trainable leaves in float32 at least (bfloat16 would stall), or ().
        reference: ``{"model": ...}`` where the reference follows the policy, else ().
    """

    step: jax.Array
    params: Any
    optimizer: Any
    objective: Any
    average: Any
    reference: Any = ()


def reference_of(state: TrainState, fixed):
    """The reference's parameters: the state's, where they move with the policy, else the ``fixed`` ones or None."""
    return state.reference["model"] if state.reference != () else fixed


def partition(tree, mask) -> tuple[Any, Any]:
    """Splits a tree of parameters into (trainable, frozen) trees that hold None where the other has the leaf."""
    return (
        jax.tree.map(lambda leaf, keep: leaf if keep else None, tree, mask),
        jax.tree.map(lambda leaf, keep: None if keep else leaf, tree, mask),
    )


def merge(trainable, frozen):
    """Undoes :func:`partition`."""
    return jax.tree.map(lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda leaf: leaf is None)


def create(
    params, mask, optimizer: optax.GradientTransformation, objective_state, *, average: bool, reference=()
) -> TrainState:
    """A fresh state at step 0."""
    trainable, _ = partition(params, mask)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer=optimizer.init(trainable),
        objective=objective_state,
        average=jax.tree.map(trees.widen, trainable) if average else (),
        reference=reference,
    )


def averaged(state: TrainState, mask):
    """The parameters to evaluate: the moving average where one is kept, else the newest; adapters are attached."""
    params = state.params
    if state.average != ():
        trainable, frozen = partition(params, mask)
        params = merge(jax.tree.map(lambda average, leaf: average.astype(leaf.dtype), state.average, trainable), frozen)
    return {"model": models.adapters.policy(params), "heads": params["heads"]}


def make_forward(model, layout: Layout, needs: frozenset[str], reference) -> Callable:
    """The forward of one micro-batch: ``(params, rows, short) -> channels``, zero behind the beginnings of short rows.

    ``reference`` is a tree of parameters or None.
    """

    def forward(params, rows, short):
        regions = layout.shortened if short else layout
        computed = Rows(*(field[:, : regions.length] for field in rows))
        channels = models.channels(model, params, computed, regions, needs, reference=reference)
        rest = layout.length - regions.length
        return {
            name: jnp.pad(values, ((0, 0), (0, rest), *[(0, 0)] * (values.ndim - 2)))
            for name, values in channels.items()
        }

    return forward


def make_step(
    model, objective, optimizer, mask, layout: Layout, *, cached=frozenset(), decay: float = 0.0, follow=None
) -> Callable:
    """Builds the train step ``(state, reference, key, batch) -> (state, metrics)``, a pure function to be jitted.

    Args:
        model: ``jaxpref.models.Transformer``.
        objective: ``jaxpref.objectives.Total``.
        optimizer: optax transformation of the trainable leaves.
        mask: tree of bools over ``params``: which leaves are trained. Frozen leaves get no gradient at all.
        layout: static regions of a row.
        cached: names of channels that travel with the examples.
        decay: of the moving average of the parameters; 0 keeps none.
        follow: ``(reference, policy, finished steps) -> reference`` of a reference that moves with the policy.

    The step's key is ``fold_in(key, step)``, so that a resumed run draws what the uninterrupted one would have drawn.
    Metrics are global ``(sum, count)`` pairs.
    """
    needs = engine.channel_names(objective, cached)
    reads_vocabulary = not needs.isdisjoint(models.vocabulary.FUNCTIONS)

    def step(state: TrainState, reference, key, batch: Batch):
        reference = reference_of(state, reference)
        forward = make_forward(model, layout, needs, reference)
        trainable, frozen = partition(state.params, mask)
        result, gradients = engine.gradient(
            objective,
            lambda params, rows, short: forward(merge(params, frozen), rows, short),
            trainable,
            batch,
            state.objective,
            jax.random.fold_in(key, state.step),
            state.step,
            apart=objective.gradients > 0,
        )
        if objective.gradients:
            gradients, combined = objective.combine(gradients, state.step)
            result = result._replace(metrics=result.metrics | combined)
        updates, moments = optimizer.update(gradients, state.optimizer, trainable)
        updated = optax.apply_updates(trainable, updates)
        average = state.average
        if decay:
            average = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b.astype(a.dtype), average, updated)
        metrics = {"loss": (result.loss, jnp.ones(()))} | result.metrics
        metrics |= _norms(gradients, updates)
        compares = reference is not None
        passes = throughput.passes(state.params, mask, reference=compares, gradients=objective.gradients or 1)
        apart = dict.fromkeys(objective.partnered, (1 + compares) / passes)
        metrics |= throughput.workload(batch, layout, model.config, vocabulary=reads_vocabulary, apart=apart)
        params, done, moved = merge(updated, frozen), state.step + 1, state.reference
        if follow is not None:
            moved = {"model": follow(reference, params["model"], done)}
        return TrainState(done, params, moments, result.state, average, moved), metrics

    return step


def make_evaluation(model, objective, layout: Layout, *, cached=frozenset()) -> Callable:
    """Builds ``(params, objective_state, reference, key, step, batch) -> (outputs, metrics)`` without gradients.

    ``outputs`` are the example-order channels of each term, for per-example evaluation.
    """
    needs = engine.channel_names(objective, cached)

    def evaluation(params, objective_state, reference, key, step, batch: Batch):
        forward = make_forward(model, layout, needs, reference)
        channels = engine.all_channels(forward, params, batch)
        denominators = objective.denominators(batch.examples)
        result = engine.evaluate(objective, channels, batch.examples, denominators, objective_state, key, step)
        outputs = {
            name: engine.read(channels, batch.examples[term.stream], term.needs, name)
            for name, term in objective.terms.items()
        }
        return outputs, result.metrics

    return evaluation


def _norms(gradients, updates):
    one = jnp.ones(())
    return {"gradient_norm": (_norm(gradients), one), "update_norm": (_norm(updates), one)}


def _norm(tree):
    """Global norm in float32, which bf16 sums would not be."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(trees.widen(leaf))) for leaf in jax.tree.leaves(tree)))
