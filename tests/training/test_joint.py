"""Responses with prompts of their own, from a file to the loss: which tokens count, the same in every layout."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import configuration, objectives
from jaxpref.data import Tokenized, layouts
from jaxpref.errors import ConfigError
from jaxpref.training import assembly, engine, state
from tests.training import steps

PAIRS = [
    {"prompt": "A fruit:", "chosen": " an apple", "rejected": " a stone"},
    {"prompt": "A tree, any:", "chosen": " birch", "rejected": " a shoe"},
    {"prompt": "Two:", "chosen": " 2", "rejected": " three", "weight": 0.5},
]
JOINT = [
    {"chosen_prompt": "A fruit:", "chosen": " an apple", "rejected_prompt": "One, please:", "rejected": " a stone"},
    {"chosen_prompt": "Any tree:", "rejected_prompt": "Any old river at all:", "response": " a birch"},
    PAIRS[2],
]
CROSSED = [
    {"hi_prompt": "Briefly:", "lo_prompt": "At some length:", "chosen": " 2", "rejected": " two and no more"},
    {"hi_prompt": "In words:", "lo_prompt": "In digits", "chosen": " one", "rejected": " 1"},
]
ROWS = {"pairs": PAIRS, "joint": JOINT, "crossed": CROSSED}


def assemble(folder, method: str, kind: str, rows: list, *, layout="padded", reference="frozen", examples=0):
    folder.mkdir(exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = configuration.default()
    made.model.name, made.model.overrides = "nano", dict(layers=1, width=16, heads=2, head_dim=8, mlp_width=16)
    made.model.chunk = 32
    made.tokenizer.path = "byte"
    made.data.rows = dict(kind=kind, path=str(path))
    made.objectives[method] = objectives.config(method, data="rows")
    made.reference.kind = reference
    made.optimizer.name, made.optimizer.learning_rate = "sgd", 0.1
    made.batch.examples, made.batch.layout, made.batch.rows, made.train.steps = examples or len(rows), layout, 8, 2
    return assembly.assemble(configuration.sections(made), str(folder), report=lambda *_: None)


def two_steps(parts) -> list[dict[str, float]]:
    """Metrics of two steps, without the name of the term."""
    return [{name.split("/")[0]: value for name, value in found.items() if "/" in name} for found in steps.take(parts)]


def assert_close(found, expected, names=None):
    for one, other in zip(found, expected, strict=True):
        for name in names or one:
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind"), [("dove", "joint"), ("mapl_intra", "joint"), ("mapl_inter", "crossed")])
def test_layouts_and_a_cached_reference_agree(tmp_path, method, kind):
    expected = two_steps(assemble(tmp_path / "padded", method, kind, ROWS[kind]))
    assert {"loss", "reward_chosen" if kind == "joint" else "reward_hi_chosen", "margin", "accuracy"} <= expected[
        0
    ].keys()
    assert expected[1]["loss"] < expected[0]["loss"] == pytest.approx(math.log(2) * (2.5 / 3 if kind == "joint" else 1))
    for layout, reference in (("packed+shared", "frozen"), ("packed+shared", "cached"), ("packed", "cached")):
        folder = tmp_path / f"{layout}-{reference}"
        parts = assemble(folder, method, kind, ROWS[kind], layout=layout, reference=reference)
        assert_close(two_steps(parts), expected)


@pytest.mark.slow
def test_joint_preferences_of_one_prompt_are_direct_ones(tmp_path):
    """The prompt's probability is that of both sides, so that it cancels."""
    joint = two_steps(assemble(tmp_path / "joint", "dove", "joint", PAIRS))
    pairs = two_steps(assemble(tmp_path / "pairs", "dpo", "pairs", PAIRS))
    assert_close(joint, pairs, ("loss", "margin", "accuracy"))
    assert joint[1]["margin"] > 0
    assert joint[1]["logps_chosen"] < pairs[1]["logps_chosen"] - 10  # of prompt and response together


def example(prompts: list[str], responses: list[str], number: int):
    """A record as the reader makes it, of any texts; an end of sequence is 257, its beginning 256."""
    tokens = [np.array([*p.encode(), *r.encode(), 257], np.int32) for p, r in zip(prompts, responses, strict=True)]
    side = {"prompt_lengths": np.array([len(prompt) for prompt in prompts], np.float32)}
    masks = tuple(np.ones(len(ids), bool) for ids in tokens)
    return Tokenized(np.array([256], np.int32), tuple(tokens), masks, side, f"made:{number}")


def random_outputs(examples, shape, seed=0):
    """A planned batch's examples, and random channels in their order."""
    stream = layouts.plan({"rows": examples}, shape).examples["rows"]
    noise = np.random.default_rng(seed).normal(size=(2, *stream.mask.shape)) - 2
    stream = jax.tree.map(jnp.asarray, stream)
    return {name: jnp.where(stream.mask, noise[n], 0) for n, name in enumerate(("logps", "ref_logps"))}, stream


def evaluate(method, examples, **overrides):
    """The loss, its metrics and its gradient by the policy's log-probabilities, on random ones."""
    sides, longest = ("prompt_lengths",), max(len(ids) for each in examples for ids in each.responses)
    stream = layouts.StreamShape(len(examples), len(examples[0].responses), 1, longest, sides)
    shape = layouts.batch_shape({"rows": stream})
    made = objectives.config(method, data="rows", **overrides)
    term = objectives.build({"term": made}).terms["term"]
    outputs, stream = random_outputs(examples, shape)

    def loss(logps):
        value, metrics, _ = term.loss(
            outputs | {"logps": logps}, stream, term.denominators(stream), {}, jax.random.key(0), 0
        )
        return value, metrics

    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(outputs["logps"])
    return float(value), {n: float(s) / float(c) for n, (s, c) in metrics.items() if c}, gradient, outputs, stream


