"""What the tests of this room vary: tiny models, ragged examples, layouts, micro-batches and meshes.

Everything is compared with one case: the padded layout, one micro-batch, one device.
"""

import dataclasses
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref import models
from jaxpref.data import Tokenized, layouts, order
from jaxpref.training import mesh
from tests.models import families

VOCABULARY, PROMPT, RESPONSE = 62, 7, 6  # the vocabulary is even because the mesh axis 'tensor' divides it

_KITCHEN_SINK = dataclasses.replace(
    families.FAMILIES["gemma3"],
    attention_soft_cap=2.0,
    final_soft_cap=3.0,
    learned_positions=True,
    attention_bias=True,
)
CONFIGS = {
    "plain": dataclasses.replace(families.LLAMA, vocab_size=VOCABULARY),
    # A window of 3, two ropes and learned positions, soft caps, post-norms, query-key norms, biases, tied embedding.
    "everything": dataclasses.replace(_KITCHEN_SINK, vocab_size=VOCABULARY),
}


class Case(NamedTuple):
    """One way to compute what must not depend on it."""

    layout: str = "padded"
    several: bool = False
    devices: int = 1
    sequence: bool = False
    short: bool = False

    def __str__(self):
        micro_batches = "several micro-batches" if self.several else "one micro-batch"
        devices = "1 device" if self.devices == 1 else f"{self.devices} devices"
        return f"{self.layout}, {micro_batches}, {devices}{', sequence' * self.sequence}{', short rows' * self.short}"


BASE = Case()


def mesh_of(case: Case) -> jax.sharding.Mesh:
    """One device, or eight as data 2 x fsdp 2 x tensor 2, or as data 2 x tensor 2 x sequence 2."""
    axes = dict.fromkeys(mesh.AXES, 1)
    if case.devices == 8:
        axes |= {axis: 2 for axis in ("data", "sequence" if case.sequence else "fsdp", "tensor")}
    return mesh.make_mesh(types.SimpleNamespace(**axes), jax.devices()[: case.devices])


# ------------------------------------------------------------------------------------------------ data


def _tokens(random: np.random.Generator, low: int, high: int) -> np.ndarray:
    return random.integers(1, VOCABULARY, random.integers(low, high + 1)).astype(np.int32)


