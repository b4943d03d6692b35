"""Config files and command-line overrides: ``--config=configs/X.py:argument --config.train.steps=10``."""

import ast
import importlib.util
import inspect
import json
import pathlib
import re
import traceback
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from jaxpref.configuration.building import dotted, no_field
from jaxpref.configuration.checks import complete, sections
from jaxpref.errors import ConfigError, hint

WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def load(spec: str, overrides: Iterable[tuple[str, str]] | Mapping[str, str] = ()) -> ConfigDict:
    """Reads a config, applies overrides, and checks it.

    Args:
        spec: ``file.py``, ``file.py:argument`` (the argument goes to the file's ``get_config``), or a run's
            ``config.json``.
        overrides: dotted field -> text, as on the command line; a text is read as the type that the field has.

    Returns:
        The whole config, every field filled in.

    Raises:
        ConfigError: no such file, an error inside it, an unknown field, a value of another type or outside its domain.
    """
    config = from_json(_read(spec)) if spec.endswith(".json") else complete(_get_config(spec))
    for field, text in dict(overrides).items():
        override(config, field, text, spec)
    sections(config)
    return complete(config)


def from_json(text: str) -> ConfigDict:
    """A config from what :func:`to_json` wrote, also by an older version that had fewer fields."""
    try:
        return complete(json.loads(text))
    except json.JSONDecodeError as error:
        raise ConfigError(f"a config.json is not readable ({error}); restore it or start in a new folder.") from error


def beside(file: str, name: str) -> ModuleType:
    """The module of another config file in the same folder, for recipes that share their parts.

    Args:
        file: the ``__file__`` of the asking config file.
        name: of the other file, ``llama3.py``.
    """
    return _module(str(pathlib.Path(file).with_name(name)))


def _read(path: str) -> str:
    file = pathlib.Path(path)
    if not file.is_file():
        names = [str(file.parent / p.name) for p in file.parent.glob("*") if p.suffix in (".py", ".json")]
        raise ConfigError(f"--config={path}: no such file; {hint(path, names)}")
    return file.read_text()


def _get_config(spec: str) -> Any:
    """Runs ``get_config`` of a config file; errors name the file and the line."""
    path, separator, argument = spec.partition(".py:")
    path = path + ".py" if separator else path
    if not path.endswith(".py"):
        raise ConfigError(f"--config={spec}: expected a Python file, for example configs/quickstart.py.")
    _read(path)
    try:
        function = _function(_module(path), path)
        takes = bool(inspect.signature(function).parameters)
        if separator and not takes:
            raise ConfigError(f"--config={spec}: get_config of {path} takes no argument.")
        made = function(argument) if separator else function()
        if not isinstance(made, ConfigDict | Mapping):
            raise ConfigError(f"{path}: get_config returned {made!r}; expected a config (configuration.default()).")
        return made
    except ConfigError:
        raise
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(pathlib.Path(path))]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else 0)
        raise ConfigError(f"{path}:{line}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _module(path: str) -> ModuleType:
    name = "jaxpref_config_" + re.sub(r"\W", "_", path)
    module_spec = importlib.util.spec_from_file_location(name, str(pathlib.Path(path)))
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def _function(module: ModuleType, path: str) -> Any:
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no function get_config(argument=None) that returns the config.")
    return module.get_config


def override(config: ConfigDict, field: str, text: str, spec: str = "X.py") -> None:
    """Sets one field from text, as the type that it has."""
    *parents, leaf = field.split(".")
    _refuse_renaming(config, field, spec)
    node, where = config, ""
    for name in parents:
        if name not in node and _inside_stage(field.split(".")) == ["evals", name, "data"]:
            with node.unlocked():
                node[name] = ConfigDict()
        if name not in node:
            raise no_field(where, name, node)
        where, node = dotted(where, name), node[name]
        if not isinstance(node, ConfigDict):
            raise ConfigError(f"--config.{field}={text}: config.{where} is {node!r}, which has no fields.")
    if leaf not in node and not _is_open(parents):
        raise no_field(where, leaf, node)
    value = _parse(text, node[leaf], field) if leaf in node else _literal(text)
    with node.unlocked(), node.ignore_type():
        node[leaf] = value


def _inside_stage(names: list[str]) -> list[str]:
    return names[2:] if names[0] == "stages" else names


def _is_open(parents: list[str]) -> bool:
    """Whether a section may get a field that the file has not set; its builder then checks the field."""
    inner = _inside_stage(parents) if parents else []
    in_entry = len(inner) > 1 and inner[0] in ("data", "evals")
    return in_entry or inner[:1] == ["compare"] or inner[:2] in (["model", "overrides"], ["batch", "streams"])


def _refuse_renaming(config: ConfigDict, field: str, spec: str) -> None:
    """An objective brings its own fields, so it cannot be changed or added by name from the command line."""
    names = field.split(".")
    inner = _inside_stage(names)
    if inner[:1] != ["objectives"] or len(inner) < 2:
        return
    terms = config
    for name in names[: len(names) - len(inner) + 1]:
        if not isinstance(terms, ConfigDict) or name not in terms:
            return
        terms = terms[name]
    if len(inner) == 2 or inner[2:] == ["objective"] or inner[1] not in terms:
        known = ", ".join(terms) or "none"
        path = spec.partition(".py")[0] + ".py"
        raise ConfigError(
            f"--config.{field}: an override cannot choose an objective (the config's terms: {known}); choose it by the "
            f"config's argument, --config={path}:<objective>, or in the file by objectives.config(...)."
        )


def _parse(text: str, current: Any, field: str) -> Any:
    """Text as the type of the current value."""
    if isinstance(current, str):
        return text
    if isinstance(current, bool):
        if text.lower() not in WORDS:
            raise ConfigError(f"--config.{field}={text}: expected true or false.")
        return WORDS[text.lower()]
    value = _literal(text)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(current, int):
        if is_number and value == int(value):
            return int(value)
        raise ConfigError(f"--config.{field}={text}: expected an integer.")
    if isinstance(current, float):
        if is_number:
            return float(value)
        if isinstance(value, dict) and "objectives" in field.split("."):
            return ConfigDict(value)
        raise ConfigError(f"--config.{field}={text}: expected a number.")
    if isinstance(current, tuple | list):
        if isinstance(value, tuple | list):
            return tuple(value)
        raise ConfigError(f"--config.{field}={text}: expected a list, for example '[1, 2]'.")
    if isinstance(current, ConfigDict):
        raise ConfigError(f"--config.{field}={text}: this is a section; set one of its fields: {', '.join(current)}.")
    return value


def _literal(text: str) -> Any:
    """A Python literal, or the text itself."""
    if text.lower() in ("true", "false"):
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
