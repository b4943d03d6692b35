"""From a config to everything a run needs: tokenizer, model, data, objective, reference, optimizer, on the mesh."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from jaxpref import data, models, objectives
from jaxpref.batch import FIRST_SAMPLE
from jaxpref.configuration import Sections
from jaxpref.errors import ConfigError, DataError
from jaxpref.training import blueprint, costs, inputs, mesh, selfcheck, starting, state, trees
from jaxpref.training.digest import digest, leaf_digests
from jaxpref.training.reference import CHANNEL, OTHERS, Other, ReferenceCache, attach_others


class Assembly(NamedTuple):
    """The parts of a run, ready to be stepped.

    Attributes:
        mesh, model, objective, optimizer, learning_rate, trainable, shapes: as in :mod:`jaxpref.training.blueprint`.
        sections: the checked config.
        tokenizer: text to tokens.
        template: name of the chat template.
        inputs: the training data.
        machine: the devices, as shapes of batches suit them.
        state: the train state at step 0.
        reference: the reference's parameters, ``adapters.OFF``, or None; one that moves is part of the state.
        cache: cached reference log-probs, or None.
        start: digest of the parameters that ``init_from`` gave; empty from scratch.
        others: further references.
    """

    mesh: jax.sharding.Mesh
    model: models.Transformer
    objective: objectives.Total
    optimizer: Any
    learning_rate: Any
    trainable: Any
    shapes: state.TrainState
    sections: Sections
    tokenizer: data.tokenizers.Tokenizer
    template: str
    inputs: inputs.Inputs
    machine: costs.Machine
    state: state.TrainState
    reference: Any
    cache: ReferenceCache | None
    start: str
    others: tuple[Other, ...] = ()

    @property
    def cached(self) -> frozenset[str]:
        """Channels that travel with the examples."""
        return frozenset({CHANNEL} if self.cache is not None else ()) | frozenset({OTHERS} if self.others else ())

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that continues it."""
        return {
            "seed": self.sections.seed,
            "data": {name: dataset.fingerprint for name, dataset in self.inputs.streams.items()},
            "tokenizer": self.tokenizer.digest,
            "start (the parameters of init_from)": self.start,
        }

    def place(self, step: int):
        """The global batch of a step, on its devices."""
        return self.place_examples(self.inputs.examples(step), self.inputs.shape)

    def place_examples(self, examples: Mapping[str, list[data.Tokenized]], shape: data.layouts.BatchShape):
        """A batch of these examples of each stream with what is cached of them, on its devices."""
        batch = data.layouts.plan(examples, shape)
        if self.cache is not None:
            batch = self.cache.attach(batch, examples, shape)
        if self.others:
            batch = attach_others(self.others, batch, examples, shape)
        return mesh.place_batch(batch, self.mesh)

    def compile_step(self):
        """The jitted train step ``(state, reference, key, batch) -> (state, metrics)``; the state is donated."""
        return blueprint.compile_step(self, self.inputs.shape.layout, self.sections, cached=self.cached)

    def starts_at_reference(self) -> bool:
        """Whether policy and reference have equal parameters; an adapter is zero at step 0."""
        if isinstance(self.reference, models.adapters.Off):
            return True
        if self.cache is not None:
            return self.cache.parameters == digest(self.state.params["model"])
        reference = state.reference_of(self.state, self.reference)
        return reference is not None and digest(reference) == digest(self.state.params["model"])

    def check_movement(self, before: Mapping[str, int], after: state.TrainState) -> None:
        """Raises TrainingError unless exactly the trainable leaves have moved since the digests ``before``."""
        invariant = [f"^model/.*{leaf}" for leaf in models.invariant_leaves(self.model)]
        if not any(term.needs & models.vocabulary.FUNCTIONS.keys() for term in self.objective.terms.values()):
            invariant.append("^model/head/")  # a reward model never asks for the next token
        if self.sections.optimizer.name == "sgd":
            # Its gradient is proportional to the other factor, which was zero: SGD's update of it may round to nothing.
            invariant.append("^adapter/.*/a$")
        selfcheck.check_movement(before, leaf_digests(after.params), trees.leaves(self.trainable), invariant)


