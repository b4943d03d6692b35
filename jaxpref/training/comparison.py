"""The tables at the end of a pipeline: policies and reward models of several stages, side by side, with intervals."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from jaxpref import configuration, data, generation, models
from jaxpref.analysis import plots, report, rewards, tables
from jaxpref.data import worlds
from jaxpref.errors import ConfigError, hint
from jaxpref.evaluation import divergence, gold, preferences, statistics, wins
from jaxpref.training import heldout, loop, mesh, starting

FILE = "comparison.json"
START = "start:"
BETAS = np.geomspace(0.05, 20, 60)  # of the exact reward-KL frontier that is drawn


class Pipeline(NamedTuple):
    """Finished stages: where their runs lie, and by name their configs and how many steps they have done."""

    folder: epath.Path
    stages: dict[str, Any]
    steps: Mapping[str, int]

    def finished(self, name: str) -> loop.Finished:
        """Opens the run of a stage, all of whose steps are done."""
        if name not in self.stages:
            raise ConfigError(f"config.compare names the stage {name!r}; there are {', '.join(self.stages)}.")
        return loop.run(self.stages[name], str(self.folder / name), stages=self.folder, say=lambda *_: None)

    def identity(self, compare: Mapping[str, Any]) -> str:
        """Digest of all that the tables are made from."""
        configs = {name: configuration.plain(config) for name, config in self.stages.items()}
        text = json.dumps([configuration.plain(compare), configs, dict(self.steps)])
        return hashlib.sha256(text.encode()).hexdigest()


def run(compare: Mapping[str, Any], pipeline: Pipeline) -> list[tables.Table]:
    """Makes the tables that ``config.compare`` asks for, prints them, and writes them with the report.

    Args:
        compare: ``gold`` with the arguments of :func:`in_world`, ``pairs`` with those of :func:`on_pairs`.
        pipeline: the finished stages.
    """
    made, figures = [], {}
    for maker, arguments in check(compare):
        table, drawn = maker(pipeline, **arguments)
        made.append(table)
        figures |= drawn
    if jax.process_index() == 0:
        for name, figure in figures.items():
            plots.save(figure, pipeline.folder / report.PLOTS / f"{name}.png")
        page = report.write(pipeline.folder, stages=list(pipeline.stages), results=made, figures=list(figures.values()))
        stored = {"made_from": pipeline.identity(compare), "tables": [table._asdict() for table in made]}
        (pipeline.folder / FILE).write_text(json.dumps(stored, indent=2) + "\n")
        _show(made, page)
    return made


def check(compare: Mapping[str, Any]) -> list[tuple[Callable, dict[str, Any]]]:
    """The functions that make the tables, and their arguments; called before hours of training, too.

    Raises:
        ConfigError: an unknown table, or an argument that it does not take.
    """
    makers, found = {"gold": in_world, "pairs": on_pairs}, []
    for name, section in compare.items():
        if name not in makers:
            raise ConfigError(f"config has no field 'compare.{name}'; {hint(name, makers)}")
        arguments = configuration.bind(makers[name], section, f"compare.{name}", provided=("pipeline",))
        found.append((makers[name], arguments))
    return found


def show(compare: Mapping[str, Any], pipeline: Pipeline) -> bool:
    """Prints the tables again if they were made from these very stages; False if they are yet to be made."""
    file, page = pipeline.folder / FILE, pipeline.folder / report.NAME
    if not (file.exists() and page.exists()):
        return False
    stored = json.loads(file.read_text())
    if not isinstance(stored, dict) or stored["made_from"] != pipeline.identity(compare):
        return False
    if jax.process_index() == 0:
        _show([tables.Table(**table) for table in stored["tables"]], page)
    return True


def _show(made: Sequence[tables.Table], page: epath.Path) -> None:
    for table in made:
        tables.show_table(table)
    print(f"Report: {page}")


# ---------------------------------------------------------------------------------------- by true rewards, in a world


class Policy(NamedTuple):
    """A policy that can be sampled."""

    model: models.Transformer
    params: Any
    tokenizer: data.tokenizers.Tokenizer
    template: data.templates.Template


def in_world(
    pipeline: Pipeline,
    world: str,
    policies: Mapping[str, str],
    reference: str,
    reward_models: Mapping[str, str] = {},  # noqa: B006  never changed
    split: str = "test",
    samples: int = 2,
    max_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
):
    """Gold reward, gold win rate, KL, length and reward-model accuracy of stages; frontier and calibration as figures.

    The win rate is against responses that the world itself wrote to the same prompts. KL is estimated from the samples:
    the mean over responses of ``log policy - log reference``, which is unbiased at temperature 1.

    Args:
        pipeline: the finished stages.
        world: name of a built-in world.
        policies: name of a row -> stage, or ``start:<stage>`` for the parameters that it began with.
        reference: stage from which the KL is taken.
        reward_models: name of a row -> stage with an evaluation of pairs.
        split: of the world's prompts, all of which are answered.
        samples: answers to each prompt.
        max_tokens: longest answer.
        temperature: of the sampler.
        seed: of the samples.
    """
    home = worlds.get(world)
    prompts = [prompt for prompt in home.prompts(split) for _ in range(samples)]
    written = home.records("demonstrations", size=len(prompts), split=split, seed=seed)
    answers = {}
    for record in written:
        answers.setdefault(record["prompt"], []).append(record["completion"])
    opponent = [answers[prompt].pop() for prompt in prompts]
    base, scores, points = open_policy(pipeline, reference), [], {}
    for name, stage in policies.items():
        policy = base if stage == reference else open_policy(pipeline, stage)
        responses, kl = _sample(policy, base, prompts, max_tokens, temperature, seed)
        scored = gold.evaluate(home, prompts, responses, opponent=opponent)
        scores.append(tables.score(name, scored, kl=kl))
        if not stage.startswith(START):  # where a run began says nothing about its frontier, and dwarfs it
            points[name] = (kl, scored.reward)
    rankings = {name: ranking_of(pipeline, stage) for name, stage in reward_models.items()}
    scores += [tables.Score(name, accuracy=preferences.accuracy(found.margins)) for name, found in rankings.items()]
    table = tables.comparison(
        scores,
        title=f"{len(prompts)} answers in the {world} world",
        opponent="the world's own responses",
        reference=f"the {reference} stage",
    )
    frontier = plots.frontier(points, curve=[home.optimum(beta)[::-1] for beta in BETAS])
    return table, {"frontier": frontier} | _calibrations({name: [found] for name, found in rankings.items()})


def open_policy(pipeline: Pipeline, name: str) -> Policy:
    """The policy of a stage, or what it started from."""
    stage = name.removeprefix(START)
    if stage not in pipeline.stages:
        raise ConfigError(f"config.compare names the stage {stage!r}; there are {', '.join(pipeline.stages)}.")
    sections = configuration.sections(pipeline.stages[stage])
    start = starting.resolve(sections.init_from, pipeline.folder)
    source = start if name.startswith(START) else starting.resolve(f"stage:{stage}", pipeline.folder)
    devices = mesh.make_mesh(sections.mesh)
    model_section = sections.model if source.kind == "scratch" else starting.unnamed(sections.model)
    model, params = starting.load_model(model_section, source, devices, seed=sections.seed)
    tokenizer = starting.load_tokenizer(sections.tokenizer.path, start)
    template = data.templates.load(starting.template_name(sections.tokenizer.template, tokenizer), tokenizer)
    return Policy(model, params, tokenizer, template)


def _sample(policy: Policy, reference: Policy, prompts: Sequence[str], max_tokens, temperature, seed):
    """Texts, and the KL of the policy that wrote them from the reference."""
    texts, sampled = generation.generate_texts(
        policy.model, policy.params, policy.tokenizer, policy.template, prompts,
        key=jax.random.key(seed), max_tokens=max_tokens, temperature=temperature, batch_size=256,
    )  # fmt: skip
    encoded = generation.encode(policy.tokenizer, policy.template, prompts)
    width = max(len(p) + len(s.tokens) for p, s in zip(encoded, sampled, strict=True))
    tokens, mask = generation.rows(encoded, [sample.tokens for sample in sampled], width)
    logps = [_token_logps(one, tokens, mask) for one in (policy, reference)]
    return texts, divergence.sequence_kl(*logps, mask)


def _token_logps(policy: Policy, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    score = jax.jit(lambda params: models.token_logps(policy.model, params, tokens, mask)[0])
    return np.asarray(score(policy.params))


# ------------------------------------------------------------------------------------- by held-out pairs, over seeds


def on_pairs(
    pipeline: Pipeline,
    likelihoods: Mapping[str, Sequence[str]] = {},  # noqa: B006  never changed
    accuracies: Mapping[str, Sequence[str]] = {},  # noqa: B006  never changed
):
    """Held-out likelihood and preference accuracy of stages that differ by seed, pooled; calibration as figures.

    The interval is the pigeonhole bootstrap over seeds and examples (:func:`jaxpref.evaluation.statistics.pooled`).
    Beside the accuracies stands the baseline that the longer response (in characters, untruncated) wins.

    Args:
        pipeline: the finished stages; the first of each one's ``evals`` is used.
        likelihoods: name of a row -> stages (or ``start:<stage>``) whose negative log-likelihood of the first (chosen)
            response is measured.
        accuracies: name of a row -> stages (reward models, or policies with a reference) that rank pairs.
    """
    rows, notes = [], []
    for name, stages in likelihoods.items():
        found = [nats_of(pipeline, stage) for stage in stages]
        interval = statistics.pooled(np.stack([nats for nats, _ in found]), found[0][1])
        rows.append((name, "NLL, nats a token", tables.show(interval, digits=3), f"{len(stages)}", ""))
    rankings = {name: [ranking_of(pipeline, stage) for stage in stages] for name, stages in accuracies.items()}
    for name, found in rankings.items():
        right = np.stack([wins.outcomes(each.margins, np.zeros_like(each.margins)) for each in found])
        rows.append(_accuracy_row(name, statistics.pooled(right), len(found)))
    if rankings:
        baseline = next(iter(rankings.values()))[0].longer
        rows.append(_accuracy_row("the longer one wins", statistics.pooled(baseline[None], random_seeds=False), 0))
        notes.append(f"Accuracy on {len(baseline)} held-out pairs, ties 1/2.")
    notes.append("95 % intervals: pigeonhole bootstrap over seeds and examples.")
    columns = ("model", "measure", "value [95 %]", "seeds", "excludes 0.5")
    return tables.Table("Held-out pairs", columns, tuple(rows), tuple(notes)), _calibrations(rankings)


def _accuracy_row(name: str, interval: statistics.Interval, seeds: int) -> tuple[str, ...]:
    excludes = "yes" if interval.excludes(0.5) else "no"
    return name, "pair accuracy", tables.show(interval, percent=True), f"{seeds}" if seeds else tables.MISSING, excludes


class Ranking(NamedTuple):
    """How a stage ranks held-out pairs.

    Attributes:
        margins: ``[N]``, by how much it prefers the chosen response: the difference of a head's scores, or of
            log-ratios to the reference (unscaled, which changes no ranking).
        longer: ``[N]``, whether the longer response was the chosen one.
        scored: whether a head gave the scores, so that ``sigmoid(margin)`` is a probability.
    """

    margins: np.ndarray
    longer: np.ndarray
    scored: bool


def ranking_of(pipeline: Pipeline, stage: str) -> Ranking:
    """How a stage ranks the pairs of its first evaluation."""
    evaluation, outputs = _held_out(pipeline, stage)
    if "score" in outputs:
        values = outputs["score"]
    else:
        values = np.sum(outputs["logps"] - outputs.get("ref_logps", 0), axis=-1)
    lengths = np.array([[len(text) for text in example.meta["responses"]] for example in evaluation.dataset])
    longer = preferences.longer_wins(lengths[:, 0], lengths[:, 1])
    return Ranking(values[:, 0] - values[:, 1], longer, "score" in outputs)


def _calibrations(rankings: Mapping[str, Sequence[Ranking]]):
    """Reliability diagrams of the reward models among them, each of all its seeds."""
    pooled = {
        name: np.concatenate([each.margins for each in found])
        for name, found in rankings.items()
        if all(each.scored for each in found)
    }
    return {
        "calibration_" + re.sub(r"\W+", "_", name): rewards.calibration(
            margins, bins=min(10, len(margins)), title=f"Calibration: {name}"
        )
        for name, margins in pooled.items()
    }


def nats_of(pipeline: Pipeline, stage: str) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood of each first response ``[N]``, in nats, and its number of tokens."""
    _, outputs = _held_out(pipeline, stage)
    return -np.sum(outputs["logps"][:, 0], axis=-1), np.sum(outputs["mask"][:, 0], axis=-1)


def _held_out(pipeline: Pipeline, name: str):
    """The first evaluation of a stage, and its outputs (of its first term) for every example."""
    done = pipeline.finished(name.removeprefix(START))
    parts = done.parts
    evaluations = heldout.prepare_all(parts, report=lambda *_: None)
    if not evaluations:
        raise ConfigError(f"config.compare names the stage {name!r}, whose config has no evals.")
    with jax.set_mesh(parts.mesh):
        state = parts.state if name.startswith(START) else done.state
        _, outputs = heldout.score_all(evaluations[0], parts, state)
    return evaluations[0], next(iter(outputs.values()))
