"""Gradients of conflicting objectives made one, and lists of numbers in rows: from a file to the step."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import configuration, data, objectives
from jaxpref.data import layouts
from jaxpref.errors import ConfigError, DataError
from jaxpref.planning import program
from jaxpref.training import assembly, costs, engine, loop, throughput
from tests.training import steps

# ------------------------------------------------------------------------------------------------ a linear model

# A token's log-probability is the product of its features with the parameters: at zero, gradients are known by hand.
FEATURES = np.array([[0.0, 0.0], [0.0, 3.0], [-2.0, 5.0], [1.5, -1.0]])
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
FORMS = {"one micro-batch": (0, False), "one pass": (2, False), "two passes": (2, True)}
every_form = pytest.mark.parametrize("form", FORMS)
first_form = pytest.mark.parametrize("form", [next(iter(FORMS)), *(slow(form) for form in list(FORMS)[1:])])


def pair(chosen: int, rejected: int, prefers):
    side = {"prefers": np.array(prefers, np.float32)}
    both = tuple(np.array([token], np.int32) for token in (chosen, rejected))
    return data.Tokenized(np.array([1, 1], np.int32), both, (np.ones(1, bool),) * 2, side, "pairs:1")


def forward(params, rows, short):
    """The second leaf may be frozen; the reference is the model at zero."""
    weights = params["weights"] if params["more"] is None else params["weights"] + params["more"][0]
    logps = (jnp.asarray(FEATURES, weights.dtype)[rows.targets] @ weights).astype(jnp.result_type(float))
    return {"logps": logps, "ref_logps": jnp.zeros_like(logps)}


def built(coupled=False, **terms):
    total = objectives.build({name: objectives.config(name, **fields) for name, fields in terms.items()})
    return objectives.Total({name: term._replace(coupled=coupled) for name, term in total.terms.items()})


def descent(total, form: str, pairs, params=None, *, step: int = 0):
    """``(Evaluation, direction, metrics of the combination)``."""
    rows, coupled = FORMS[form]
    total = objectives.Total({name: term._replace(coupled=coupled) for name, term in total.terms.items()})
    sides = pairs[0].side
    stream = layouts.StreamShape(4, 2, 2, 1, tuple(sides), widths={name: len(values) for name, values in sides.items()})
    batch = layouts.plan({"pairs": pairs}, layouts.batch_shape({"pairs": stream}, rows=rows))
    params = {"weights": jnp.zeros(2), "more": None} if params is None else params

    def run(params, batch):
        apart = total.gradients > 0
        result, gradients = engine.gradient(total, forward, params, batch, {}, jax.random.key(0), step, apart=apart)
        return result, *(total.combine(gradients, step) if apart else (gradients, {}))

    assert (batch.rows.tokens.shape[0] > 1) == (rows > 0)
    return jax.tree.map(np.asarray, jax.jit(run)(params, batch))


def by_hand(beta: float, prefers, weights):
    """Value and gradient of the weighted loss of MORE at START."""
    features = jnp.array([FEATURES[e.responses[0][0]] - FEATURES[e.responses[1][0]] for e in MORE])

    def loss(parameters):
        margins = beta * jnp.array(prefers) * (features @ parameters)[:, None]
        return jnp.mean(jax.nn.softplus(-margins) @ jnp.array(weights))

    value, gradient = jax.value_and_grad(loss)(START["weights"])
    return float(value), np.asarray(gradient)


CONFLICT = [pair(1, 0, (1, 1)), pair(2, 0, (1, -1))]  # the gradients are (1, -4) and (-1, 1) for beta = 2
MORE = [*CONFLICT, pair(3, 1, (-1, 1)), pair(2, 3, (1, 1))]
START = {"weights": jnp.array([0.3, -0.2]), "more": None}


@every_form
def test_worked_example_of_the_paper(form):
    total = built(raco=dict(weights=(0.2, 0.8), c=0.5, beta=2.0))
    result, direction, metrics = descent(total, form, CONFLICT)
    np.testing.assert_allclose(direction["weights"], [-0.8829989833, -0.0995568950], rtol=1e-5)
    coefficients = [metrics[f"coefficient_{n}/raco"][0] for n in range(2)]
    np.testing.assert_allclose(coefficients, [0.3275186263, 1.2105176096], rtol=1e-5)
    assert metrics["phi/raco"][0] == pytest.approx(0.4222412465, rel=1e-4)
    assert result.loss == pytest.approx(np.log(2), rel=1e-6)


@first_form
def test_without_reach_it_is_the_gradient_of_the_weighted_loss(form):
    fields = dict(beta=0.7, weights=(0.3, 0.7))
    result, direction, _ = descent(built(raco=fields | dict(c=0.0)), form, MORE, START)

    value, expected = by_hand(0.7, [e.side["prefers"] for e in MORE], [0.3, 0.7])
    assert result.loss == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(direction["weights"], expected, rtol=1e-5)


@first_form
def test_objectives_that_agree_take_a_longer_step(form):
    """Alone, or with one that is the same, the direction is (1 + c) times the gradient of DPO."""
    one = [e._replace(side={"prefers": e.side["prefers"][:1] ** 2}) for e in MORE]
    two = [e._replace(side={"prefers": np.ones(2, np.float32)}) for e in MORE]
    _, expected = by_hand(0.7, np.ones((4, 1)), [1.0])
    for pairs, weights in ((one, (1.0,)), (two, (0.5, 0.5))):
        _, direction, _ = descent(built(raco=dict(beta=0.7, weights=weights, c=0.4)), form, pairs, START)
        np.testing.assert_allclose(direction["weights"], 1.4 * expected, rtol=1e-5)


@every_form
def test_terms_add_up_by_their_weights(form):
    """Those that combine nothing add their gradient; the direction is multiplied by its term's weight."""
    alone, direction, _ = descent(built(raco=dict(beta=0.7, c=0.3)), form, MORE, START)
    value, gradient = by_hand(0.2, np.ones((4, 1)), [1.0])
    moving = dict(schedule="linear", start=0.0, end=1.0, steps=4)
    total = built(dpo=dict(beta=0.2, weight=0.5), raco=dict(beta=0.7, c=0.3, weight=moving))
    result, together, _ = descent(total, form, MORE, START, step=3)
    assert result.loss == pytest.approx(0.75 * alone.loss + 0.5 * value, rel=1e-5)
    expected = 0.75 * direction["weights"] + 0.5 * gradient
    np.testing.assert_allclose(together["weights"], expected, rtol=1e-4, atol=1e-6)


