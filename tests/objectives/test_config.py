"""Terms of a config: defaults, overrides, schedules, and errors that say how to mend them."""

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from jaxpref import objectives
from jaxpref.errors import ConfigError
from tests.objectives.example_batches import NAMES, build


def test_config_fills_in_every_field():
    assert objectives.config("dpo", beta=0.2, weight=0.8).to_dict() == {
        "objective": "dpo",
        "data": "pairs",
        "weight": 0.8,
        "beta": 0.2,
        "label_smoothing": 0.0,
        "reference_free": False,
    }
    assert objectives.config("sft").data == "demonstrations"
    assert objectives.config("kto").data == "unpaired"


@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds(name):
    term = objectives.build({"a": objectives.config(name, data="elsewhere", weight=2)}).terms["a"]
    assert (term.name, term.method, term.stream, term.weight) == ("a", name, "elsewhere", 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: objectives.config("ipoo"), "the objective 'ipoo', which does not exist; did you mean 'ipo'"),
        (lambda: objectives.config("dpo", betta=1.0), "the field 'betta', which does not exist; did you mean 'beta'"),
        (lambda: objectives.config("dpo", objective="ipo"), "the field 'objective', which does not exist"),
        (lambda: objectives.build({}), "config.objectives is empty"),
        (lambda: objectives.build({"a": {"beta": 1.0}}), "config.objectives.a names no objective"),
        (lambda: build("dpo", beta=-1.0), "config.objectives.term .dpo.: beta is -1.0, but must be a finite"),
        (lambda: build("dpo", weight=-1.0), "weight is -1.0, but must be"),
        (lambda: build("dpo", data=""), "term.data is ''; expected the name of a data stream"),
        (lambda: build("dpo", reference_free="no"), "reference_free is 'no'; expected True or False"),
        (lambda: build("ipo", normalize="none"), "normalize is 'none', but must be one of 'length', 'sum'"),
        (lambda: build("dpo", reference_free={"schedule": "constant", "start": 1}), "only numbers can move"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("new", ["ipo", "cdpo", "sft", "bradley_terry"])
def test_changing_the_name_alone_points_to_the_argument(new):
    config = ConfigDict({"dpo": objectives.config("dpo")})
    config.dpo.objective = new
    with pytest.raises(ConfigError, match=rf"--config=X.py:{new}|which does not exist"):
        objectives.build(config)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (dict(schedule="linear", start=1.0, end=0.5, steps=4), [1.0, 0.875, 0.75, 0.625, 0.5, 0.5]),
        (dict(schedule="cosine", start=1, end=0, steps=2), [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]),
        (dict(schedule="constant", start=0.3), [0.3] * 6),
    ],
)
def test_schedules(schedule, values):
    made = build("dpo", weight=schedule).weight
    assert [float(made.at(jnp.array(step))) for step in range(6)] == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (dict(start=1.0), "has the schedule None; expected schedule= one of linear, cosine, constant"),
        (dict(schedule="linear", start=1.0, end=2.0), "a linear schedule without steps"),
        (dict(schedule="linear", start=1.0, end=2.0, step=3), "'step', which does not exist; did you mean 'steps'"),
        (dict(schedule="linear", start=1.0, end="2", steps=3), "beta.end is '2'; expected a number"),
        (dict(schedule="linear", start=1.0, end=2.0, steps=0), "beta.steps is 0; expected at least 1"),
        (dict(schedule="linear", start=1.0, end=-2.0, steps=3), "beta is -2.0, but must be a finite number > 0"),
        (dict(schedule="cosine", start=0.0, end=2.0, steps=3), "beta is 0.0, but must be a finite number > 0"),
    ],
)
def test_schedules_are_checked_when_made(schedule, message):
    with pytest.raises(ConfigError, match=message):
        build("dpo", beta=schedule)


def test_registration_refuses_what_it_cannot_bind():
    about = dict(feedback="pairs", title="", url="", formula="")

    def strange_loss(chosen_logps, something_new, *, beta=0.1):
        return beta * (chosen_logps - something_new)

    def stateful_loss(chosen_logps, state, *, beta=0.1):
        return beta * chosen_logps, state

    with pytest.raises(ValueError, match="something_new"):
        objectives.register("strange", strange_loss, **about)
    with pytest.raises(ValueError, match="needs init_state"):
        objectives.register("stateful", stateful_loss, **about)
    with pytest.raises(ValueError, match="coupled=True"):
        objectives.register("stateful", stateful_loss, init_state=lambda hyperparameters: {}, **about)
    with pytest.raises(ValueError, match="twice"):
        objectives.register("dpo", lambda chosen_logps: chosen_logps, **about)
    assert [row.name for row in objectives.catalogue()] == sorted(NAMES)


def test_catalogue_row():
    row = next(row for row in objectives.catalogue() if row.name == "kto")
    assert row.needs == ("logps", "ref_logps")
    assert row.defaults == {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    assert row.coupled and not row.stateful and row.feedback == "unpaired"
