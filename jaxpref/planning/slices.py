"""TPU slices by name, described by libtpu on a machine that has none of their chips."""

import os
from typing import Any, NamedTuple

from jaxpref.errors import ConfigError
from jaxpref.training.throughput import peak_flops

GIB = 2**30


# Keeps libtpu from asking a metadata server what machine this is, from complaining that it got no answer, and from
# insisting to be the only one who has chips.
NOT_A_TPU_MACHINE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


class Chip(NamedTuple):
    """What a chip can hold and move.

    Attributes:
        memory: bytes of HBM.
        memory_rate: bytes a second between HBM and the chip.
        link_rate: bytes a second over all its links to other chips, both directions added.
        network_rate: bytes a second that a chip has of the network between slices.
        devices: jax devices of a chip.
    """

    memory: int
    memory_rate: float
    link_rate: float
    network_rate: float
    devices: int = 1


# By the word before the colon of a topology's name. Memory is what the compiler lets a program use.
# Sources: https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e, /tpu7x (HBM, inter-chip interconnect and data-centre
# network per chip; where a pod's network is given, divided by its chips).
CHIPS = {
    "v4": Chip(int(30.75 * GIB), 1228e9, 600e9, 3.1e9),
    "v5e": Chip(int(15.75 * GIB), 819e9, 400e9, 3.1e9),
    "v5p": Chip(int(95.74 * GIB), 2765e9, 1200e9, 6.25e9),
    "v6e": Chip(int(31.25 * GIB), 1638e9, 800e9, 12.5e9),
    "tpu7x": Chip(int(189.5 * GIB), 7380e9, 1200e9, 12.5e9, devices=2),
}


class Slice(NamedTuple):
    """Some chips: ``count`` slices of one topology.

    Attributes:
        name: the topology, ``v5p:2x2x4``.
        count: how many such slices, joined by the data-centre network.
        chip: what each chip can hold and move.
        flops: peak bfloat16 FLOP/s of a chip.
        devices: jax device descriptions, which can be compiled for but not run on.
    """

    name: str
    count: int
    chip: Chip
    flops: float
    devices: list[Any]

    @property
    def chips(self) -> int:
        return len(self.devices) // self.chip.devices


def describe(topology: str, count: int = 1) -> Slice:
    """The chips of a topology such as ``v5p:2x2x4`` or ``v6e:4x4``.

    Raises:
        ConfigError: libtpu is not installed, or it does not know the topology.
    """
    generation, separator, shape = topology.lower().partition(":")
    if generation not in CHIPS or not separator:
        raise ConfigError(
            f"--topology={topology}: expected <generation>:<shape> such as v5p:2x2x4; "
            f"the generations are {', '.join(CHIPS)}."
        )
    for name, value in NOT_A_TPU_MACHINE.items():
        os.environ.setdefault(name, value)
    try:
        import libtpu  # noqa: F401  jax finds the compiler through it
    except ImportError as error:
        raise ConfigError("planning for TPUs needs their compiler: pip install 'jaxpref[tpu]'.") from error
    from jax.experimental import topologies

    name = f"{generation}:{shape}"
    options = {"num_slices": count} if count > 1 else {}
    if set(shape.split("x")) == {"1"}:
        options["chips_per_host_bounds"] = (1, 1, 1)  # a host has four chips otherwise
    try:
        devices = list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:  # jaxlib raises its own kinds
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--topology={topology}: libtpu cannot describe this slice ({reason}); choose a shape that is built."
        ) from error
    chip = CHIPS[generation]
    return Slice(name, count, chip, peak_flops(devices[0].device_kind) * chip.devices, devices)
