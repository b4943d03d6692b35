"""Fills the cache of reference log-probs: every example of every step and evaluation, each content once."""

from collections.abc import Iterable, Iterator

import jax
import numpy as np

from jaxpref import models
from jaxpref.batch import Batch, gather
from jaxpref.data import Tokenized, layouts
from jaxpref.training import engine, mesh
from jaxpref.training.assembly import Assembly
from jaxpref.training.heldout import Evaluation
from jaxpref.training.reference import ReferenceCache, keys_of


def fill_run(parts: Assembly, evaluations: Iterable[Evaluation], first: int, report=print) -> None:
    """Fills a run's cache with what its steps from ``first`` on and its evaluations will read."""
    scoring = (parts.model, parts.reference)
    fill(parts.cache, _training_examples(parts, first), *scoring, parts.inputs.shape, parts.mesh, report)
    for evaluation in evaluations:
        held_out = ((evaluation.name, e) for batch in evaluation.batches(parts.sections.seed) for e in batch)
        fill(parts.cache, held_out, *scoring, evaluation.shape, parts.mesh, report)


def _training_examples(parts: Assembly, first: int) -> Iterator[tuple[str, Tokenized]]:
    fed = parts.inputs
    whole = {n for n, data in fed.streams.items() if fed.steps * fed.sizes[n] >= len(data) and n not in fed.partnered}
    for name in whole:
        yield from ((name, example) for example in fed.streams[name])
    if len(whole) < len(fed.streams):  # few steps of many examples, or mismatched responses that the order draws
        for step in range(first, fed.steps):
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
    absent = {name: cache.missing(found) for name, found in candidates.items()}
    total = sum(map(len, absent.values()))
    if not total:
        return
    report(f"Scoring {total} examples with the reference, once; they are kept in {cache.directory}.")
    score = jax.jit(lambda params, batch: score_batch(model, shape, params, batch))
    for name, unscored in absent.items():
        size = shape.streams[name].examples
        for start in range(0, len(unscored), size):
            chosen = unscored[start : start + size]
            streams = {other: chosen if other == name else [] for other in shape.streams}
            batch = mesh.place_batch(layouts.plan(streams, shape), devices)
            values = np.asarray(score(reference, batch)[name])
            cache.add(_entries(chosen, values), write=jax.process_index() == 0)


def score_batch(model: models.Transformer, shape: layouts.BatchShape, params, batch: Batch):
    """Log-probs ``[N, K, L]`` of every stream's examples."""
    channels = engine.all_channels(
        lambda params, rows: models.channels(model, {"model": params}, rows, shape.layout, frozenset({"logps"})),
        params,
        batch,
    )
    logps = models.replicate(channels["logps"])
    return {name: gather(logps, stream) for name, stream in batch.examples.items()}


def _entries(examples, values: np.ndarray) -> dict[str, np.ndarray]:
    return {
        key: values[n, k, : len(example.responses[k])]
        for n, example in enumerate(examples)
        for k, key in enumerate(keys_of(example))
    }
