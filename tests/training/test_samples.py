"""Methods that read samples, from a file to an update: layouts, special cases, states of every data point, resume."""

import functools
import json

import jax
import numpy as np
import pytest

from jaxpref import configuration, objectives
from jaxpref.errors import ConfigError
from jaxpref.planning import program
from jaxpref.training import assembly, heldout, loop, trees
from tests.training import steps
from tests.training.test_offload import lines, quiet

PAIRS = [
    {"prompt": "A fruit:", "chosen": " a fig", "rejected": " a stone", "samples": [" a plum", " an old, old boot"]},
    {"prompt": "A tree, any tree:", "chosen": " birch", "rejected": " a shoe"},
    {"prompt": "A river:", "chosen": " the Po", "rejected": " Alps", "samples": [" the Nile"]},
    {"prompt": "Two:", "chosen": " two", "rejected": " three", "samples": [" 2", " to", ""]},
]
KINDS = {"hypo": "frozen", "vpo_samples": "frozen", "dft1": "frozen", "dft2": "none", "dpo": "frozen", "sft": "none"}


def config(folder, *names, rows=PAIRS, layout="padded", kind="", **fields):
    """A run of these methods on a stream of their own kind; pairs serve as demonstrations too."""
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = configuration.default()
    made.model.name, made.model.overrides = "nano", dict(layers=1, width=16, heads=2, head_dim=8, mlp_width=16)
    made.model.chunk, made.tokenizer.path = 32, "byte"
    for name in names:
        made.objectives[name] = objectives.config(name, **fields)
        made.data[made.objectives[name].data] = dict(kind=made.objectives[name].data, path=str(folder / "rows.jsonl"))
    made.reference.kind = kind or max((KINDS[name] for name in names), key=["none", "frozen"].index)
    made.optimizer.name, made.optimizer.learning_rate = "sgd", 0.1
    made.batch.examples, made.batch.layout, made.batch.rows, made.train.steps = 4, layout, 8, 2
    made.checkpoint.every = 1
    return made


def without(row):
    return {key: value for key, value in row.items() if key != "samples"}


def assembled(made, folder):
    return assembly.assemble(configuration.sections(made), str(folder), report=quiet)


def stepped(made, folder, count: int = 2):
    """``(states, metrics as numbers)`` of a few steps."""
    states = []
    measured = steps.take(
        assembled(made, folder), count, after=lambda current: states.append(jax.tree.map(np.array, current))
    )
    return states, measured


