"""Plans for TPU slices, compiled for real; they need libtpu, which is no device."""

import importlib.util
import json

import pytest

from jaxpref import planning
from jaxpref.errors import ConfigError
from jaxpref.planning import floor, slices
from tests.planning import golden
from tests.planning.test_floor import config_of, program_of

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
CONFIG = """
from tests.planning.test_floor import config_of

def get_config(arg="nano"):
    config = config_of("shared", batch_examples=16)
    config.model.name = arg
    return config
"""


@needs_libtpu
@pytest.mark.slow
def test_a_small_step_fits_and_says_what_it_sends():
    made = planning.plan(config_of("shared", batch_examples=16), "v5e:2x2")
    assert made.fits and made.chips == 4 and made.mesh == {"fsdp": 4}
    assert made.memory.parameters == pytest.approx(floor.bytes_on_device(program_of().drawn.shapes.params) * 2, rel=0.1)
    assert made.memory.optimizer >= 2 * made.memory.parameters
    assert sum(made.sent.values()) > made.memory.parameters  # every weight is gathered, every gradient scattered
    assert made.roofline.seconds > 0 and 0 < made.utilisation < 1
    values = json.loads(planning.to_json([made]))[0]
    assert values["fits"] is True and values["memory"]["used"] == made.memory.used


@needs_libtpu
@pytest.mark.slow
def test_the_command_tells_by_its_exit_code_what_does_not_fit(run_cli, tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    command = ["plan", f"--config={tmp_path}/config.py:llama3-8b", "--topology=v5e:1x1", f"--json={tmp_path}/plan.json"]
    done = run_cli(*command, timeout=600)
    assert done.code == 1, done.stderr
    assert "NO" in done.stdout
    assert json.loads((tmp_path / "plan.json").read_text())[0]["memory"]["used"] > slices.CHIPS["v5e"].memory


@pytest.mark.parametrize("topology", ["v5p", "h100:8", "2x2x4"])
def test_a_topology_names_a_generation_and_a_shape(topology):
    with pytest.raises(ConfigError, match="expected <generation>:<shape> such as v5p:2x2x4"):
        slices.describe(topology)


@needs_libtpu
def test_an_impossible_shape_is_one_sentence():
    with pytest.raises(ConfigError, match="--topology=v5p:3x9x2x"):
        slices.describe("v5p:3x9x2x")


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "chips"), [("v5e:1x1", 1), ("v5e:2x4", 8), ("v6e:4x4", 16), ("v5p:2x2x4", 16), ("tpu7x:2x2x1", 4)]
)
def test_slices_have_the_chips_of_their_names(topology, chips):
    where = slices.describe(topology)
    assert where.chips == chips
    assert slices.describe(topology, 2).chips == 2 * chips


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(golden.recorded()))
def test_a_recipe_takes_what_is_recorded(name):
    """Bytes and FLOPs within 5 %; a kind of collective that sends less than 1 % of all may come and go."""
    found, expected = golden.measured(name), golden.recorded()[name]
    sent = 0.01 * sum(number for part, number in expected.items() if part.startswith("sent"))
    for part in found | expected:
        slack = sent if part.startswith("sent") else 0
        message = f"{part}: if the change is wanted: python -m tests.planning.golden '{name}'"
        assert found.get(part, 0) == pytest.approx(expected.get(part, 0), rel=0.05, abs=slack), message


def test_stages_are_planned_one_by_one(run_cli):
    done = run_cli("plan", "--config=configs/quickstart.py", "--topology=v5e:2x2")
    assert done.code == 2 and "no such stage; there are" in done.stderr
