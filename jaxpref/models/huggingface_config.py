"""The meaning of ``config.json``: from the fields of each family to a :class:`ModelConfig` and back.

A field that changes the maths is either modelled or must have the one value that is; a field that nobody here knows is
named in a warning. ``ModelConfig.source`` keeps the text of the file, so that an export carries the fields that are
not modelled (token ids, initializer range, ...) whatever process it happens in.
"""

import dataclasses
import json
import math
import warnings
from typing import Any

from jaxpref.errors import ModelError
from jaxpref.models.config import ModelConfig, Rope
from jaxpref.models.huggingface_families import (
    ACTIVATIONS,
    FAMILIES,
    NEEDED,
    NEUTRAL,
    READ,
    REQUIRED,
    Family,
    Fields,
)

# --- from config.json -----------------------------------------------------------------------------------------------


def family_fields(fields: Fields, where) -> tuple[str, Fields]:
    """The family and its own fields: those of the text model when the directory holds a multimodal Gemma 3."""
    kind = fields.get("model_type")
    if kind == "gemma3" and isinstance(fields.get("text_config"), dict):
        known = NEUTRAL | {"quantization_config"}
        outer = {name: value for name, value in fields.items() if name in known and value is not None}
        fields = fields["text_config"] | outer | {"model_type": "gemma3_text"}
        kind = "gemma3_text"
    if kind not in FAMILIES:
        raise ModelError(f"{where}/config.json: model_type is {kind!r}; supported are {', '.join(FAMILIES)}.")
    return kind, fields


def from_fields(family: str, fields: Fields, where, *, headless: bool = False) -> ModelConfig:
    """The architecture that a family's fields describe.

    Args:
        family: a key of :data:`FAMILIES`.
        fields: contents of config.json.
        where: directory, for messages.
        headless: whether the files are a reward model's, without an output matrix: it counts as tied.
    """
    about = FAMILIES[family]
    given = about.defaults | fields
    _check_fields(about, fields, where)
    values = {attribute: given[name] for name, attribute in about.names.items()}
    wrong = next((n for n, a in about.names.items() if not _is_size(a, values[a])), None)
    if wrong is not None:
        raise ModelError(f"{where}/config.json: {wrong} is {given[wrong]!r}; expected a number.")
    values["key_value_heads"] = values.get("key_value_heads") or values["heads"]
    values["head_dim"] = values.get("head_dim") or given.get("head_dim") or values["width"] // values["heads"]
    values["mlp_width"] = values["mlp_width"] or 4 * values["width"]
    values["tied_embeddings"] = bool(values["tied_embeddings"]) or headless
    values["activation"] = _activation(family, given, where)
    values |= about.fixed
    if about.attention_bias:
        values["attention_bias"] = values["attention_out_bias"] = bool(given["attention_bias"])
    if "mlp_bias" in given and family == "llama":
        values["mlp_bias"] = bool(given["mlp_bias"])
    values["parallel_residual"] = bool(given.get("use_parallel_residual", False))
    if "query_pre_attn_scalar" in about.defaults:
        values["attention_scalar"] = float(given["query_pre_attn_scalar"])
        values["attention_soft_cap"] = given["attn_logit_softcapping"]
        values["final_soft_cap"] = given["final_logit_softcapping"]
    values["window"], values["local_layers"] = _locality(about, given, values["layers"], where)
    if "rope" not in about.fixed:
        values |= _ropes(family, given, values, where)
    source = json.dumps(fields, sort_keys=True)
    return _normal(ModelConfig(family=family, source=source, **values))


def _is_size(attribute: str, value) -> bool:
    if value is None:
        return attribute in ("key_value_heads", "head_dim", "mlp_width", "tied_embeddings")
    return isinstance(value, int | float)


def _check_fields(about: Family, fields: Fields, where) -> None:
    for name, allowed in REQUIRED.items():
        if fields.get(name, allowed[0]) not in allowed:
            raise ModelError(
                f"{where}/config.json: {name} is {str(fields[name])[:80]}, which is not supported; "
                f"only {' or '.join(map(str, allowed))} is."
            )
    unknown = sorted(set(fields) - set(REQUIRED) - NEUTRAL - READ - set(about.names))
    if unknown:
        warnings.warn(f"{where}/config.json has unknown fields, which are ignored: {unknown}.", stacklevel=4)


