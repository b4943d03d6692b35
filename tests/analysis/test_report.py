"""The report page: complete, self-contained, escaped."""

import html.parser
import json

import pytest

from jaxpref.analysis import plots, report, tables
from jaxpref.errors import DataError


class Page(html.parser.HTMLParser):
    """Tags and links of a page; complains about tags that are never closed."""

    VOID = {"meta", "br", "img", "link", "input", "hr"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links = [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag


def make_run(folder, *, metrics=True):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"seed": 0, "note": "<b>&"}))
    if metrics:
        rows = [{"step": step, "loss/dpo": 0.7 - step / 100, "displacement_chosen/dpo": -step} for step in range(5)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_page_of_a_run(tmp_path):
    make_run(tmp_path)
    path = report.write(tmp_path, title="A run")
    text = path.read_text()
    page = Page(text)
    assert path.name == "report.html" and "<title>A run</title>" in text
    assert page.tags.count("svg") == 2 and "script" not in page.tags and "img" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert "&lt;b&gt;&amp;" in text and "<b>&" not in text
    assert "<td>loss/dpo</td><td>4</td><td>0.66</td>" in text
    assert plots.PANELS["displacement"].note in text
    assert sorted(child.name for child in (tmp_path / "plots").iterdir()) == ["displacement.png", "loss.png"]


def test_page_is_reproducible(tmp_path):
    make_run(tmp_path)
    assert report.write(tmp_path).read_text() == report.write(tmp_path).read_text()


def test_stages_have_sections_in_their_order(tmp_path):
    for name in ("dpo", "reward", "sft"):
        make_run(tmp_path / name)
    text = report.write(tmp_path, stages=["sft", "reward", "dpo"]).read_text()
    places = [text.index(f"<h2>{name}</h2>") for name in ("sft", "reward", "dpo")]
    assert places == sorted(places) and (tmp_path / "sft" / "plots" / "loss.png").exists()
    assert "<h2>reward</h2>" in report.write(tmp_path).read_text()


def test_tables_figures_and_samples_are_shown(tmp_path):
    make_run(tmp_path, metrics=False)
    table = tables.Table("Results", ("model", "reward"), (("DPO", "1.0"),))
    figure = plots.frontier({"DPO": (1.0, 2.0)})
    samples = [{"prompt": "Ann on film: ", "DPO": "<epic>", "score": 2.0}, {"prompt": "Bob", "label": True}]
    text = report.write(tmp_path, results=[table], figures=[figure], samples=samples, notes=["A & B"]).read_text()
    page = Page(text)
    assert "<caption>Results</caption>" in text and page.tags.count("svg") == 1
    assert "&lt;epic&gt;" in text and "<th>label</th>" in text and "A &amp; B" in text and "<td>true</td>" in text
    assert "No metrics yet." in text


def test_samples_of_the_last_step_are_read_from_the_run(tmp_path):
    rows = [{"step": 1, "prompt": "p", "response": "early"}, {"step": 2, "prompt": "p", "response": "late"}]
    (make_run(tmp_path) / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = report.write(tmp_path).read_text()
    assert "late" in text and "early" not in text


def test_no_run_folder_raises(tmp_path):
    with pytest.raises(DataError, match="no run folder"):
        report.write(tmp_path / "nowhere")
