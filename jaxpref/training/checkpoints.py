"""Checkpoints: the train state and what identifies it, saved in the background, verified when read.

``<run>/checkpoints/<step>/`` holds ``state`` (an Orbax tree of arrays, one key per part of a leaf's path) and ``meta``
(JSON). ``step`` counts finished steps, so the streams' positions follow from it, and every random key is a fold of the
run's seed with it: neither is stored.

Orbax notices truncated and missing files, but not changed bytes inside an array. So ``meta`` carries a digest of every
leaf and one of itself, and a checkpoint counts as good only when what was read has these digests.
"""

import json
import logging
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from jaxpref.errors import CheckpointError
from jaxpref.training import stored, trees

FOLDER = "checkpoints"

_log = logging.getLogger(__name__)


class Damaged(NamedTuple):
    """A checkpoint that cannot be read, and why."""

    step: int
    reason: str


class Checkpoints:
    """The checkpoints of one run; every process makes the same calls.

    Attributes:
        folder: where they lie.
        damaged: checkpoints that the last :meth:`restore` had to pass over.
    """

    def __init__(self, run, section, *, identity: Mapping[str, Any]):
        """Opens the checkpoints of a run; saves that were cut off are removed.

        Args:
            run: run folder.
            section: the config's ``checkpoint``: ``every``, ``keep``, ``keep_every``, ``best`` (``metric``, ``mode``).
            identity: JSON values that a checkpoint and the run must share to be continued (seed, fingerprint of the
                data, ...); the names appear in the error.
        """
        self.folder = _absolute(run) / FOLDER
        self.damaged: tuple[Damaged, ...] = ()
        self._section, self._identity = section, json.loads(json.dumps(dict(identity)))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Keep(self), cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be written ({error}); choose a workdir that can.") from error
        self._values = {step: value for step in self.steps() if (value := self._stored_value(step)) is not None}

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Step of the checkpoint with the best value of ``best.metric`` (the earliest of equals); None without any."""
        present = [step for step in self.steps() if step in self._values]
        return _best(self._values, present, self._section.best.mode)

    def due(self, step: int) -> bool:
        """Whether the config asks for a checkpoint after this many finished steps."""
        return self._section.every > 0 and step % self._section.every == 0

    # -------------------------------------------------------------------------------------------- save

    def save(self, step: int, state, progress: Mapping[str, Any], *, value: float | None = None) -> bool:
        """Saves a train state in the background.

        Args:
            step: number of finished steps.
            state: tree of arrays; it may be donated as soon as this returns.
            progress: JSON values that :meth:`restore` gives back (running means, early stopping, ...).
            value: of ``best.metric`` at this step, if it was measured; NaN is never best.

        Returns:
            False when this step is already saved.
        """
        if step in self._manager.all_steps():
            return False
        value = None if value is None or math.isnan(value) else float(value)
        meta = {"step": step, "identity": self._identity, "progress": dict(progress)}
        meta |= {"value": value, "mode": self._section.best.mode}
        meta |= {"leaves": stored.describe(state), "environment": stored.environment()}
        if value is not None:
            self._values[step] = value
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(stored.nest(trees.leaves(state))), meta=ocp.args.JsonSave(stored.sealed(meta))
        )
        self._guard(step, lambda: self._manager.save(step, args=arguments, force=True))
        return True

    def wait(self) -> None:
        """Returns when everything that was saved is complete on disk."""
        self._guard(self.latest_step(), self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits, and ends the background threads."""
        self.wait()
        self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _guard(self, step, action) -> None:
        try:
            action()
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} could not be saved: {stored.summary(error)}."
            ) from error

    # -------------------------------------------------------------------------------------------- restore

    def restore(self, target) -> tuple[Any, dict[str, Any] | None]:
        """The newest good checkpoint, placed as ``target`` says, on whatever mesh.

        A damaged checkpoint is passed over with a warning that names step and reason. Once an older one is found good,
        the damaged ones are set aside (renamed to ``damaged-<step>``), so that the run can save these steps again.

        Args:
            target: tree of arrays or of ``jax.ShapeDtypeStruct`` with shardings.

        Returns:
            ``(state, progress)``, or ``(None, None)`` when there is no checkpoint.

        Raises:
            CheckpointError: the checkpoint is of another architecture or another identity, or all are damaged.
        """
        self.wait()
        damaged = []
        for step in reversed(self.steps()):
            found = self._attempt(step, target)
            if not isinstance(found, Damaged):
                self._set_aside(damaged)
                return found
            damaged.append(found)
            _warn(f"CHECKPOINT {step} IN {self.folder} IS DAMAGED: {found.reason}. Trying the one before.")
        if damaged:
            raise CheckpointError(
                f"all {len(damaged)} checkpoints in {self.folder} are damaged "
                f"({'; '.join(f'{step}: {reason}' for step, reason in damaged)}); "
                "remove the folder to start again, and use checkpoint.keep=2 or more to have one to fall back to."
            )
        return None, None

    def _attempt(self, step: int, target):
        meta = _agree(lambda: stored.read_meta(self.folder, step), step)
        if isinstance(meta, Damaged):
            return meta
        self._check_identity(step, meta)
        stored.check_architecture(meta["leaves"], target, f"checkpoint {step} in {self.folder}")
        leaves = _agree(lambda: stored.read_leaves(self.folder, step, trees.leaves(target)), step)
        if isinstance(leaves, Damaged):
            return leaves
        broken = stored.changed_leaves(leaves, meta["leaves"])
        if broken:
            return Damaged(step, f"{len(broken)} arrays are not what was saved, the first is {broken[0]}")
        changes = stored.environment_changes(meta["environment"])
        if changes:
            _warn(f"Checkpoint {step} was made with other {changes}: the run goes on, but not bit for bit.")
        return trees.map_paths(lambda path, _: leaves[path], target), meta["progress"]

    def _check_identity(self, step: int, meta) -> None:
        for name in sorted(self._identity.keys() | meta["identity"].keys()):
            old, new = meta["identity"].get(name), self._identity.get(name)
            if old != new:
                raise CheckpointError(
                    f"checkpoint {step} in {self.folder} was made with another {name} ({old!r}, now {new!r}); "
                    "restore the old one, or use a new workdir."
                )

    def _set_aside(self, damaged: list[Damaged]) -> None:
        self.damaged = tuple(damaged)
        for step, _ in damaged:
            self._values.pop(step, None)
            if jax.process_index() == 0:
                (self.folder / str(step)).rename(self.folder / f"damaged-{step}-{time.time_ns()}")
        if damaged:
            _barrier("damaged checkpoints are set aside")
            self._manager.reload()

    def _stored_value(self, step: int) -> float | None:
        try:
            return stored.read_meta(self.folder, step)["value"]
        except Exception:  # a damaged checkpoint is reported when it is restored
            return None

    def _kept(self, steps: list[int]) -> set[int]:
        """Which of these steps stay: the newest, the multiples of ``keep_every``, and the best."""
        kept = set(sorted(steps)[-self._section.keep :])
        if self._section.keep_every:
            kept |= {step for step in steps if step % self._section.keep_every == 0}
        if self._section.best.metric:
            kept |= {_best(self._values, [step for step in steps if step in self._values], self._section.best.mode)}
        return kept


