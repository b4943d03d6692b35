"""Sources: the same rows from every kind of file, and damaged files named."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from jaxpref.data import load_stream, sources
from jaxpref.errors import ConfigError, DataError

ROWS = [{"prompt": f"Name {n}", "chosen": f"good {n}", "rejected": "bad é", "margin": n / 2} for n in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def parquet(rows=ROWS):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


FILES = {
    "rows.jsonl": LINES,
    "rows.jsonl.gz": gzip.compress(LINES),
    "rows.jsonl.zst": zstandard.compress(LINES),
    "rows.json": json.dumps(ROWS, indent=1).encode(),
    "rows.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "lines.json": LINES,
    "bom.jsonl": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n"),
    "rows.parquet": parquet(),
}


def read(path, **options):
    """(origins, rows) of a path."""

    def refuse(origin, error):
        raise DataError(f"{origin}: {error}")

    found = list(sources.read({"path": path, **options}, "pairs", refuse))
    return [origin for origin, _ in found], [row for _, row in found]


@pytest.mark.parametrize("name", FILES)
def test_trap_50_every_kind_of_file_gives_the_same_rows(name, tmp_path, byte):
    (tmp_path / name).write_bytes(FILES[name])
    assert read(tmp_path / name) == ([f"{name}:{n}" for n in (1, 2, 3)], ROWS)
    assert read(str(tmp_path / name), lines=(2, 3))[1] == ROWS[1:]
    found = load_stream({"kind": "pairs", "path": tmp_path / name}, byte)
    assert [example.meta["responses"][0] for example in found] == ["good 0", "good 1", "good 2"]


def test_trap_50_data_sets_saved_by_hugging_face(byte, request):
    fixtures = request.path.parent / "fixtures"
    pairs = load_stream({"kind": "pairs", "path": fixtures / "hf_pairs"}, byte)
    assert [(e.meta["prompt"], e.side, e.origin) for e in pairs] == [
        (f"Name fruit {n}.", {"margin": n / 2}, f"hf_pairs:{n + 1}") for n in range(3)
    ]
    stream = {"kind": "demonstrations", "path": fixtures / "hf_demonstrations", "split": "train"}
    assert [example.meta["prompt"][0]["content"] for example in load_stream(stream, byte)] == ["hi 0", "hi 1", "hi 2"]
    with pytest.raises(DataError, match="split is 'val'; the data set has 'train', 'test'"):
        load_stream(stream | {"split": "val"}, byte)
    with pytest.raises(DataError, match="has no splits; remove 'split'"):
        load_stream({"kind": "pairs", "path": fixtures / "hf_pairs", "split": "train"}, byte)
    with pytest.raises(DataError, match="state.json is missing"):
        load_stream({"kind": "pairs", "path": fixtures}, byte)


def test_what_datasets_saves_today_is_read(tmp_path, byte):
    datasets = pytest.importorskip("datasets", reason="needs Hugging Face datasets")
    datasets.Dataset.from_list(ROWS).shuffle(seed=0).select([0, 1]).save_to_disk(tmp_path / "saved")
    assert len(load_stream({"kind": "pairs", "path": tmp_path / "saved"}, byte)) == 2


def test_line_numbers_count_blank_lines(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n  \n{"a": 2}')
    assert read(tmp_path / "rows.jsonl") == (["rows.jsonl:1", "rows.jsonl:4"], [{"a": 1}, {"a": 2}])


def test_several_files_patterns_and_environment_variables(tmp_path, monkeypatch):
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        (tmp_path / name).write_text(json.dumps({"name": name}))
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
    assert read("$SOME_FOLDER/*.jsonl")[0] == ["a.jsonl:1", "b.jsonl:1"]
    assert read(["${SOME_FOLDER}/b.jsonl", tmp_path / "a.jsonl"])[0] == ["b.jsonl:1", "a.jsonl:1"]
    monkeypatch.chdir(tmp_path)
    assert read("a.jsonl")[0] == ["a.jsonl:1"]
    monkeypatch.delenv("SOME_FOLDER")
    with pytest.raises(
        DataError, match="environment variable SOME_FOLDER in the path .* is not set; export SOME_FOLDER"
    ):
        read("$SOME_FOLDER/a.jsonl")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("rows.jsonl", b'{"a": 1}\n{"a": ', "rows.jsonl:2: the line is no valid JSON"),
        ("rows.jsonl", b'{"a": "\xff"}\n', "rows.jsonl:1: the line is no valid JSON .*utf-8"),
        ("rows.json", b'[{"a": 1}', "rows.json: no valid JSON .*expected a list of objects, or one object a line"),
        ("rows.jsonl.gz", FILES["rows.jsonl.gz"][:-9], "rows.jsonl.gz: the compressed file is damaged or cut short"),
        ("rows.jsonl.gz", LINES, "rows.jsonl.gz: the compressed file is damaged"),
        ("rows.jsonl.zst", b"nothing" + LINES, "rows.jsonl.zst: the compressed file is damaged"),
        ("rows.parquet", FILES["rows.parquet"][:-20], "rows.parquet: the Parquet file cannot be read"),
        ("rows.csv", b"a,b", "rows.csv: unknown format; expected .jsonl"),
    ],
)
def test_damaged_files_are_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_missing_files_and_misplaced_options(tmp_path):
    with pytest.raises(DataError, match="no file '.*absent.jsonl'; check the path"):
        read(tmp_path / "absent.jsonl")
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match="'lines' selects from one file, but 'path' names 2"):
        read([tmp_path / "a.jsonl"] * 2, lines=(1, 2))
    with pytest.raises(ConfigError, match="'split' is 'train', but .*a.jsonl is one file without splits"):
        read(tmp_path / "a.jsonl", split="train")


@pytest.mark.parametrize("name", ["sentiment", "bandit"])
@pytest.mark.parametrize("kind", ["demonstrations", "pairs", "unpaired", "ranked", "prompts"])
def test_trap_50_worlds_give_every_kind(name, kind, byte):
    stream = {"kind": kind, "source": f"world:{name}", "size": 6, "seed": 1, "split": "test"}
    found = load_stream(stream, byte)
    assert len(found) == 6
    assert found[0].origin == f"world:{name}:1"
    assert (
        found.fingerprint
        == load_stream(stream, byte).fingerprint
        != load_stream(stream | {"seed": 2}, byte).fingerprint
    )


def test_a_worlds_own_fields(byte):
    stream = {"kind": "pairs", "source": "world:bandit", "size": 4, "world": {"states": 1, "arms": 2}}
    assert {example.meta["prompt"] for example in load_stream(stream, byte)} == {"state 0: "}
    with pytest.raises(DataError, match="no option named 'stats'"):
        load_stream(stream | {"world": {"stats": 1}}, byte)
    with pytest.raises(DataError, match="did you mean 'sentiment'"):
        load_stream({"kind": "pairs", "source": "world:sentment", "size": 4}, byte)
    with pytest.raises(ConfigError, match="source 'world:bandit' cannot make its records"):
        load_stream(stream | {"size": "many"}, byte)


def test_tfds_without_tensorflow(tmp_path, byte):
    import sys

    tfds = pytest.importorskip("tensorflow_datasets")

    class FruitPairs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # tfds looks for files beside the code

        def _info(self):
            text = tfds.features.Text()
            turns = tfds.features.Sequence({"role": text, "content": text})
            features = {"prompt": turns, "chosen": text, "rejected": text}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, download_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for n in range(3):
                yield n, {"prompt": [{"role": "user", "content": f"é {n}"}], "chosen": "yes", "rejected": "no"}

    FruitPairs(data_dir=tmp_path / "data", file_format="array_record").download_and_prepare()
    stream = {"kind": "pairs", "source": "tfds:fruit_pairs", "data_dir": tmp_path / "data", "split": "train"}
    found = load_stream(stream, byte)
    assert sorted(example.meta["prompt"][0]["content"] for example in found) == ["é 0", "é 1", "é 2"]
    assert "tensorflow" not in sys.modules
    with pytest.raises(DataError, match="tfds:fruit_pears cannot be read"):
        load_stream(stream | {"source": "tfds:fruit_pears"}, byte)
