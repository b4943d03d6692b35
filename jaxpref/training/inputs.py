"""From data streams to the global batch of a step: which examples, laid out how, placed on which devices."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxpref.batch import Batch
from jaxpref.data import layouts, order
from jaxpref.errors import ConfigError


class Inputs(NamedTuple):
    """The training data of a run; every process holds the same.

    Attributes:
        streams: data stream -> ``jaxpref.data.Dataset``; the first one defines epochs, the others repeat.
        sizes: examples that a batch takes of each stream.
        partnered: streams whose examples get a mismatched response (KTO).
        shape: the fixed shape of every batch.
        seed: of the order of examples.
        epochs: how often the first stream is passed; may be fractional.
        steps: number of steps in all.
    """

    streams: dict[str, Any]
    sizes: dict[str, int]
    partnered: frozenset[str]
    shape: layouts.BatchShape
    seed: int
    epochs: float
    steps: int

    def examples(self, step: int) -> dict[str, list]:
        """The examples of a step, by stream: the next ones of the global order (seed, epoch, index)."""
        return {name: self._stream(name, step) for name in self.streams}

    def _stream(self, name: str, step: int) -> list:
        dataset, first = self.streams[name], name == next(iter(self.streams))
        chosen = order.batch_indices(
            step,
            examples=len(dataset),
            size=self.sizes[name],
            seed=self.seed,
            epochs=self.epochs if first else math.inf,
        )
        if name in self.partnered:
            return order.with_partners(dataset, chosen, seed=self.seed)
        return [dataset[int(index)] for _, index in chosen]

    def batch(self, step: int) -> Batch:
        """The planned batch of a step, as numpy arrays."""
        return layouts.plan(self.examples(step), self.shape)


def number_of_steps(steps: int, epochs: float, examples: int, size: int) -> tuple[int, float]:
    """(steps, epochs) of a run: ``train.steps`` when given, else as many as ``train.epochs`` need, the last one ragged."""
    if steps:
        return steps, math.inf
    if epochs <= 0:
        raise ConfigError(f"train.steps is 0 and train.epochs is {epochs}; give a positive number of steps or epochs.")
    return math.ceil(math.floor(epochs * examples + 1e-9) / size), epochs


def stream_shapes(streams: Mapping[str, Any], sizes: Mapping[str, int], partnered: frozenset[str]) -> dict[str, layouts.StreamShape]:
    """Shape of each stream's examples, from its longest prompt and response."""
    return {
        name: layouts.StreamShape(
            examples=sizes[name],
            responses=2 if name in partnered else max(len(example.responses) for example in dataset),
            prompt=max(len(example.prompt) for example in dataset),
            response=max(len(response) for example in dataset for response in example.responses),
            sides=shared_sides(dataset),
        )
        for name, dataset in streams.items()
    }


def shared_sides(dataset) -> tuple[str, ...]:
    """Names of the numeric side inputs of a data set; a field that some rows lack is reported when such a row is planned."""
    names = {key for example in dataset for key, value in example.side.items() if isinstance(value, (bool, int, float, np.number))}
    return tuple(sorted(names))


def typical_tokens(streams: Mapping[str, Any], sizes: Mapping[str, int], partnered: frozenset[str], shared: bool) -> int:
    """Tokens of an average batch, from which packed layouts choose their number of rows."""
    total = 0.0
    for name, dataset in streams.items():
        responses = [sum(len(r) for r in e.responses) * (2 if name in partnered else 1) for e in dataset]
        copies = 1 if shared else (2 if name in partnered else max(len(e.responses) for e in dataset))
        prompts = [len(e.prompt) * copies for e in dataset]
        total += sizes[name] * float(np.mean(np.add(responses, prompts)))
    return math.ceil(total)
