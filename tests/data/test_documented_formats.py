"""Every example of docs/data-formats.md is run as it stands there."""

import gzip
import json
import pathlib
import re
import shutil

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from jaxpref.data import KINDS, load_stream
from jaxpref.errors import DataError

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "data-formats.md").read_text()
RECORDS = re.findall(r'<!-- kind: (\w+) -->\n```jsonl title="([\w.]+)"\n(.*?)```', PAGE, re.DOTALL)
OTHER_ROWS = re.findall(r'<!-- rows -->\n```jsonl title="([\w.]+)"\n(.*?)```', PAGE, re.DOTALL)
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FIXTURES = pathlib.Path(__file__).parent / "fixtures"


@pytest.fixture
def folder(tmp_path, monkeypatch, byte):
    """A folder with every file that the page names."""
    for name, rows in [*((name, rows) for _, name, rows in RECORDS), *OTHER_ROWS]:
        (tmp_path / name).write_text(rows)
    lines = (tmp_path / "pairs.jsonl").read_bytes()
    rows = [json.loads(line) for line in lines.splitlines()]
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "pairs.jsonl.zst").write_bytes(zstandard.compress(lines))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    renamed = [{"question": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in rows]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    (tmp_path / "damaged.jsonl").write_bytes(lines.replace(b'"rejected"', b'"other"', 1))
    shutil.copytree(FIXTURES / "hf_demonstrations", tmp_path / "saved_dataset")
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_trap_50_the_page_has_three_rows_of_every_kind():
    assert {kind for kind, _, _ in RECORDS} == set(KINDS)
    assert all(len(rows.strip().splitlines()) == 3 for _, _, rows in RECORDS)


@pytest.mark.parametrize("template", ["none", "chatml", "human-assistant"])
@pytest.mark.parametrize("kind, name, rows", RECORDS, ids=[name for _, name, _ in RECORDS])
def test_trap_50_documented_records_are_read(kind, name, rows, template, byte, folder):
    reads = {"samples"} if '"samples"' in rows else ()
    found = load_stream({"kind": kind, "path": name}, byte, template=template, reads=reads)
    assert len(found) == 3
    assert not found.counts["dropped"] and not found.problems


def test_a_file_of_pairs_serves_other_kinds(byte, folder):
    for name in ("pairs.jsonl", "chats.jsonl", "transcripts.jsonl"):
        for kind, examples in {"demonstrations": 3, "unpaired": 6, "joint": 3, "prompts": 3}.items():
            assert len(load_stream({"kind": kind, "path": name}, byte)) == examples


@pytest.mark.parametrize("block", BLOCKS)
def test_documented_streams_are_read(block, byte, folder, capsys):
    if "tfds:" in block:
        pytest.skip("a data set prepared by tfds is read in test_sources.py")
    names = {}
    exec(block, names)  # noqa: S102
    if "stream" in names:
        found = load_stream(names["stream"], byte)
        assert len(found) >= 1
        assert found.counts["skipped"] == ("damaged.jsonl" in block)
    elif "length" in names:
        load_stream({"kind": "pairs", "path": "pairs.jsonl"}, byte, names["length"])
    else:
        printed = capsys.readouterr().out
        shown = re.search(re.escape(block) + r"```\n\n```text\n(.*?)```", PAGE, re.DOTALL)[1]
        assert printed.strip() == shown.strip()


def test_the_documented_error_is_the_one_that_is_raised(byte, folder):
    (message,) = re.findall(r"<!-- error -->\n```text\n(.*?)\n```", PAGE)
    rows = (folder / "pairs.jsonl").read_text().splitlines()
    rows[1] = json.dumps({key: value for key, value in json.loads(rows[1]).items() if key in ("prompt", "chosen")})
    (folder / "pairs.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError) as caught:
        load_stream({"kind": "pairs", "path": "pairs.jsonl"}, byte)
    assert str(caught.value) == message