MADE = [example(["Sum:", "Sing a song:"], ["4", "la la"], 0), example(["Be brief.", "Be long!"], ["No", "No"], 1)]


def test_joint_preferences_read_the_prompts_and_the_others_do_not():
    """Sums by hand: of all targets, or of those behind the prompt."""
    for method, own in (("dove", [[0, 0], [0, 0]]), ("mapl_intra", [[4, 12], [9, 8]])):
        value, metrics, gradient, outputs, stream = evaluate(method, MADE)
        counted = stream.mask & (np.arange(stream.mask.shape[-1]) >= np.array(own)[..., None])
        ratios = np.sum(np.where(counted, outputs["logps"] - outputs["ref_logps"], 0), axis=-1)
        margins = 0.1 * (ratios[:, 0] - ratios[:, 1])
        assert value == pytest.approx(np.mean(np.logaddexp(0, -margins)), rel=1e-5)
        assert metrics["margin"] == pytest.approx(np.mean(margins), rel=1e-5)
        assert metrics["reward_chosen"] == pytest.approx(0.1 * np.mean(ratios[:, 0]), rel=1e-5)
        assert metrics["length_chosen"] == np.mean(np.sum(counted[:, 0], axis=-1))
        assert metrics["displacement_rejected"] == pytest.approx(np.mean(ratios[:, 1]), rel=1e-5)
        np.testing.assert_array_equal(gradient != 0, counted)


def test_crossed_margins_are_of_the_responses_alone():
    crossed = [example(["Hi:", "Hi:", "Lo, or so:", "Lo, or so:"], ["a", "bcd"] * 2, n) for n in range(2)]
    value, metrics, gradient, outputs, stream = evaluate("mapl_inter", crossed, beta=0.5)
    counted = stream.mask & (np.arange(stream.mask.shape[-1]) >= np.array([3, 3, 10, 10])[:, None])
    ratios = 0.5 * np.sum(np.where(counted, outputs["logps"] - outputs["ref_logps"], 0), axis=-1)
    high, low = ratios[:, 0] - ratios[:, 1], ratios[:, 2] - ratios[:, 3]
    assert value == pytest.approx(np.mean(np.logaddexp(0, low - high)), rel=1e-5)
    assert metrics["margin_hi"] == pytest.approx(np.mean(high), rel=1e-5)
    assert metrics["margin_lo"] == pytest.approx(np.mean(low), rel=1e-5)
    assert metrics["accuracy"] == np.mean(high > low)
    assert metrics["reward_lo_rejected"] == pytest.approx(np.mean(ratios[:, 3]), rel=1e-5)
    assert metrics["length_hi_rejected"] == 4
    np.testing.assert_array_equal(gradient != 0, counted)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind"), [("mapl_intra", "joint"), ("mapl_inter", "crossed")])
def test_equal_prompts_teach_nothing(tmp_path, method, kind):
    """Whatever the policy, the loss is ln 2 and has no gradient: a reader drops such rows."""
    responses = {"joint": ["one", "one"], "crossed": ["one", "two"] * 2}[kind]
    rows = [example(["Count:"] * len(responses), responses, n) for n in range(2)]
    parts = assemble(tmp_path, method, kind, ROWS[kind])
    stream = layouts.StreamShape(2, len(responses), 1, 10, ("prompt_lengths",))
    shape = layouts.batch_shape({"rows": stream}, layout="shared")
    needs = engine.channel_names(parts.objective)

    @jax.jit
    def gradient(params, reference, batch):
        forward = state.make_forward(parts.model, shape.layout, needs, reference)
        return engine.gradient(parts.objective, forward, params, batch, {}, jax.random.key(0), 0)

    moved = jax.tree.map(lambda leaf: leaf + 0.1, parts.state.params)
    with jax.set_mesh(parts.mesh):
        result, gradients = gradient(moved, parts.reference, layouts.plan({"rows": rows}, shape))
    assert float(result.loss) == pytest.approx(math.log(2), rel=1e-6)
    assert float(result.metrics[f"kl_estimate/{method}"][0]) > 1e-3
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradients)) < 1e-5


@pytest.mark.parametrize(
    ("method", "kind", "message"),
    [
        ("dove", "pairs", "learns from joint, but .* 2 responses under one prompt; .* of kind 'joint'"),
        ("dpo", "joint", "learns from pairs, but .* 2 responses under prompts of their own; .* of kind 'pairs'"),
        ("mapl_inter", "joint", "learns from crossed, but .* 2 responses under prompts of their own"),
        ("mapl_intra", "crossed", "learns from joint, but .* 4 responses under prompts of their own"),
    ],
)
def test_a_stream_of_another_kind_is_refused(tmp_path, method, kind, message):
    parts = assemble(tmp_path, method, kind, ROWS[kind])
    with jax.set_mesh(parts.mesh), pytest.raises(ConfigError, match=rf"config.objectives.{method} .*{message}"):
        jax.eval_shape(parts.compile_step(), parts.state, parts.reference, jax.random.key(0), parts.place(0))
