"""How much of a response is left, from a file of pairs to the gradient of the policy, beside a loss on the pairs."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import cli, configuration, models, objectives
from jaxpref.errors import ConfigError
from jaxpref.training import assembly

ROWS = [
    {
        "prompt": "Where?",
        "chosen": " The old mill, the river and a bridge.",
        "rejected": " By a shop, in the yard, at home.",
    },
    {"prompt": "What to drink?", "chosen": " Tea with milk and then honey.", "rejected": " Juice, or water, or oil."},
]
TERMS = {"align": ("dpo", "pairs"), "degree": ("preference_degree", "graded")}


def config(folder, layout="padded", terms=("align", "degree"), levels=4, **batch):
    folder.mkdir(exist_ok=True)
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    streams = {
        "pairs": dict(kind="pairs", path=str(path)),
        "graded": dict(kind="graded", path=str(path), transform=dict(name="degrees", levels=4, rejected_weight=0.5)),
    }
    made = configuration.default()
    made.model.name, made.model.overrides = "nano", dict(layers=1, width=16, heads=2, head_dim=8, mlp_width=16)
    made.model.chunk = 32
    made.tokenizer.path = "byte"
    for term in terms:
        method, stream = TERMS[term]
        made.data[stream] = streams[stream]
        made.objectives[term] = objectives.config(method, data=stream)
    if "degree" in terms:
        made.objectives.degree.levels = levels
    made.reference.kind = "frozen" if "align" in terms else "none"
    made.optimizer.name, made.optimizer.learning_rate, made.optimizer.clip_norm = "sgd", 0.1, 0.0
    made.batch.streams = {"graded": 8} if "degree" in terms else {}
    made.batch.examples, made.batch.layout, made.train.steps = 2, layout, 2
    made.batch.update(batch)
    made.log.progress = False
    return made


def assemble(folder, *arguments, **options):
    sections = configuration.sections(config(folder, *arguments, **options))
    return assembly.assemble(sections, str(folder), report=lambda *_: None)


def steps(parts, number: int, state=None):
    """(state after so many steps, their metrics)."""
    measured = []
    with jax.set_mesh(parts.mesh):
        step, current = parts.compile_step(), parts.state if state is None else state
        for n in range(number):
            current, metrics = step(current, parts.reference, jax.random.key(0), parts.place(n))
            measured.append({name: float(total) / float(count) for name, (total, count) in metrics.items() if count})
    return current, measured


def test_a_head_without_preferences_among_levels_loses_their_logarithm(tmp_path):
    parts = assemble(tmp_path, terms=("degree",))
    assert parts.state.params["heads"]["degree"]["kernel"].shape == (16, 4)
    batch = parts.inputs.batch(0).examples["graded"]
    assert batch.side["degree"].shape == (8,) and set(batch.side["degree"].tolist()) <= {0, 1, 2, 3}
    uniform = jax.tree.map(jnp.zeros_like, parts.state.params["heads"])
    before = jax.tree.map(np.asarray, parts.state.params["model"])
    fresh = parts.state._replace(params=parts.state.params | {"heads": uniform})
    state, (first, second) = steps(parts, 2, fresh)
    mean_weight = np.mean(batch.side["weight"])
    assert first["loss/degree"] == pytest.approx(math.log(4) * mean_weight, rel=1e-6)
    assert first["accuracy/degree"] == pytest.approx(np.mean(batch.side["degree"] == 0))  # of equal outputs the first
    # After one step the head tells levels apart, and its gradient reaches the whole policy but the vocabulary's head.
    assert np.any(state.params["heads"]["degree"]["kernel"])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != np.asarray(b))), before, state.params["model"])
    assert all(jax.tree.leaves(moved["layers"]["mlp"])) and all(jax.tree.leaves(moved["embed"]))
    assert second["gradient_norm"] > 0


@pytest.mark.slow
def test_layouts_and_micro_batches_agree(tmp_path):
    _, expected = steps(assemble(tmp_path / "padded"), 2)
    for layout, batch in (("packed+shared", {}), ("padded", dict(rows=8))):
        parts = assemble(tmp_path / f"{layout} again", layout, **batch)
        if batch:
            assert int(parts.inputs.batch(0).count) == 2
        for one, other in zip(steps(parts, 2)[1], expected, strict=True):
            names = [name for name in other if name.split("/")[-1] in TERMS]
            assert {"loss/align", "loss/degree", "accuracy/degree", "length_response/degree"} <= set(names)
            for name in (*names, "gradient_norm"):
                assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
    assert expected[1]["loss/degree"] != expected[0]["loss/degree"]


@pytest.mark.slow
def test_degraded_texts_enter_no_other_term(tmp_path):
    """The loss on pairs is what it is without the term, before anything has moved."""
    (_, (alone,)), (_, (both,)) = (
        steps(assemble(tmp_path / str(len(terms)), terms=terms), 1) for terms in (("align",), ("align", "degree"))
    )
    for name in alone:
        if name.endswith("/align"):
            assert both[name] == pytest.approx(alone[name], rel=1e-6), name
    assert both["loss"] == pytest.approx(alone["loss"] + both["loss/degree"], rel=1e-6)


def test_a_level_that_the_head_does_not_know_is_an_error(tmp_path):
    message = r"pairs.jsonl:1: field 'degree' is 3, but config.objectives.degree \(preference_degree\) tells 3 values"
    with pytest.raises(ConfigError, match=message):
        assemble(tmp_path, terms=("degree",), levels=3)
    for levels, said in ((1, "levels is 1, but must be a whole number >= 2"), (2.5, "levels is 2.5")):
        with pytest.raises(ConfigError, match=said):
            objectives.build({"degree": objectives.config("preference_degree", levels=levels)})


CONFIG = """
import pathlib
from tests.training import test_preference_degree
def get_config():
    return test_preference_degree.config(pathlib.Path({folder!r}))
"""


@pytest.mark.slow
def test_the_head_is_left_out_of_exports(tmp_path, capsys):
    (tmp_path / "config.py").write_text(CONFIG.format(folder=str(tmp_path)))
    run = tmp_path / "run"
    assert cli.main(["train", f"--config={tmp_path}/config.py", f"--workdir={run}"]) == 0
    assert cli.main(["convert", f"--from={run}", f"--to_hf={tmp_path}/hf"]) == 0, capsys.readouterr().err
    _, params = models.load_hf(tmp_path / "hf")
    assert not list((tmp_path / "hf").glob("*score*")) and "layers" in params
    assert cli.main(["convert", f"--from={run}", f"--to_hf={tmp_path}/scores", "--head=degree"]) == cli.USER_ERROR
    assert "the model has no reward head" in capsys.readouterr().err
