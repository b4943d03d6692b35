"""What a run compiles, drawn without a single array: the optimizer, and the shapes and places of the train state."""

import functools
from typing import Any, NamedTuple

import jax

from jaxpref import losses, models, objectives
from jaxpref.batch import Layout
from jaxpref.training import mesh, offload, optimizers, starting, state


class Blueprint(NamedTuple):
    """The parts of a run that its compiled step is made of.

    Attributes:
        mesh: device mesh with axes data, fsdp, tensor, sequence; of devices at hand or of a described slice.
        model: how the parameters are computed.
        objective: the weighted sum of the config's terms.
        optimizer: optax transformation of the trainable leaves.
        learning_rate: schedule of the optimizer.
        trainable: tree of bools over the parameters.
        shapes: the train state's shapes, dtypes and shardings.
    """

    mesh: jax.sharding.Mesh
    model: models.Transformer
    objective: objectives.Total
    optimizer: Any
    learning_rate: Any
    trainable: Any
    shapes: state.TrainState


def draw(
    sections, devices: jax.sharding.Mesh, model: models.Transformer, objective: objectives.Total, *, steps: int
) -> Blueprint:
    """The blueprint of a config's run on a mesh.

    Args:
        sections: the checked config.
        devices: the mesh.
        model: the transformer.
        objective: what the config's terms sum up to.
        steps: number of steps, the end of the learning rate's schedule.
    """
    heads, objective_state = jax.eval_shape(lambda: objective.init(jax.random.key(0), model))
    params = {"model": starting.parameter_shapes(model, devices, sections.adapter.base), "heads": heads}
    params |= starting.adapter_shapes(sections.adapter, model, devices)
    trainable = optimizers.trainable_mask(params, sections.groups)
    optimizer, learning_rate = optimizers.make(sections.optimizer, sections.groups, params, steps=steps)
    fresh = jax.eval_shape(
        lambda params, objective_state: state.create(
            params,
            trainable,
            optimizer,
            objective_state,
            average=sections.ema.decay > 0,
            reference={"model": params["model"]} if sections.reference.kind == "moving" else (),
        ),
        params,
        objective_state,
    )
    if model.remat == "offload":
        offload.check(devices, "model.remat='offload'")
    places = mesh.state_shardings(fresh, model, devices, offload_moments=sections.optimizer.offload)
    if sections.optimizer.offload:
        offload.check(devices, "optimizer.offload")
        optimizer = offload.keep_on_host(optimizer, places.optimizer)
    shapes = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), fresh, places
    )
    return Blueprint(devices, model, objective, optimizer, learning_rate, trainable, shapes)


def create(drawn: Blueprint, params, objective_state) -> state.TrainState:
    """The train state at step 0, made in its places, without a reference."""

    def make(params, objective_state):
        average = drawn.shapes.average != ()
        return state.create(params, drawn.trainable, drawn.optimizer, objective_state, average=average)

    return jax.jit(make, out_shardings=_shardings(drawn.shapes._replace(reference=())))(params, objective_state)


def compile_step(drawn, layout: Layout, sections, *, cached: frozenset[str]):
    """The jitted train step ``(state, reference, key, batch) -> (state, metrics)``; the state is donated.

    Args:
        drawn: a :class:`Blueprint`, or anything with its fields.
        layout: static regions of a row.
        sections: the checked config, which says what is averaged and which reference moves.
        cached: names of channels that travel with the examples.
    """
    moves, follow = sections.reference, None
    if moves.kind == "moving":
        follow = functools.partial(losses.update_reference, mode=moves.mode, alpha=moves.alpha, every=moves.every)
    step = state.make_step(
        drawn.model,
        drawn.objective,
        drawn.optimizer,
        drawn.trainable,
        layout,
        cached=cached,
        decay=sections.ema.decay,
        follow=follow,
    )
    whole = jax.sharding.NamedSharding(drawn.mesh, jax.sharding.PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=(_shardings(drawn.shapes), whole))


def _shardings(shapes):
    return jax.tree.map(lambda leaf: leaf.sharding, shapes)