def test_metrics_of_each_objective():
    result, _, _ = descent(built(raco=dict(beta=0.7, weights=(0.3, 0.7))), "one pass", MORE, START)
    found = {name: float(total) / float(count) for name, (total, count) in result.metrics.items()}
    differences = [(FEATURES[e.responses[0][0]] - FEATURES[e.responses[1][0]]) @ [0.3, -0.2] for e in MORE]
    for n in range(2):
        margins = np.array([0.7 * d * e.side["prefers"][n] for d, e in zip(differences, MORE, strict=True)])
        assert found[f"loss_{n}/raco"] == pytest.approx(np.mean(np.log1p(np.exp(-margins))), rel=1e-5)
        assert found[f"margin_{n}/raco"] == pytest.approx(np.mean(margins), abs=1e-6)
        assert found[f"accuracy_{n}/raco"] == np.mean(margins > 0)
    assert found["loss/raco"] == pytest.approx(0.3 * found["loss_0/raco"] + 0.7 * found["loss_1/raco"], rel=1e-5)


@first_form
def test_bfloat16_leaves_and_frozen_ones(form):
    """Gradients of bfloat16 parameters are added up, and their inner products taken, in float32."""
    total = built(raco=dict(weights=(0.2, 0.8), c=0.5, beta=2.0))
    low = jnp.bfloat16
    _, direction, _ = descent(total, form, CONFLICT, {"weights": jnp.zeros(2, low), "more": None})
    assert direction["weights"].dtype == jnp.float32 and direction["more"] is None
    np.testing.assert_allclose(direction["weights"], [-0.883, -0.0996], atol=5e-3)
    whole = {"weights": jnp.zeros(2, low), "more": jnp.zeros((1, 2))}
    _, direction, metrics = descent(total, form, CONFLICT, whole)
    np.testing.assert_allclose(direction["weights"], direction["more"][0], atol=5e-3)
    assert metrics["phi/raco"][0] == pytest.approx(2 * 0.4222412465, rel=1e-2)  # both leaves count


