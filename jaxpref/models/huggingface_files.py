"""Safetensors files: found, checked and read by rows, so that a device's shard costs only its own bytes.

The format is an eight-byte little-endian length, a JSON header ``{name: {dtype, shape, data_offsets}}`` and the raw
numbers in C order. See *Safetensors* (https://github.com/huggingface/safetensors#format). Reading it here rather than
through a framework gives row ranges from object stores too, and one sentence for each way that a file can be broken.
Pickle files are never opened.
"""

import json
import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors.numpy
from etils import epath

from jaxpref.errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


class Stored(NamedTuple):
    """Where one tensor lies: its file, the file's name of its dtype, its shape, and its first byte."""

    file: epath.Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


def directory(path) -> epath.Path:
    """The path of a Hugging Face directory, or a ModelError when there is none."""
    path = epath.Path(path)
    if not (path / "config.json").exists():
        raise ModelError(f"{path} is not a Hugging Face model directory: it holds no config.json.")
    return path


def read_json(file: epath.Path) -> dict[str, Any]:
    """A JSON object from a file; broken text is a ModelError."""
    try:
        value = json.loads(file.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{file} is not valid JSON ({error}); download it again.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{file} must hold a JSON object, but holds a {type(value).__name__}.")
    return value


def open_tensors(path: epath.Path) -> dict[str, Stored]:
    """All tensors of a directory by name, from ``model.safetensors`` or from the files of its index."""
    if (path / SINGLE).exists():
        return _header(path / SINGLE)
    if not (path / INDEX).exists():
        raise ModelError(_nothing_to_read(path))
    weight_map = read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelError(f"{path / INDEX} has no weight_map; download it again.")
    absent = sorted(name for name in set(weight_map.values()) if not (path / name).exists())
    if absent:
        raise ModelError(f"{path} lacks {', '.join(absent)}, named by {INDEX}; download the missing files.")
    headers = {name: _header(path / name) for name in sorted(set(weight_map.values()))}
    strays = sorted(name for name, file in weight_map.items() if name not in headers[file])
    if strays:
        raise ModelError(f"{path / INDEX} places {some(strays)} in files that do not hold them.")
    listed = {name: headers[file][name] for name, file in weight_map.items()}
    extra = sorted(name for header in headers.values() for name in header if name not in listed)
    if extra:
        raise ModelError(f"{path} holds tensors that {INDEX} does not list: {some(extra)}.")
    return listed


def _nothing_to_read(path: epath.Path) -> str:
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        return (
            f"{path} holds only pickle files ({some(pickles)}), which are never read because opening one can run code; "
            "convert them where torch is installed: AutoModelForCausalLM.from_pretrained(path).save_pretrained(new)."
        )
    return f"{path} holds neither {SINGLE} nor {INDEX}; point at a directory with safetensors files."


def _header(file: epath.Path) -> dict[str, Stored]:
    """Reads and checks one file's header: every tensor must lie inside the file."""
    size = file.stat().length
    broken = f"{file} is truncated or not a safetensors file"
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            raise ModelError(f"{broken} ({size} bytes cannot hold its header); download it again.")
        try:
            header = json.loads(stream.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            places = {name: tuple(map(int, entry["data_offsets"])) for name, entry in entries.items()}
        except (UnicodeDecodeError, ValueError, AttributeError, KeyError, TypeError):
            raise ModelError(f"{broken} (its header cannot be read); download it again.") from None
    tensors = {}
    for name, entry in entries.items():
        begin, end = places[name]
        if 8 + length + end > size:
            raise ModelError(f"{broken}: {name} ends at byte {8 + length + end} of {size}; download it again.")
        shape = tuple(entry["shape"])
        if entry["dtype"] in FLOATS and end - begin != math.prod(shape) * np.dtype(FLOATS[entry["dtype"]]).itemsize:
            raise ModelError(f"{broken}: {name} of shape {list(shape)} does not fill its {end - begin} bytes.")
        tensors[name] = Stored(file, entry["dtype"], shape, 8 + length + begin)
    return tensors


def rows(stored: Stored, start: int, stop: int) -> np.ndarray:
    """Rows ``[start, stop)`` along the tensor's first axis, mapped from disk or fetched as one byte range."""
    dtype = np.dtype(FLOATS[stored.dtype])
    shape = (stop - start, *stored.shape[1:])
    offset = stored.offset + start * math.prod(stored.shape[1:]) * dtype.itemsize
    count = math.prod(shape)
    if "://" not in str(stored.file):
        return np.memmap(stored.file, np.uint8, "r", offset, count * dtype.itemsize).view(dtype).reshape(shape)
    with stored.file.open("rb") as stream:
        stream.seek(offset)
        return np.frombuffer(stream.read(count * dtype.itemsize), dtype).reshape(shape)


class Output(NamedTuple):
    """A tensor to be written: its name, its size in bytes, and the function that brings it to the host."""

    name: str
    nbytes: int
    array: Callable[[], np.ndarray]


def write_tensors(path: epath.Path, outputs: list[Output], max_shard_bytes: int, *, write: bool) -> None:
    """Writes one file, or numbered ones and their index, with one file's worth of tensors on the host at a time.

    Args:
        path: the directory; weights of an earlier export in it are removed.
        outputs: the tensors in their order.
        max_shard_bytes: most bytes of tensors in one file (a larger tensor has its own).
        write: False in the processes that only help to gather the arrays.
    """
    shards: list[list[Output]] = [[]]
    for output in outputs:
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + output.nbytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(output)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [SINGLE]
    stale = {INDEX, SINGLE} | {file.name for file in path.glob("model-*-of-*.safetensors")} if write else set()
    for name in stale - set(names):
        (path / name).unlink(missing_ok=True)
    for name, shard in zip(names, shards, strict=True):
        arrays = {output.name: output.array() for output in shard}
        if write:
            (path / name).write_bytes(safetensors.numpy.save(arrays, metadata={"format": "pt"}))
    if write and len(shards) > 1:
        weight_map = {output.name: name for name, shard in zip(names, shards, strict=True) for output in shard}
        index = {"metadata": {"total_size": sum(output.nbytes for output in outputs)}, "weight_map": weight_map}
        write_json(path / INDEX, index)


def write_json(file: epath.Path, value: dict[str, Any]) -> None:
    """Writes a JSON object as Hugging Face does: sorted and indented."""
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def some(names: list[str], most: int = 5) -> str:
    """The first few names for an error message."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
