"""Evaluation on held-out records: the run's own objectives, without gradients, over every example exactly once."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpref.data import layouts
from jaxpref.errors import ConfigError
from jaxpref.objectives import Total
from jaxpref.training import inputs, mesh, state
from jaxpref.training.reference import ReferenceCache


class HeldOut(NamedTuple):
    """One held-out data set, ready to be scored.

    Attributes:
        name: of the evaluation.
        dataset: ``jaxpref.data.Dataset``.
        objective: the run's terms that read this kind of records.
        shape: the fixed shape of its batches.
        partnered: whether examples get a mismatched response.
        score: jitted ``(params, objective_state, reference, key, step, batch) -> (outputs, metrics)``.
    """

    name: str
    dataset: Any
    objective: Total
    shape: layouts.BatchShape
    partnered: bool
    score: Callable


def prepare(name: str, dataset, objective: Total, kinds: Mapping[str, str], model, batch, *, cached, devices: int) -> HeldOut:
    """Prepares an evaluation.

    Args:
        name: of the evaluation, for messages.
        dataset: held-out records.
        objective: the run's objective.
        kinds: kind of records of each training stream.
        model: ``jaxpref.models.Transformer``.
        batch: the config's batch section; evaluation uses its layout and its number of examples.
        cached: channels that travel with the examples.
        devices: the rows are divided over this many.

    Raises:
        ConfigError: no term of the run reads this kind of records.
    """
    terms = {n: term._replace(stream=name) for n, term in objective.terms.items() if kinds[term.stream] == dataset.kind}
    if not terms:
        raise ConfigError(
            f"evals.{name} holds {dataset.kind}, which no objective of this run reads; "
            f"expected one of {', '.join(sorted(set(kinds.values())))}."
        )
    total = Total(terms)
    size = {name: min(batch.examples, len(dataset))}
    final = inputs.reads_last_token(total)
    shape = inputs.shape_of({name: dataset}, size, total.partnered, batch, final=final, devices=devices)
    score = jax.jit(state.make_evaluation(model, total, shape.layout, cached=cached))
    return HeldOut(name, dataset, total, shape, name in total.partnered, score)


def batches(held: HeldOut, seed: int):
    """The examples of every batch, in the data set's order; the last batch may be ragged."""
    size = held.shape.streams[held.name].examples
    for start in range(0, len(held.dataset), size):
        chosen = [(0, index) for index in range(start, min(start + size, len(held.dataset)))]
        yield inputs.select(held.dataset, chosen, partnered=held.partnered, seed=seed)


def run(held: HeldOut, train_state: state.TrainState, reference, devices, *, seed: int, cache: ReferenceCache | None = None):
    """Scores every held-out example.

    Returns:
        ``(metrics, examples)``: global means by name, and term -> channel -> array over all examples, in their order,
        with ``mask`` beside the channels.
    """
    totals: dict[str, np.ndarray] = {}
    collected: dict[str, dict[str, list]] = {}
    objective_state = {name: s for name, s in train_state.objective.items() if name in held.objective.terms}
    for examples in batches(held, seed):
        streams = {held.name: examples}
        batch = layouts.plan(streams, held.shape)
        if cache is not None:
            batch = cache.attach(batch, streams, held.shape)
        placed = mesh.place_batch(batch, devices)
        key = jax.random.key(seed)
        outputs, metrics = held.score(train_state.params, objective_state, reference, key, train_state.step, placed)
        for name, pair in metrics.items():
            totals[name] = totals.get(name, 0) + np.array([float(pair[0]), float(pair[1])])
        mask = batch.examples[held.name].mask
        for term, channels in outputs.items():
            for channel, values in (channels | {"mask": mask}).items():
                collected.setdefault(term, {}).setdefault(channel, []).append(np.asarray(values)[: len(examples)])
    means = {name: total / count if count else float("nan") for name, (total, count) in totals.items()}
    return means, {t: {c: np.concatenate(v) for c, v in channels.items()} for t, channels in collected.items()}
