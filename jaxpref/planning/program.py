"""A config's real train step, lowered from shapes: no weights, no data, no device."""

from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxpref import models, objectives
from jaxpref.batch import PROMPT_LENGTHS
from jaxpref.configuration import Sections
from jaxpref.data import layouts
from jaxpref.errors import ConfigError
from jaxpref.objectives import registry
from jaxpref.training import blueprint, costs, inputs, mesh, starting
from jaxpref.training.reference import CHANNEL, OTHERS
from jaxpref.training.state import reference_of


class Program(NamedTuple):
    """What is compiled.

    Attributes:
        drawn: the run's blueprint on the mesh.
        shape: of every batch.
        reference: shapes of the reference's parameters that the step holds, or None.
        step: the jitted train step.
        batch: shapes of a batch.
    """

    drawn: blueprint.Blueprint
    shape: layouts.BatchShape
    reference: Any
    step: Any
    batch: Any

    @property
    def compares(self) -> bool:
        """Whether the step runs a reference's forward pass."""
        return reference_of(self.drawn.shapes, self.reference) is not None

    def lower(self):
        """The step's program for the mesh's devices, ready to be compiled."""
        whole = NamedSharding(self.drawn.mesh, PartitionSpec())
        key = jax.eval_shape(lambda: jax.random.key(0))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
        with jax.set_mesh(self.drawn.mesh):
            return self.step.lower(self.drawn.shapes, self.reference, key, self.batch)


def program(sections: Sections, devices: jax.sharding.Mesh) -> Program:
    """The train step of a config's run on a mesh.

    Nothing is read: every example has the longest prompt and the longest response that ``config.length`` allows, so a
    packed layout without ``batch.rows`` or ``batch.rows_per_device`` has the rows of the longest possible batch.

    Raises:
        ConfigError: the config leaves the lengths, or the architecture of weights that are not here, to files.
    """
    if sections.model.name:
        model = starting.named_architecture(sections.model)
    else:
        model = starting.architecture(sections.model, starting.resolve(sections.init_from))
    others = len(sections.reference.others)
    objective = objectives.build(sections.objectives, others=others)
    shape = declared_shape(sections, objective, costs.machine(model.config, devices))
    cached = {CHANNEL: ()} if sections.reference.kind == "cached" else {}
    cached |= {OTHERS: (others,)} if others else {}
    steps = sections.train.steps or sections.optimizer.warmup_steps + 1  # without data, epochs say nothing
    drawn = blueprint.draw(sections, devices, model, objective, steps=steps)
    step = blueprint.compile_step(drawn, shape.layout, sections, cached=frozenset(cached))
    references = {"frozen": drawn.shapes.params["model"], "adapter_off": models.adapters.OFF}
    reference = references.get(sections.reference.kind)
    return Program(drawn, shape, reference, step, _batch(shape, cached, devices))


def declared_shape(sections: Sections, objective: objectives.Total, machine: costs.Machine) -> layouts.BatchShape:
    """The shape of batches whose examples are as long as ``config.length`` allows."""
    length, batch = sections.length, sections.batch
    if not (length.prompt and length.response):
        raise ConfigError("a plan reads no data, so config.length.prompt and config.length.response must be positive.")
    streams = {}
    for term in objective.terms.values():
        method = registry.METHODS[term.method]
        if method.feedback == "ranked" or method.sampled:
            raise ConfigError(
                f"a plan reads no data, so it cannot know how many responses the examples of {method.name!r} have."
            )
        required = [source for name, source in method.inputs.items() if method.arguments[name]]
        responses = len(registry.FEEDBACK[method.feedback]) + method.partnered
        sides = tuple(sorted({side for read in required for side in read.sides}))
        own = length.prompt - 1 if PROMPT_LENGTHS in sides else 0  # tokens of prompts that lie before each response
        vectors = {side for read in required if read.axes[1:] in ("M", "E") for side in read.sides}
        widths = dict.fromkeys(vectors, max(term.gradients, 1))  # embeddings of any length cost nothing
        before = streams.get(term.stream)
        streams[term.stream] = layouts.StreamShape(
            examples=int(batch.streams.get(term.stream, batch.examples)),
            responses=max(responses, before.responses if before else 1),
            prompt=length.prompt - own,
            response=length.response + own,
            sides=sides if before is None else tuple(sorted({*sides, *before.sides})),
            partnered=method.partnered or (before is not None and before.partnered),
            widths=widths if before is None else {**before.widths, **widths},
        )
    final = inputs.reads_last_token(objective)
    given = inputs.given_sizes(batch, machine) | {"final": final, "short_length": -1}  # the longest fit no short row
    return layouts.batch_shape(streams, **given)


def _batch(shape: layouts.BatchShape, cached: dict[str, tuple[int, ...]], devices: jax.sharding.Mesh):
    """Shapes and places of a batch's arrays; ``cached`` gives the axes of a channel behind those of the tokens."""
    empty = layouts.plan(dict.fromkeys(shape.streams, ()), shape)
    examples = {}
    for name, stream in shape.streams.items():
        tokens = stream.examples, stream.responses, stream.response
        channels = {channel: jax.ShapeDtypeStruct((*tokens, *axes), "float32") for channel, axes in cached.items()}
        side = empty.examples[name].side | channels
        examples[name] = empty.examples[name]._replace(side=side)
    batch = empty._replace(examples=examples)
    return jax.tree.map(
        lambda array, where: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where),
        batch,
        mesh.batch_shardings(batch, devices),
    )
