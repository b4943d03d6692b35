"""Several terms on their own data streams, heads, running states, and what single methods do with a batch."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxpref import losses, objectives
from jaxpref.errors import ConfigError
from jaxpref.objectives import registry
from tests.objectives.example_batches import Model, batch, build, ratios, restrict

KEY = jax.random.key(0)


def run(objective, outputs, examples, state=None, step=0):
    return objective.loss(outputs, examples, objective.denominators(examples), state or {}, KEY, step)


@pytest.fixture
def mixture():
    terms = {
        "align": objectives.config("dpo", weight=0.8),
        "imitate": objectives.config("sft", weight=dict(schedule="linear", start=0.0, end=0.4, steps=2)),
        "judge": objectives.config("bradley_terry"),
    }
    outputs, examples = {}, {}
    for term, name, seed in (("align", "dpo", 0), ("imitate", "sft", 1), ("judge", "bradley_terry", 0)):
        outputs[term], stream = batch(name, seed=seed)
        examples.setdefault(terms[term].data, stream)
    return objectives.build(ConfigDict(terms)), outputs, examples


def test_total_is_the_weighted_sum_of_its_terms(mixture):
    total, outputs, examples = mixture
    parts = {name: run(term, outputs[name], examples[term.stream]) for name, term in total.terms.items()}
    for step, weight in ((0, 0.0), (1, 0.2), (5, 0.4)):
        value, metrics, state = run(total, outputs, examples, step=jnp.array(step))
        expected = 0.8 * parts["align"][0] + weight * parts["imitate"][0] + parts["judge"][0]
        assert float(value) == pytest.approx(float(expected), rel=1e-6)
        assert state == {}
        for name, (_, term_metrics, _) in parts.items():
            for metric, pair in term_metrics.items():
                chex.assert_trees_all_equal(metrics[f"{metric}/{name}"], pair)


def test_total_describes_what_the_forward_must_compute(mixture):
    total, _, examples = mixture
    assert total.needs == {
        "pairs": frozenset({"logps", "ref_logps", "score/judge"}),
        "demonstrations": frozenset({"logps"}),
    }
    assert not total.coupled and not total.partnered
    assert set(total.denominators(examples)) == {"align", "imitate", "judge"}
    assert total.closed_forms(examples) == {"align": pytest.approx(math.log(2))}


def test_mismatched_responses_couple_nothing_and_their_streams_are_named():
    total = objectives.build({"a": objectives.config("dpo"), "b": objectives.config("kto", data="thumbs")})
    assert not total.coupled
    assert total.partnered == {"thumbs"}


def test_trap_06_denominators_count_the_mask_of_the_loss():
    outputs, examples = batch("sft", padding=2)
    objective = build("sft")
    counts = objective.denominators(examples)
    assert float(counts["tokens"]) == np.sum(examples.mask)
    assert float(counts["examples"]) == 4
    expected = losses.sft_loss(outputs["logps"][:, 0], examples.mask[:, 0])
    assert float(run(objective, outputs, examples)[0]) == pytest.approx(float(expected), rel=1e-6)


def test_trap_45_heads_are_reproducible_and_independent_of_other_terms():
    judge = {"judge": objectives.config("bradley_terry")}
    heads, state = objectives.build(judge).init(KEY, Model)
    assert state == {}
    chex.assert_shape(heads["judge"]["kernel"], (8, 1))
    assert 0 < float(jnp.std(heads["judge"]["kernel"])) < 0.1
    chex.assert_trees_all_equal(objectives.build(judge).init(KEY, Model)[0], heads)
    more = judge | {"another": objectives.config("bradley_terry"), "align": objectives.config("dpo")}
    more_heads, _ = objectives.build(more).init(KEY, Model)
    assert set(more_heads) == {"judge", "another"}
    chex.assert_trees_all_equal(more_heads["judge"], heads["judge"])
    assert np.any(more_heads["another"]["kernel"] != heads["judge"]["kernel"])
    other_key, _ = objectives.build(judge).init(jax.random.key(1), Model)
    assert np.any(other_key["judge"]["kernel"] != heads["judge"]["kernel"])


def test_trap_30_reference_free_reads_no_reference():
    outputs, examples = batch("dpo")
    objective = build("dpo", reference_free=True)
    assert objective.needs == frozenset({"logps"})
    assert objective.at_reference is None
    value, metrics, _ = run(objective, {"logps": outputs["logps"]}, examples)
    chosen, rejected = (jnp.sum(outputs["logps"][:4, k], -1) for k in (0, 1))
    zeros = jnp.zeros(4)
    expected = losses.dpo_loss(chosen, rejected, zeros, zeros, reference_free=True)
    assert float(value) == pytest.approx(float(jnp.mean(expected)), rel=1e-6)
    assert "displacement_chosen" not in metrics
    assert ratios(metrics)["reward_chosen"] == pytest.approx(float(jnp.mean(0.1 * chosen)), rel=1e-5)


def test_trap_26_loss_from_logged_rewards():
    """For one pair, the logged rewards give the loss back; displacement is reward / beta."""
    outputs, examples = batch("dpo", padding=5)
    value, metrics, _ = run(build("dpo", beta=0.3), outputs, examples)
    numbers = ratios(metrics)
    margin = numbers["reward_chosen"] - numbers["reward_rejected"]
    assert float(value) == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-5)
    assert numbers["displacement_chosen"] == pytest.approx(numbers["reward_chosen"] / 0.3, rel=1e-5)
    assert numbers["accuracy"] == float(margin > 0)


@pytest.mark.parametrize(
    ("name", "overrides", "reward"),
    [
        ("ipo", {"tau": 0.3}, lambda o, n: 0.3 * jnp.sum(o["logps"] - o["ref_logps"], -1)),
        ("simpo", {"beta": 3.0}, lambda o, n: 3.0 * jnp.sum(o["logps"], -1) / n),
        ("orpo", {"lam": 0.3}, lambda o, n: 0.3 * jnp.sum(o["logps"], -1) / n),
        ("bradley_terry", {}, lambda o, n: o["score"]),
    ],
)
def test_logged_rewards(name, overrides, reward):
    outputs, examples = batch(name, padding=0)
    numbers = ratios(run(build(name, **overrides), outputs, examples)[1])
    expected = jnp.mean(reward(outputs, jnp.sum(examples.mask, -1)), axis=0)
    assert [numbers["reward_chosen"], numbers["reward_rejected"]] == pytest.approx(expected.tolist(), rel=1e-5)


def test_reward_model_metrics_give_the_spread():
    outputs, examples = batch("bradley_terry", padding=2)
    numbers = ratios(run(build("bradley_terry"), outputs, examples)[1])
    scores = np.asarray(outputs["score"][:4])
    assert numbers["reward"] == pytest.approx(scores.mean(), rel=1e-5)
    assert numbers["reward_square"] == pytest.approx((scores**2).mean(), rel=1e-5)
    assert numbers["accuracy"] == np.mean(scores[:, 0] > scores[:, 1])


def test_side_inputs_are_used_where_the_data_has_them():
    outputs, examples = batch("bradley_terry", padding=0)
    plain = examples._replace(side={})
    objective, scores = build("bradley_terry"), outputs["score"].T
    for side in ({}, {"margin": examples.side["margin"]}, {"target_prob": examples.side["target_prob"]}):
        value = run(objective, outputs, plain._replace(side=side))[0]
        assert float(value) == pytest.approx(float(jnp.mean(losses.bradley_terry_loss(*scores, **side))), rel=1e-6)


def test_a_missing_side_input_is_named():
    outputs, examples = batch("kto")
    with pytest.raises(ConfigError, match="needs the side input 'label', which its data stream lacks"):
        run(build("kto"), outputs, examples._replace(side={}))


def test_trap_13_kto_drift_is_of_the_global_batch():
    outputs, examples = batch("kto", padding=0)
    outputs["logps"] = outputs["logps"] * 0.1
    objective = build("kto")
    ratio = jnp.sum(outputs["logps"] - outputs["ref_logps"], -1)
    value, metrics, _ = run(objective, outputs, examples)
    expected, aux = losses.kto_loss(ratio[:, 0], 0 * ratio[:, 0], examples.side["label"], ratio[:, 1], 0 * ratio[:, 1])
    assert float(aux.kl) > 0
    total, count = metrics["z0"]
    assert float(total / count) == pytest.approx(float(aux.kl), rel=1e-5)
    assert float(value) == pytest.approx(float(jnp.mean(expected)), rel=1e-5)


@pytest.mark.parametrize("label", [True, False])
def test_trap_15_kto_batch_of_one_label(label):
    outputs, examples = batch("kto", padding=0)
    examples = examples._replace(side={"label": jnp.full(6, label)})
    objective = build("kto", desirable_weight=2.0, undesirable_weight=3.0)
    value, metrics, _ = run(objective, outputs | {"ref_logps": outputs["logps"]}, examples)
    assert float(value) == pytest.approx(1.0 if label else 1.5)
    assert objective.at_reference(examples) == pytest.approx(float(value))
    assert float(metrics["reward_undesirable" if label else "reward_desirable"][1]) == 0
    assert all(np.isfinite(s) for s, _ in metrics.values())


def test_kto_empty_partner_does_not_enter_the_drift():
    outputs, examples = batch("kto", padding=0)
    outputs["logps"] = outputs["logps"] * 0.1
    without = examples._replace(mask=examples.mask.at[0, 1].set(False))
    outputs = {n: v.at[0, 1].set(0) for n, v in outputs.items()}
    ratio = jnp.sum(outputs["logps"] - outputs["ref_logps"], -1)[1:, 1]
    assert ratios(run(build("kto"), outputs, without)[1])["z0"] == pytest.approx(float(jnp.mean(ratio)), rel=1e-5)


def test_scheduled_hyperparameter_moves_with_the_step():
    outputs, examples = batch("dpo")
    objective = build("dpo", beta=dict(schedule="linear", start=0.1, end=0.3, steps=2))
    loss = jax.jit(lambda step: run(objective, outputs, examples, step=step)[0])
    for step, beta in ((0, 0.1), (1, 0.2), (2, 0.3), (9, 0.3)):
        assert float(loss(step)) == pytest.approx(float(run(build("dpo", beta=beta), outputs, examples)[0]), rel=1e-6)


def test_stateful_objective_moves_its_state_once(monkeypatch):
    """A method with a running baseline and a key, as later methods have them."""

    def baseline_loss(logps, where, state, key, *, decay=0.5):
        mean = jnp.sum(jnp.where(where, logps, 0)) / jnp.maximum(jnp.sum(where), 1)
        new = {"baseline": decay * state["baseline"] + (1 - decay) * jax.lax.stop_gradient(mean)}
        return logps - new["baseline"] + 0 * jax.random.uniform(key), new

    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))
    objectives.register(
        "baseline", baseline_loss, feedback="unpaired", title="", url="", formula="", coupled=True,
        init_state=lambda hyperparameters: {"baseline": jnp.zeros(())},
    )  # fmt: skip
    outputs, examples = batch("kto", padding=1)
    total = objectives.build({"b": objectives.config("baseline")})
    _, state = total.init(KEY, Model)
    first = run(total, {"b": outputs}, {"unpaired": examples}, state)[2]
    second = run(total, {"b": outputs}, {"unpaired": examples}, first)[2]
    mean = float(jnp.mean(jnp.sum(outputs["logps"], -1)[:5, 0]))
    assert float(first["b"]["baseline"]) == pytest.approx(0.5 * mean, rel=1e-5)
    assert float(second["b"]["baseline"]) == pytest.approx(0.75 * mean, rel=1e-5)


def test_a_stream_without_examples_in_a_micro_batch_adds_nothing(mixture):
    total, outputs, examples = mixture
    none = {name: restrict(stream, jnp.zeros(6, bool)) for name, stream in examples.items()}
    value, metrics, _ = total.loss(outputs, none, total.denominators(examples), {}, KEY, 0)
    assert float(value) == 0
    assert all(float(s) == 0 and float(n) == 0 for s, n in metrics.values())
