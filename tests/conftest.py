"""Rules of the suite: one process of 8 virtual CPU devices per worker, cheap compiles, nothing slow in the fast stage.

Environment variables that a developer may set:
    JAXPREF_DATA: folder of the real data (default ``../shared/data``); tests that need it are skipped without it.
    JAXPREF_TEST_PLATFORM: ``cpu`` (default), ``cuda`` or ``tpu``.
    JAXPREF_TEST_SECONDS: seconds after which a test that is not marked slow fails (default 10; 0: never).
    HYPOTHESIS_PROFILE: ``fast`` (default) or ``ci`` (the same examples in every run).
"""

import collections
import itertools
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
PLATFORM = os.environ.get("JAXPREF_TEST_PLATFORM", "cpu")
DEVICES = 8
SECONDS = float(os.environ.get("JAXPREF_TEST_SECONDS", "10"))

# Level 0 without LLVM's expensive passes halves the compile time of a small training step; level 0 alone does not.
REDUCED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def _environment(devices: int, *, reduced: bool) -> dict[str, str]:
    """Environment variables that jax reads once, when it starts."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {
        "JAX_PLATFORMS": PLATFORM,
        "XLA_FLAGS": f"{flags} {REDUCED}" if reduced else flags,
        # XLA sizes its CPU thread pool by this. Every all-reduce in flight holds one thread per virtual device, so with
        # as few threads as devices two independent all-reduces wait for each other for ever.
        "NPROC": "32",
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "agg",
    }


os.environ.update(_environment(DEVICES, reduced=True))

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

SPENT = pytest.StashKey[float]()
MAPPINGS = 10_000  # Linux gives a process 65,530, and without more XLA crashes; all properties take 38,000
FINISHED = itertools.count(1)

hypothesis.settings.register_profile(
    "fast",
    max_examples=20,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("fast"), derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "fast"))


class Finished(NamedTuple):
    """What a finished command line left behind."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """Folder of the real data (JAXPREF_DATA)."""
    path = pathlib.Path(os.environ.get("JAXPREF_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip("needs the real data: set JAXPREF_DATA to its folder")
    return path


@pytest.fixture(scope="session")
def v5p() -> list:
    """The four devices of a v5p slice that libtpu compiles for without having one."""
    pytest.importorskip("libtpu")
    from jaxpref.planning import slices

    return slices.describe("v5p:2x2x1").devices


@pytest.fixture
def run_cli(request):
    """A function ``run_cli(*arguments, devices=1, timeout=600, **variables)`` that runs jaxpref in its own process.

    A test marked ``bitwise`` gets XLA's usual optimisation, any other the reduced one; ``variables`` are added to the
    environment.
    """
    reduced = request.node.get_closest_marker("bitwise") is None

    def run(*arguments, devices: int = 1, timeout: float = 600, **variables: str) -> Finished:
        environment = os.environ | cli_environment(devices, reduced=reduced) | variables
        command = [sys.executable, "-m", "jaxpref.cli", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


def cli_environment(devices: int = 1, *, reduced: bool = False) -> dict[str, str]:
    """Environment of a subprocess that a test starts by itself, to kill it or to start several."""
    return _environment(devices, reduced=reduced) | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}


def pytest_collection_modifyitems(items):
    for item in items:
        if PLATFORM == "cpu" and item.get_closest_marker("device"):
            item.add_marker(pytest.mark.skip(reason="needs an accelerator: set JAXPREF_TEST_PLATFORM=cuda or tpu"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Notes the processor time of the test and its subprocesses."""
    begin = sum(os.times()[:4])
    try:
        return (yield)
    finally:
        item.stash[SPENT] = sum(os.times()[:4]) - begin


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
    """Forgets compiled programs when they are many: each holds mappings of the process."""
    mappings = pathlib.Path("/proc/self/maps")
    if next(FINISHED) % 50 == 0 and mappings.exists() and mappings.read_text().count("\n") > MAPPINGS:
        jax.clear_caches()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    allowed = SECONDS <= 0 or item.get_closest_marker("slow") is not None
    if report.when == "call" and report.passed and not allowed:
        # On a busy machine a test waits for its turn; that is not its fault.
        seconds = min(report.duration, item.stash[SPENT])
        if seconds > SECONDS:
            report.outcome = "failed"
            report.longrepr = f"took {seconds:.1f} s; a test above {SECONDS:g} s must be made smaller or marked slow"
    return report


def pytest_terminal_summary(terminalreporter):
    reasons = collections.Counter(
        report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else str(report.longrepr)
        for report in terminalreporter.stats.get("skipped", [])
    )
    terminalreporter.section("skipped tests")
    terminalreporter.line(f"{sum(reasons.values())} skipped")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:5d}  {reason}")