class _Keep(ocp.checkpoint_managers.PreservationPolicy):
    """Tells Orbax what :meth:`Checkpoints._kept` decides."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        kept = self._checkpoints._kept([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


# ------------------------------------------------------------------------------------------------ other runs


def load_params(run, target, *, below: str = "", step: int | None = None):
    """Parameters of a finished or running run, to start another one from, to evaluate or to export.

    Args:
        run: run folder.
        target: tree of ``jax.ShapeDtypeStruct`` with shardings; parameters are cast to its dtypes.
        below: the part of ``{"model": ..., "heads": {term: ...}}`` that ``target`` describes, for example ``"model"``.
        step: which checkpoint; by default the best one when the run measured one, else the newest.

    The moving average is taken where the run kept one.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, or it is of another architecture.
    """
    return _load(run, target, f"params/{below}/" if below else "params/", step)


def load_beside(run, shapes, *, step: int | None = None) -> dict[str, Any]:
    """What evaluation reads of a stored train state beside the parameters: its step, running states, a moved reference.

    Args:
        run: run folder.
        shapes: the train state's shapes, dtypes and shardings.
        step: as in :func:`load_params`, which raises for the same reasons.

    Returns:
        Field of the train state -> its tree, where it has leaves.
    """
    step = _default_step(_absolute(run) / FOLDER) if step is None else step
    trees_of = {name: getattr(shapes, name) for name in ("objective", "reference")}
    kept = {name: tree for name, tree in trees_of.items() if jax.tree.leaves(tree)}
    return {"step": jnp.asarray(step, jnp.int32)} | {n: _load(run, tree, f"{n}/", step) for n, tree in kept.items()}


def _load(run, target, prefix: str, step: int | None):
    """The part of a stored train state whose leaves' paths begin with ``prefix``; of parameters, their average."""
    folder = _absolute(run) / FOLDER
    step = _default_step(folder) if step is None else step
    where = f"checkpoint {step} in {folder}"
    try:
        there = stored.read_meta(folder, step)["leaves"]
        described = {path.removeprefix(prefix): leaf for path, leaf in there.items() if path.startswith(prefix)}
        stored.check_architecture(described, target, where, dtypes=False)
        averaged = prefix.replace("params", "average", 1)
        names = {path: next(f"{p}{path}" for p in (averaged, prefix) if f"{p}{path}" in there) for path in described}
        wanted = {
            names[path]: jax.ShapeDtypeStruct(leaf.shape, there[names[path]][1], sharding=leaf.sharding)
            for path, leaf in trees.leaves(target).items()
        }
        leaves = stored.read_leaves(folder, step, wanted)
        broken = stored.changed_leaves(leaves, there)
    except CheckpointError:
        raise
    except Exception as error:
        steps = stored.complete_steps(folder)
        reason = f"is damaged: {stored.summary(error)}" if step in steps else f"does not exist, only {steps} do"
        raise CheckpointError(f"{where} {reason}; choose another one.") from error
    if broken:
        raise CheckpointError(f"{where} is damaged: {broken[0]} is not what was saved; choose another one.")
    return trees.map_paths(lambda path, leaf: leaves[names[path]].astype(leaf.dtype), target)


