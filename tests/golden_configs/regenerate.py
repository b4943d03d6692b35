"""Writes every shipped config as text beside this file: ``python -m tests.golden_configs.regenerate``.

A changed default then shows in review, in every config that it reaches.
"""

import pathlib

from jaxpref import configuration

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def shipped() -> list[str]:
    """Config files of the repository, relative to its root."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.py"))


def golden(config_file: str) -> pathlib.Path:
    """Where the text of a config file lies."""
    return HERE / (config_file.removeprefix("configs/").removesuffix(".py").replace("/", "-") + ".txt")


def text(config_file: str) -> str:
    """The config as text, one field a line."""
    return configuration.to_text(configuration.load(str(ROOT / config_file)))


if __name__ == "__main__":
    for old in HERE.glob("*.txt"):
        old.unlink()
    for name in shipped():
        golden(name).write_text(text(name))
        print(golden(name).relative_to(ROOT))
