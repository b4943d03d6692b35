"""Counting compilations. A jitted function's own cache cannot tell: jit's caches share their room and forget."""

import collections
import contextlib
from collections.abc import Iterator

import jax

LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"


@contextlib.contextmanager
def counted() -> Iterator[collections.Counter]:
    """Counts, by the function's name, what jit lowers while the context is open: ``{"jit(step)": 1}``."""
    counts = collections.Counter()

    def listen(event: str, seconds: float, *, fun_name: str = "", **rest):
        counts[fun_name] += event == LOWERED

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
