"""Fills the caches of reference log-probs: every example of every step and evaluation, each content once."""

from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxpref import models
from jaxpref.batch import Batch, Layout, gather
from jaxpref.data import Tokenized, layouts
from jaxpref.training import engine, mesh, state
from jaxpref.training.assembly import Assembly
from jaxpref.training.heldout import Evaluation
from jaxpref.training.reference import ReferenceCache, distinct, keys_of


def fill_run(parts: Assembly, evaluations: Iterable[Evaluation], steps: range, report=print) -> Assembly:
    """Fills a run's caches with what these steps and evaluations will read.

    Returns:
        The parts without the parameters that nothing reads any more.
    """
    scoring = [(other.cache, other.params) for other in parts.others]
    if parts.cache is not None:
        scoring.insert(0, (parts.cache, parts.reference))
        parts = parts._replace(reference=None)
    for cache, reference in scoring:
        fill(cache, _training_examples(parts, steps), parts.model, reference, parts.inputs.shape, parts.mesh, report)
        for evaluation in evaluations:
            held_out = ((evaluation.name, e) for batch in evaluation.batches(parts.sections.seed) for e in batch)
            fill(cache, held_out, parts.model, reference, evaluation.shape, parts.mesh, report)
    return parts._replace(others=tuple(other._replace(params=None) for other in parts.others))


def _training_examples(parts: Assembly, steps: range) -> Iterator[tuple[str, Tokenized]]:
    fed = parts.inputs
    whole = [n for n, data in fed.streams.items() if len(steps) * fed.sizes[n] >= len(data) and n not in fed.partnered]
    for name in whole:
        yield from ((name, example) for example in fed.streams[name])
    if len(whole) < len(fed.streams):  # few steps of many examples, or mismatched responses that the order draws
        for step in steps:
            chosen = fed.examples(step)
            yield from ((name, example) for name in chosen if name not in whole for example in chosen[name])


def fill(
    cache: ReferenceCache,
    examples: Iterable[tuple[str, object]],
    model: models.Transformer,
    reference,
    shape: layouts.BatchShape,
    devices: jax.sharding.Mesh,
    report=print,
) -> None:
    """Scores what the cache lacks and adds it.

    Args:
        cache: to be filled.
        examples: ``(stream of the shape, example)``.
        model, reference: what scores.
        shape: of the batches.
        devices: the mesh.
        report: is given a line of text.
    """
    candidates: dict[str, list] = {name: [] for name in shape.streams}
    for name, example in examples:
        candidates[name].append(example)
    # Batches do not depend on what the cache holds, so that a fill that was cut off ends with the same bits.
    batches = [
        (name, batch)
        for name, found in candidates.items()
        for batch in _cut(distinct(found), shape.streams[name].examples)
        if not cache.covers(batch)
    ]
    if batches:
        report(f"Scoring {sum(len(b) for _, b in batches)} examples with a reference, once, for {cache.directory}.")
    # One function for all references, so that it is compiled once.
    score = jax.jit(score_batch, static_argnums=(0, 1), out_shardings=NamedSharding(devices, PartitionSpec()))
    running: tuple | None = None
    for name, chosen in batches:
        streams = {other: chosen if other == name else [] for other in shape.streams}
        scored = score(model, shape.layout, reference, mesh.place_batch(layouts.plan(streams, shape), devices))[name]
        if running is not None:  # written while the devices work on the next batch
            cache.add(_entries(*running))
        running = chosen, scored
    if running is not None:
        cache.add(_entries(*running))


def _cut(examples: list[Tokenized], size: int) -> list[list[Tokenized]]:
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def score_batch(model: models.Transformer, layout: Layout, params, batch: Batch):
    """Log-probs ``[N, K, L]`` of every stream's examples."""
    forward = state.make_forward(model, layout, frozenset({"logps"}), None)
    channels = engine.all_channels(forward, {"model": params}, batch)
    logps = models.replicate(channels["logps"])
    return {name: gather(logps, stream) for name, stream in batch.examples.items()}


def _entries(examples, scored: jax.Array) -> dict[str, np.ndarray]:
    values = np.asarray(scored)
    return {
        key: values[n, k, : len(example.responses[k])]
        for n, example in enumerate(examples)
        for k, key in enumerate(keys_of(example))
    }