def _activation(family: str, given: Fields, where) -> str:
    name = FAMILIES[family].activation
    if given[name] not in ACTIVATIONS:
        raise ModelError(f"{where}/config.json: {name} is {given[name]!r}; supported are {', '.join(ACTIVATIONS)}.")
    # The first Gemma files say "gelu" and mean the tanh approximation.
    if family == "gemma" and given[name] == "gelu":
        return "gelu_tanh"
    return ACTIVATIONS[given[name]]


def _locality(about: Family, given: Fields, layers: int, where) -> tuple[int | None, tuple[bool, ...]]:
    """The window and, for each layer, whether it has one."""
    window = given.get("sliding_window") if about.window else None
    if about.window == "upper" and not given.get("use_sliding_window", False):
        window = None
    if about.window in ("", "all"):
        return window, ()
    kinds = given.get("layer_types")
    if kinds is not None:
        unknown = sorted(set(kinds) - {"sliding_attention", "full_attention"})
        if unknown or len(kinds) != layers:
            raise ModelError(
                f"{where}/config.json: layer_types is {kinds}; expected {layers} entries, each sliding_attention or "
                "full_attention."
            )
        local = tuple(kind == "sliding_attention" for kind in kinds)
    elif about.window == "upper":
        local = tuple(layer >= given.get("max_window_layers", 28) for layer in range(layers))
    else:
        period = given.get("sliding_window_pattern") or given.get("_sliding_window_pattern") or about.pattern
        local = tuple((layer + 1) % period != 0 for layer in range(layers))
    if about.window == "upper" and window is None:
        return None, ()
    if window is None and any(local):
        raise ModelError(f"{where}/config.json: sliding_window is null, but layer_types has sliding layers.")
    return window, local


def _ropes(family: str, given: Fields, values: Fields, where) -> dict[str, Any]:
    """``rope``, ``local_rope`` and ``rotary_dim``, from the layout of transformers 4 or that of 5."""
    about = FAMILIES[family]
    parameters = given.get("rope_parameters") or {}
    by_kind = "full_attention" in parameters or "sliding_attention" in parameters
    main = (parameters.get("full_attention") or {}) if by_kind else parameters
    # In a file with both layouts transformers believes the older one.
    main = given.get("rope_scaling") or main
    main = {"rope_theta": parameters.get("rope_theta", given.get("rotary_emb_base", given["rope_theta"]))} | main
    partial = main.pop("partial_rotary_factor", given.get("rotary_pct", given.get("partial_rotary_factor")))
    found = {"rope": _rope(main, given, where)}
    if family == "gemma3_text":
        local = {"rope_theta": given.get("rope_local_base_freq", 1e4)} | (
            (parameters.get("sliding_attention") or {}) if by_kind else {}
        )
        found["local_rope"] = _rope(local, given, where)
    elif by_kind:
        raise ModelError(f"{where}/config.json: rope_parameters differ by kind of layer, which {family} does not have.")
    if about.partial is None:
        if partial not in (None, 1, 1.0):
            raise ModelError(f"{where}/config.json: partial_rotary_factor is {partial}; {family} rotates whole heads.")
        return found
    return found | {"rotary_dim": int(values["head_dim"] * (about.partial if partial is None else partial))}


def _rope(parameters: Fields, given: Fields, where) -> Rope:
    """One set of rotary parameters; any that is not modelled is an error."""
    parameters = dict(parameters)
    old_kind = parameters.pop("type", None)
    kind = parameters.pop("rope_type", None) or old_kind or "default"
    kind = "longrope" if kind == "su" else kind
    values = {"theta": parameters.pop("rope_theta"), "scaling": kind}
    original = parameters.pop("original_max_position_embeddings", None)
    original = given.get("original_max_position_embeddings") or original or given["max_position_embeddings"]
    lacking = [name for name in NEEDED.get(kind, ()) if parameters.get(name) is None]
    if lacking:
        raise ModelError(f"{where}/config.json: rope_type {kind!r} needs {' and '.join(lacking)}.")
    if kind in ("linear", "llama3"):
        values["factor"] = parameters.pop("factor")
    if kind == "llama3":
        values["low_frequency_factor"] = parameters.pop("low_freq_factor")
        values["high_frequency_factor"] = parameters.pop("high_freq_factor")
        values["original_positions"] = original
    elif kind == "longrope":
        factor = parameters.pop("factor", None) or given["max_position_embeddings"] / original
        attention = parameters.pop("attention_factor", None)
        if attention is None:
            attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        values |= {"original_positions": original, "attention_factor": attention}
        values["short_factors"] = tuple(map(float, parameters.pop("short_factor")))
        values["long_factors"] = tuple(map(float, parameters.pop("long_factor")))
    elif kind not in ("default", "linear"):
        raise ModelError(
            f"{where}/config.json: rope_type is {kind!r}, which is not supported; supported are default, linear, "
            "llama3 and longrope."
        )
    if parameters:
        raise ModelError(
            f"{where}/config.json: rope parameters {sorted(parameters)} are unknown for rope_type {kind!r}."
        )
    return Rope(**values)


