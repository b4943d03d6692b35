"""The floor of a step, by arithmetic: FLOPs, bytes of memory and bytes between chips, and the time that each takes.

The compiler's own count of FLOPs is not used: it counts the body of a loop over layers once.
"""

from typing import NamedTuple

import jax

from jaxpref import models
from jaxpref.batch import Layout
from jaxpref.data.layouts import BatchShape
from jaxpref.planning.program import Program
from jaxpref.planning.slices import Slice
from jaxpref.training.throughput import flops_per_token, passes

RECOMPUTING = ("full", "offload")  # policies under which the backward pass computes whole layers again


class Flops(NamedTuple):
    """Floating-point operations of a step, over all devices.

    Attributes:
        model: what the mathematics needs: forward, backward, and the forward of a reference that runs along.
        hardware: with what is computed again to save memory.
    """

    model: float
    hardware: float


class Roofline(NamedTuple):
    """Least seconds of a step, by what has to be done.

    Attributes:
        compute: hardware FLOPs at the chips' peak.
        memory: state read and written once, and each layer's gathered weights written and read in every pass.
        links: bytes between chips, at half of the links' two-way rate.
    """

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """Of a step in which everything overlaps."""
        return max(self)

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(zip(self, self._fields, strict=True))[1]


def flops(program: Program, *, two_passes: bool) -> Flops:
    """FLOPs of a step in which every row is full.

    Args:
        program: of the step.
        two_passes: whether every micro-batch is computed forward once more (coupled objectives).
    """
    model, rows = program.drawn.model, program.shape.rows * program.shape.micro_batches
    scored = any(term.needs & models.vocabulary.FUNCTIONS.keys() for term in program.drawn.objective.terms.values())
    layers = rows * _row(model.config, program.shape)
    layout = program.shape.layout
    tokens = rows * (layout.length - layout.prompt)  # a prompt region never meets the vocabulary
    vocabulary = scored * tokens * 2 * model.config.width * model.config.vocab_size
    forward = layers + vocabulary
    gradients = program.drawn.objective.gradients or 1
    shapes, trainable = program.drawn.shapes.params, program.drawn.trainable
    needed = forward * passes(shapes, trainable, reference=program.compares, gradients=gradients)
    again = gradients * (_recomputed(model, layers, rows * layout.length) + vocabulary) + forward * two_passes
    return Flops(needed, needed + again)


def _recomputed(model: models.Transformer, layers: float, tokens: int) -> float:
    """FLOPs of the layers that the backward pass computes again."""
    config = model.config
    if model.remat == "attention":  # all but scores, mixing, query, key and value
        kept = 2 * config.width * config.head_dim * (config.heads + 2 * config.key_value_heads) * config.layers
        return tokens * (flops_per_token(config, 0.0, vocabulary=False) - kept)
    return layers if model.remat in RECOMPUTING else 0.0


def _row(config: models.ModelConfig, shape: BatchShape) -> float:
    """FLOPs of a row's forward pass through the layers."""
    layout: Layout = shape.layout
    if not layout.shared:
        # A packed token sees its own example only.
        longest = max(stream.prompt + stream.response - 1 for stream in shape.streams.values()) + shape.final
        return layout.length * flops_per_token(config, (longest + 1) / 2, vocabulary=False)
    prompt = layout.prompt * flops_per_token(config, (layout.prompt + 1) / 2, vocabulary=False)
    context = layout.prompt + (layout.response + 1) / 2
    return prompt + layout.responses * layout.response * flops_per_token(config, context, vocabulary=False)


def roofline(program: Program, counted: Flops, sent: float, held: int, where: Slice) -> Roofline:
    """Least seconds of a step.

    Args:
        program: of the step.
        counted: FLOPs of the step.
        sent: bytes that a device sends to others.
        held: bytes of state on a device.
        where: the chips.
    """
    chip, model = where.chip, program.drawn.model
    weights = models.count(program.drawn.shapes.params["model"]) * model.dtype.itemsize
    weights /= program.drawn.mesh.shape["tensor"]
    gathers = program.shape.micro_batches * (2 + (model.remat in RECOMPUTING) + program.compares)
    memory_rate = chip.memory_rate / chip.devices
    return Roofline(
        compute=counted.hardware / (where.flops * where.chips),
        memory=(2 * held + 2 * gathers * weights) / memory_rate,
        links=sent / (chip.link_rate / chip.devices / 2),
    )


def bytes_on_device(tree) -> int:
    """Bytes that each device holds of a tree of sharded shapes."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        size = 1
        for length in leaf.sharding.shard_shape(leaf.shape):
            size *= length
        total += size * leaf.dtype.itemsize
    return total
