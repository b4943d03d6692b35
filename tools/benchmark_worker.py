"""What both sides of the benchmark share: a worker process that takes orders on stdin and answers on stdout.

An order is one line of JSON, ``{"steps": n}``, and so is the answer. Between orders the worker sleeps. No library of
either side is imported here, so that each worker holds its own only.
"""

import contextlib
import ctypes
import gc
import json
import os
import platform
import resource
import sys
from collections.abc import Callable
from typing import Any


def channel() -> Callable[[dict[str, Any]], None]:
    """Takes the standard output for answers; whatever else is printed goes to the standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return lambda answer: print(json.dumps(answer), file=answers)


def orders():
    """The orders that arrive, until the input ends."""
    for line in sys.stdin:
        yield json.loads(line)


def read_rows(path: str) -> list[list[dict[str, Any]]]:
    """The batches that :func:`write_rows` wrote."""
    with open(path) as lines:
        return [json.loads(line) for line in lines]


def write_rows(path: str, batches) -> None:
    """Writes batches as lines of JSON: lists of ``{"prompt": ids, "responses": [ids, ...], "label": bool}``."""
    with open(path, "w") as file:
        file.writelines(json.dumps(batch) + "\n" for batch in batches)


def forget_peak() -> None:
    """Makes the kernel count the peak of resident memory anew (Linux), without what start-up has left in the heap."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # then the peak includes what was before


def peak_bytes() -> dict[str, int]:
    """Peak resident bytes of this process: ever, and since :func:`forget_peak` where the kernel tells."""
    unit = 1 if platform.system() == "Darwin" else 1024
    peaks = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    try:
        with open("/proc/self/status") as lines:
            peaks["steps"] = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    return peaks
