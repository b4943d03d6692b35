"""The command line, which writes down what it trains on, and which dies at a chosen moment.

    python recorded.py <file> <moment>:<stage>:<step> train --config=... --workdir=...

Every trained batch adds a line to the file: the stage's folder, the step, and the origins of its examples. SIGKILL
strikes after ``<step>`` finished steps of the stage: at the moment ``metrics`` their line is written and no more, at
the moment ``saving`` the checkpoint is being written in the background. An empty second argument lets the process live.
"""

import json
import os
import signal
import sys

from jaxpref import cli
from jaxpref.training import assembly, checkpoints, metrics


def after(owner, name, act):
    """Calls ``act`` with the arguments of a method, after it."""
    method = getattr(owner, name)

    def wrapped(self, *arguments, **options):
        result = method(self, *arguments, **options)
        act(self, *arguments)
        return result

    setattr(owner, name, wrapped)


def record(path):
    """Writes down the examples of every batch that is placed on the devices, before they are used."""

    def write(parts, step):
        chosen = {
            name: [[example.origin, *map(len, example.responses)] for example in examples]
            for name, examples in parts.inputs.examples(step).items()
        }
        with open(path, "a") as file:
            file.write(json.dumps({"step": step, "examples": chosen}) + "\n")

    after(assembly.Assembly, "place", write)


def die(moment, stage, step):
    """Kills this process at a moment."""

    def strike(folder, done):
        if done == int(step) and stage in folder.parts:
            os.kill(os.getpid(), signal.SIGKILL)

    if moment == "metrics":
        after(metrics.Writer, "write", lambda writer, done, values: strike(writer._folder, done))
    else:
        after(checkpoints.Checkpoints, "save", lambda saver, done, *_: strike(saver.folder, done))


if __name__ == "__main__":
    record(sys.argv[1])
    if sys.argv[2]:
        die(*sys.argv[2].split(":"))
    sys.exit(cli.main(sys.argv[3:]))
