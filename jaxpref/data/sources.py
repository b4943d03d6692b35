"""Sources: rows of JSONL, JSON, Parquet, Hugging Face data sets on disk, TFDS, and the built-in worlds.

Files are found through ``etils.epath``, so that ``gs://`` works like a folder; ``.gz`` and ``.zst`` are unpacked as
they are read. ``path`` names files or folders, ``source='world:<name>'`` a built-in world and ``source='tfds:<name>'``
a TensorFlow data set (read without TensorFlow).
"""

import gzip
import inspect
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from jaxpref.errors import ConfigError, DataError, UserError

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
PACKED_ENDINGS = (".gz", ".zst")
Row = tuple[str, Any]
Report = Callable[[str, DataError], None]


def read(options: Mapping[str, Any], kind: str, report: Report) -> Iterator[Row]:
    """Yields (origin, row) of one source.

    Args:
        options: what :func:`options_of` knows.
        kind: of the records, which a world has to make.
        report: is told (origin, error) of a row that cannot be read; it raises, or counts.

    Raises:
        DataError: a file is missing, of an unknown format, or damaged.
    """
    if "path" in options:
        yield from _files(options["path"], options, report)
        return
    source = options["source"]
    scheme, _, name = source.partition(":")
    rows = _SCHEMES[scheme](
        name, kind, {key: value for key, value in options.items() if key not in ("source", "lines")}
    )
    yield from _select(((f"{source}:{n}", row) for n, row in enumerate(rows, 1)), options.get("lines"))


