"""The first steps of an assembled run, without its loop."""

from collections.abc import Callable

import jax

from jaxpref.training import assembly, precompute, state


def take(
    parts: assembly.Assembly, count: int = 2, *, after: Callable[[state.TrainState], None] = lambda current: None
) -> list[dict[str, float]]:
    """Metrics of the first steps, as numbers, once the caches are filled; ``after`` sees the state of each step."""
    measured = []
    with jax.set_mesh(parts.mesh):
        parts = precompute.fill_run(parts, [], range(count), lambda *_: None)
        assert all(other.params is None for other in parts.others)
        step, current = parts.compile_step(), parts.state
        for number in range(count):
            current, metrics = step(current, parts.reference, jax.random.key(0), parts.place(number))
            measured.append({name: float(total) / float(weight) for name, (total, weight) in metrics.items() if weight})
            after(current)
    return measured
