"""The global order of examples, a pure function of (seed, epoch, index).

Every epoch is a permutation of the data set, and epochs follow one another without a break: a batch may hold the end
of one epoch and the beginning of the next. Any batch is found from its step alone, so that a resumed run needs no more
than the step, and every process computes the same.
"""

import functools
import hashlib
import math
from collections.abc import Sequence

import grain
import numpy as np

from jaxpref.data.records import Tokenized
from jaxpref.errors import DataError


def number_of_examples(examples: int, epochs: float) -> float:
    """Examples that so many epochs pass; fractions of an example are dropped. Infinite for infinite epochs."""
    return math.floor(epochs * examples + 1e-9) if math.isfinite(epochs) else math.inf


def batch_indices(
    step: int, *, examples: int, size: int, seed: int, epochs: float = math.inf, begun: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """The examples of a step.

    Args:
        step: 0, 1, 2, ...
        examples: size of the data set.
        size: examples of a batch.
        seed: of the order.
        epochs: passes over the data; the last batch holds what is left of them, and later ones nothing.
        begun: (step, examples passed before it), from where batches are full: a run that ended in a ragged batch and is
            prolonged goes on with the next example.

    Returns:
        ``[n, 2]`` int64, (epoch, index) of each example.
    """
    first = begun[1] + (step - begun[0]) * size
    last = min(first + size, number_of_examples(examples, epochs))
    order = _order(examples, seed)
    chosen = [(place // examples, int(order[place])) for place in range(first, int(last))]
    return np.array(chosen, np.int64).reshape(-1, 2)


@functools.lru_cache(maxsize=64)
def _order(examples: int, seed: int) -> grain.MapDataset:
    # A seed given to shuffle() itself is added to the epoch, so that epoch 1 of seed 0 would be epoch 0 of seed 1.
    return grain.MapDataset.range(examples).seed(seed).shuffle().repeat()


def with_partners(dataset: Sequence[Tokenized], chosen: np.ndarray, *, seed: int) -> list[Tokenized]:
    """Examples of a batch, each with a mismatched response as response 1: another example's, under its own prompt.

    Args:
        dataset: of unpaired examples.
        chosen: ``[n, 2]`` (epoch, index), see :func:`batch_indices`.
        seed: of the draw.
    """
    rows = [dataset[int(index)] for _, index in chosen]
    return [
        row._replace(responses=(row.responses[0], rows[other].responses[0]), masks=(row.masks[0], rows[other].masks[0]))
        for row, other in zip(rows, partners(rows, chosen, seed=seed), strict=True)
    ]


def partners(rows: Sequence[Tokenized], chosen: np.ndarray, *, seed: int) -> list[int]:
    """Draws for each row of a batch the row whose response is scored under its prompt.

    The rows are put in a random cycle that depends on (seed, epoch, index) alone, and each takes the response of the
    next: never its own, and every response once. Where the next row has the same response or the same prompt, the first
    later one that has not takes its place, if there is any.

    See *KTO: Model Alignment as Prospect Theoretic Optimization* (https://arxiv.org/abs/2402.01306).

    Raises:
        DataError: for a batch of one row.
    """
    if len(rows) < 2:
        raise DataError(
            "a batch of one example has no other whose response could be mismatched with its prompt; choose "
            "batch.examples and "
            "train.epochs so that every batch, the last one included, holds at least 2."
        )
    prompts, responses = (
        [_key(array) for array in arrays] for arrays in zip(*((r.prompt, r.responses[0]) for r in rows), strict=True)
    )
    cycle = sorted(range(len(rows)), key=lambda n: _draw(seed, *map(int, chosen[n])))
    found = [0] * len(rows)
    for place, row in enumerate(cycle):
        others = cycle[place + 1 :] + cycle[:place]
        # The same response makes a matched pair, the same prompt may make a good one; min() takes the first best.
        found[row] = min(others, key=lambda n: 2 * (responses[n] == responses[row]) + (prompts[n] == prompts[row]))  # noqa: B023
    return found


def _key(array: np.ndarray) -> bytes:
    return np.asarray(array).tobytes()


def _draw(seed: int, epoch: int, index: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{epoch}:{index}".encode(), digest_size=16).digest()
