"""Several references: the further ones are scored once, whatever the first one is, and travel with the examples."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxpref import cli, configuration, data, models, objectives
from jaxpref.errors import ConfigError, ModelError
from jaxpref.planning.program import program
from jaxpref.training import assembly, loop, mesh, precompute, starting, state
from tests.objectives.example_batches import batch
from tests.training import steps
from tests.training.test_offload import lines, quiet

SIZES = dict(layers=1, width=16, heads=2, head_dim=8, mlp_width=16)
WORDS = ("apple", "birch", "river", "stone", "cloud")
ROWS = [
    {"prompt": f"Name {WORDS[n]}", "chosen": f" {WORDS[n]}" * (1 + n % 3), "rejected": f" {WORDS[n - 1]} {n}."}
    for n in range(5)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of pairs, and models to be references, of different seeds: ``policy``, ``0``, ``1``; ``wide`` is another."""
    folder = tmp_path_factory.mktemp("references")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    made = config(folder, "dpo")
    for name, seed, sizes in (("policy", 0, {}), ("0", 1, {}), ("1", 2, {}), ("wide", 3, {"width": 32})):
        made.model.overrides = SIZES | sizes
        sections = configuration.sections(made)
        devices = mesh.make_mesh(sections.mesh)
        with jax.set_mesh(devices):
            model, params = starting.load_model(sections.model, starting.Source("scratch", ""), devices, seed=seed)
            models.save_hf(model, params, folder / name)
    return folder


def config(folder, method: str, others=(), kind="frozen", layout="padded", **hyperparameters):
    made = configuration.default()
    made.model.name, made.model.overrides, made.model.chunk = "nano", SIZES, 32
    made.tokenizer.path = "byte"
    made.data.pairs = dict(kind="pairs", path=str(folder / "pairs.jsonl"))
    made.objectives.term = objectives.config(method, **hyperparameters)
    made.reference.kind, made.reference.others = kind, tuple(str(folder / name) for name in others)
    made.optimizer.name, made.optimizer.learning_rate = "sgd", 0.5
    made.batch.examples, made.batch.layout, made.train.steps = 3, layout, 2
    made.batch.rows = 0 if layout == "padded" else 8
    made.log.progress = False
    return made


def assembled(made, workdir) -> assembly.Assembly:
    return assembly.assemble(configuration.sections(made), str(workdir), report=quiet)


def two_steps(made, workdir) -> list[dict[str, float]]:
    """The term's metrics of two steps."""
    measured = steps.take(assembled(made, workdir))
    return [{n: v for n, v in found.items() if n.endswith("/term") or n == "gradient_norm"} for found in measured]


def assert_same(found, expected, names=None):
    for one, other in zip(found, expected, strict=True):
        for name in names or other:
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name


LOSS = ("loss/term", "gradient_norm")  # the other numbers compare with the first reference


@pytest.mark.parametrize(
    ("method", "hyperparameters", "reference"),
    [
        ("mrpo", dict(alpha=(0.0, 0.0, 1.0), eps=1e9), 2),
        ("mrpo", dict(alpha=[0.0, 1.0, 0.0], eps=1e9), 1),
        ("mrpo", dict(alpha=(1.0, 0.0, 0.0)), 0),
        ("mrpo", dict(eps=0.0), 0),
        ("sequential_po", dict(alphas=0.0), 0),
        ("sequential_po", dict(alphas=(0.0, 0.0)), 0),
    ],
)
def test_special_cases_are_dpo(method, hyperparameters, reference):
    """With the reference of that number, 0 for the first one."""
    outputs, examples = batch(method)
    every = [outputs["ref_logps"], *np.moveaxis(outputs["other_ref_logps"], -1, 0)]

    def loss(name, outputs, **fields):
        total = objectives.build({"term": objectives.config(name, **fields)}, others=2)
        denominators = total.denominators({"pairs": examples})
        return float(
            jax.jit(lambda: total.loss({"term": outputs}, {"pairs": examples}, denominators, {}, None, 0)[0])()
        )

    expected = loss("dpo", {"logps": outputs["logps"], "ref_logps": every[reference]})
    assert loss(method, outputs, **hyperparameters) == pytest.approx(expected, rel=1e-5)
    assert loss(method, outputs) != pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_equal_references_are_dpo(folder, tmp_path):
    expected = two_steps(config(folder, "dpo"), tmp_path / "dpo")
    assert_same(two_steps(config(folder, "mrpo", ("policy", "policy"), "cached"), tmp_path / "mrpo"), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "others", "hyperparameters", "reference"),
    [
        ("mrpo", ("0", "1"), dict(alpha=(0.0, 0.0, 1.0), eps=1e9), "1"),
        ("sequential_po", ("0", "1"), dict(alphas=(0.0, 0.0)), ""),
        ("sequential_po", ("policy",), {}, ""),
    ],
    ids=["one-hot", "no earlier rounds", "a round without a step"],
)
def test_special_cases_are_dpo_from_rows_to_updates(folder, tmp_path, method, others, hyperparameters, reference):
    made = config(folder, "dpo")
    made.reference.path = reference and str(folder / reference)
    expected = two_steps(made, tmp_path / "dpo")
    found = two_steps(config(folder, method, others, **hyperparameters), tmp_path / method)
    assert_same(found, expected, LOSS)


