"""Host memory next to the devices: moments that lie there between steps, and whether there is any."""

import jax
import optax

from jaxpref.errors import ConfigError

HOST, DEVICE = "pinned_host", "device"


def check(mesh: jax.sharding.Mesh, field: str) -> None:
    """Raises ConfigError when the mesh's devices cannot reach pinned memory of their host, which ``field`` asks for."""
    device = mesh.devices.flat[0]
    try:
        device.memory(HOST)
    except Exception as error:
        raise ConfigError(
            f"config.{field} keeps arrays in the host's memory ({HOST}), which {device.device_kind} cannot reach; "
            "leave it out."
        ) from error


def keep_on_host(optimizer: optax.GradientTransformation, places) -> optax.GradientTransformation:
    """The same transformation for a state that lies on the host between updates.

    Args:
        optimizer: to be wrapped.
        places: tree of shardings like its state; those of memory kind ``pinned_host`` lie on the host.
    """

    def move(state, kind: str):
        return jax.tree.map(
            lambda leaf, place: jax.device_put(leaf, place.with_memory_kind(kind)) if is_on_host(place) else leaf,
            state,
            places,
        )

    def update(updates, state, params=None):
        updates, state = optimizer.update(updates, move(state, DEVICE), params)
        return updates, move(state, HOST)

    return optax.GradientTransformation(optimizer.init, update)


def is_on_host(sharding) -> bool:
    """Whether an array with this sharding lies in its host's memory."""
    return getattr(sharding, "memory_kind", None) == HOST


def brought_in(leaf):
    """An array in its devices' memory."""
    place = getattr(leaf, "sharding", None)
    return jax.device_put(leaf, place.with_memory_kind(DEVICE)) if is_on_host(place) else leaf
