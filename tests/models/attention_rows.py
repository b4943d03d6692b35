"""Rows for the tests of attention: every layout, with padding, and what each token may see."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from jaxpref.batch import Layout

HEADS, GROUPS, HEAD_DIM = 4, 2, 8
LAYOUTS = ("padded", "packed", "shared", "packed+shared")


class Example(NamedTuple):
    """Where an example's tokens lie: the row, its prompt's places, and each response's."""

    row: int
    prompt: range
    responses: tuple[range, ...]


class Case(NamedTuple):
    layout: Layout
    segments: np.ndarray
    positions: np.ndarray
    examples: list[Example]


def rows_of(name: str, *, count: int = 4, length: int = 160, prompt: int = 100, response: int = 70) -> Case:
    """``count`` rows of a layout; ``prompt`` and ``response`` are region sizes of the shared layouts."""
    random = np.random.default_rng(len(name))
    layout = Layout(prompt, 2, response) if name.endswith("shared") else Layout(0, 1, length)
    segments, positions = np.zeros((2, count, layout.length), np.int32)
    examples = []
    for row in range(count):
        first, second = 0, [layout.prompt + k * layout.response for k in range(layout.responses)]
        for segment in range(1, 4 if name.startswith("packed") else 2):
            share = 3 if name.startswith("packed") else 1
            asked = [random.integers(1, layout.prompt // share + 1) if layout.shared else 0]
            asked += [random.integers(1, layout.response // share + 1) for _ in second]
            places = [range(first, first + asked[0])]
            places += [range(s, s + n) for s, n in zip(second, asked[1:], strict=True)]
            for number, place in enumerate(places):
                segments[row, place], before = segment, len(places[0]) * (number > 0)
                positions[row, place] = before + np.arange(len(place))
            first, second = first + asked[0], [s + n for s, n in zip(second, asked[1:], strict=True)]
            examples.append(Example(row, places[0], tuple(places[1:])))
    return Case(layout, segments, positions, examples)


def draw(case: Case) -> tuple[np.ndarray, ...]:
    """Random query, key, value and weights of the output, ``[R, T, H or G, d]``; padding weighs nothing."""
    random, places = np.random.default_rng(7), case.segments.shape
    sizes = (HEADS, GROUPS, GROUPS, HEADS)
    *arrays, weights = (random.normal(size=(*places, n, HEAD_DIM)) for n in sizes)
    return *arrays, weights * (case.segments > 0)[..., None, None]


def seen_alone(case: Case, window: int | None = None) -> np.ndarray:
    """Mask ``[R, T, T]`` over the places of a row: each prompt with one response by itself, example by example.

    It knows examples, and neither regions nor segment ids nor positions. Padding sees itself.
    """
    rows, length = case.segments.shape
    seen = np.tile(np.eye(length, dtype=bool), (rows, 1, 1))
    for example in case.examples:
        for response in example.responses:
            places = np.array([*example.prompt, *response])
            for position, place in enumerate(places):
                first = 0 if window is None else max(0, position - window + 1)
                seen[example.row, place, places[first : position + 1]] = True
    return seen


def plain(query, key, value, seen, *, scale, soft_cap=None) -> jax.Array:
    """Attention as a textbook writes it: all scores of a row, a softmax, copies of shared keys and values."""
    key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    scores = scale * jnp.einsum("rthd,rshd->rhts", query, key)
    scores = scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("rhts,rshd->rthd", weights, value)


def mesh_of(**axes: int) -> jax.sharding.Mesh:
    """A mesh of the first virtual devices."""
    devices = np.array(jax.devices()[: np.prod(list(axes.values()), dtype=int)]).reshape(*axes.values())
    return jax.sharding.Mesh(devices, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
