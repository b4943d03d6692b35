"""Writes every shipped config as text beside this file: ``python -m tests.golden_configs.regenerate``.

``default.txt`` holds all defaults, the others what each config sets, so that a changed default shows in review.
"""

import pathlib

from jaxpref import configuration

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def shipped() -> list[str]:
    """Config files of the repository, relative to its root; a file without ``get_config`` holds parts of others."""
    files = [path for path in (ROOT / "configs").rglob("*.py") if "def get_config(" in path.read_text()]
    return sorted(str(path.relative_to(ROOT)) for path in files)


def golden(config_file: str) -> pathlib.Path:
    """Where the text of a config file lies."""
    return HERE / (config_file.removeprefix("configs/").removesuffix(".py").replace("/", "-") + ".txt")


def text(config_file: str) -> str:
    """What a config, and each of its stages, sets: the fields that are not at their default, one a line."""
    config = configuration.load(str(ROOT / config_file))
    whole = {field: value for field, value in configuration.flatten(config).items() if not field.startswith("stages.")}
    parts = [("", whole)]
    parts += [(f"stages.{name}.", configuration.flatten(config.stages[name])) for name in config.stages]
    return "".join(sorted(f"{where}{field} = {value!r}\n" for where, part in parts for field, value in changed(part)))


def changed(fields: dict) -> list[tuple]:
    """Fields that differ from their default."""
    untouched = configuration.flatten(configuration.default())
    return [(field, value) for field, value in fields.items() if field not in untouched or untouched[field] != value]


def texts() -> dict[pathlib.Path, str]:
    """What must lie here: file -> text."""
    defaults = {HERE / "default.txt": configuration.to_text(configuration.default())}
    return defaults | {golden(config_file): text(config_file) for config_file in shipped()}


if __name__ == "__main__":
    for old in HERE.glob("*.txt"):
        old.unlink()
    for path, content in texts().items():
        path.write_text(content)
        print(path.relative_to(ROOT))
