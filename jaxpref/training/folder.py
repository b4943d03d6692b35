"""The run folder: config, first batch, and what describes the model; everything through ``etils.epath``."""

import json
import os
import sys

import jax

from jaxpref import configuration
from jaxpref.analysis.report import SAMPLES
from jaxpref.data import show
from jaxpref.errors import CheckpointError, ConfigError
from jaxpref.training import stored
from jaxpref.training.checkpoints import FOLDER
from jaxpref.training.starting import MODEL_FILE, TOKENIZER_FOLDER, expand


class RunFolder:
    """Files of a run besides its checkpoints and metrics; only the first process writes.

    Attributes:
        path: the folder.

    A run without a checkpoint begins anew, with whatever config. With ``keep=False`` (a dry run) nothing is read or
    written.
    """

    def __init__(self, workdir: str, config, *, keep: bool = True):
        self.path = expand(workdir)
        if not keep:
            return
        self._create()
        begun_with = self.path / "config.json"
        if begun_with.exists() and stored.complete_steps(self.path / FOLDER):
            self._compare(configuration.from_json(begun_with.read_text()), config)
        self._write("config.json", configuration.to_json(config))

    def describe(self, parts) -> None:
        """Writes the architecture and the tokenizer, from which other runs can start, and the first batch as text."""
        first_batch = parts.inputs.batch(0)
        self._write(MODEL_FILE, json.dumps(parts.model.config.to_dict(), indent=2) + "\n")
        if jax.process_index() == 0:
            parts.tokenizer.save(self.path / TOKENIZER_FOLDER)
            (self.path / SAMPLES).unlink(missing_ok=True)  # of a run that ended before its first checkpoint
        self._write("first_batch.txt", show.batch(first_batch, parts.tokenizer, colour=False))

    def _create(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".writable-{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"--workdir={self.path} cannot be written ({error}); choose a folder that can."
            ) from error

    def _compare(self, old, new) -> None:
        changes = configuration.difference(old, new)
        refused = [str(change) for change in changes if not change.allowed]
        if refused:
            raise CheckpointError(
                f"{self.path} holds a run of another config ({'; '.join(refused)}); "
                "use a new --workdir, or the old values."
            )
        if jax.process_index() == 0:
            for change in changes:
                print(f"{self.path}: continuing with a changed config: {change}.", file=sys.stderr)

    def _write(self, name: str, text: str) -> None:
        if jax.process_index() == 0:
            (self.path / name).write_text(text)