def assemble(
    sections: Sections, workdir: str, *, stages: epath.Path | None = None, keep: bool = True, report=print
) -> Assembly:
    """Builds every part of a run.

    Args:
        sections: the checked config.
        workdir: run folder, where cached reference log-probs lie by default.
        stages: folder with the runs of earlier stages.
        keep: whether new reference log-probs are written to the cache's folder.
        report: is given lines of text on what was read and dropped.
    """
    devices = mesh.make_mesh(sections.mesh)
    loaded = load_inputs(sections, devices, stages, report)
    source, objective, fed = loaded.source, loaded.objective, loaded.inputs
    with jax.set_mesh(devices):
        model, params = starting.load_model(sections.model, source, devices, seed=sections.seed)
        data.tokenizers.check_vocabulary(loaded.tokenizer, model.config.vocab_size)
        check_lengths(fed, model)
        heads, objective_state = objective.init(jax.random.fold_in(jax.random.key(sections.seed), 1), model)
        drawn = blueprint.draw(sections, devices, model, objective, steps=fed.steps)
        params = {"model": starting.quantized(params, model, devices, sections.adapter.base), "heads": heads}
        params |= starting.draw_adapter(sections.adapter, model, devices, seed=sections.seed)
        fresh = blueprint.create(drawn, params, objective_state)
        make_cache = functools.partial(
            ReferenceCache,
            sections.reference.cache or f"{workdir}/reference",
            dtype=model.dtype.name,
            keep=keep and jax.process_index() == 0,
        )
        open_cache = functools.cache(make_cache)  # one for each set of parameters, however often it is named
        reference = load_reference(sections, drawn, fresh.params["model"], stages)
        others = load_others(sections, drawn, stages, loaded.tokenizer)
        cache = None
        if sections.reference.kind == "cached":
            cache = open_cache(parameters=digest(reference))
        elif sections.reference.kind == "moving":
            fresh, reference = fresh._replace(reference={"model": reference}), None
        start = digest(fresh.params["model"]) if source.kind != "scratch" else ""
    return Assembly(
        **drawn._asdict(),
        sections=sections,
        tokenizer=loaded.tokenizer,
        template=loaded.template,
        inputs=fed,
        machine=loaded.machine,
        state=fresh,
        reference=reference,
        cache=cache,
        start=start,
        others=tuple(Other(open_cache(parameters=digest(params)), params) for params in others),
    )


class Loaded(NamedTuple):
    """What a config says without its parameters; as in :class:`Assembly`."""

    source: starting.Source
    tokenizer: data.tokenizers.Tokenizer
    template: str
    objective: objectives.Total
    machine: costs.Machine
    inputs: inputs.Inputs


def load_inputs(sections: Sections, devices: jax.sharding.Mesh, stages: epath.Path | None, report) -> Loaded:
    """Reads the data of a run and chooses the shape of its batches."""
    source = starting.resolve(sections.init_from, stages)
    tokenizer = starting.load_tokenizer(sections.tokenizer.path, source)
    template = starting.template_name(sections.tokenizer.template, tokenizer)
    objective = objectives.build(sections.objectives, others=len(sections.reference.others))
    machine = costs.machine(
        starting.architecture(sections.model, source).config,
        devices,
        coupled=objective.coupled,
        reference=sections.reference.kind in ("frozen", "adapter_off", "moving"),
    )
    load = functools.partial(load_stream, sections, tokenizer=tokenizer, template=template, report=report)
    streams = load_streams(sections, objective, load)
    objective = objective.sized({name: len(dataset) for name, dataset in streams.items()})
    fed = inputs.make(
        streams,
        objective,
        sections.batch,
        sections.train,
        seed=sections.seed,
        machine=machine,
    )
    return Loaded(source, tokenizer, template, objective, machine, fed)


def load_streams(sections: Sections, objective: objectives.Total, load) -> dict[str, data.Dataset]:
    """The data streams that objectives read, in the order of the objectives; one that nothing reads is an error."""
    wanted = list(dict.fromkeys(term.stream for term in objective.terms.values()))
    for name, term in objective.terms.items():
        if term.stream not in sections.data:
            raise ConfigError(
                f"config.objectives.{name}.data is {term.stream!r}, which config.data lacks; "
                f"it has {', '.join(sections.data) or 'no streams'}."
            )
    evaluated = {section["data"] for section in sections.evals.values() if isinstance(section.get("data"), str)}
    unread = sorted(set(sections.data) - set(wanted) - evaluated)
    if unread:
        raise ConfigError(f"config.data.{unread[0]} is read by no objective and no evaluation; remove it.")
    streams = {name: load(name, sections.data[name], reads=objective.reads[name]) for name in wanted}
    for name, term in objective.terms.items():
        _check_samples(name, term, streams[term.stream])
    return streams


def _check_samples(name: str, term: objectives.Objective, dataset: data.Dataset) -> None:
    """Raises ConfigError when a term reads samples and no example has any."""
    required = FIRST_SAMPLE.get(dataset.kind, 0)
    if data.samples.FIELD in term.reads and all(len(example.responses) <= required for example in dataset):
        raise ConfigError(
            f"config.objectives.{name} ({term.method}) reads samples, but no row of its data stream {term.stream!r} "
            "has the field 'samples'; draw them with 'jaxpref generate --samples' and add them to the rows."
        )


def load_stream(
    sections: Sections, name: str, stream: Mapping[str, Any], *, tokenizer, template: str, report, reads=frozenset()
):
    """One data stream under the run's length rule; what was dropped or cut is reported."""
    dataset = data.load_stream(stream, tokenizer, vars(sections.length), template=template, name=name, reads=reads)
    report(dataset.summary())
    if not len(dataset):
        raise DataError(f"config.data.{name} holds no example; look at what was dropped above.")
    return dataset