def pairs(count: int, seed: int = 0) -> list[Tokenized]:
    """Ragged pairs with weights and margins; the third lacks a response, the second has foreign turns in one."""
    random = np.random.default_rng(seed)
    drawn = []
    for n in range(count):
        responses = (_tokens(random, 1, RESPONSE), _tokens(random, 0 if n == 2 else 1, 0 if n == 2 else RESPONSE))
        masks = [np.ones(len(response), bool) for response in responses]
        if n == 1:
            masks[0][: len(masks[0]) // 2] = False
        side = {"margin": random.uniform(), "weight": random.uniform(0.5, 2.0)}
        drawn.append(Tokenized(_tokens(random, 1, PROMPT), responses, tuple(masks), side, f"pairs:{n}"))
    return drawn


def demonstrations(count: int, seed: int = 0) -> list[Tokenized]:
    """Ragged demonstrations with foreign turns."""
    random = np.random.default_rng(100 + seed)
    drawn = []
    for n in range(count):
        response = _tokens(random, 1, RESPONSE)
        mask = random.uniform(size=len(response)) < 0.8
        mask[-1] = True
        drawn.append(Tokenized(_tokens(random, 1, PROMPT), (response,), (mask,), {}, f"demonstrations:{n}"))
    return drawn


def unpaired(count: int, seed: int = 0) -> list[Tokenized]:
    """Ragged labelled examples, each with a mismatched response as response 1."""
    random = np.random.default_rng(200 + seed)
    drawn = [
        Tokenized(
            _tokens(random, 1, PROMPT),
            (response := _tokens(random, 1, RESPONSE),),
            (np.ones(len(response), bool),),
            {"label": float(n % 3 > 0)},
            f"unpaired:{n}",
        )
        for n in range(count)
    ]
    return order.with_partners(drawn, np.array([(0, n) for n in range(count)]), seed=seed)


def unweighted(count: int, seed: int = 0) -> list[Tokenized]:
    """The pairs without their weights."""
    return [example._replace(side={"margin": example.side["margin"]}) for example in pairs(count, seed)]


def judged(count: int, seed: int = 0) -> list[Tokenized]:
    """The pairs with what two objectives prefer."""
    random = np.random.default_rng(300 + seed)
    return [e._replace(side=e.side | {"prefers": random.choice([-1.0, 1.0], 2)}) for e in pairs(count, seed)]


STREAMS = {
    "pairs": pairs, "unweighted": unweighted, "judged": judged, "demonstrations": demonstrations, "unpaired": unpaired,
}  # fmt: skip
SIDES = {
    "pairs": ("margin", "weight"), "unweighted": ("margin",), "judged": ("margin", "prefers", "weight"),
    "demonstrations": (), "unpaired": ("label",),
}  # fmt: skip


def batch_shape(sizes: dict[str, int], case: Case, *, final: bool = False) -> layouts.BatchShape:
    """Shape of batches of these streams; with several micro-batches, packed rows hold few examples each.

    In one micro-batch mismatched responses lie beside the others, so that the plain gradient is there to compare with.
    """
    streams = {
        name: layouts.StreamShape(
            size,
            1 if name == "demonstrations" else 2,
            PROMPT,
            RESPONSE,
            SIDES[name],
            partnered=name == "unpaired" and case.several,
            widths={"prefers": 2} if name == "judged" else {},
        )
        for name, size in sizes.items()
    }
    longest = {
        "packed": dict(length=PROMPT + RESPONSE + 3),
        "packed+shared": dict(prompt_length=PROMPT + 2, response_length=RESPONSE + 2),
    }.get(case.layout, {})
    given = {name: size if case.several else 4 * size for name, size in longest.items()}
    if case.short:
        given["short_length"] = {"packed": 9, "packed+shared": RESPONSE - 1}[case.layout]
    return layouts.batch_shape(streams, layout=case.layout, rows=4 * case.several, final=final, multiple_of=4, **given)


def plan(streams: dict[str, list[Tokenized]], case: Case, sizes: dict[str, int] | None = None, *, final: bool = False):
    """``(shape, batch of numpy arrays)``."""
    shape = batch_shape(sizes or {name: len(found) for name, found in streams.items()}, case, final=final)
    return shape, layouts.plan(streams, shape)


# ------------------------------------------------------------------------------------------------ models


def parameters(config: str, dtype=jnp.float64, *, heads=(), **options):
    """``(model, params, reference)`` with different random parameters; ``heads`` are (term, dimensions)."""
    model, tree = families.build(CONFIGS[config], dtype=dtype, **({"chunk": 7} | options))
    _, reference = families.build(CONFIGS[config], dtype=dtype, seed=1)
    random = np.random.default_rng(2)
    kernels = {
        name: {"kernel": jnp.asarray(random.normal(size=(model.config.width, size)), dtype)} for name, size in heads
    }
    return model, {"model": tree, "heads": kernels}, reference


def shard(tree, model, devices: jax.sharding.Mesh):
    """Parameters as they lie on a mesh."""
    specs = models.shard_specs(models.sharding_rules(model), tree, devices)
    return jax.tree.map(lambda leaf, spec: jax.device_put(leaf, jax.sharding.NamedSharding(devices, spec)), tree, specs)


# ------------------------------------------------------------------------------------------------ comparing


def assert_close(actual, expected, tolerance: float, what: str = "") -> None:
    """Every leaf differs by at most ``tolerance`` times the largest entry of the expected tree."""
    actual, expected = jax.tree.map(np.asarray, (actual, expected))
    largest = max(np.abs(leaf).max(initial=0.0) for leaf in jax.tree.leaves(expected))
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max(initial=0.0), actual, expected)
    for path, difference in jax.tree_util.tree_leaves_with_path(differences):
        where = f"{what} {jax.tree_util.keystr(path)}"
        assert difference <= tolerance * largest, f"{where}: differs by {difference:.3g}, largest entry {largest:.3g}"


def assert_close_by_norm(actual, expected, tolerance: float, what: str = "") -> None:
    """The trees differ by at most ``tolerance`` times the global norm of the expected one."""
    actual, expected = jax.tree.map(np.asarray, (actual, expected))

    def norm(tree):
        return np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)))

    difference, size = norm(jax.tree.map(np.subtract, actual, expected)), norm(expected)
    assert difference <= tolerance * size, f"{what}: differs by {difference:.3g} of a norm of {size:.3g}"