def options_of(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the fields that a source of this description reads.

    Raises:
        ConfigError: an unknown source, or a source and a path.
    """
    if "path" in options and "source" in options:
        raise ConfigError(
            "a data source has 'path' (files) and 'source' ('world:<name>', 'tfds:<name>'); give exactly one."
        )
    if "source" not in options:
        return ("path", "lines", "split")
    scheme, _, name = str(options["source"]).partition(":")
    if scheme not in _SCHEMES or not name:
        raise ConfigError(
            f"source is {options['source']!r}; expected 'world:<name>' or 'tfds:<name>', or 'path' for files."
        )
    return ("source", "lines", *(_world_options(name, options) if scheme == "world" else ("split", "data_dir")))


def expand(path: str | os.PathLike) -> epath.Path:
    """A path with ``~`` and environment variables (``$JAXPREF_DATA/pairs.jsonl``) written out.

    Raises:
        DataError: an environment variable is not set.
    """
    text = os.path.expandvars(os.fspath(path))
    if unset := re.search(r"\$\{?(\w+)\}?", text):
        raise DataError(
            f"environment variable {unset[1]} in the path {os.fspath(path)!r} is not set; export {unset[1]}=<folder>."
        )
    return epath.Path(text).expanduser()


def _files(path: Any, options: Mapping[str, Any], report: Report) -> Iterator[Row]:
    files = [found for each in (path if isinstance(path, list | tuple) else [path]) for found in _find(each)]
    if options.get("lines") and len(files) != 1:
        raise ConfigError(
            f"'lines' selects from one file, but 'path' names {len(files)}; give each file its own entry of 'sources'."
        )
    for file in files:
        if options.get("split") is not None and not file.is_dir():
            raise ConfigError(
                f"'split' is {options['split']!r}, but {file} is one file without splits; remove 'split'."
            )
        yield from _select(_open(file, options.get("split"), report), options.get("lines"))


def _find(path: str | os.PathLike) -> list[epath.Path]:
    full = expand(path)
    found = sorted(full.parent.glob(full.name)) if "*" in full.name else [full] if full.exists() else []
    if not found:
        raise DataError(
            f"no file {os.fspath(full)!r}; check the path (relative ones start from the current directory)."
        )
    return found


def _select(rows: Iterator[Row], lines: Any) -> Iterator[Row]:
    """Rows whose number, counted from 1, lies in ``lines = (first, last)``, both included."""
    if lines is None:
        yield from rows
        return
    if len(lines) != 2 or not 1 <= lines[0] <= lines[1]:
        raise ConfigError(f"lines is {tuple(lines)}; expected (first, last), counted from 1, both included.")
    for origin, row in rows:
        number = int(origin.rpartition(":")[2])
        if number > lines[1]:
            return
        if number >= lines[0]:
            yield origin, row


def _open(file: epath.Path, split: str | None, report: Report) -> Iterator[Row]:
    if file.is_dir():
        return _arrow(file, split)
    name = file.name
    packing = next((ending for ending in PACKED_ENDINGS if name.endswith(ending)), "")
    if name.removesuffix(packing).endswith(JSON_ENDINGS):
        return _json(file, packing, report)
    if name.endswith(".parquet"):
        return _parquet(file)
    raise DataError(
        f"{file}: unknown format; expected {', '.join(JSON_ENDINGS)} (also {' and '.join(PACKED_ENDINGS)}), "
        ".parquet, or the "
        "folder of a Hugging Face data set."
    )


def _json(file: epath.Path, packing: str, report: Report) -> Iterator[Row]:
    import zstandard

    with file.open("rb") as raw:
        try:
            stream = {"": lambda: raw, ".gz": lambda: gzip.GzipFile(fileobj=raw), ".zst": lambda: _zstd(raw)}[packing]()
            buffered = io.BufferedReader(stream)
            if (
                file.name.removesuffix(packing).endswith(".json")
                and buffered.peek(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
            ):
                yield from _array(file, buffered.read())
                return
            for number, line in enumerate(buffered, 1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:  # also bytes that are not UTF-8
                    what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                    report(
                        f"{file.name}:{number}",
                        DataError(f"the line is no valid JSON ({what}); expected one object a line."),
                    )
                    continue
                yield f"{file.name}:{number}", row
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise DataError(
                f"{file}: the compressed file is damaged or cut short ({error}); fetch it again."
            ) from error


def _zstd(raw) -> Any:
    import zstandard

    return zstandard.ZstdDecompressor().stream_reader(raw)


def _array(file: epath.Path, text: bytes) -> Iterator[Row]:
    try:
        rows = json.loads(text.removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        raise DataError(
            f"{file}: no valid JSON ({error}); expected a list of objects, or one object a line."
        ) from error
    yield from ((f"{file.name}:{number}", row) for number, row in enumerate(rows, 1))


def _parquet(file: epath.Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with file.open("rb") as raw:
            batches = pyarrow.parquet.ParquetFile(raw).iter_batches()
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from ((f"{file.name}:{number}", row) for number, row in enumerate(rows, 1))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: the Parquet file cannot be read ({error}).") from error


def _arrow(folder: epath.Path, split: str | None) -> Iterator[Row]:
    """A folder written by ``save_to_disk`` of Hugging Face ``datasets``: Arrow streams listed in ``state.json``."""
    import pyarrow

    if (folder / "dataset_dict.json").exists():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        if split not in splits:
            raise DataError(f"{folder}: split is {split!r}; the data set has {', '.join(map(repr, splits))}.")
        folder, split = folder / split, None
    if split is not None:
        raise DataError(f"{folder}: split is {split!r}, but the data set has no splits; remove 'split'.")
    if not (folder / "state.json").exists():
        raise DataError(
            f"{folder}: no Hugging Face data set (state.json is missing); give a file, or a folder from save_to_disk."
        )
    number = 0
    for entry in json.loads((folder / "state.json").read_text())["_data_files"]:
        try:
            with (folder / entry["filename"]).open("rb") as raw, pyarrow.ipc.open_stream(raw) as batches:
                for batch in batches:
                    for row in batch.to_pylist():
                        number += 1
                        yield f"{folder.name}:{number}", row
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{folder / entry['filename']}: the Arrow file cannot be read ({error}).") from error


def _tfds(name: str, kind: str, options: Mapping[str, Any]) -> Iterator[Any]:
    del kind
    import tensorflow_datasets as tfds

    directory = options.get("data_dir")
    try:
        rows = tfds.data_source(
            name, split=options.get("split", "train"), data_dir=directory and os.fspath(expand(directory))
        )
    except Exception as error:  # tfds raises errors of many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"tfds:{name} cannot be read ({reason}); prepare it as array_record and name its folder in 'data_dir'."
        ) from error
    return (_decoded(row) for row in rows)


def _decoded(value: Any) -> Any:
    """TFDS gives bytes for text and arrays for lists."""
    if isinstance(value, Mapping):
        return {key: _decoded(each) for key, each in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_decoded(each) for each in value]
    return value.decode() if isinstance(value, bytes) else value


def _world(name: str, kind: str, options: Mapping[str, Any]) -> list[dict]:
    from jaxpref.data import worlds

    if "size" not in options:
        raise ConfigError(f"source 'world:{name}' needs 'size', the number of records.")
    arguments = {key: value for key, value in options.items() if key != "world"}
    try:
        return worlds.get(name, **options.get("world", {})).records(kind, **arguments)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"source 'world:{name}' cannot make its records ({error}).") from error


def _world_options(name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    from jaxpref.data import worlds

    parameters = inspect.signature(worlds.get(name, **options.get("world", {})).records).parameters
    return ("world", *(parameter for parameter in parameters if parameter not in ("self", "kind")))


_SCHEMES = {"world": _world, "tfds": _tfds}
