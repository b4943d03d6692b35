"""From mappings to dataclasses and arguments, strictly: unknown names raise with the nearest right one."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from jaxpref.errors import ConfigError, hint

Section = TypeVar("Section")


def dotted(where: str, name: str) -> str:
    """The path of a field."""
    return f"{where}.{name}" if where else str(name)


def no_field(where: str, name: str, names: Iterable[str]) -> ConfigError:
    """The error for a field that does not exist."""
    return ConfigError(f"config has no field {dotted(where, name)!r}; {hint(name, names)}")


def build(section_class: type[Section], mapping: Mapping[str, Any], where: str = "") -> Section:
    """Builds a section, and the sections inside it.

    Args:
        section_class: a dataclass of :mod:`jaxpref.configuration.schema`, or one like it.
        mapping: the config's fields; those that are missing get their defaults.
        where: dotted path of the section, for errors.

    Raises:
        ConfigError: a field that does not exist, a value of another type, or one outside its domain.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"config.{where} is {mapping!r}; expected fields of {section_class.__name__}.")
    annotations = typing.get_type_hints(section_class)
    fields = {field.name: field for field in dataclasses.fields(section_class)}
    for name in mapping:
        if name not in fields:
            raise no_field(where, name, fields)
    values = {}
    for name, value in mapping.items():
        place = dotted(where, name)
        if dataclasses.is_dataclass(annotations[name]):
            values[name] = build(annotations[name], value, place)
        else:
            values[name] = typed(value, annotations[name], f"config.{place}")
            _check_domain(values[name], fields[name].metadata, f"config.{place}")
    return section_class(**values)


def typed(value: Any, annotation: Any, place: str) -> Any:
    """The value as the annotated type; an integer passes as a float, a list as a tuple, nothing else is converted."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or annotation is inspect.Parameter.empty:
        return value
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{place} is {value!r}; expected one of {', '.join(map(repr, arguments))}.")
        return value
    if origin in (types.UnionType, typing.Union):
        return _typed_union(value, arguments, annotation, place)
    expected = origin or annotation
    if not isinstance(expected, type):
        return value
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if expected is tuple and isinstance(value, list):
        value = tuple(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"{place} is {value!r}; expected {_name(annotation)}.")
    if expected is Mapping and arguments:
        return {name: typed(inner, arguments[1], f"{place}.{name}") for name, inner in value.items()}
    if expected is tuple and arguments[1:] == (Ellipsis,):
        return tuple(typed(v, arguments[0], f"{place}[{n}]") for n, v in enumerate(value))
    if expected is tuple and arguments:
        if len(value) != len(arguments):
            raise ConfigError(f"{place} is {value!r}; expected {len(arguments)} values.")
        return tuple(typed(v, a, place) for v, a in zip(value, arguments, strict=True))
    return value


def _typed_union(value: Any, arguments: tuple, annotation: Any, place: str) -> Any:
    for argument in arguments:
        try:
            return typed(value, argument, place)
        except ConfigError:
            continue
    raise ConfigError(f"{place} is {value!r}; expected {_name(annotation)}.")


def _name(annotation: Any) -> str:
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text", tuple: "a list"}
    words |= {Mapping: "named fields", dict: "named fields", type(None): "None"}
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return " or ".join(map(_name, typing.get_args(annotation)))
    return words.get(typing.get_origin(annotation) or annotation, str(annotation))


def _check_domain(value: Any, domain: Mapping[str, Any], place: str) -> None:
    if value is None:
        return
    least, most = domain.get("least"), domain.get("most")
    if least is not None and not value >= least:
        raise ConfigError(f"{place} is {value!r}; expected at least {least}.")
    if most is not None and not value <= most:
        raise ConfigError(f"{place} is {value!r}; expected at most {most}.")


def bind(function: Callable, mapping: Mapping[str, Any], where: str, *, provided: Iterable[str] = ()) -> dict[str, Any]:
    """Checks a free-form section against the signature of the function that it is for.

    Args:
        function: its parameters are the fields; annotations and defaults give their types.
        mapping: the section.
        where: dotted path of the section, for errors.
        provided: parameters that the caller fills in, which the section may not.

    Returns:
        Keyword arguments for ``function``.

    Raises:
        ConfigError: a field that the function does not take, a missing one, or a value of another type.
    """
    parameters = dict(inspect.signature(function).parameters)
    for name in provided:
        parameters.pop(name, None)
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    parameters = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"config.{where} is {mapping!r}; expected the fields {', '.join(parameters)}.")
    annotations = typing.get_type_hints(function)
    values = {}
    for name, value in mapping.items():
        if name not in parameters and not anything:
            raise no_field(where, name, parameters)
        values[name] = typed(value, annotations.get(name, Any), f"config.{dotted(where, name)}")
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in values]
    if missing:
        raise ConfigError(f"config.{where} lacks {', '.join(missing)}.")
    return values
