"""Where a run starts: an architecture from scratch, a Hugging Face directory, another run, or an earlier stage."""

import dataclasses
import json
import os
from typing import Any, NamedTuple

import jax
from etils import epath

from jaxpref import configuration, data, models
from jaxpref.configuration.schema import Adapter
from jaxpref.data import worlds
from jaxpref.errors import ConfigError, ModelError, hint
from jaxpref.training import checkpoints

MODEL_FILE, TOKENIZER_FOLDER = "model.json", "tokenizer"


class Source(NamedTuple):
    """A place that parameters can come from: ``kind`` is ``scratch``, ``run`` or ``hf``."""

    kind: str
    path: str


def resolve(name: str, stages: epath.Path | None = None) -> Source:
    """Finds what ``init_from``, ``reference.path`` or one of ``reference.others`` names.

    Args:
        name: empty (from scratch), ``stage:<name>``, ``hf://org/name``, a run folder, or a Hugging Face directory.
        stages: folder with the runs of earlier stages.

    Raises:
        ConfigError: there is no such place.
    """
    if not name:
        return Source("scratch", "")
    if name.startswith("hf://"):
        return Source("hf", models.resolve_hf(name))
    if name.startswith("stage:"):
        if stages is None:
            raise ConfigError(f"{name!r} names a stage, but this config is no part of a pipeline; give a run's folder.")
        path = stages / name.removeprefix("stage:")
    else:
        path = expand(name)
    if (path / MODEL_FILE).exists():
        return Source("run", str(path))
    if (path / "config.json").exists():
        return Source("hf", str(path))
    raise ConfigError(
        f"{name!r} ({path}) is neither a run (it has no {MODEL_FILE}) nor a Hugging Face directory (no config.json)."
    )


def expand(path: str) -> epath.Path:
    """A folder as a user writes it, with ``~`` and environment variables."""
    return epath.Path(os.path.expandvars(path)).expanduser()


def load_tokenizer(spec: str, source: Source) -> data.tokenizers.Tokenizer:
    """The tokenizer of a config: ``tokenizer.path``, or that of the starting point, or bytes from scratch.

    Args:
        spec: ``byte``, ``world:<name>``, a directory, or empty.
        source: the starting point.
    """
    if spec.startswith("world:"):
        return worlds.tokenizer(spec.removeprefix("world:"))
    if spec or source.kind == "scratch":
        return data.tokenizers.load(spec or "byte")
    return data.tokenizers.load(source.path if source.kind == "hf" else os.path.join(source.path, TOKENIZER_FOLDER))


def template_name(name: str, tokenizer: data.tokenizers.Tokenizer) -> str:
    """The chat template of a config: the named one, or the tokenizer's own, or none."""
    return name or ("tokenizer" if tokenizer.chat_template else "none")


def load_model(
    section, source: Source, devices: jax.sharding.Mesh, *, seed: int, step: int | None = None
) -> tuple[models.Transformer, Any]:
    """The transformer and its parameters, sharded over the mesh; the adapter of a run is merged into them.

    Args:
        section: the config's ``model``.
        source: the starting point.
        devices: the mesh.
        seed: of parameters from scratch.
        step: which checkpoint of a run; by default the best one when the run measured one, else the newest.
    """
    if step is not None and source.kind != "run":
        raise ConfigError(f"--step={step} chooses a checkpoint of a run, but {source.path} is no run of ours.")
    if source.kind == "scratch":
        model = named_architecture(section)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, parameter_shapes(model, devices))
        make = jax.jit(lambda key: models.init(model, key), out_shardings=shardings)
        return model, make(jax.random.fold_in(jax.random.key(seed), 0))
    model = architecture(section, source)
    if source.kind == "hf":
        return model, models.load_hf(source.path, dtype=section.param_dtype, mesh=devices)[1]
    section = adapter_section(source)
    stored_shapes = parameter_shapes(model, devices, section.base)
    params = {"model": checkpoints.load_model_params(source.path, stored_shapes, step=step)}
    for name, shapes in adapter_shapes(section, model, devices).items():
        params[name] = checkpoints.load_params(source.path, shapes, below=name, step=step)
    return model, merged(params, model, devices)


def architecture(section, source: Source) -> models.Transformer:
    """The transformer of a config's ``model`` section, without its parameters.

    Raises:
        ConfigError: an unknown name or override, or one that would change what the weights fix.
        ModelError: the weights are of another architecture than ``model.name``.
    """
    if source.kind == "scratch":
        return named_architecture(section)
    if section.overrides:
        raise ConfigError(
            f"config.model.overrides changes the architecture of {source.path}, whose weights fix it; remove it."
        )
    if source.kind == "hf":
        config = models.describe_hf(source.path)
    else:
        config = models.ModelConfig.from_dict(json.loads((epath.Path(source.path) / MODEL_FILE).read_text()))
    model = models.Transformer(config, **computed_as(section))
    if section.name:
        difference = first_difference(model, named_architecture(section))
        if difference:
            raise ModelError(f"config.model.name is {section.name!r}, but of {source.path} the {difference}.")
    return model


def named_architecture(section) -> models.Transformer:
    """The built-in architecture ``model.name`` with ``model.overrides``."""
    if section.name not in models.BUILTIN:
        raise ConfigError(f"config.model.name is {section.name!r}; expected one of {', '.join(models.BUILTIN)}.")
    fields = models.BUILTIN[section.name].to_dict()
    for name in section.overrides:
        if name not in fields:
            raise ConfigError(f"config has no field 'model.overrides.{name}'; {hint(name, fields)}")
    return models.Transformer(models.ModelConfig.from_dict(fields | dict(section.overrides)), **computed_as(section))


