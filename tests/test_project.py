"""Rules of the house that no single room can check: imports, sizes, packaging, shipped configs."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

from tests.golden_configs import regenerate

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "jaxpref").rglob("*.py"))
LINES = 400


def imported(path: pathlib.Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
    return names


def test_rooms_look_down_only():
    done = subprocess.run(
        [pathlib.Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_losses_import_jax_chex_and_rax_only():
    allowed = {"jax", "chex", "rax", *sys.stdlib_module_names}
    for path in (ROOT / "jaxpref" / "losses").rglob("*.py"):
        foreign = {name for name in imported(path) if name.partition(".")[0] not in allowed}
        assert all(name.startswith("jaxpref.losses") for name in foreign), f"{path}: {foreign}"


def test_torch_and_tensorflow_are_never_imported():
    for path in MODULES:
        packages = {name.partition(".")[0] for name in imported(path)}
        assert not packages & {"torch", "tensorflow", "clu", "distrax", "tensorflow_probability"}, path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_one_room(path):
    assert len(path.read_text().splitlines()) <= LINES, "make it two rooms"


def test_dependencies_have_lower_bounds_only():
    requirements = re.findall(r'^ +"([a-zA-Z][^"]*[<>=!~]=[^"]*)"', (ROOT / "setup.py").read_text(), re.M)
    assert len(requirements) > 20
    pinned = [requirement for requirement in requirements if re.search(r"==|<|~=|!=", requirement.partition(";")[0])]
    assert pinned == ["torch==2.13.0"]


def test_every_imported_package_is_required():
    text = (ROOT / "setup.py").read_text().replace("-", "_").lower()
    others = {"etils": "etils[epath]", "absl": "absl_py", "orbax": "orbax_checkpoint", "google": "orbax_checkpoint"}
    optional = {"datasets", "tensorboardX", "wandb", "ml_dtypes", "qwix", "libtpu"}
    for path in MODULES:
        for name in imported(path):
            package = name.partition(".")[0]
            if package not in sys.stdlib_module_names and package not in optional and package != "jaxpref":
                assert f'"{others.get(package, package)}' in text, f"{path}: {package} is not in setup.py"


def test_the_import_of_the_package_is_cheap():
    code = "import sys, jaxpref; print(sum(name.startswith(('jax.', 'numpy')) for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "0"


@pytest.mark.parametrize("path, text", regenerate.texts().items(), ids=lambda value: getattr(value, "stem", ""))
def test_a_shipped_config_is_as_recorded(path, text):
    message = "if the change is wanted: python -m tests.golden_configs.regenerate"
    assert path.exists() and path.read_text() == text, message


def test_no_recorded_config_is_left_over():
    assert set(regenerate.HERE.glob("*.txt")) == set(regenerate.texts())