def test_a_config_without_conflicts_takes_a_plain_gradient():
    """The program of one micro-batch is that of ``jax.grad`` of the objective, to the letter."""
    total = built(dpo={}, ipo={})
    stream = layouts.StreamShape(4, 2, 2, 1)
    batch = layouts.plan({"pairs": MORE}, layouts.batch_shape({"pairs": stream}))
    given = {}, jax.random.key(0), 0

    def plain(params):
        denominators = total.denominators(batch.examples)

        def loss(params):
            rows = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, 0, keepdims=False), batch.rows)
            channels = {name: values[None] for name, values in forward(params, rows, False).items()}
            result = engine.evaluate(total, channels, batch.examples, denominators, *given)
            return result.loss, result

        return jax.grad(loss, has_aux=True)(params)[::-1]

    assert total.gradients == 0
    found = jax.make_jaxpr(lambda params: engine.gradient(total, forward, params, batch, *given))(START)
    assert str(found) == str(jax.make_jaxpr(plain)(START))


def test_passes_count_every_backward_pass():
    params = {"model": {"a": np.zeros((4, 3)), "b": np.zeros(4)}}
    trained = {"model": {"a": True, "b": False}}
    assert throughput.passes(params, trained, reference=True, gradients=3) == 1 + 3 * (1 + 12 / 16) + 1
    assert [built(**terms).gradients for terms in ({"raco": {}}, {"raco": {}, "dpo": {}}, {"dpo": {}})] == [2, 3, 0]


# ------------------------------------------------------------------------------------------------ rows of a file

PROMPTS = ["A fruit:", "A tree, any tree:", "A river:", "Two:"]
ROWS = [
    {"prompt": PROMPTS[0], "chosen": " an apple", "rejected": " a stone", "prefers": [1, 1]},
    {"prompt": PROMPTS[1], "chosen": " birch", "rejected": " a shoe of wood", "prefers": [1, -1]},
    {"prompt": PROMPTS[2], "chosen": " the long Rhine", "rejected": " Alps", "prefers": [-1, 1.0]},
    {"prompt": PROMPTS[3], "chosen": " two", "rejected": " three", "prefers": [1, -1]},
]
EMBEDDINGS = [[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 2.0], [0.0, 1.0, 0.0]]
EMBEDDED = [row | {"prompt_embedding": e} for row, e in zip(ROWS, EMBEDDINGS, strict=True)]
THUMBS = [
    {"prompt": row["prompt"], "completion": row["chosen"], "label": label, "prompt_embedding": row["prompt_embedding"]}
    for row, label in zip(EMBEDDED, (True, False, True, False), strict=True)
]


def config(folder, rows, method: str, layout: str = "padded", **fields):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = configuration.default()
    made.model.name, made.model.overrides = "nano", dict(layers=1, width=16, heads=2, head_dim=8, mlp_width=16)
    made.model.chunk = 32
    made.tokenizer.path = "byte"
    kind = "unpaired" if "label" in rows[0] else "pairs"
    made.data.rows = dict(kind=kind, path=str(path))
    made.objectives[method] = objectives.config(method, data="rows", **fields)
    made.reference.kind = "frozen"
    made.optimizer.name, made.optimizer.learning_rate = "sgd", 0.1
    made.batch.examples, made.batch.layout, made.train.steps = 4, layout, 2
    return made


def assembled(made, folder):
    return assembly.assemble(configuration.sections(made), str(folder), report=lambda *_: None)


def two_steps(made, folder) -> list[dict[str, float]]:
    return steps.take(assembled(made, folder))


