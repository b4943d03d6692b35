"""What a run tells the world: means of global sums, ``metrics.jsonl``, TensorBoard, Weights & Biases, a progress bar.

``metrics.jsonl`` holds one JSON object a line, ``step`` (finished steps) first. Names that start with ``time/`` are
wall-clock; everything else comes out the same, bit for bit, when the run is repeated. NaN and infinity are not JSON:
such a value is written as null, and the line's ``nonfinite`` says which it was:
``{"step": 3, "loss": null, "nonfinite": {"loss": "inf"}}``.

Object stores cannot append. On one, the file is written on this machine's disk and uploaded whole by
:meth:`Writer.upload`.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress
from etils import epath

from jaxpref.errors import ConfigError
from jaxpref.training.throughput import Clock

__all__ = ["FILE", "Clock", "Writer", "add", "means", "profile", "progress_bar"]

FILE = "metrics.jsonl"
LINE_SECONDS = 10  # between two lines of a progress report that is no terminal

# ------------------------------------------------------------------------------------------------ sums and counts


def add(totals: Mapping[str, tuple], metrics: Mapping[str, tuple]) -> dict[str, tuple[float, float]]:
    """Adds global (sum, count) pairs of a batch to running totals, in float64."""
    arrived = {name: tuple(float(part) for part in pair) for name, pair in jax.device_get(dict(metrics)).items()}
    old = {name: totals.get(name, (0.0, 0.0)) for name in arrived}
    return {**totals, **{name: (old[name][0] + s, old[name][1] + n) for name, (s, n) in arrived.items()}}


def means(metrics: Mapping[str, tuple]) -> dict[str, float]:
    """Sum over count of every metric; one whose count is zero was not measured and is left out."""
    return {name: total / count for name, (total, count) in add({}, metrics).items() if count}


# ------------------------------------------------------------------------------------------------ writers


class Writer:
    """Writes metrics from the first process; the others' writers do nothing."""

    def __init__(self, run, section, *, first_step: int, keep: bool = True):
        """Opens the run's metrics; lines of steps after ``first_step``, which will be done again, are removed.

        Args:
            run: run folder, local or on an object store.
            section: the config's ``log``: ``tensorboard``, ``wandb`` (project).
            first_step: number of finished steps of the state that the run starts from.
            keep: False writes nothing anywhere (a dry run).

        Raises:
            ConfigError: TensorBoard or W&B are asked for and not installed.
        """
        self._run = epath.Path(run)
        self._active = keep and jax.process_index() == 0
        self._sinks: list[Any] = []
        if not self._active:
            return
        self._remote = "://" in os.fspath(self._run)
        self._scratch = tempfile.TemporaryDirectory(prefix="jaxpref-") if self._remote else None
        self._folder = pathlib.Path(self._scratch.name if self._remote else self._run)
        kept = _lines_until(self._run / FILE, first_step)
        _replace(self._folder / FILE, "".join(f"{line}\n" for line in kept))
        self._file = open(self._folder / FILE, "a", encoding="utf-8")
        if section.tensorboard:
            self._sinks.append(_TensorBoard(self._folder / "tensorboard", first_step))
        if section.wandb:
            self._sinks.append(_WandB(section.wandb, self._run, self._folder))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line: numbers by name after ``step`` finished steps."""
        if not self._active:
            return
        numbers = {name: float(value) for name, value in values.items()}
        self._file.write(to_line(step, numbers) + "\n")
        self._file.flush()
        for sink in self._sinks:
            sink.write(step, {name: value for name, value in numbers.items() if math.isfinite(value)})

    def upload(self) -> None:
        """Makes everything written so far permanent; call it before the checkpoint of the same step is complete."""
        if not self._active:
            return
        os.fsync(self._file.fileno())
        for sink in self._sinks:
            sink.flush()
        if self._remote:
            for path in sorted(self._folder.rglob("*")):
                if path.is_file() and "wandb" not in path.parts:
                    target = self._run / path.relative_to(self._folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(path.read_bytes())

    def close(self) -> None:
        """Uploads and closes."""
        if not self._active:
            return
        self.upload()
        self._active = False
        for sink in self._sinks:
            sink.close()
        self._file.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def to_line(step: int, values: Mapping[str, float]) -> str:
    """A line of ``metrics.jsonl``, without its end."""
    broken = {name: str(value) for name, value in values.items() if not math.isfinite(value)}
    record = {"step": step} | {name: None if name in broken else value for name, value in values.items()}
    return json.dumps(record | ({"nonfinite": broken} if broken else {}), allow_nan=False)


def _lines_until(path: epath.Path, step: int) -> list[str]:
    """Whole lines of steps up to ``step``; a run that starts afresh (step 0) has none."""
    if step == 0 or not path.exists():
        return []
    kept = []
    for line in path.read_text().split("\n")[:-1]:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # cut off when the machine died; what follows is younger
            break
        if record["step"] <= step:
            kept.append(line)
    return kept


def _replace(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a crash leaves the old one or the new one."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


class _TensorBoard:
    """Event files; steps that a resumed run does again are purged."""

    def __init__(self, folder: pathlib.Path, first_step: int):
        try:
            import tensorboardX
        except ImportError:
            raise ConfigError(
                "log.tensorboard needs tensorboardX; pip install tensorboardX, or set it to False."
            ) from None
        self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A W&B run whose id follows from the run folder, so that a resumed run goes on with it.

    W&B ignores steps below its newest one: what a resumed run does again is there already.
    """

    def __init__(self, project: str, run: epath.Path, folder: pathlib.Path):
        try:
            import wandb
        except ImportError:
            raise ConfigError("log.wandb needs wandb; pip install wandb, or set it to ''.") from None
        identity = hashlib.sha256(os.fspath(run).encode()).hexdigest()[:16]
        config = json.loads((run / "config.json").read_text()) if (run / "config.json").exists() else {}
        self._run = wandb.init(
            project=project, id=identity, name=run.name, resume="allow", dir=str(folder), config=config
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """W&B sends in the background."""

    def close(self) -> None:
        self._run.finish()


# ------------------------------------------------------------------------------------------------ progress, profile


@contextlib.contextmanager
def progress_bar(first: int, steps: int, section, console: rich.console.Console | None = None):
    """Yields ``advance(done, values)``: a bar on a terminal, else a line now and then, or nothing.

    Args:
        first: finished steps at the start.
        steps: of the whole run.
        section: the config's ``log``: with ``progress=False`` nothing is shown.
        console: where to; standard error by default.
    """
    if not section.progress or jax.process_index() != 0:
        yield lambda done, values: None
        return
    console = console or rich.console.Console(file=sys.stderr)
    if not console.is_terminal:
        yield _lines(steps, console)
        return
    columns = (
        rich.progress.TextColumn("{task.completed}/{task.total}"),
        rich.progress.BarColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[values]}"),
    )
    with rich.progress.Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=steps, completed=first, values="")
        yield lambda done, values: progress.update(task, completed=done, values=_headline(values))


