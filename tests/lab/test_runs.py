"""Runs of claims on language models: what they hand on is what training and sampling made and measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import configuration, generation, models, objectives
from jaxpref.lab import Absent, runs
from jaxpref.training import heldout, loop

WORLD = "world:sentiment"
SMALL = dict(width=16, layers=1, heads=2, key_value_heads=1, head_dim=8, mlp_width=16)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def stage():
    config = configuration.default()
    config.tokenizer.path = WORLD
    config.length.prompt, config.length.response = 16, 24
    config.batch.examples = 8
    config.train.steps = 2
    return config


def sft():
    config = stage()
    config.model.name = "nano"
    config.model.overrides = SMALL
    config.data.demonstrations = dict(kind="demonstrations", source=WORLD, size=16)
    config.objectives.sft = objectives.config("sft")
    return config


def reward():
    config = stage()
    config.init_from = "stage:sft"
    config.data.pairs = dict(kind="pairs", source=WORLD, size=16)
    config.data.heldout = dict(kind="pairs", source=WORLD, size=5, split="test")
    config.objectives.bradley_terry = objectives.config("bradley_terry")
    config.evals.heldout = dict(data="heldout")
    return config


@pytest.fixture(scope="module")
def policy(workdir):
    return runs.train(sft(), workdir, "sft")


@pytest.fixture(scope="module")
def reward_model(workdir, policy):
    return runs.train(reward(), workdir, "reward")


def test_what_a_policy_writes_has_the_log_probability_that_it_was_drawn_with(policy):
    prompts = generation.encode(policy.tokenizer, policy.template, ["Review the film:", "Review the soup:", "Hm"])
    responses, texts = runs.answer(policy, prompts, seed=1, max_tokens=6, width=40, samples=2)
    drawn = generation.generate(
        policy.model, policy.params["model"], prompts, key=jax.random.key(1), max_tokens=6, samples=2,
        stop_ids=policy.template.stop_ids,
    )  # fmt: skip
    assert len(texts) == 6 and responses.tokens.shape == (6, 40)
    np.testing.assert_array_equal(responses.lengths, [len(each.tokens) for each in drawn])
    np.testing.assert_allclose(runs.logps(policy, responses), [each.logps.sum() for each in drawn], rtol=1e-4)


def test_scores_are_those_of_the_evaluation(workdir, reward_model):
    done = loop.run(reward(), str(workdir / "reward"), stages=workdir, say=lambda *_: None)
    (evaluation,) = heldout.prepare_all(done.parts, report=lambda *_: None)
    with jax.set_mesh(done.parts.mesh):
        _, outputs = heldout.score_all(evaluation, done.parts, done.state)
    examples = list(evaluation.dataset)
    chosen = runs.lay_out([each.prompt for each in examples], [each.responses[0] for each in examples], 48)
    np.testing.assert_allclose(
        runs.scores(reward_model, chosen), outputs["bradley_terry"]["score"][:, 0], rtol=1e-4, atol=1e-6
    )


def test_real_data_that_is_not_here_makes_a_claim_absent(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPREF_DATA", str(tmp_path))
    (tmp_path / "here").mkdir()
    assert runs.real_data("here") == tmp_path.resolve()
    with pytest.raises(Absent, match="set JAXPREF_DATA"):
        runs.real_data("here", "there")


def test_what_is_compiled_once_is_kept_and_the_settings_come_back(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with runs.compiling_once(tmp_path):
            jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
        assert any(tmp_path.iterdir())
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_pretrained_model_is_that_of_its_folder(policy, tmp_path):
    models.save_hf(policy.model, policy.params["model"], tmp_path)
    policy.tokenizer.save(tmp_path)
    loaded = runs.pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded.params["model"], policy.params["model"])
