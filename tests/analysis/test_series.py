"""Metrics read back from a run folder."""

import json
import math

import numpy as np
import pytest

from jaxpref.analysis import series
from jaxpref.errors import DataError


def test_curves_by_name(tmp_path):
    rows = [{"step": 0, "loss/dpo": 0.7}, {"step": 1, "loss/dpo": 0.6, "note": "x"}, {"step": 2, "eval/loss/dpo": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curves = series.read(tmp_path)
    assert list(curves) == ["loss/dpo", "eval/loss/dpo"]
    assert curves["loss/dpo"].steps.tolist() == [0, 1] and curves["loss/dpo"].values.tolist() == [0.7, 0.6]
    assert curves["eval/loss/dpo"].steps.tolist() == [2]


def test_nothing_written_yet(tmp_path):
    assert series.read(tmp_path) == {}


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo')
    assert series.read(tmp_path)["loss"].steps.tolist() == [0]


@pytest.mark.parametrize("line, message", [("{", ":2 is not JSON"), ("[]", "no whole number 'step'"), ("{}", "'step'")])
def test_broken_lines_raise_with_their_place(tmp_path, line, message):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        series.read(tmp_path)


def test_nan_is_kept_and_told_apart():
    curve = series.curves([{"step": 0, "loss": 1.0}, {"step": 1, "loss": math.nan}, {"step": 2, "loss": None}])["loss"]
    assert len(curve.steps) == 3 and curve.finite().steps.tolist() == [0]


def test_thinned_keeps_block_means():
    curve = series.Curve(np.arange(10), np.arange(10.0)).thinned(5)
    assert curve.steps.tolist() == [0.5, 2.5, 4.5, 6.5, 8.5] == curve.values.tolist()
    assert series.Curve(np.arange(3), np.arange(3.0)).thinned(5).steps.tolist() == [0, 1, 2]
