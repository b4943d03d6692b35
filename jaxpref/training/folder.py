"""The run folder: config, first batch, and what describes the model; everything through ``etils.epath``."""

import json
import os
import sys

import jax
from etils import epath

from jaxpref import configuration
from jaxpref.data import show
from jaxpref.errors import CheckpointError, ConfigError
from jaxpref.training.starting import MODEL_FILE, TOKENIZER_FOLDER


class RunFolder:
    """Files of a run besides its checkpoints and metrics; only the first process writes.

    Attributes:
        path: the folder.
        begun: whether it already held a run.

    With ``keep=False`` (a dry run) nothing is read or written.
    """

    def __init__(self, workdir: str, config, *, keep: bool = True):
        self.path = epath.Path(os.path.expandvars(workdir)).expanduser()
        self.begun = False
        if not keep:
            return
        self._create()
        stored = self.path / "config.json"
        self.begun = stored.exists()
        if self.begun:
            self._compare(configuration.from_json(stored.read_text()), config)
        self._write("config.json", configuration.to_json(config))

    def describe(self, parts) -> None:
        """Writes the architecture and the tokenizer, from which other runs can start, and the first batch as text."""
        first_batch = parts.inputs.batch(0)
        self._write(MODEL_FILE, json.dumps(parts.model.config.to_dict(), indent=2) + "\n")
        if jax.process_index() == 0:
            parts.tokenizer.save(self.path / TOKENIZER_FOLDER)
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
        for change in changes:
            print(f"Continuing with a changed config: {change}.", file=sys.stderr)

    def _write(self, name: str, text: str) -> None:
        if jax.process_index() == 0:
            (self.path / name).write_text(text)