def unnamed(section):
    """The ``model`` section for weights that say themselves what they are."""
    return dataclasses.replace(section, name="", overrides={})


def computed_as(section) -> dict[str, Any]:
    """How a config's ``model`` section wants any architecture computed."""
    wide = "float64" in (section.dtype, section.param_dtype)
    if wide and not jax.config.jax_enable_x64:
        raise ConfigError("config.model asks for float64, which jax leaves out by default; set JAX_ENABLE_X64=1.")
    return {name: getattr(section, name) for name in ("dtype", "param_dtype", "remat", "attention", "chunk")}


def parameter_shapes(model: models.Transformer, devices: jax.sharding.Mesh, base: str = ""):
    """Shapes, dtypes and shardings of the model's parameters, quantised as ``adapter.base`` says."""
    shapes = jax.eval_shape(lambda: models.init(model, jax.random.key(0)))
    if base:
        shapes = jax.eval_shape(lambda params: models.quantization.quantize_layers(params, base), shapes)
    return _placed(shapes, model, devices)


def quantized(params, model: models.Transformer, devices: jax.sharding.Mesh, base: str):
    """The model's parameters stored as ``adapter.base`` says."""
    if not base:
        return params
    shardings = jax.tree.map(lambda leaf: leaf.sharding, parameter_shapes(model, devices, base))
    return jax.jit(models.quantization.quantize_layers, static_argnums=1, out_shardings=shardings)(params, base)


def adapter_shapes(section, model: models.Transformer, devices: jax.sharding.Mesh) -> dict[str, Any]:
    """``{"adapter": shapes, dtypes and shardings}`` of a config's ``adapter`` section; empty without an adapter."""
    shapes = jax.eval_shape(lambda: _adapter(section, model, jax.random.key(0)))
    return {name: _placed(part, model, devices) for name, part in shapes.items()}


def draw_adapter(section, model: models.Transformer, devices: jax.sharding.Mesh, *, seed: int) -> dict[str, Any]:
    """``{"adapter": a fresh one}`` of a config's ``adapter`` section; empty without an adapter."""
    if section.kind == "none":
        return {}
    shardings = jax.tree.map(lambda leaf: leaf.sharding, adapter_shapes(section, model, devices))
    make = jax.jit(lambda key: _adapter(section, model, key), out_shardings=shardings)
    return make(jax.random.fold_in(jax.random.key(seed), 2))


def adapter_section(source: Source) -> Adapter:
    """The ``adapter`` section of a run's config; that of no adapter where there is no config (a converted model)."""
    config = epath.Path(source.path) / "config.json"
    if not config.exists():
        return Adapter()
    return configuration.build(Adapter, configuration.from_json(config.read_text()).adapter.to_dict(), "adapter")


def merged(params, model: models.Transformer, devices: jax.sharding.Mesh):
    """The model's parameters of a run, with its adapter, if any, added to the kernels, which are donated."""
    if "adapter" not in params:
        return params["model"]
    shardings = jax.tree.map(lambda leaf: leaf.sharding, parameter_shapes(model, devices))
    same = jax.tree.structure(params["model"]) == jax.tree.structure(shardings)  # quantised kernels become others
    merge = jax.jit(models.adapters.merge, donate_argnums=0 if same else (), out_shardings=shardings)
    return merge(params["model"], params["adapter"])


def _adapter(section, model: models.Transformer, key: jax.Array) -> dict[str, models.adapters.Adapter]:
    if section.kind == "none":
        return {}
    options = {name: getattr(section, name) for name in ("rank", "alpha", "targets", "scaling")}
    return {"adapter": models.adapters.init(model, key, **options)}


def _placed(shapes, model: models.Transformer, devices: jax.sharding.Mesh):
    specs = models.shard_specs(models.sharding_rules(model), shapes, devices)
    return jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=jax.sharding.NamedSharding(devices, spec)
        ),
        shapes,
        specs,
    )


def check_same_architecture(policy: models.Transformer, reference: models.Transformer, where: str) -> None:
    """Raises ModelError when the reference is another architecture than the policy."""
    difference = first_difference(reference, policy)
    if difference:
        raise ModelError(
            f"{where} is another architecture than the policy: the {difference}; "
            "channels of both come from one forward, so use a reference of the same architecture."
        )


def check_same_tokenizer(tokenizer: data.tokenizers.Tokenizer, source: Source, where: str) -> None:
    """Raises ConfigError when a reference was trained with other tokens; a folder without a tokenizer says nothing."""
    folder = epath.Path(source.path) / (TOKENIZER_FOLDER if source.kind == "run" else "")
    if not (folder / "tokenizer.json").exists():
        return
    if data.tokenizers.load(folder).vocabulary() != tokenizer.vocabulary():
        raise ConfigError(
            f"{where} has another tokenizer than the policy, so that the same ids are other tokens; "
            "use a reference with the policy's tokenizer."
        )


def first_difference(one: models.Transformer, other: models.Transformer) -> str:
    """The first field in which two architectures differ, as text: ``width is 64, not 128``; empty if there is none."""
    fields, others = one.config.to_dict(), other.config.to_dict()
    differing = [name for name in fields if name not in ("family", "source") and fields[name] != others[name]]
    return f"{differing[0]} is {fields[differing[0]]}, not {others[differing[0]]}" if differing else ""
