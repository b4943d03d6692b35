"""What tokens and attention cost on a platform: the numbers from which the planner chooses its rows."""

from typing import Any, NamedTuple

import jax

from jaxpref.data.sizing import TYPICAL, Cost
from jaxpref.training import mesh, throughput


class Platform(NamedTuple):
    """How a kind of device spends its time.

    Attributes:
        attention: how much longer a floating-point operation of attention takes than one of a large matrix product,
            where keys behind a query are skipped.
        least: tokens of a micro-batch on one device below which a step takes no less time.
        micro_batch: cost of a micro-batch beside its tokens, in tokens.
    """

    attention: float
    least: int
    micro_batch: float


PLATFORMS = {
    "cpu": Platform(attention=2.8, least=256, micro_batch=75.0),
}
UNMEASURED = Platform(attention=1.0, least=8192, micro_batch=64.0)

GRANULES = {"tpu": 128}  # tokens of a block of the kernels; a region that ends inside one computes the rest for nothing


class Machine(NamedTuple):
    """What the shape of a batch depends on beside its examples.

    Attributes:
        devices: rows are divided over so many.
        cost: of the model on one of them.
        granule: every region is a multiple of so many tokens.
        sequence: the tokens of a row are divided over so many.
    """

    devices: int = 1
    cost: Cost = TYPICAL
    granule: int = 1
    sequence: int = 1


def machine(config: Any, devices: jax.sharding.Mesh, *, coupled: bool = False, reference: bool = False) -> Machine:
    """The devices of a mesh as the planner of batches sees them; arguments as :func:`of`."""
    platform = devices.devices.flat[0].platform
    cost = of(config, platform, coupled=coupled, reference=reference)
    return Machine(mesh.batch_devices(devices), cost, GRANULES.get(platform, 1), devices.shape["sequence"])


def of(config: Any, platform: str, *, coupled: bool = False, reference: bool = False) -> Cost:
    """The cost of a model on a platform, for :func:`jaxpref.data.sizing.choose`.

    Args:
        config: ``jaxpref.models.ModelConfig``.
        platform: as ``jax.Device.platform`` says: cpu, gpu, tpu.
        coupled: whether the objective couples examples.
        reference: whether a reference runs along.
    """
    measured = PLATFORMS.get(platform, UNMEASURED)
    token = throughput.flops_per_token(config, 0.0)
    pair = throughput.flops_per_token(config, 1.0) - token
    passes = throughput.FORWARD_AND_BACKWARD + reference
    return Cost(
        pair=measured.attention * pair / token,
        least=measured.least,
        micro_batch=measured.micro_batch,
        several=(passes + 1 + reference) / passes if coupled else 1.0,
        apart=(1 + reference) / passes,
    )
