"""The density ratio of the prompts, from a file of thumbs to the loss of a step."""

import json
import math

import jax
import numpy as np
import pytest

from jaxpref import configuration, losses, objectives
from jaxpref.training import assembly

ROWS = [
    {
        "prompt": f"On {('tea' if n % 2 else 'rivers') if n < 6 else 'anything'} {n}:",
        "completion": f" {n}",
        "label": n % 2 == 1,
    }
    for n in range(8)
]


def first_loss(folder, layout: str) -> tuple[float, np.ndarray, np.ndarray]:
    """(loss of the first step, probabilities, labels) of binary classifier optimisation on all rows."""
    folder.mkdir()
    path = folder / "thumbs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    made = configuration.default()
    made.model.name, made.model.overrides = "nano", dict(layers=1, width=16, heads=2, head_dim=8, mlp_width=16)
    made.tokenizer.path = "byte"
    made.data.thumbs = dict(kind="unpaired", path=str(path), prob_desirable=dict(features="words", penalty=0.1))
    made.objectives.bco = objectives.config("bco", data="thumbs")
    made.reference.kind = "frozen"
    made.batch.examples, made.batch.layout, made.train.steps = len(ROWS), layout, 1
    parts = assembly.assemble(configuration.sections(made), str(folder), report=lambda *_: None)
    side = parts.inputs.batch(0).examples["thumbs"].side
    with jax.set_mesh(parts.mesh):
        _, metrics = parts.compile_step()(parts.state, parts.reference, jax.random.key(0), parts.place(0))
    total, count = metrics["loss/bco"]
    return float(total) / float(count), side["prob_desirable"], side["label"]


@pytest.mark.slow
def test_undesirable_responses_count_by_the_ratio_of_their_prompts(tmp_path):
    found, probabilities, labels = first_loss(tmp_path / "padded", "padded")
    weights = losses.density_ratio(probabilities, labels > 0, 0.5, 10.0)
    assert found == pytest.approx(math.log(2) * float(np.mean(weights)), rel=1e-6)
    assert float(np.mean(weights)) < 0.95
    assert first_loss(tmp_path / "packed", "packed+shared")[0] == pytest.approx(found, rel=1e-6)
