"""Data streams: sources read, rows checked, tokenised, cut to length, counted, and mixed."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxpref.batch import FIRST_SAMPLE
from jaxpref.data import matching, records, samples, sources, templates, transforms
from jaxpref.data.examples import Ledger, Lengths, one_of, tokenise
from jaxpref.data.records import Record, Tokenized
from jaxpref.data.tokenizers import Tokenizer
from jaxpref.errors import ConfigError, DataError, hint

STREAM_FIELDS = ("kind", "sources", "on_bad_row", "turns", "step_separator", "prob_desirable")
SOURCE_FIELDS = ("path", "source", "lines", "limit", "weight", "repeat", "fields", "transform")
DEFAULTS = {"weight": 1.0, "tie": False}
_READERS = {"turns": "demonstrations", "step_separator": "steps", "prob_desirable": "unpaired"}  # the kinds that do


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset(Sequence[Tokenized]):
    """The examples of one data stream.

    Attributes:
        name: of the stream.
        kind: one of ``records.KINDS``.
        examples: in the order of the sources.
        counts: ``read`` rows, ``kept`` examples, ``skipped`` bad rows, ``dropped`` and ``truncated`` by reason.
        problems: what was wrong with the first bad rows, and other things to know.
        fingerprint: changes with any token, mask or number of any example, or their order.
    """

    name: str
    kind: str
    examples: list[Tokenized] = dataclasses.field(repr=False)
    counts: dict[str, Any]
    problems: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]

    def summary(self) -> str:
        """What was read, kept, dropped and cut, in one paragraph."""
        counts = self.counts
        name = self.name if self.name == self.kind else f"{self.name} ({self.kind})"
        lines = [f"{name}: {counts['read']} rows read, {counts['kept']} examples kept"]
        lines += [f"{counts['skipped']} bad rows skipped"] if counts["skipped"] else []
        lines += [f"{number} dropped: {reason}" for reason, number in counts["dropped"].items()]
        lines += [f"{number} times {rule}" for rule, number in counts["truncated"].items()]
        return "; ".join(lines) + "." + "".join(f"\n  {problem}" for problem in self.problems)


def load_stream(
    stream: Mapping[str, Any],
    tokenizer: Tokenizer,
    length: Mapping[str, Any] | Lengths | None = None,
    *,
    template: str = "none",
    name: str = "data",
    reads: Collection[str] = (),
) -> Dataset:
    """Reads one data stream.

    Args:
        stream: ``kind``, and either one source or ``sources``, a list of them. A source has ``path`` (one or several
            files) or ``source`` (a world, TFDS), and optionally ``lines``, ``split``, ``limit`` (rows to read),
            ``fields`` (our name -> the file's), ``transform`` (what makes records of rows of another form,
            :mod:`jaxpref.data.transforms`), ``weight`` (its share of the mixture) and ``repeat``; a world's own options
            stand beside them. For the whole stream: ``on_bad_row``, ``turns`` (``'all'`` or the ``'last'`` turn of a
            demonstration is trained), ``step_separator``, ``prob_desirable`` (:mod:`jaxpref.data.matching`).
        tokenizer: see :func:`jaxpref.data.tokenizers.load`.
        length: fields of :class:`Lengths`.
        template: one of ``templates.NAMES``.
        name: of the stream, for messages.
        reads: what objectives read beside the rows' own responses and numbers: ``samples`` and ``ids``
            (:mod:`jaxpref.data.samples`).

    Raises:
        ConfigError: an unknown or contradictory field.
        DataError: a bad row (unless skipped), an unreadable file, or nothing left.
    """
    stream = _plain(stream)
    kind, entries = _check(stream, name)
    rule = length if isinstance(length, Lengths) else _lengths(length or {})
    ledger = Ledger(stream.get("on_bad_row", "error"))
    layout = templates.load(template, tokenizer)
    groups = [_read(entry, kind, stream, ledger) for entry in entries]
    if samples.FIELD in reads and kind in FIRST_SAMPLE:
        groups = [samples.taken(group, ledger) for group in groups]
    if "prob_desirable" in stream:
        groups = matching.estimated(f"data.{name}.prob_desirable", stream["prob_desirable"], groups)
    tokenised = [tokenise(group, tokenizer, layout, rule, ledger) for group in groups]
    examples = _mix(tokenised, entries, ledger)
    if not examples:
        reasons = ", ".join([*ledger.dropped, *ledger.problems]) or "the source is empty"
        raise DataError(f"stream {name!r} has no example left of {ledger.read} rows read ({reasons}).")
    examples, notes = _complete(examples)
    if kind in FIRST_SAMPLE:
        examples, further = samples.prepared(kind, examples, reads)
        notes += further
    problems = (*ledger.problems, *notes)
    return Dataset(name, kind, examples, ledger.counts(len(examples)), problems, fingerprint(kind, examples))


def fingerprint(kind: str, examples: Iterable[Tokenized]) -> str:
    """A digest of everything that training sees: tokens, masks, numbers and order."""
    digest = hashlib.sha256(kind.encode())
    for example in examples:
        for array in (example.prompt, *example.responses, *example.masks):
            digest.update(len(array).to_bytes(8, "little") + array.tobytes())
        digest.update(repr([(key, np.asarray(value).tolist()) for key, value in sorted(example.side.items())]).encode())
    return digest.hexdigest()


def _check(stream: dict[str, Any], name: str) -> tuple[str, list[dict[str, Any]]]:
    """The kind of records, and one dict for each source; every field of the stream is one that something reads."""
    if "kind" not in stream:
        raise ConfigError(f"data.{name} has no field 'kind'; expected one of {', '.join(records.KINDS)}.")
    kind = stream["kind"]
    one_of(f"data.{name}.kind", kind, records.KINDS)
    one_of(f"data.{name}.on_bad_row", stream.get("on_bad_row", "error"), ("error", "skip"))
    one_of(f"data.{name}.turns", stream.get("turns", "all"), ("all", "last"))
    unread = [field for field, reader in _READERS.items() if field in stream and kind != reader]
    if unread:
        raise ConfigError(f"data.{name}.{unread[0]} is read by no stream of kind {kind!r}; remove it.")
    whole = STREAM_FIELDS
    if "sources" in stream:
        entries, path = [_plain(entry) for entry in stream["sources"]], f"data.{name}.sources[{{}}]"
        _known(f"data.{name}", stream, whole, also=SOURCE_FIELDS)
        if not entries:
            raise ConfigError(f"data.{name}.sources is empty; expected at least one source.")
    else:
        entries, path, whole = [{key: value for key, value in stream.items() if key not in whole}], f"data.{name}", ()
        if "weight" in stream:
            raise ConfigError(
                f"data.{name}.weight: a single source has no share; put 'weight' into the entries of 'sources'."
            )
    for number, entry in enumerate(entries):
        general = tuple(field for field in SOURCE_FIELDS if field not in ("path", "source", "lines"))
        known = (*general, *sources.options_of(entry))
        _known(path.format(number), entry, known, also=() if "sources" in stream else STREAM_FIELDS)
        if "path" not in entry and "source" not in entry:
            raise ConfigError(
                f"{path.format(number)} names no data; expected 'path' (files) or 'source' ('world:<name>')."
            )
        entry["transform"] = transforms.load(f"{path.format(number)}.transform", entry.get("transform"), kind)
    if len({"weight" in entry for entry in entries}) > 1:
        raise ConfigError(
            f"data.{name}.sources: some have a 'weight' and some have none; give all of them one, or none."
        )
    return kind, entries


def _lengths(length: Mapping[str, Any]) -> Lengths:
    length = _plain(length)
    _known("length", length, tuple(field.name for field in dataclasses.fields(Lengths)))
    return Lengths(**length)


def _plain(config: Any) -> dict[str, Any]:
    """A dict, also of an ml_collections ConfigDict, with nested configs made plain; None stands for an absent field."""
    if not hasattr(config, "items"):
        raise ConfigError(f"a data stream or source is {config!r}; expected named fields such as kind and path.")
    return {
        key: _plain(value) if hasattr(value, "items") else value for key, value in config.items() if value is not None
    }


def _known(path: str, config: Mapping[str, Any], known: Sequence[str], also: Sequence[str] = ()) -> None:
    for field in config:
        if field not in known:
            others = [name for name in (*known, *also) if name != field]
            raise ConfigError(f"{path} has no field {field!r}; {hint(field, others)}")


def _read(entry: dict[str, Any], kind: str, stream: dict[str, Any], ledger: Ledger) -> list[tuple[str, Record]]:
    """Rows of one source in normal form, without those that are of no use."""
    renamed, limit = entry.get("fields", {}), entry.get("limit")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; expected a positive number of rows.")
    ours = ("limit", "weight", "repeat", "fields", "transform")
    reading = {key: value for key, value in entry.items() if key not in ours}
    found: list[tuple[str, Record]] = []
    before = ledger.read

    def damaged(origin: str, error: DataError) -> None:
        ledger.read += 1
        ledger.bad(origin, error)

    def leave_out(reason: str) -> None:
        ledger.dropped[reason] += 1

    transform = entry["transform"]
    for origin, row in sources.read(reading, transform.reads or kind, damaged):
        if limit is not None and ledger.read - before >= limit:
            break
        ledger.read += 1
        try:
            if renamed and isinstance(row, Mapping):
                row = _rename(row, renamed)
            rows = transform.rows(row, int(origin.rpartition(":")[2]) - 1, leave_out)
            separator = stream.get("step_separator", "\n")
            parsed = [record for each in rows for record in records.parse(kind, each, step_separator=separator)]
            for record in parsed:
                ledger.check_widths(record)
        except DataError as error:
            ledger.bad(origin, error)
            continue
        for record in parsed:
            if record.dropped:
                ledger.dropped[record.dropped] += 1
            else:
                found.append((origin, _last_turn(record) if stream.get("turns") == "last" else record))
    return found


def _rename(row: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    for ours, theirs in renamed.items():
        if theirs not in row:
            raise DataError(
                f"field {theirs!r} (to be read as {ours!r}) is missing; the row has {', '.join(map(repr, row))}."
            )
    rest = {key: value for key, value in row.items() if key not in renamed.values()}
    return rest | {ours: row[theirs] for ours, theirs in renamed.items()}


def _last_turn(record: Record) -> Record:
    (response,) = record.responses
    if isinstance(response, str):
        return record
    return record._replace(prompt=record.prompt + response[:-1], responses=(response[-1:],))


def _mix(groups: list[list[Tokenized]], entries: list[dict[str, Any]], ledger: Ledger) -> list[Tokenized]:
    """One source after another, or a mixture with the given shares.

    A mixture interleaves the sources, each in a shuffled order of its own, until the first one is exhausted, so that no
    example comes more often than its ``repeat`` says.
    """
    repeats = [entry.get("repeat", 1) for entry in entries]
    if "weight" not in entries[0]:
        return [example for group, repeat in zip(groups, repeats, strict=True) for example in group * repeat]
    import grain

    weights = [float(entry["weight"]) for entry in entries]
    if min(weights) <= 0:
        raise ConfigError(f"the weights of sources are {weights}; expected positive numbers.")
    places = [
        grain.MapDataset.source([(number, index) for index in range(len(group))]).seed(number).shuffle().repeat(repeat)
        for number, (group, repeat) in enumerate(zip(groups, repeats, strict=True))
    ]
    mixture = grain.MapDataset.mix(places, weights)
    chosen = [tuple(mixture[place]) for place in range(len(mixture))]
    unused = sum(map(len, groups)) - len(set(chosen))
    if unused:
        ledger.dropped["left over by the weights of the mixture"] += unused
    return [groups[number][index] for number, index in chosen]


def _complete(examples: list[Tokenized]) -> tuple[list[Tokenized], list[str]]:
    """Gives every example the same numbers: a default fills gaps; fields without one go to ``meta``."""
    present = Counter(key for example in examples for key in example.side)
    partial = [key for key, number in present.items() if number < len(examples)]
    if not partial:
        return examples, []
    filled = {key: DEFAULTS[key] for key in partial if key in DEFAULTS}
    moved = [key for key in partial if key not in DEFAULTS]
    notes = [f"{present[key]} of {len(examples)} examples have {key!r}, so objectives cannot read it." for key in moved]
    mended = []
    for example in examples:
        side = {key: value for key, value in example.side.items() if key not in moved}
        meta = {key: value for key, value in example.side.items() if key in moved}
        mended.append(example._replace(side=filled | side, meta=example.meta | meta))
    return mended, notes