def assert_close(found, expected, names, rel=1e-4):
    for one, other in zip(found, expected, strict=True):
        for name in names:
            assert one[name] == pytest.approx(other[name], rel=rel, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, KINDS[name]) for name in ("hypo", "vpo_samples", "dft1", "dft2")),
        ("hypo", "cached"),
        ("dft1", "cached"),
    ],
)
def test_layouts_agree(tmp_path, name, kind):
    """Sequence by sequence in several micro-batches, and packed with shared prompts in one."""
    made = config(tmp_path / "padded", name)
    assert assembled(made, tmp_path / "padded").inputs.batch(0).count > 1
    (_, state), expected = stepped(made, tmp_path / "padded")
    of_term = [metric for metric in expected[0] if metric.endswith(f"/{name}")]
    assert {"loss", "length_sample", "logps_sample"} <= {metric.split("/")[0] for metric in of_term}
    made = config(tmp_path / "shared", name, layout="packed+shared", kind=kind)
    assert assembled(made, tmp_path / "shared").inputs.batch(0).count == 1
    (_, found), measured = stepped(made, tmp_path / "shared")
    assert_close(measured, expected, ["gradient_norm", *of_term])
    for one, other in zip(jax.tree.leaves(found.objective), jax.tree.leaves(state.objective), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_who_reads_no_samples_is_not_changed_by_them(tmp_path):
    """Neither alone, where the batch lacks them, nor beside a term that reads them."""
    plain = config(tmp_path / "plain", "dpo", rows=map(without, PAIRS))
    _, expected = stepped(plain, tmp_path / "plain")
    made = config(tmp_path / "alone", "dpo")
    assert assembled(made, tmp_path / "alone").inputs.batch(0).examples["pairs"].mask.shape[1] == 2
    assert stepped(made, tmp_path / "alone")[1] == expected
    beside = config(tmp_path / "beside", "dpo", "hypo")
    beside.objectives.hypo.weight = 0.0
    _, found = stepped(beside, tmp_path / "beside")
    assert_close(found, expected, [name for name in expected[0] if name.endswith("/dpo")])


@pytest.mark.slow
def test_special_cases_are_dpo_and_likelihoods(tmp_path):
    _, dpo = stepped(config(tmp_path, "dpo", beta=0.05), tmp_path)
    for name, weight in (("hypo", "lam"), ("vpo_samples", "alpha")):
        _, found = stepped(config(tmp_path, name, beta=0.05, **{weight: 0.0}), tmp_path)
        for metric in ("loss", "accuracy", "margin"):
            key = f"{metric}/{{}}".format
            assert [m[key(name)] for m in found] == pytest.approx([m[key("dpo")] for m in dpo], rel=1e-5)
    few = [row if n == 3 else without(row) for n, row in enumerate(PAIRS)]
    (state, _), (found, _) = stepped(config(tmp_path, "dft1", rows=few), tmp_path)
    np.testing.assert_array_equal(state.objective["dft1"]["log_u"][:3], 0)
    _, (sums, _) = stepped(config(tmp_path, "sft", normalize="sequence_sum", rows=few), tmp_path)
    assert found["loss/dft1"] == pytest.approx(sums["loss/sft"], rel=1e-5)  # at the reference u is 1


@pytest.mark.slow
def test_the_divergence_of_the_samples_is_logged(tmp_path):
    """Samples of another policy than the reference: their mean log-ratio, before any step and after one."""
    _, (first, second) = stepped(config(tmp_path, "hypo", lam=0.1), tmp_path)
    assert first["kl_estimate/hypo"] == first["displacement_sample/hypo"] == 0
    assert second["kl_estimate/hypo"] == second["displacement_sample/hypo"] != 0
    assert first["loss/hypo"] == pytest.approx(np.log(2), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1, -1])
def test_the_sign_pushes_samples_down_or_up(tmp_path, sign):
    _, measured = stepped(config(tmp_path, "vpo_samples", beta=0.05, alpha=20.0, sign=sign), tmp_path)
    assert np.sign(measured[1]["displacement_sample/vpo_samples"]) == -sign


DEMONSTRATIONS = [
    {"prompt": f"Number {n}:", "completion": f" {n}", "samples": [f" {n + 1}", " many"][: 1 + n % 2]} for n in range(7)
]


def demonstrations(folder, name: str, steps: int, **fields):
    made = config(folder, name, rows=DEMONSTRATIONS, **fields)
    made.batch.examples, made.train.steps = 3, steps
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dft1", "dft2"])
def test_only_averages_of_the_batch_move(tmp_path, name):
    made = demonstrations(tmp_path, name, 4)
    states, measured = stepped(made, tmp_path, 4)
    fed = assembled(made, tmp_path).inputs
    before = np.zeros(7, np.float32)
    for number, state in enumerate(states):
        ids = [int(example.origin.split(":")[1]) - 1 for example in fed.examples(number)["demonstrations"]]
        after = state.objective[name]["log_u"]
        assert after.shape == (7,)
        others = np.setdiff1d(np.arange(7), ids)
        np.testing.assert_array_equal(after[others], before[others])
        if name == "dft2" or number:  # at the reference dft1's averages are 1 from the first
            assert np.all(after[ids] != before[ids])
        before = after
    assert (
        number == 3 and len(set(ids)) <= 3
    )  # the third batch holds the end of one epoch and the beginning of the next
    assert all(np.isfinite(metrics["loss"]) for metrics in measured)


