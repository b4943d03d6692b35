"""A plan: does a config's step fit a TPU slice, and how fast can it be at best?"""

import importlib.metadata
import re
import time
from typing import Any, NamedTuple

import jax

from jaxpref import configuration
from jaxpref.errors import ConfigError
from jaxpref.planning import floor, slices, traffic
from jaxpref.planning.program import Program, program
from jaxpref.training import mesh

GIB = slices.GIB
# How the compiler says that a program, or what lives inside of it, is too large.
_EXHAUSTED = re.compile(r"(?P<what>Used|temporaries) \(?(?P<size>[\d.]+)(?P<unit>[KMGT])\)? (?:of|exceeds)")


class Memory(NamedTuple):
    """Bytes on a chip.

    Attributes:
        parameters, optimizer: parts of the train state; the optimizer's moments and counters.
        others: averages, running states, the reference, and the batch.
        temporaries: everything that lives within a step: activations, gradients, gathered weights, the program.
        capacity: what the compiler lets a program use.
    """

    parameters: int
    optimizer: int
    others: int
    temporaries: int
    capacity: int

    @property
    def used(self) -> int:
        return self.parameters + self.optimizer + self.others + self.temporaries

    @property
    def fits(self) -> bool:
        return self.used <= self.capacity


class Plan(NamedTuple):
    """What compiling a step for a slice tells.

    Attributes:
        topology, slices, chips: where.
        mesh: sizes of the axes.
        examples, tokens: of a step; every computed position counts as a token.
        layout: rows, regions and micro-batches, as text.
        parameters: number of parameters of the model and its heads.
        memory: of a chip.
        sent: bytes that a device sends in a step, by kind of collective; empty where the program does not fit.
        flops: of a step, over all chips.
        roofline: least seconds of a step, by cause; None where the program does not fit.
        compile_seconds: how long the compiler took.
        versions: of jax and libtpu.
    """

    topology: str
    slices: int
    chips: int
    mesh: dict[str, int]
    examples: int
    tokens: int
    layout: str
    parameters: int
    memory: Memory
    sent: dict[str, float]
    flops: floor.Flops
    roofline: floor.Roofline | None
    compile_seconds: float
    versions: dict[str, str]

    @property
    def fits(self) -> bool:
        return self.memory.fits

    @property
    def utilisation(self) -> float:
        """The best possible share of the chips' peak that the model's own FLOPs can have (MFU)."""
        return self.flops.model / self.flops.hardware * self.roofline.compute / self.roofline.seconds


def plan(config, topology: str, *, count: int = 1, examples_per_chip: int = 0) -> Plan:
    """Compiles a config's train step for a TPU slice.

    Args:
        config: a checked config without stages.
        topology: ``v5p:2x2x4`` and the like.
        count: slices of that topology.
        examples_per_chip: sets ``batch.examples`` in proportion to the chips; 0 leaves it.

    Raises:
        ConfigError: the config cannot be planned, or libtpu does not know the slice.
    """
    where = slices.describe(topology, count)
    if examples_per_chip:
        config = configuration.complete(config)
        config.batch.examples = examples_per_chip * where.chips
    sections = configuration.sections(config)
    if sections.stages:
        raise ConfigError("a config with stages holds several steps; plan one with --stage.")
    made = program(sections, mesh.make_mesh(sections.mesh, where.devices))
    start = time.perf_counter()
    compiled, needed = _compile(made)
    seconds = time.perf_counter() - start
    counted = floor.flops(made, two_passes=made.drawn.objective.coupled and made.shape.micro_batches > 1)
    memory = _memory(made, compiled, needed, where)
    sent, roofline = {}, None
    if compiled is not None:
        sent = traffic.bytes_by_kind(traffic.collectives(_text(compiled), made.shape.micro_batches))
        held = (memory.parameters + memory.optimizer) // where.chip.devices
        roofline = floor.roofline(made, counted, sum(sent.values()), held, where)
    shape = made.shape
    return Plan(
        topology=where.name,
        slices=count,
        chips=where.chips,
        mesh={name: size for name, size in made.drawn.mesh.shape.items() if size > 1},
        examples=sum(stream.examples for stream in shape.streams.values()),
        tokens=shape.micro_batches * shape.rows * shape.layout.length,
        layout=f"{sections.batch.layout}, {shape.micro_batches} x {shape.rows} rows of {shape.layout.length}",
        parameters=sum(leaf.size for leaf in jax.tree.leaves(made.drawn.shapes.params)),
        memory=memory,
        sent=sent,
        flops=counted,
        roofline=roofline,
        compile_seconds=seconds,
        versions={name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    )


def _compile(made: Program) -> tuple[Any, int]:
    """``(compiled, 0)``, or ``(None, bytes of temporaries of a device)`` when the compiler finds too little memory."""
    lowered = made.lower()
    try:
        return lowered.compile(), 0
    except jax.errors.JaxRuntimeError as error:
        found = _EXHAUSTED.search(str(error))
        if not found:
            raise
        needed = int(float(found["size"]) * 1024 ** ("KMGT".index(found["unit"]) + 1))
        if found["what"] == "temporaries":
            return None, needed
        return None, needed - floor.bytes_on_device((made.drawn.shapes, made.reference, made.batch))


def _text(compiled) -> str:
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"this jax cannot read the programs of libtpu {importlib.metadata.version('libtpu')}; "
            "install the one that belongs to it: pip install 'jax[tpu]'."
        ) from error


def _memory(made: Program, compiled, needed: int, where: slices.Slice) -> Memory:
    state, devices = made.drawn.shapes, where.chip.devices
    parameters, optimizer = (devices * floor.bytes_on_device(tree) for tree in (state.params, state.optimizer))
    others = (state.objective, state.average, state.reference, made.reference, made.batch)
    others = devices * floor.bytes_on_device(others)
    if compiled is None:
        temporaries = devices * needed
    else:
        stats = compiled.memory_analysis()
        arguments = devices * stats.argument_size_in_bytes  # as laid out, with padding
        outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
        inside = stats.temp_size_in_bytes + stats.generated_code_size_in_bytes + outputs
        temporaries = devices * inside + max(0, arguments - parameters - optimizer - others)
    return Memory(parameters, optimizer, others, temporaries, where.chip.memory)