def test_earlier_rounds_are_read_oldest_first(folder, tmp_path):
    """The loss by hand at step 0, where policy and reference are equal."""
    parts = assembled(config(folder, "sequential_po", ("0", "1"), "cached", alphas=(0.3, 0.7), beta=0.2), tmp_path)
    with jax.set_mesh(parts.mesh):
        parts = precompute.fill_run(parts, [], range(1), quiet)
        planned, policy = parts.place(0), state.averaged(parts.state, parts.trainable)
        evaluate = jax.jit(
            state.make_evaluation(parts.model, parts.objective, parts.inputs.shape.layout, cached=parts.cached)
        )
        _, metrics = evaluate(policy, {}, None, None, 0, planned)
    side = planned.examples["pairs"].side
    oldest, later = np.moveaxis(np.sum(side["other_ref_logps"], axis=2), -1, 0)
    first = 0.2 * (later - oldest)
    second = 0.2 * (np.sum(side["ref_logps"], axis=2) - later) - 0.3 * first
    earlier = 0.3 * first + 0.7 * second
    expected = np.mean(np.logaddexp(0, earlier[:, 0] - earlier[:, 1]))
    assert abs(expected - np.log(2)) > 1e-2
    assert float(metrics["loss/term"][0]) / 3 == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "layout", "options"),
    [("mrpo", "packed", {}), ("sequential_po", "packed+shared", {"alphas": (0.3, 0.7)})],
)
def test_layouts_kinds_and_micro_batches_agree(folder, tmp_path, method, layout, options):
    made = config(folder, method, ("0", "1"), **options)
    made.batch.examples, made.batch.rows = 5, 8  # several micro-batches
    assert assembled(made, tmp_path / "padded").inputs.shape.micro_batches > 1
    expected = two_steps(made, tmp_path / "padded")
    assert abs(expected[0]["loss/term"] - np.log(2)) > 1e-3
    made.reference.kind, made.batch.layout = "cached", layout
    assert_same(two_steps(made, tmp_path / layout), expected)


@pytest.mark.slow
def test_the_reference_may_be_another_of_its_kinds(folder, tmp_path):
    expected = two_steps(config(folder, "mrpo", ("0",)), tmp_path / "frozen")
    made = config(folder, "mrpo", ("0",), "moving")
    made.reference.every = 2
    assert_same(two_steps(made, tmp_path / "moving"), expected)
    made = config(folder, "mrpo", ("0",), "adapter_off")
    made.adapter.kind = "lora"
    assert_same(two_steps(made, tmp_path / "adapter_off")[:1], expected[:1], LOSS[:1])


def test_they_are_scored_once_and_shared_between_runs(folder, tmp_path):
    """Nothing is scored again, also not for another loss or by another kind of reference that the same model is."""
    said = []
    for number, (method, others, kind, path) in enumerate(
        (("mrpo", ("0", "1"), "frozen", ""), ("sequential_po", ("1",), "cached", "0"))
    ):
        made = config(folder, method, others, kind)
        made.reference.path, made.reference.cache = path and str(folder / path), str(tmp_path / "cache")
        parts = assembled(made, tmp_path / f"{number}")
        with jax.set_mesh(parts.mesh):
            parts = precompute.fill_run(parts, [], range(2), said.append)
            parts.place(1)
    assert [line.split(" with ")[0] for line in said] == ["Scoring 5 examples"] * 2
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.slow
def test_a_resumed_run_is_the_same_and_eval_gives_its_numbers(folder, tmp_path, capsys):
    made = config(folder, "mrpo", ("0", "1"), alpha=(0.5, 0.2, 0.3), data="pairs")
    made.batch.examples, made.train.steps = 2, 5
    made.evals.heldout = dict(data="pairs", every=2)
    whole = loop.run(made, str(tmp_path / "whole"), say=quiet).state
    made.train.steps = 2
    loop.run(made, str(tmp_path / "parts"), say=quiet)
    made.train.steps = 5
    resumed = loop.run(made, str(tmp_path / "parts"), say=quiet).state
    for one, other in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    for _ in range(2):  # the second time it has to score them itself
        capsys.readouterr()
        assert cli.main(["eval", f"--workdir={tmp_path / 'whole'}"]) == 0
        scores = json.loads(capsys.readouterr().out)
        last = lines(tmp_path / "whole")[-1]
        assert scores["heldout/loss/term"] == pytest.approx(last["heldout/loss/term"], rel=1e-6)
        assert scores.keys() <= last.keys()
        shutil.rmtree(tmp_path / "whole/reference")