def _normal(config: ModelConfig) -> ModelConfig:
    """One spelling for configs that mean the same, so that they compare equal."""
    changes: dict[str, Any] = {}
    local = config.local
    if config.local_layers and (all(local) or not any(local)):
        changes["local_layers"] = ()
        changes["window"] = config.window if all(local) else None
    if config.local_rope is not None and (config.local_rope == config.rope or not any(local)):
        changes["local_rope"] = None
    if config.rotary_dim == config.head_dim:
        changes["rotary_dim"] = None
    if config.attention_scalar == config.head_dim:
        changes["attention_scalar"] = None
    return dataclasses.replace(config, **changes)


# --- to config.json -------------------------------------------------------------------------------------------------


def sizes(config: ModelConfig) -> dict[str, int]:
    """Lengths of the axes by their letters in the tables of names, and N, the number of layers."""
    heads, groups, head = config.heads, config.key_value_heads, config.head_dim
    return {
        "V": config.vocab_size,
        "D": config.width,
        "P": config.max_positions,
        "F": config.mlp_width,
        "H": heads,
        "G": groups,
        "h": head,
        "I": heads * head,
        "J": groups * head,
        "N": config.layers,
    }


def family_of(config: ModelConfig) -> str:
    """The family that the config names, which must be able to express it."""
    if config.family not in FAMILIES:
        raise ModelError(f"family is {config.family!r}; models are written as one of {', '.join(FAMILIES)}.")
    lost = _lost(config.family, config)
    if lost:
        able = [family for family in FAMILIES if not _lost(family, config)]
        advice = f"set family to {' or '.join(able)}" if able else "no other supported family has them either"
        told = ", ".join(f"{name}={getattr(config, name)!r}" for name in lost)
        raise ModelError(f"The family {config.family} has no way to write {told}; {advice}.")
    return config.family


def _lost(family: str, config: ModelConfig) -> list[str]:
    """Fields of the config that do not survive being written as this family and read back."""
    config = _normal(dataclasses.replace(config, family=family))
    try:
        back = from_fields(family, to_fields(family, config, dtype="float32"), "the export")
    except ModelError:
        return ["its architecture"]
    if config.rope is not None and back.rope is not None:
        # config.json leaves the choice of longrope's factors to each sequence's length.
        back = dataclasses.replace(back, rope=dataclasses.replace(back.rope, long_context=config.rope.long_context))
    fields = [field.name for field in dataclasses.fields(config) if field.compare]
    return [name for name in fields if getattr(config, name) != getattr(back, name)]


def to_fields(family: str, config: ModelConfig, *, dtype: str) -> Fields:
    """The contents of config.json: the source's own fields where there is one, and over them the architecture."""
    about = FAMILIES[family]
    source = json.loads(config.source) if config.source else {}
    if source.get("model_type") != family:
        source = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    dropped = ("auto_map", "torch_dtype", "id2label", "label2id", "num_labels", "problem_type")
    fields = {name: value for name, value in source.items() if name not in dropped}
    fields |= {"model_type": family, "architectures": [about.causal], "dtype": dtype}
    for name, attribute in about.names.items():
        fields[name] = getattr(config, attribute)
    if "head_dim" not in about.names and config.head_dim * config.heads != config.width:
        fields["head_dim"] = config.head_dim
    if ACTIVATIONS.get(fields.get(about.activation)) != config.activation or family == "gemma":
        written = {"gelu_tanh": "gelu_new" if family == "gpt2" else "gelu_pytorch_tanh"}
        fields[about.activation] = written.get(config.activation, config.activation)
    if about.attention_bias:
        fields["attention_bias"] = config.attention_bias
    if family == "llama":
        fields["mlp_bias"] = config.mlp_bias
    if family == "gpt_neox":
        fields["use_parallel_residual"] = config.parallel_residual
    if "query_pre_attn_scalar" in about.defaults:
        scalar = config.head_dim if config.attention_scalar is None else config.attention_scalar
        fields["query_pre_attn_scalar"] = int(scalar) if scalar == int(scalar) else scalar
        fields["attn_logit_softcapping"] = config.attention_soft_cap
        fields["final_logit_softcapping"] = config.final_soft_cap
    fields |= _window_fields(about, config, fields)
    if config.rope is not None:
        fields = _rope_fields(family, config, fields)
    return fields


