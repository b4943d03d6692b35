"""From data streams to the global batch of a step: which examples, laid out how."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpref.batch import Batch
from jaxpref.data import Tokenized, layouts, order, sizing
from jaxpref.errors import ConfigError
from jaxpref.objectives import Total
from jaxpref.training.costs import Machine

TRIALS, TRIAL_EXAMPLES = 8, 256  # least number of batches, and of examples, from which packed layouts choose sizes


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
        begun: (step, examples of the first stream passed before it) where this part of the run began.
    """

    streams: dict[str, Any]
    sizes: dict[str, int]
    partnered: frozenset[str]
    shape: layouts.BatchShape
    seed: int
    epochs: float
    steps: int
    begun: tuple[int, int] = (0, 0)

    def passed(self, step: int) -> int:
        """Examples of the first stream that so many steps pass."""
        name, dataset = next(iter(self.streams.items()))
        passed = self.begun[1] + (step - self.begun[0]) * self.sizes[name]
        return int(min(passed, order.number_of_examples(len(dataset), self.epochs)))

    def after(self, step: int, passed: int) -> "Inputs":
        """The inputs of a run that is continued; one that had ended in a ragged batch goes on with the next example."""
        name, dataset = next(iter(self.streams.items()))
        left = order.number_of_examples(len(dataset), self.epochs) - passed
        steps = self.steps if left == math.inf else step + max(0, math.ceil(left / self.sizes[name]))
        _check_last_batch(name, left, self.sizes[name], self.partnered)
        return self._replace(begun=(step, passed), steps=steps)

    def examples(self, step: int) -> dict[str, list[Tokenized]]:
        """The examples of a step, by stream: the next ones of the global order (seed, epoch, index)."""
        first = next(iter(self.streams))
        chosen = {
            name: order.batch_indices(
                step,
                examples=len(dataset),
                size=self.sizes[name],
                seed=self.seed,
                epochs=self.epochs if name == first else math.inf,
                begun=self.begun if name == first else (0, 0),
            )
            for name, dataset in self.streams.items()
        }
        return {
            name: select(dataset, chosen[name], partnered=name in self.partnered, seed=self.seed)
            for name, dataset in self.streams.items()
        }

    def batch(self, step: int) -> Batch:
        """The planned batch of a step, as numpy arrays."""
        return layouts.plan(self.examples(step), self.shape)


def make(
    streams: Mapping[str, Any],
    objective: Total,
    batch,
    train,
    *,
    seed: int,
    machine: Machine,
) -> Inputs:
    """The inputs of a run.

    Args:
        streams: data stream -> data set, in the order of the objectives.
        objective: what reads them.
        batch, train: sections of the config.
        seed: of the order.
        machine: the devices that compute the batches, for which packed layouts choose their sizes.

    Raises:
        ConfigError: an impossible shape, number of steps, or ragged last batch; a class that a head does not know.
    """
    unknown = sorted(set(batch.streams) - set(streams))
    if unknown:
        raise ConfigError(
            f"batch.streams.{unknown[0]} names no stream that an objective reads; they are {', '.join(streams)}."
        )
    _check_classes(streams, objective)
    sizes = {name: int(batch.streams.get(name, batch.examples)) for name in streams}
    first = next(iter(streams))
    steps, epochs = number_of_steps(train.steps, train.epochs, len(streams[first]), sizes[first])
    _check_last_batch(first, order.number_of_examples(len(streams[first]), epochs), sizes[first], objective.partnered)
    final = reads_last_token(objective)
    shape = shape_of(streams, sizes, objective.partnered, batch, final=final, machine=machine)
    return Inputs(dict(streams), sizes, objective.partnered, shape, seed, epochs, steps)


def _check_last_batch(name: str, examples: float, size: int, partnered: frozenset[str]) -> None:
    if name in partnered and examples % size == 1:
        raise ConfigError(
            f"the last batch of stream {name!r} would hold one example, which has no mismatched partner; "
            "change batch.examples or train.epochs by a little."
        )