def test_the_loss_is_the_aim_and_not_the_surrogate(tmp_path):
    """-s + tau log u: at the reference u is 1 in dft1, so that only the log-likelihood is left."""
    (state,), (measured,) = stepped(demonstrations(tmp_path, "dft1", 1), tmp_path, 1)
    np.testing.assert_allclose(state.objective["dft1"]["log_u"], 0, atol=1e-5)
    assert measured["loss/dft1"] == pytest.approx(-measured["logps_response/dft1"], rel=1e-5)


@pytest.mark.slow
def test_an_example_that_comes_twice_moves_its_average_once(tmp_path):
    made = config(tmp_path, "dft2", rows=DEMONSTRATIONS[:2])
    states = [stepped(made, tmp_path, 1)[0][0]]
    made.batch.examples = 2
    states += stepped(made, tmp_path, 1)[0]
    twice, once = (state.objective["dft2"]["log_u"] for state in states)
    assert np.all(once != 0)
    np.testing.assert_allclose(twice, once, rtol=1e-5)


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_averages(tmp_path):
    make = functools.partial(demonstrations, tmp_path, "dft1", kind="cached")
    expected = loop.run(make(5), str(tmp_path / "whole"), say=quiet).state
    loop.run(make(3), str(tmp_path / "parts"), say=quiet)
    found = loop.run(make(5), str(tmp_path / "parts"), say=quiet).state
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert np.count_nonzero(found.objective["dft1"]["log_u"]) == 7
    for name, leaf in trees.leaves(found).items():
        np.testing.assert_array_equal(leaf, trees.leaves(expected)[name], err_msg=name)


@pytest.mark.slow
def test_held_out_examples_have_no_averages(tmp_path):
    """Their averages are those of their own samples; without samples there is only the likelihood, or the pairs."""
    made = demonstrations(tmp_path, "dft2", 2)
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps(without(row)) + "\n" for row in DEMONSTRATIONS))
    bare = dict(kind="demonstrations", path=str(tmp_path / "bare.jsonl"))
    made.evals = {"same": dict(data="demonstrations"), "bare": dict(data=bare)}
    parts = assembled(made, tmp_path)
    moved = parts.state._replace(objective={"dft2": {"log_u": np.full(7, 50, np.float32)}})
    bare, same = sorted(heldout.prepare_all(parts, report=quiet), key=lambda evaluation: evaluation.name)
    with jax.set_mesh(parts.mesh):
        found, again, alone = (
            heldout.run(*each) for each in ((same, parts, parts.state), (same, parts, moved), (bare, parts, moved))
        )
    assert found == again
    per_token = alone["bare/token_logps_response/dft2"]  # all completions are of the same length
    assert alone["bare/loss/dft2"] == pytest.approx(-per_token, rel=1e-5)
    assert found["same/loss/dft2"] != pytest.approx(-per_token, rel=1e-2)
    assert "bare/length_sample/dft2" not in alone and found["same/length_sample/dft2"] > 0


@pytest.mark.parametrize("name", ["hypo", "vpo_samples", "dft1", "dft2"])
def test_data_without_any_sample_is_refused(tmp_path, name):
    message = rf"config.objectives.{name} \({name}\) reads samples, but no row of its data stream '\w+' has the field"
    with pytest.raises(ConfigError, match=message):
        assembled(config(tmp_path, name, rows=map(without, PAIRS)), tmp_path)


def test_a_plan_cannot_know_how_many_samples_there_are(tmp_path):
    made = config(tmp_path, "hypo")
    made.length.prompt = made.length.response = 8
    sections = configuration.sections(made)
    with pytest.raises(ConfigError, match="cannot know how many responses the examples of 'hypo' have"):
        program.declared_shape(sections, objectives.build(sections.objectives), None)