def _window_fields(about: Family, config: ModelConfig, fields: Fields) -> Fields:
    if not about.window:
        return {}
    if about.window == "all":
        return {"sliding_window": config.window}
    window = fields.get("sliding_window", about.defaults["sliding_window"]) if config.window is None else config.window
    kinds = ["sliding_attention" if local else "full_attention" for local in config.local]
    written = {"sliding_window": window, "layer_types": kinds}
    if about.window == "upper":
        written["use_sliding_window"] = config.window is not None
        # Releases before `layer_types` know a first local layer only.
        written["max_window_layers"] = config.local.index(True) if any(config.local) else config.layers
    return written


def _rope_fields(family: str, config: ModelConfig, fields: Fields) -> Fields:
    """Rotary parameters in the layout of transformers 5 and, for readers of the older one, in that too."""
    fields = {name: value for name, value in fields.items() if name != "rope_parameters"}
    main = _rope_parameters(config.rope)
    scaling = {name: value for name, value in main.items() if name != "rope_theta"}
    fields["rope_scaling"] = None if config.rope.scaling == "default" else scaling
    fields["rope_theta"] = config.rope.theta
    partial = config.rotated / config.head_dim
    if FAMILIES[family].partial is not None:
        main["partial_rotary_factor"] = fields["partial_rotary_factor"] = partial
    if family == "gpt_neox":
        fields |= {"rotary_emb_base": config.rope.theta, "rotary_pct": partial}
    if config.rope.original_positions and family == "phi3":
        fields["original_max_position_embeddings"] = config.rope.original_positions
    if family == "gemma3_text":
        local = config.rope if config.local_rope is None else config.local_rope
        fields["rope_local_base_freq"] = local.theta
        main = {"full_attention": main, "sliding_attention": _rope_parameters(local)}
    return fields | {"rope_parameters": main}


def _rope_parameters(rope: Rope) -> Fields:
    parameters: Fields = {"rope_type": rope.scaling, "rope_theta": rope.theta}
    if rope.scaling in ("linear", "llama3"):
        parameters["factor"] = rope.factor
    if rope.scaling == "llama3":
        parameters["low_freq_factor"] = rope.low_frequency_factor
        parameters["high_freq_factor"] = rope.high_frequency_factor
    if rope.scaling == "longrope":
        parameters["short_factor"] = list(rope.short_factors)
        parameters["long_factor"] = list(rope.long_factors)
        parameters["attention_factor"] = rope.attention_factor
    if rope.scaling in ("llama3", "longrope"):
        parameters["original_max_position_embeddings"] = rope.original_positions
    return parameters


def reward_fields(family: str, fields: Fields, *, outputs: int, pad_token_id: int | None) -> Fields:
    """The fields that make an export a reward model.

    transformers takes the score at the rightmost token that is not the padding token, so an end-of-sequence token will
    not do as one; a beginning-of-sequence token will, since no text ends with it.
    """
    ends = fields.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    candidates = [fields.get("pad_token_id"), fields.get("bos_token_id")] if pad_token_id is None else [pad_token_id]
    usable = [number for number in candidates if number not in (None, *ends)]
    if not usable:
        raise ModelError(
            "A reward model needs a padding token other than the end-of-sequence token, because transformers reads the "
            "score at the last token that is not padding; give save_hf a pad_token_id that no text ends with."
        )
    labels = [f"LABEL_{number}" for number in range(outputs)]
    return {
        "architectures": [FAMILIES[family].reward],
        "pad_token_id": usable[0],
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