def _check_classes(streams: Mapping[str, Any], objective: Total) -> None:
    for name, term in objective.terms.items():
        column, number = term.classes or ("", 0)
        for example in streams[term.stream] if term.classes else ():
            if not 0 <= example.side.get(column, 0) < number:
                raise ConfigError(
                    f"{example.origin}: field {column!r} is {example.side[column]}, but config.objectives.{name} "
                    f"({term.method}) tells {number} values from 0 on apart; change its number, or the data of "
                    f"config.data.{term.stream}."
                )


def select(dataset: Sequence[Tokenized], chosen, *, partnered: bool, seed: int) -> list[Tokenized]:
    """Examples by (epoch, index), with mismatched responses where the objective wants them."""
    if partnered:
        return order.with_partners(dataset, np.asarray(chosen), seed=seed)
    return [dataset[int(index)] for _, index in chosen]


def number_of_steps(steps: int, epochs: float, examples: int, size: int) -> tuple[int, float]:
    """(steps, epochs) of a run: ``train.steps`` when given, else what ``train.epochs`` need, the last one ragged."""
    if steps:
        return steps, math.inf
    if epochs <= 0:
        raise ConfigError(f"train.steps is 0 and train.epochs is {epochs}; give a positive number of steps or epochs.")
    return math.ceil(order.number_of_examples(examples, epochs) / size), epochs


def reads_last_token(objective: Total) -> bool:
    """Whether any term reads the hidden state of the last response token."""
    return any("score" in term.needs for term in objective.terms.values())


def shape_of(
    streams: Mapping[str, Any],
    sizes: Mapping[str, int],
    partnered: frozenset[str],
    batch,
    *,
    final: bool,
    machine: Machine,
) -> layouts.BatchShape:
    """The fixed shape of batches of these streams: sizes that the config leaves open suit their examples."""
    shapes = {name: _stream_shape(dataset, sizes[name], name in partnered) for name, dataset in streams.items()}
    given = given_sizes(batch, machine) | {"final": final}
    if not batch.layout.startswith("packed"):
        return layouts.batch_shape(shapes, **given)
    number = max(TRIALS, math.ceil(TRIAL_EXAMPLES / sum(sizes.values())))
    return sizing.choose(shapes, [_trial(streams, sizes, partnered, n) for n in range(number)], machine.cost, **given)


def given_sizes(batch, machine: Machine) -> dict[str, Any]:
    """What the section ``batch`` and the machine fix of a shape; arguments of :func:`jaxpref.data.layouts.batch_shape`.

    Raises:
        ConfigError: the rows are given twice, or short ones where tokens of a row are divided over devices.
    """
    if batch.rows and batch.rows_per_device:
        raise ConfigError(
            f"batch.rows is {batch.rows} and batch.rows_per_device is {batch.rows_per_device}; give one of them."
        )
    if batch.short_length > 0 and machine.sequence > 1:
        raise ConfigError(
            f"batch.short_length is {batch.short_length}, but mesh.sequence divides the tokens of a row over "
            f"{machine.sequence} devices, where all rows are alike; leave it 0."
        )
    names = ("layout", "length", "prompt_length", "response_length", "short_length")
    sizes = {name: getattr(batch, name) for name in names}
    if machine.sequence > 1:
        sizes["short_length"] = -1
    rows = batch.rows or batch.rows_per_device * machine.devices
    return sizes | {"rows": rows, "multiple_of": machine.devices, "granule": machine.granule}


def _trial(streams, sizes, partnered, number: int) -> dict[str, list[Tokenized]]:
    """Examples of a batch as the first epoch may draw it, to see how many rows such batches take."""
    chosen = {
        name: order.batch_indices(number, examples=len(dataset), size=sizes[name], seed=0)
        for name, dataset in streams.items()
    }
    return {name: select(streams[name], chosen[name], partnered=name in partnered, seed=0) for name in streams}


def _stream_shape(dataset, size: int, partnered: bool) -> layouts.StreamShape:
    sides = {key for example in dataset for key in example.side}
    return layouts.StreamShape(
        examples=size,
        responses=2 if partnered else max(len(example.responses) for example in dataset),
        prompt=max(len(example.prompt) for example in dataset),
        response=max(len(response) for example in dataset for response in example.responses),
        sides=tuple(sorted(sides)),
        partnered=partnered,
        widths={key: len(v) for key, v in dataset[0].side.items() if np.ndim(v) and key not in layouts.PER_RESPONSE},
    )
