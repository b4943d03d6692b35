"""What a model, a layout and the devices ask of an attention kernel, and the platform that a program is made for."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpref.batch import Layout
from jaxpref.models.sharding import axis_size


class Request(NamedTuple):
    """Everything by which a kernel may refuse.

    Attributes:
        dtype: of queries, keys and values.
        head_dim: width of one head.
        window: a local layer sees positions less than this behind its own; None when no sequence of a row can be
            longer than that, or no layer is local.
        soft_cap: of the scores, or None.
        layout: regions of a row.
        platform: 'cpu', 'gpu' or 'tpu'.
        sequence: size of the mesh axis that divides the tokens of a row.
    """

    dtype: Any
    head_dim: int
    window: int | None
    soft_cap: float | None
    layout: Layout
    platform: str
    sequence: int


def request(model: Any, layout: Layout) -> Request:
    """What a :class:`jaxpref.models.Transformer` asks of its kernel, on the current mesh."""
    config, longest = model.config, layout.prompt + layout.response
    window = config.window if any(config.local) and config.window is not None and config.window < longest else None
    return Request(
        jnp.dtype(model.dtype),
        config.head_dim,
        window,
        config.attention_soft_cap,
        layout,
        platform(),
        axis_size("sequence"),
    )


def platform() -> str:
    """Platform that the program being traced will run on.

    The current mesh decides (``with jax.set_mesh(mesh)``), and the default backend without one. A mesh of a TPU
    topology's devices thus gets the TPU's kernels on a host that has no TPU, where ``jax.default_backend()`` is 'cpu'.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
