"""What tokens and attention cost on a platform: the numbers from which the planner chooses its rows."""

from typing import Any, NamedTuple

from jaxpref.data.sizing import Cost
from jaxpref.training import throughput


class Platform(NamedTuple):
    """How a kind of device spends its time.

    Attributes:
        attention: how much longer a floating-point operation of attention takes than one of a large matrix product.
        least: tokens of a micro-batch on one device below which a step takes no less time.
        micro_batch: cost of a micro-batch beside its tokens, in tokens.
    """

    attention: float
    least: int
    micro_batch: float


PLATFORMS = {
    "cpu": Platform(attention=1.2, least=64, micro_batch=24.0),
}
UNMEASURED = Platform(attention=1.0, least=8192, micro_batch=64.0)


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
    )