def test_lists_of_numbers_travel_with_their_rows(tmp_path):
    inputs = assembled(config(tmp_path, EMBEDDED, "raco"), tmp_path).inputs
    side = inputs.batch(0).examples["rows"].side
    order = [int(example.origin.rpartition(":")[2]) - 1 for example in inputs.examples(0)["rows"]]
    np.testing.assert_array_equal(side["prefers"], [ROWS[n]["prefers"] for n in order])
    np.testing.assert_array_equal(side["prompt_embedding"], np.array([EMBEDDINGS[n] for n in order], np.float32))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prefers", [1, -1, 1], r"rows.jsonl:3: field 'prefers' holds 3 numbers; expected 2, as in the rows before it"),
        ("prefers", [1, 0], r"rows.jsonl:3: field 'prefers\[1\]' is 0; expected 1 or -1"),
        ("prefers", [1, True], r"rows.jsonl:3: field 'prefers\[1\]' is bool True; expected a finite number"),
        ("prefers", 1, r"rows.jsonl:3: field 'prefers' is int 1; expected a list of numbers"),
        ("prompt_embedding", [], r"rows.jsonl:3: field 'prompt_embedding' is a list of 0; expected a list of numbers"),
        ("prompt_embedding", [1, None], r"rows.jsonl:3: field 'prompt_embedding\[1\]' is missing; expected a finite"),
    ],
)
def test_rows_with_other_lists_are_refused(tmp_path, field, value, message):
    rows = [*EMBEDDED[:2], EMBEDDED[2] | {field: value}, EMBEDDED[3]]
    made = config(tmp_path, rows, "raco")
    with pytest.raises(DataError, match=message):
        assembled(made, tmp_path)


def test_rows_with_other_lists_may_be_skipped(tmp_path):
    made = config(tmp_path, [*ROWS[:3], ROWS[3] | {"prefers": [1, 1, 1]}], "raco")
    made.data.rows.on_bad_row, made.batch.examples = "skip", 3
    assert len(assembled(made, tmp_path).inputs.streams["rows"]) == 3


def test_the_planner_names_an_example_with_another_list():
    stream = layouts.StreamShape(2, 2, 2, 1, ("prefers",), widths={"prefers": 3})
    with pytest.raises(DataError, match="pairs:1: field 'prefers' holds 2 numbers in stream 'pairs'; expected 3"):
        layouts.plan({"pairs": CONFLICT}, layouts.batch_shape({"pairs": stream}))


def test_weights_of_another_length_are_an_error_of_the_config(tmp_path):
    made = config(tmp_path, ROWS, "raco", weights=(0.2, 0.3, 0.5))
    message = "config.objectives.raco .raco., data stream 'rows': there are 3 weights, but prefers has 2 numbers a pair"
    with pytest.raises(ConfigError, match=message):
        two_steps(made, tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(weights=0.5), r"raco.weights is 0.5; expected a list of numbers"),
        (dict(weights=()), r"raco.weights is \(\); expected a list of numbers"),
        (dict(weights=(0.5, 0.6)), r"weights is \[0.5, 0.6\], but must sum to 1"),
        (dict(weights=(1.5, -0.5)), r"weights\[1\] is -0.5, but must be"),
        (dict(weights=dict(schedule="linear", start=0, end=1, steps=2)), "only numbers can move"),
        (dict(c=1.0), "c is 1.0, but must be between 0 and 1, 1 excluded"),
        (dict(clip=1), "raco.clip is 1; expected True or False"),
    ],
)
def test_errors_of_the_config(fields, message):
    with pytest.raises(ConfigError, match=message):
        built(raco=fields)


