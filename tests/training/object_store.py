"""A fake object store: ``gs://`` paths of ``etils.epath``; files are written whole, never appended to or renamed."""

import contextlib
import os
import pathlib

from etils.epath import testing


@contextlib.contextmanager
def write_once(folder: pathlib.Path):
    """Serves ``gs://`` from a local folder; yields the list of uploads (path, bytes in it)."""
    uploads: list[str] = []

    def local(path):
        path = os.fspath(path)
        return str(folder / path.removeprefix("gs://")) if path.startswith("gs://") else path

    def forward(original, path, *arguments, **options):
        return original(local(path), *arguments, **options)

    def open_whole(original, path, mode):
        if os.fspath(path).startswith("gs://") and mode.rstrip("b") not in ("r", "w"):
            raise OSError(f"an object store cannot open {path} with mode {mode!r}")
        if "w" in mode:
            uploads.append(os.fspath(path))
        return original(local(path), mode)

    def refuse(original, path, target, **options):
        if os.fspath(path).startswith("gs://"):
            raise OSError(f"an object store cannot rename {path}")
        return original(path, target, **options)

    names = ("exists", "isdir", "listdir", "glob", "walk", "makedirs", "mkdir", "rmtree", "remove", "stat")
    with testing.mock_epath(open=open_whole, rename=refuse, replace=refuse, **dict.fromkeys(names, forward)):
        yield uploads
