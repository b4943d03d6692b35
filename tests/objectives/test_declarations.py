"""What few registrations declare: logged rewards, references left out, states by hyperparameters, reduced forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses
from jaxpref.errors import ConfigError
from jaxpref.objectives import inputs
from tests.objectives.example_batches import batch, build, ratios, state_of


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


def run(name, data, /, **hyperparameters):
    """The loss and its metrics as numbers."""
    objective, (outputs, examples) = build(name, **hyperparameters), data
    outputs = {channel: outputs[channel] for channel in objective.needs}
    denominators, state = objective.denominators(examples), state_of(name, objective)
    value, metrics, _ = objective.loss(outputs, examples, denominators, state, jax.random.key(1), 0)
    return float(value), ratios(metrics)


def arguments(data, *names):
    """Arrays of the rows that count."""
    outputs, examples = data
    view = inputs.View(outputs, examples, examples.where)
    return [np.asarray(inputs.read(inputs.TABLE[name], view))[np.asarray(examples.where)] for name in names]


PAIR = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


@pytest.mark.parametrize("name", ["cpo", "arpo"])
def test_sums_are_the_rewards_of_contrastive_preferences(name):
    data = batch(name)
    chosen, rejected = arguments(data, "chosen_logps", "rejected_logps")
    _, metrics = run(name, data, beta=0.3)
    assert metrics["reward_chosen"] == pytest.approx(0.3 * np.mean(chosen))
    assert metrics["reward_rejected"] == pytest.approx(0.3 * np.mean(rejected))


def test_rewards_of_alphapo_are_shaped():
    data = batch("alphapo")
    chosen, sizes = arguments(data, "chosen_logps", "chosen_lengths")
    _, metrics = run("alphapo", data, alpha=0.5)
    assert metrics["reward_chosen"] == pytest.approx(2.5 * np.mean((1 - np.exp(-0.5 * chosen / sizes)) / 0.5))


@pytest.mark.parametrize(
    ("name", "loss", "weight", "names"),
    [
        ("cpo", losses.cpo_loss, "cpo_alpha", (*PAIR[:2], "chosen_lengths")),
        ("arpo", losses.arpo_loss, "cpo_alpha", (*PAIR[:2], "chosen_lengths", "rejected_lengths")),
        ("dpo_nll", losses.dpo_nll_loss, "alpha", (*PAIR, "chosen_lengths")),
    ],
)
@pytest.mark.parametrize("nll", losses.scores.NLL)
def test_likelihood_terms_are_the_functions_own(name, loss, weight, names, nll):
    """The mean over the batch's tokens, which the objective takes as a sum over examples, is what the function says."""
    data = batch(name)
    options = {weight: 0.7, "nll": nll}
    expected = float(np.mean(loss(*arguments(data, *names), **options)))
    assert run(name, data, **options)[0] == pytest.approx(expected)
    assert not build(name, **options).coupled


def test_beta_dpo_trains_on_the_mean_of_the_selected():
    data = batch("beta_dpo", examples=8, padding=2)
    value, metrics = run("beta_dpo", data, rho=0.5)
    pair = arguments(data, *PAIR)
    values, _, aux = losses.beta_dpo_loss(*pair, losses.beta_dpo_state(), jax.random.key(1), rho=0.5)
    assert int(np.sum(aux.selection_mask)) == 3
    assert value == pytest.approx(float(np.mean(values[aux.selection_mask])))
    assert metrics["selected"] == pytest.approx(0.5)
    assert metrics["beta"] == pytest.approx(float(aux.beta_used))


@pytest.mark.parametrize("base", ["dpo", "ipo", "simpo", "cpo"])
def test_lcpo_has_the_reference_of_its_base(base):
    objective, data = build("lcpo", base=base), batch("lcpo")
    referenced = base in ("dpo", "ipo")
    assert ("ref_logps" in objective.needs) == referenced
    assert (objective.at_reference is not None) == referenced
    chosen, reference, sizes = arguments(data, "chosen_logps", "ref_chosen_logps", "chosen_lengths")
    expected = {"cpo": chosen, "simpo": chosen / sizes}.get(base, chosen - reference)
    assert run("lcpo", data, base=base)[1]["reward_chosen"] == pytest.approx(0.1 * np.mean(expected))


def test_lcpo_state_has_the_annotators_of_the_config():
    state = state_of("lcpo", build("lcpo", annotators=3, eta0=0.7))
    np.testing.assert_array_equal(state.eta, [0.7] * 3)
    moving = dict(schedule="linear", start=0.7, end=0.8, steps=3)
    with pytest.raises(ConfigError, match="eta0 is a schedule"):
        build("lcpo", eta0=moving)
    with pytest.raises(ConfigError, match="annotators is 0, but must be a whole number"):
        build("lcpo", annotators=0)


@pytest.mark.parametrize("name", ["bco", "bco_pair", "mpo", "lcpo", "beta_dpo"])
def test_what_a_state_remembers_is_logged_as_the_step_leaves_it(name):
    objective, (outputs, examples) = build(name), batch(name)
    _, metrics, state = objective.loss(
        outputs, examples, objective.denominators(examples), state_of(name, objective), jax.random.key(1), 0
    )
    logged = ratios(metrics)
    if name == "lcpo":
        expected = {"eta_0": state.eta[0]}
    elif name == "beta_dpo":
        expected = {"gap_mean": state.gap_mean, "gap_std": state.gap_std}
    else:
        expected = {"delta": state.delta}
    for metric, value in expected.items():
        assert logged[metric] == pytest.approx(float(value), abs=1e-12) != 0


def test_semantic_preferences_are_named_or_written_as_tables():
    data = batch("semantic_preference")
    by_name, _ = run("semantic_preference", data, name="ORPO")
    by_table, _ = run("semantic_preference", data, numerator_rows=("TF",), denominator_rows=("FT",))
    assert by_name == by_table != run("semantic_preference", data)[0]
    with pytest.raises(ConfigError, match="numerator_rows is 'TX'"):
        build("semantic_preference", numerator_rows=("TX",))


def test_aot_refuses_weights_of_examples():
    outputs, examples = batch("aot")
    weighted = examples._replace(side=examples.side | {"weight": jnp.ones(6)})
    with pytest.raises(ConfigError, match=r"term \(aot\).*take the column 'weight' out"):
        run("aot", (outputs, weighted))