def test_a_pair_without_an_embedding_cannot_be_compared_by_its_prompt(tmp_path):
    made = config(tmp_path, ROWS, "relative_rpo", variant="paired")
    with pytest.raises(ConfigError, match="variant is 'paired', which needs prompt embeddings"):
        two_steps(made, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "method", "fields"),
    [
        (ROWS, "raco", dict(weights=(0.3, 0.7))),
        (EMBEDDED, "relative_rpo", dict(variant="paired")),
        (THUMBS, "relative_rpo_unpaired", {}),
    ],
)
def test_layouts_agree(tmp_path, rows, method, fields):
    expected = two_steps(config(tmp_path, rows, method, **fields), tmp_path)
    found = two_steps(config(tmp_path, rows, method, "packed+shared", **fields), tmp_path)
    assert found[0][f"loss/{method}"] == pytest.approx(np.log(2), rel=1e-5)
    assert found[1]["loss"] < found[0]["loss"]
    for one, other in zip(found, expected, strict=True):
        names = [name for name in one if name.endswith(f"/{method}")]
        assert {"loss", "phi"} <= {name.split("/")[0] for name in names} or method != "raco"
        for name in names:
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name


@pytest.mark.slow
def test_adapters_alone_are_moved(tmp_path):
    """The gradients of the objectives are those of the adapter's leaves."""
    made = config(tmp_path, ROWS, "raco")
    made.adapter.kind, made.adapter.rank, made.reference.kind = "lora", 2, "adapter_off"
    first, second = two_steps(made, tmp_path)
    assert second["loss"] < first["loss"] and first["phi/raco"] > 0


@pytest.mark.slow
def test_a_run_with_a_cached_reference_goes_on_where_it_was(tmp_path):
    """Through the checks of the first steps, an evaluation, a checkpoint, and a config read back from its file."""
    made = config(tmp_path, ROWS, "raco", "packed+shared", weights=(0.3, 0.7))
    made.reference.kind, made.evals.again, made.log.progress = "cached", dict(data="rows"), False
    folder = tmp_path / "run"
    for count in (3, 5):
        made.train.steps = count
        finished = loop.run(made, str(folder), say=lambda *_: None)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line for line in lines if "loss/raco" in line}
    assert sorted(logged) == [1, 2, 3, 4, 5]
    assert logged[5]["loss"] < logged[1]["loss"] == pytest.approx(np.log(2), rel=1e-4)
    names = ("loss", "margin", "accuracy", "coefficient")
    assert {f"{name}_{n}/raco" for name in names for n in range(2)} | {"phi/raco"} <= logged[1].keys()
    assert finished.results["again/loss_1/raco"] < np.log(2)


def test_a_plan_knows_how_many_objectives_there_are(tmp_path):
    made = config(tmp_path, ROWS, "raco", weights=(0.2, 0.3, 0.5))
    made.length.prompt, made.length.response = 8, 6
    sections = configuration.sections(made)
    shape = program.declared_shape(sections, objectives.build(sections.objectives), costs.Machine())
    assert layouts.plan({"rows": ()}, shape).examples["rows"].side["prefers"].shape == (4, 3)


def test_near_prompts_weigh_more():
    """Weights of the logits by hand, for the embeddings of a file."""
    term = objectives.build({"a": objectives.config("relative_rpo", variant="paired", beta=0.7)}).terms["a"]
    random = np.random.default_rng(0)
    outputs = {name: jnp.asarray(random.normal(size=(4, 2, 1)), jnp.float32) for name in ("logps", "ref_logps")}
    stream = layouts.StreamShape(4, 2, 2, 1, ("prompt_embedding",), widths={"prompt_embedding": 3})
    pairs = [e._replace(side={"prompt_embedding": np.array(v)}) for e, v in zip(MORE, EMBEDDINGS, strict=True)]
    examples = layouts.plan({"pairs": pairs}, layouts.batch_shape({"pairs": stream})).examples["pairs"]
    value, *_ = term.loss(outputs, examples, term.denominators(examples), {}, None, 0)
    unit = np.array(EMBEDDINGS) / np.linalg.norm(EMBEDDINGS, axis=1, keepdims=True)
    weights = np.exp((unit @ unit.T - 1) / 0.5)
    weights /= weights.sum(axis=1, keepdims=True)
    chosen, rejected = np.asarray(outputs["logps"] - outputs["ref_logps"])[:, :, 0].T
    logits = 0.7 * weights * (chosen[:, None] - rejected)
    assert float(value) == pytest.approx(np.mean(np.log1p(np.exp(-logits))), rel=1e-5)
