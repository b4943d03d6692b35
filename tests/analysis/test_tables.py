"""Result tables: the numbers they show and how they say where intervals come from."""

import io

import rich.console

from jaxpref.analysis import tables
from jaxpref.data import worlds
from jaxpref.evaluation import gold, statistics

INTERVAL = statistics.Interval(1.234, 1.1, 1.4, 128, "bootstrap over clusters 95%")
SCORES = [
    tables.Score("base", reward=statistics.Interval(0.0, -0.1, 0.1, 128, INTERVAL.method), length=40.0),
    tables.Score("reward model", accuracy=statistics.wilson(700, 1000)),
    tables.Score("DPO", reward=INTERVAL, win_rate=statistics.wilson(3, 4), kl=3.14159, length=6.26),
]


def test_numbers_as_text():
    assert tables.show(None) == "–"
    assert tables.show(1.2345) == "1.23" and tables.show(1.25, digits=0) == "1"
    assert tables.show(0.1234, percent=True, digits=1) == "12.3%"
    assert tables.show(INTERVAL) == "1.23 [1.10, 1.40]"
    assert tables.show(statistics.Interval(0.5, 0.25, 0.75, 4, ""), percent=True) == "50.0% [25.0, 75.0]"


def test_comparison_of_models():
    table = tables.comparison(SCORES, opponent="the SFT model's responses", notes=["Report: x/report.html"])
    assert table.columns == ("model", "gold reward", "gold win rate", "KL (nats)", "length (words)", "pair accuracy")
    assert table.rows[0] == ("base", "0.00 [-0.10, 0.10]", "–", "–", "40.0", "–")
    assert table.rows[2] == ("DPO", "1.23 [1.10, 1.40]", "75.0% [30.1, 95.4]", "3.14", "6.3", "–")
    text = " ".join(table.notes)
    assert "the SFT model's responses, ties 1/2; Wilson 95%." in text
    assert text.count("bootstrap over clusters 95%") == 1 and text.endswith("x/report.html")


def test_score_of_gold_generations():
    generated = gold.evaluate(worlds.sentiment, ["Ann on film: "] * 2, ["epic cast.", "xyzzy"], opponent=["", ""])
    table = tables.comparison([tables.score("DPO", generated, kl=0.5)])
    assert (
        table.rows[0][0] == "DPO" and table.rows[0][1].startswith("1.00 [") and table.rows[0][2].startswith("75.0% [")
    )
    assert table.rows[0][3:] == ("0.50", "1.5", "50.0%")


def test_terminal_text_holds_every_cell():
    text = tables.to_text(tables.comparison(SCORES))
    for cell in ("reward model", "70.0% [67.1, 72.8]", "1.23 [1.10, 1.40]", "pair accuracy"):
        assert cell in text
    console = rich.console.Console(record=True, file=io.StringIO(), width=40)
    tables.show_table(tables.comparison(SCORES), console)
    assert "70.0% [67.1, 72.8]" in console.export_text()


def test_html_and_markdown_escape():
    table = tables.Table("<t>", ("a|b", "c"), (("<i>", "x|y"),), ("n & m",))
    page = tables.to_html(table)
    assert "<td>&lt;i&gt;</td>" in page and "&lt;t&gt;" in page and "n &amp; m" in page
    assert "| <i> | x\\|y |" in tables.to_markdown(table)
    assert "[bold]" in tables.to_text(tables.Table("", ("a",), (("[bold]",),)))
