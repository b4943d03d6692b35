"""Reference log-probs on disk, keyed by content.

An entry belongs to one (prompt, response, mask) scored by one set of parameters in one compute dtype, token by token.
Nothing else enters the key, so entries are shared between runs, losses, layouts and seeds; a change of the length rule,
the template, the tokenizer or the model changes the tokens or the digest, and misses.

Entries lie in part files that are never changed and are called by the digest of their bytes, so that writers cannot
disturb each other, and a part that is not what was written is never read.
"""

import hashlib
import io
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxpref.batch import Batch
from jaxpref.data.layouts import BatchShape, StreamShape
from jaxpref.errors import CheckpointError
from jaxpref.objectives.inputs import OTHERS

CHANNEL = "ref_logps"


def content_key(prompt: np.ndarray, response: np.ndarray, mask: np.ndarray) -> str:
    """Digest of the tokens that are read and of those that are scored."""
    parts = [
        np.asarray(prompt, "<i4").tobytes(),
        np.asarray(response, "<i4").tobytes(),
        np.asarray(mask, "?").tobytes(),
    ]
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).hexdigest()


def keys_of(example) -> list[str]:
    """Content keys of all responses of an example."""
    return [content_key(example.prompt, r, m) for r, m in zip(example.responses, example.masks, strict=True)]


def distinct(examples: Iterable) -> list:
    """The examples that have a response which none before them has, in order."""
    seen: set[str] = set()
    chosen = []
    for example in examples:
        keys = keys_of(example)
        if not seen.issuperset(keys):
            seen.update(keys)
            chosen.append(example)
    return chosen


class ReferenceCache:
    """A directory of immutable part files; safe under concurrent writers, who can only add parts.

    Attributes:
        directory: of one set of parameters in one compute dtype.
        parameters: their digest.
        dtype: of the entries: float64 where the compute dtype is, else float32.
    """

    def __init__(self, directory: str, *, parameters: str, dtype: str, keep: bool = True):
        """Opens the entries of one set of parameters in one compute dtype; ``keep`` writes new ones to disk."""
        self.parameters, self.keep = parameters, keep
        self.dtype = np.dtype("float64" if dtype == "float64" else "float32")
        self.directory = epath.Path(directory) / f"{parameters}-{dtype}"
        self._entries: dict[str, np.ndarray] = {}
        if self.directory.exists():
            for part in sorted(self.directory.glob("part-*.npz")):
                self._entries.update(_read_part(part, self.dtype))

    def __len__(self) -> int:
        return len(self._entries)

    def covers(self, examples: Iterable) -> bool:
        """Whether every response of the examples has an entry."""
        return all(key in self._entries for example in examples for key in keys_of(example))

    def add(self, entries: Mapping[str, np.ndarray]) -> None:
        """Remembers new entries and, where they are kept, adds them to the directory as one part.

        A content that another batch scores again keeps its first value: the two may differ by rounding, and which part
        is read last is chance, so that a resumed run would differ too.
        """
        entries = {key: np.asarray(v, self.dtype) for key, v in entries.items() if key not in self._entries}
        self._entries.update(entries)
        if not (entries and self.keep):
            return
        packed = _pack(entries)
        part = self.directory / f"part-{hashlib.sha256(packed).hexdigest()}.npz"
        unfinished = self.directory / f"{uuid.uuid4().hex}.tmp"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(packed)
            unfinished.replace(part)  # another writer may have been first, with the same bytes
        except OSError as error:
            raise CheckpointError(
                f"reference log-probs cannot be written to {self.directory} ({error}); set config.reference.cache."
            ) from error

    def attach(self, batch: Batch, streams: Mapping[str, Sequence], shape: BatchShape) -> Batch:
        """Adds cached log-probs to a planned batch, as side input ``ref_logps`` ``[N, K, L]``; a missing one raises."""
        return _beside(batch, CHANNEL, {name: self.read(streams[name], shape.streams[name]) for name in shape.streams})

    def read(self, examples: Sequence, stream: StreamShape) -> np.ndarray:
        """Log-probs ``[N, K, L]`` of the examples of a stream; a missing one raises."""
        values = np.zeros((stream.examples, stream.responses, stream.response), self.dtype)
        for n, example in enumerate(examples):
            for k, key in enumerate(keys_of(example)):
                values[n, k, : len(example.responses[k])] = self[key, example.origin]
        return values

    def __getitem__(self, key_and_origin: tuple[str, str]) -> np.ndarray:
        key, origin = key_and_origin
        if key not in self._entries:
            raise CheckpointError(
                f"{origin}: no reference log-probs in {self.directory}; they were computed for other tokens."
            )
        return self._entries[key]


class Other(NamedTuple):
    """A further reference, whatever kind the first one is.

    Attributes:
        cache: its log-probs.
        params: its parameters, until the cache holds what the run reads; then None.
    """

    cache: ReferenceCache
    params: Any


def attach_others(others: Sequence[Other], batch: Batch, streams: Mapping[str, Sequence], shape: BatchShape) -> Batch:
    """Adds the log-probs of further references, in their order: side input ``other_ref_logps`` ``[N, K, L, O]``."""
    values = {
        name: np.stack([other.cache.read(streams[name], stream) for other in others], axis=-1)
        for name, stream in shape.streams.items()
    }
    return _beside(batch, OTHERS, values)


def _beside(batch: Batch, channel: str, values: Mapping[str, np.ndarray]) -> Batch:
    """The batch with a channel of each stream beside its examples."""
    examples = {
        name: stream._replace(side=stream.side | {channel: values[name]}) for name, stream in batch.examples.items()
    }
    return batch._replace(examples=examples)


def _pack(entries: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    values = list(entries.values())
    sizes = np.array([len(v) for v in values], np.int64)
    np.savez(buffer, keys=np.array(list(entries)), sizes=sizes, values=np.concatenate(values))
    return buffer.getvalue()


def _read_part(part: epath.Path, dtype: np.dtype) -> dict[str, np.ndarray]:
    packed = part.read_bytes()
    if part.name != f"part-{hashlib.sha256(packed).hexdigest()}.npz":
        raise CheckpointError(f"{part} is not what was written; delete it, it is recomputed.")
    with np.load(io.BytesIO(packed), allow_pickle=False) as stored:
        keys, sizes, values = stored["keys"], stored["sizes"], stored["values"]
    if not np.isfinite(values).all() or values.dtype != dtype:
        raise CheckpointError(f"{part} holds non-finite or {values.dtype} log-probs; delete it, it is recomputed.")
    return dict(zip(keys.tolist(), np.split(values, np.cumsum(sizes)[:-1]), strict=True))
