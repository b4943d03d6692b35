"""A checked config: complete, built into its dataclasses, and consistent across sections."""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxpref.configuration.building import build
from jaxpref.configuration.schema import Sections
from jaxpref.errors import ConfigError, hint

# What a config with stages reads beside them.
SHARED = ("seed", "stages", "compare")

REFERENCE_MOVES = {"mode", "alpha", "every"}
REFERENCE_UNREAD = {
    "none": {"path", "cache", "others"} | REFERENCE_MOVES,
    "frozen": {"cache"} | REFERENCE_MOVES,
    "cached": REFERENCE_MOVES,
    "adapter_off": {"path", "cache"} | REFERENCE_MOVES,
    "moving": {"cache"},
}
ADAPTER_UNREAD = {"none": {"rank", "alpha", "scaling", "targets", "base"}, "lora": set()}
# Section -> the fields that decide what else it reads.
CHOICES = {
    "reference": ("kind", "mode"),
    "adapter": ("kind",),
    "early_stop": ("metric",),
    "checkpoint.best": ("metric",),
    "length": ("on_long",),
    "batch": ("layout",),
}


def default() -> ConfigDict:
    """A config with every field at its default: where a config file starts."""
    return _config_dict(Sections())


def complete(config: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """The config with every missing field filled in, its stages too; unknown fields raise."""
    built = build(Sections, plain(config))
    stages = {name: complete(stage) for name, stage in built.stages.items()}
    return _config_dict(dataclasses.replace(built, stages=stages))


def sections(config: Mapping[str, Any] | ConfigDict) -> Sections:
    """The sections of one run, checked against each other; ``data`` holds streams only, each with its ``on_bad_row``.

    Raises:
        ConfigError: an unknown field, a value of another type or outside its domain, fields that contradict each
            other, or a field that the rest of the config leaves unread.
    """
    built = build(Sections, plain(config))
    if built.stages:
        _check_stages(built)
        for _, stage in stages(config):
            sections(stage)
    else:
        _check_run(built)
    return dataclasses.replace(built, data=_streams(built.data))


def stages(config: Mapping[str, Any] | ConfigDict) -> list[tuple[str, ConfigDict]]:
    """``(name, config)`` of every stage in order; the seed of the whole is added to each stage's own."""
    built = build(Sections, plain(config))
    result = []
    for name, stage in built.stages.items():
        stage = complete(stage)
        stage.seed += built.seed
        result.append((name, stage))
    return result


def plain(value: Any) -> Any:
    """ConfigDicts as dicts and sequences as lists, all the way down, in the order in which fields were set."""
    if isinstance(value, ConfigDict):
        # Iterating a ConfigDict sorts its fields, but the order of stages and data streams means something.
        return {str(name): plain(value[name]) for name in value._fields}
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return value


def _config_dict(built: Sections) -> ConfigDict:
    values = {field.name: getattr(built, field.name) for field in dataclasses.fields(built)}
    return ConfigDict({n: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for n, v in values.items()})


def _streams(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data streams, each with the ``on_bad_row`` that stands beside them unless it has its own."""
    shared = data.get("on_bad_row", "error")
    if shared not in ("error", "skip"):
        raise ConfigError(f"config.data.on_bad_row is {shared!r}; expected 'error' or 'skip'.")
    streams = {name: stream for name, stream in data.items() if name != "on_bad_row"}
    for name, stream in streams.items():
        if not isinstance(stream, Mapping):
            raise ConfigError(f"config.data.{name} is {stream!r}; expected a stream, dict(kind=, source=, ...).")
    return {name: {"on_bad_row": shared, **stream} for name, stream in streams.items()}


def _check_stages(built: Sections) -> None:
    untouched = build(Sections, {})
    for field in dataclasses.fields(built):
        if field.name not in SHARED and getattr(built, field.name) != getattr(untouched, field.name):
            name = next(iter(built.stages))
            raise ConfigError(
                f"config.{field.name} is set, but a config with stages reads only {', '.join(SHARED)}; "
                f"set config.stages.{name}.{field.name}."
            )
    earlier: list[str] = []
    for name, stage in built.stages.items():
        for field, source in _sources(stage).items():
            if source.startswith("stage:") and source.removeprefix("stage:") not in earlier:
                wrong = source.removeprefix("stage:")
                raise ConfigError(
                    f"config.stages.{name}.{field} is {source!r}, which is no earlier stage; {hint(wrong, earlier)}"
                )
        earlier.append(name)


def _sources(stage: Mapping[str, Any]) -> dict[str, str]:
    """Field -> where parameters come from."""
    reference = stage.get("reference", {})
    others = {f"reference.others[{n}]": str(source) for n, source in enumerate(reference.get("others", ()))}
    return {"init_from": stage.get("init_from", ""), "reference.path": reference.get("path", ""), **others}


def _check_run(built: Sections) -> None:
    if not (built.init_from or built.model.name):
        raise ConfigError(
            "config names no model: give init_from to start from a checkpoint, or model.name to start from scratch."
        )
    if built.compare:
        raise ConfigError("config.compare compares the stages of a config, and this one has none; set config.stages.")
    if not built.objectives:
        raise ConfigError("config.objectives is empty; add a term, for example objectives.config('dpo').")
    for name, term in built.objectives.items():
        if not isinstance(term, Mapping):
            raise ConfigError(f"config.objectives.{name} is {term!r}; expected objectives.config({name!r}).")
    if list(dataclasses.astuple(built.mesh)).count(-1) > 1:
        raise ConfigError("config.mesh has -1 on several axes; only one can be inferred from the number of devices.")
    start, stop = built.profile
    if not 0 <= start <= stop:
        raise ConfigError(f"config.profile is {built.profile}; expected (first step, last step).")
    for group in built.groups:
        if not (isinstance(group, tuple | list) and len(group) == 2 and isinstance(group[1], Mapping)):
            raise ConfigError(f"config.groups holds {group!r}; expected (regex, dict(lr_scale=, ...)).")
    if "" in built.reference.others:
        raise ConfigError(
            f"config.reference.others[{built.reference.others.index('')}] is empty; expected a run, stage:<name>, or a "
            "Hugging Face directory."
        )
    if built.reference.kind == "moving" and built.adapter.kind != "none":
        raise ConfigError(
            "config.reference.kind is 'moving', but an adapter is trained: a reference that follows the policy needs "
            "the model's own weights; set config.adapter.kind='none', or the reference's kind to 'adapter_off'."
        )
    if built.reference.kind == "adapter_off" and built.adapter.kind == "none":
        raise ConfigError(
            "config.reference.kind is 'adapter_off', but config.adapter.kind is 'none': there is no adapter to leave "
            "out; set config.adapter.kind='lora', or the reference's kind to 'frozen' or 'cached'."
        )
    _check_unread(built)


def _check_unread(built: Sections) -> None:
    """Raises for a field that is set although another field's choice leaves it unread."""
    packed = built.batch.layout.startswith("packed")
    reference = REFERENCE_UNREAD[built.reference.kind] | ({"alpha"} if built.reference.mode == "hard" else set())
    unread = {
        "reference": reference - {"cache"} if built.reference.others else reference,
        "adapter": ADAPTER_UNREAD[built.adapter.kind],
        "early_stop": set() if built.early_stop.metric else {"mode", "patience"},
        "checkpoint.best": set() if built.checkpoint.best.metric else {"mode"},
        "length": set() if built.length.on_long == "truncate" else {"prompt_keep", "response_keep"},
        "batch": set() if packed else {"length", "prompt_length", "response_length", "short_length"},
    }
    for where, names in unread.items():
        section = operator.attrgetter(where)(built)
        untouched = type(section)()
        for name in sorted(names):
            if getattr(section, name) != getattr(untouched, name):
                choice = ", ".join(f"{n}={getattr(section, n)!r}" for n in CHOICES[where] if n not in names)
                raise ConfigError(f"config.{where}.{name} is set, but nothing reads it with {choice}; leave it out.")