def _lines(steps: int, console):
    last = time.monotonic()

    def advance(done: int, values: Mapping[str, float]) -> None:
        nonlocal last
        if done == steps or time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            console.print(f"step {done}/{steps}  {_headline(values)}", markup=False, highlight=False, soft_wrap=True)

    return advance


def _headline(values: Mapping[str, float], count: int = 4) -> str:
    """The first few losses and accuracies."""
    chosen = [name for name in values if name.split("/")[0] in ("loss", "accuracy")][:count]
    return "  ".join(f"{name} {values[name]:.4g}" for name in chosen)


@contextlib.contextmanager
def profile(window: tuple[int, int], number: int, run):
    """Surrounds step ``number``; steps ``window[0]`` to ``window[1]`` are traced into ``<run>/profile`` (0, 0: none).

    A run that ends inside the window leaves no trace.
    """
    start, stop = window
    if stop < start:
        raise ConfigError(f"profile is {(start, stop)}; give the first and the last step of a trace, or (0, 0).")
    if stop and number == start:
        jax.profiler.start_trace(os.fspath(epath.Path(run) / "profile"))
    with jax.profiler.StepTraceAnnotation("train", step_num=number):
        yield
    if stop and number == stop:
        # Devices work in order, so what was started before this has ended when this has.
        jax.block_until_ready([jax.device_put(np.zeros(()), device) + 1 for device in jax.local_devices()])
        with contextlib.suppress(RuntimeError):  # a run that was resumed inside the window has started none
            jax.profiler.stop_trace()
