"""Evaluation on held-out records: the run's own objectives, without gradients, over every example exactly once."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxpref import configuration
from jaxpref.batch import IDS
from jaxpref.data import Dataset, Tokenized, layouts
from jaxpref.errors import ConfigError
from jaxpref.objectives import Total
from jaxpref.training import inputs, state
from jaxpref.training.assembly import Assembly, load_stream


class Evaluation(NamedTuple):
    """One entry of ``config.evals``, ready to be run.

    Attributes:
        name: of the evaluation; its metrics are called ``<name>/<metric>/<term>``.
        dataset: held-out records.
        objective: the run's terms that read this kind of records.
        shape: the fixed shape of its batches.
        every: steps between evaluations; 0 evaluates at the end only.
        metrics: names of metrics to keep (without the term); empty keeps all.
        samples: how many prompts are answered, and shown in ``samples.jsonl``.
        score: jitted ``(params, objective_state, reference, key, step, batch) -> (outputs, metrics)``.
    """

    name: str
    dataset: Dataset
    objective: Total
    shape: layouts.BatchShape
    every: int
    metrics: tuple[str, ...]
    samples: int
    score: Callable

    def due(self, done: int, steps: int) -> bool:
        """Whether it runs after ``done`` of ``steps`` steps."""
        return done == steps or (self.every > 0 and done % self.every == 0)

    def batches(self, seed: int) -> Iterator[list[Tokenized]]:
        """The examples of every batch, in the data set's order; the last batch may be ragged."""
        size, partnered = self.shape.streams[self.name].examples, self.name in self.objective.partnered
        for start in range(0, len(self.dataset), size):
            chosen = [(0, index) for index in range(start, min(start + size, len(self.dataset)))]
            yield inputs.select(self.dataset, chosen, partnered=partnered, seed=seed)


def prepare_all(parts: Assembly, report=print) -> list[Evaluation]:
    """The evaluations of a run's config, by name; ``report`` is given a line on each data set."""
    return [prepare(name, section, parts, report) for name, section in parts.sections.evals.items()]


def prepare(name: str, section: Mapping[str, Any], parts: Assembly, report=print) -> Evaluation:
    """One evaluation of a run.

    Args:
        name: of the evaluation.
        section: ``data`` (the name of a data stream, or a stream's own fields), ``every``, ``metrics``, ``samples``.
        parts: of the run.
        report: is given a line on the data set.

    Raises:
        ConfigError: an unknown field or stream, or records that no term of the run reads.
    """
    options = configuration.bind(_options, section, f"evals.{name}")
    every, metrics, samples = _options(**options)[1:]
    stream = options["data"]
    if isinstance(stream, str):
        if stream not in parts.sections.data:
            raise ConfigError(f"config.evals.{name}.data is {stream!r}, which config.data lacks.")
        stream = parts.sections.data[stream]
    kinds = {stream: dataset.kind for stream, dataset in parts.inputs.streams.items()}
    reading = {n: t for n, t in parts.objective.terms.items() if kinds[t.stream] == stream.get("kind")}
    reads = frozenset().union(*(term.reads for term in reading.values())) - {IDS}  # of the training data
    dataset = load_stream(
        parts.sections, name, stream, tokenizer=parts.tokenizer, template=parts.template, report=report, reads=reads
    )
    if not reading:
        raise ConfigError(
            f"config.evals.{name} holds {dataset.kind}, which no objective of this run reads; "
            f"expected one of {', '.join(sorted(set(kinds.values())))}."
        )
    total = Total({n: term._replace(stream=name) for n, term in reading.items()})
    size = min(parts.sections.batch.examples, len(dataset))
    if name in total.partnered and len(dataset) % size == 1:
        raise ConfigError(
            f"the last batch of evals.{name} would hold one example, which has no mismatched partner; "
            f"limit its {len(dataset)} examples, or change batch.examples."
        )
    shape = inputs.shape_of(
        {name: dataset},
        {name: size},
        total.partnered,
        parts.sections.batch,
        final=inputs.reads_last_token(total),
        machine=parts.machine,
    )
    score = jax.jit(
        state.make_evaluation(parts.model, total, shape.layout, cached=parts.cached),
        out_shardings=NamedSharding(parts.mesh, PartitionSpec()),
    )
    return Evaluation(name, dataset, total, shape, every, metrics, samples, score)


def _options(data: str | Mapping, every: int = 0, metrics: tuple = (), samples: int = 0):
    return data, every, metrics, samples


def run(evaluation: Evaluation, parts: Assembly, current: state.TrainState) -> dict[str, float]:
    """Global means of an evaluation: ``<name>/<metric>/<term>``, the same whatever the batch size."""
    means, _ = score_all(evaluation, parts, current)
    kept = {
        name: value
        for name, value in means.items()
        if not evaluation.metrics or name.rsplit("/", 1)[0] in evaluation.metrics
    }
    return {f"{evaluation.name}/{name}": value for name, value in kept.items()}


def headline(scores: Mapping[str, float]) -> str:
    """The losses and accuracies among an evaluation's metrics, as text."""
    shown = {name: value for name, value in scores.items() if name.split("/")[1] in ("loss", "accuracy")}
    return ", ".join(f"{name} {value:.4g}" for name, value in (shown or scores).items()) + "."


def score_all(evaluation: Evaluation, parts: Assembly, current: state.TrainState):
    """Scores every held-out example.

    Returns:
        ``(means, outputs)``: metrics by name, and term -> channel -> numpy array over all examples in their order, with
        the targets' ``mask`` beside the channels.
    """
    seed, totals = parts.sections.seed, {}
    collected: dict[str, dict[str, list]] = {}
    states = {name: kept for name, kept in current.objective.items() if name in evaluation.objective.terms}
    params = state.averaged(current, parts.trainable)
    reference = state.reference_of(current, parts.reference)
    for examples in evaluation.batches(seed):
        batch = parts.place_examples({evaluation.name: examples}, evaluation.shape)
        outputs, metrics = evaluation.score(params, states, reference, jax.random.key(seed), current.step, batch)
        for name, pair in metrics.items():
            totals[name] = totals.get(name, 0) + np.array([float(value) for value in pair])
        mask = batch.examples[evaluation.name].mask
        for term, channels in outputs.items():
            for channel, values in (channels | {"mask": mask}).items():
                collected.setdefault(term, {}).setdefault(channel, []).append(np.asarray(values)[: len(examples)])
    means = {name: float(total / count) for name, (total, count) in totals.items() if count}
    return means, {t: {c: np.concatenate(v) for c, v in channels.items()} for t, channels in collected.items()}


def patience(section, progress: Mapping[str, Any], results: Mapping[str, float]) -> dict[str, Any]:
    """Early stopping after an evaluation: the best value so far, and how many evaluations have not improved on it."""
    value = results.get(section.metric)
    if value is None:
        return {}
    best = progress["best"]
    better = best is None or (value < best if section.mode == "min" else value > best)
    return {"best": value, "waited": 0} if better else {"waited": progress["waited"] + 1}