def load_model_params(run, target, *, step: int | None = None):
    """The model's parameters of a run, without its heads: :func:`load_params` below ``model``."""
    return load_params(run, target, below="model", step=step)


def _default_step(folder) -> int:
    values, mode = {}, "min"
    steps = stored.complete_steps(folder)
    for step in steps:
        try:
            meta = stored.read_meta(folder, step)
        except Exception:  # reported when it is chosen; it can only be the newest
            continue
        if meta["value"] is not None:
            values[step], mode = meta["value"], meta["mode"]
    if not steps:
        raise CheckpointError(f"{folder} holds no complete checkpoint; train that run first.")
    best = _best(values, list(values), mode)
    return max(steps) if best is None else best


def _best(values: Mapping[int, float], steps: list[int], mode: str) -> int | None:
    sign = 1 if mode == "min" else -1
    return min(steps, key=lambda step: (sign * values[step], step), default=None)


# ------------------------------------------------------------------------------------------------ processes, messages


def _agree(action, step: int):
    """The result of ``action`` when it succeeds on every process, else why it failed somewhere."""
    result, reason = None, ""
    try:
        result = action()
    except (MemoryError, PermissionError):
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        reason = stored.summary(error)
    if jax.process_count() > 1:
        failed = np.asarray(multihost_utils.process_allgather(np.asarray(bool(reason))))
        if failed.any() and not reason:
            reason = f"process {int(failed.argmax())} could not read its part"
    return Damaged(step, reason) if reason else result


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _warn(message: str) -> None:
    if jax.process_index() == 0:
        _log.warning(message)


def _absolute(path) -> epath.Path:
    """Orbax takes absolute paths only; those of object stores are."""
    path = epath.Path(path)
    return path if path.is_absolute() else path.resolve()
