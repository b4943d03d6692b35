"""The dispatcher: which kernel computes attention, and what it refuses."""

from collections.abc import Callable
from typing import Any

from jaxpref.batch import Layout
from jaxpref.errors import ModelError
from jaxpref.models.attention import cudnn, splash, xla
from jaxpref.models.attention.request import Request, request

# Each module has `refusal(request)` and `over_rows(query, key, value, segments, positions, layout, **options)`.
KERNELS: dict[str, Any] = {"xla": xla, "splash": splash, "cudnn": cudnn}
NAMES = ("auto", *KERNELS)


def chosen(model: Any, layout: Layout) -> str:
    """Name of the kernel that computes a model's attention on the current mesh: a key of ``KERNELS``.

    Raises:
        ModelError: the kernel that ``model.attention`` names cannot honour the model, the layout or the mesh.
    """
    asked = request(model, layout)
    if layout.shared and asked.sequence > 1:
        raise ModelError(
            f"mesh.sequence is {asked.sequence}, but the shared layouts cut rows into regions; "
            f"use the padded or packed layout, or mesh.sequence = 1."
        )
    if model.attention == "auto":
        return _automatic(asked)
    refusal = KERNELS[model.attention].refusal(asked)
    if refusal:
        raise ModelError(f"attention is {model.attention!r}, but {refusal}; use 'auto' or 'xla'.")
    return model.attention


def _automatic(asked: Request) -> str:
    return "splash" if asked.platform == "tpu" and not splash.refusal(asked) else "xla"


def over_rows(model: Any, layout: Layout) -> Callable:
    """A model's attention over rows of a layout.

    Args:
        model: a :class:`jaxpref.models.Transformer`.
        layout: static regions of a row.

    Returns:
        ``attend(query [R, T, H, d], key [R, T, G, d], value [R, T, G, d], segments [R, T], positions [R, T], *,
        scale, window, local, soft_cap) -> [R, T, H, d]``, whose options are those of
        :func:`jaxpref.models.attention.xla.attend`.

    Raises:
        ModelError: as in :func:`chosen`.
    """
    kernel, window = KERNELS[chosen(model, layout)], request(model, layout).window

    def attend(*arrays, **options):
        if window is None:
            options |= {"window": None, "local": None}
        return kernel.over_rows(*arrays, layout, **options)

    return attend