def check_lengths(fed: inputs.Inputs, model: models.Transformer) -> None:
    """Raises ConfigError when an example is longer than the model's positions reach."""
    longest = max(shape.prompt + shape.response for shape in fed.shape.streams.values())
    if longest > model.config.longest_sequence:
        raise ConfigError(
            f"an example has up to {longest} tokens, but the model was made for {model.config.longest_sequence}; "
            "lower config.length.prompt or config.length.response."
        )


def load_reference(sections: Sections, drawn: blueprint.Blueprint, policy, stages):
    """The reference's parameters: a copy of the starting policy, or what ``reference.path`` names; None where unused.

    Without its adapter the policy is its own reference, as long as nothing else of it is trained: ``adapters.OFF``.

    Raises:
        ConfigError: an objective needs a reference and the config has none, or the other way round.
        ModelError: the reference is another architecture.
    """
    kind, path = sections.reference.kind, sections.reference.path
    of_reference = {n: sorted(t.needs & models.vocabulary.OF_REFERENCE) for n, t in drawn.objective.terms.items()}
    users = {name: needs for name, needs in of_reference.items() if needs}
    if kind == "none":
        if users:
            raise ConfigError(
                f"config.objectives.{next(iter(users))} compares with a reference, but reference.kind is 'none'; "
                "set it to 'frozen' or 'cached'."
            )
        return None
    if not users:
        raise ConfigError(f"config.reference.kind is {kind!r}, but no objective compares with a reference; set 'none'.")
    for name, needs in users.items():
        beyond = [need for need in needs if need != CHANNEL]
        if kind == "cached" and beyond:
            raise ConfigError(
                f"config.objectives.{name} needs {', '.join(beyond)} of the reference, which are not cached; "
                "set config.reference.kind to 'frozen'."
            )
    if kind == "adapter_off":
        moving = [name for name, trained in trees.leaves(drawn.trainable["model"]).items() if trained]
        if moving:
            raise ConfigError(
                f"config.reference.kind is 'adapter_off', but config.groups train model/{moving[0]}, so that the base "
                "would move with the policy; set it to 'frozen' or 'cached', or leave the model's weights frozen."
            )
        return models.adapters.OFF
    if not path:
        return jax.tree.map(lambda leaf: leaf.copy(), policy)  # the policy's own buffers are donated
    return _load_named(sections, drawn, f"config.reference.path={path!r}", starting.resolve(path, stages))


def load_others(sections: Sections, drawn: blueprint.Blueprint, stages, tokenizer) -> list[Any]:
    """The parameters of the further references, in their order.

    Raises:
        ConfigError: no objective needs them, or one has another tokenizer.
        ModelError: one is another architecture.
    """
    others = sections.reference.others
    if others and not any(OTHERS in term.needs for term in drawn.objective.terms.values()):
        raise ConfigError(
            "config.reference.others is set, but no objective compares with several references; leave it out."
        )
    sources = {f"config.reference.others[{n}]={p!r}": starting.resolve(p, stages) for n, p in enumerate(others)}
    for where, source in sources.items():
        starting.check_same_tokenizer(tokenizer, source, where)
    return [_load_named(sections, drawn, where, source) for where, source in sources.items()]


def _load_named(sections: Sections, drawn: blueprint.Blueprint, where: str, source: starting.Source):
    """The parameters of a reference that a field of the config names."""
    model, params = starting.load_model(starting.unnamed(sections.model), source, drawn.mesh, seed=sections.seed)
    starting.check_same_architecture(drawn.model, model, where)
    return params


def summary(parts: Assembly) -> str:
    """What is about to run, in a few lines of text."""
    fed, shape = parts.inputs, parts.inputs.shape
    sizes = ", ".join(f"{size} {name}" for name, size in fed.sizes.items())
    axes = " x ".join(f"{name} {size}" for name, size in parts.mesh.shape.items() if size > 1) or "one device"
    count = models.count(parts.state.params | {"model": starting.parameter_shapes(parts.model, parts.mesh)})
    moving = models.count(state.partition(parts.state.params, parts.trainable)[0])
    trained = f" ({moving:,} of them trained)" if moving < count else ""
    return "\n".join(
        (
            f"Model: {parts.model.config.family}, {count:,} parameters{trained}, "
            f"{parts.model.dtype.name}, on {axes} ({jax.devices()[0].platform}).",
            f"Objective: {', '.join(f'{n} ({t.method} on {t.stream})' for n, t in parts.objective.terms.items())}.",
            f"Batch: {sizes}; {parts.sections.batch.layout}, {data.layouts.describe(shape)}.",
            f"Steps: {fed.steps}.",
        )
    )