@pytest.mark.parametrize(
    ("method", "fields", "expected"),
    [
        ("mrpo", {"others": ()}, r"\(mrpo\) compares with several references, but config.reference.others is empty"),
        ("dpo", {}, "config.reference.others is set, but no objective compares with several references; leave it out"),
        ("mrpo", {"kind": "none"}, "reference.others is set, but nothing reads it with kind='none'; leave it out"),
        ("mrpo", {"others": ("", "x")}, r"config.reference.others\[0\] is empty; expected a run"),
        ("mrpo", {"others": (1,)}, r"config.reference.others\[0\] is 1; expected text"),
        ("mrpo", {"others": ("nowhere",)}, r"'nowhere' \(nowhere\) is neither a run .* nor a Hugging Face directory"),
        ("mrpo", {"alpha": (0.5, 0.5)}, r"alpha is .0.5, 0.5., but must be 3 numbers, one for each of the base"),
        ("mrpo", {"alpha": (0.5, 0.5, 0.5)}, r"alpha is .* but must sum to 1"),
        ("mrpo", {"alpha": "code"}, "alpha is 'code', which is defined for two references, not for 3"),
        ("sequential_po", {"alphas": (0.5,)}, r"alphas is .* must be 2 numbers, one for each of config.reference"),
        ("sequential_po", {"alphas": (0.5, -1.0)}, r"alphas.1. is -1.0, but must be a finite number >= 0"),
    ],
)  # fmt: skip
def test_mistakes_are_told(folder, tmp_path, method, fields, expected):
    fields = dict(fields)
    others, kind = fields.pop("others", None), fields.pop("kind", "frozen")
    made = config(folder, method, ("0", "1"), kind, **fields)
    if others is not None:
        made.reference.others = others
    with pytest.raises(ConfigError, match=expected):
        assembled(made, tmp_path)


def test_another_architecture_or_tokenizer_is_refused(folder, tmp_path):
    with pytest.raises(ModelError, match=r"others\[1\]=.*wide' is another architecture than the policy: the width"):
        assembled(config(folder, "mrpo", ("0", "wide")), tmp_path)
    shutil.copytree(folder / "0", folder / "words")
    data.worlds.tokenizer("sentiment").save(folder / "words")
    with pytest.raises(ConfigError, match=r"others\[0\]=.*words' has another tokenizer than the policy"):
        assembled(config(folder, "mrpo", ("words",)), tmp_path)
    data.tokenizers.load("byte").save(folder / "words")
    assert len(assembled(config(folder, "mrpo", ("words",)), tmp_path).others) == 1


def test_a_stage_names_earlier_stages(folder):
    made = config(folder, "mrpo")
    made.reference.others = ("stage:first", "stage:third")
    whole = configuration.default()
    whole.stages = {"first": config(folder, "dpo"), "second": made}
    with pytest.raises(ConfigError, match=r"stages.second.reference.others\[1\] is 'stage:third', which is no earlier"):
        configuration.sections(whole)


def test_a_plan_holds_their_log_probs(folder):
    made = config(folder, "sequential_po", ("0", "1", "nowhere"), kind="cached")  # a plan reads nothing
    made.length.prompt, made.length.response = 7, 5
    sections = configuration.sections(made)
    drawn = program(sections, mesh.make_mesh(sections.mesh))
    side = drawn.batch.examples["pairs"].side
    assert side["other_ref_logps"].shape == (3, 2, 5, 3) and side["ref_logps"].shape == (3, 2, 5)
    assert not drawn.compares
    drawn.lower()
