"""Models and reward models from and to Hugging Face directories; what is written here, ``transformers`` loads.

    model, params = load_hf(path)
    save_hf(model, params, other_path)

The files' names and layouts are tables in :mod:`jaxpref.models.huggingface_names`, the meaning of ``config.json`` is in
:mod:`jaxpref.models.huggingface_config`, and the bytes are in :mod:`jaxpref.models.huggingface_files`.
"""

import functools
import os
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils

from jaxpref.errors import ModelError
from jaxpref.models import huggingface_config as configs
from jaxpref.models import huggingface_files as files
from jaxpref.models import huggingface_names as names
from jaxpref.models import parameters
from jaxpref.models.config import ModelConfig, Transformer
from jaxpref.models.sharding import leaf_path, shard_specs, sharding_rules

HUB = "hf://"
MAX_SHARD_BYTES = 5_000_000_000
# What a tokenizer consists of, and the generation defaults (turn-ending tokens of chat models) that belong to it.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


# --- loading --------------------------------------------------------------------------------------------------------


def load_hf(path: str | os.PathLike, *, dtype=jnp.float32, mesh=None) -> tuple[Transformer, dict[str, Any]]:
    """Reads a causal language model, or the trunk of a reward model, from a Hugging Face directory.

    Every tensor of the files must be used and every leaf filled. A leaf is read by itself; with a mesh each device's
    part is read by itself, so that a host never holds more than one leaf's local shards.

    Args:
        path: a directory with ``config.json`` and safetensors files, or ``hf://org/name`` when online.
        dtype: dtype of the parameters and of the computation.
        mesh: a :class:`jax.sharding.Mesh` over which the parameters are laid by the model's sharding rules.

    Returns:
        The model and its parameters. The trunk of a reward model has no ``head`` and counts as tied; its score head is
        read by :func:`load_hf_head`.

    Raises:
        ModelError: an unsupported architecture or feature; a tensor that is missing, unknown, of another shape or
            quantised; a truncated file; a directory with pickle files only.
    """
    config, family, stored, directory = _described(path)
    model = Transformer(config=config, dtype=dtype, param_dtype=dtype)
    shapes = _shapes(model)
    table, sizes = _table(family, shapes, config), configs.sizes(config)
    _check(stored, table, sizes, config, directory)

    def read(path, shape, spec=None):
        place = table[leaf_path(path)]
        part = functools.partial(_read, stored, place, sizes, shape)
        if spec is None:
            return jnp.asarray(part((slice(None),) * len(shape.shape)))
        return jax.make_array_from_callback(shape.shape, jax.sharding.NamedSharding(mesh, spec), part)

    if mesh is None:
        return model, jax.tree_util.tree_map_with_path(read, shapes)
    specs = shard_specs(sharding_rules(model), shapes, mesh)
    return model, jax.tree_util.tree_map_with_path(read, shapes, specs)


def describe_hf(path: str | os.PathLike) -> ModelConfig:
    """The architecture of a Hugging Face directory, from ``config.json`` and the names of its tensors alone."""
    return _described(path)[0]


def load_hf_head(path: str | os.PathLike, *, dtype=jnp.float32) -> dict[str, jax.Array]:
    """Reads the score head ``{'kernel': [D, d]}`` of a reward model (``...ForSequenceClassification``)."""
    directory = files.directory(resolve_hf(path))
    stored = files.open_tensors(directory).get(names.SCORE)
    if stored is None:
        raise ModelError(f"{directory} has no {names.SCORE}: it is not a sequence classification (reward) model.")
    if stored.dtype not in files.FLOATS or len(stored.shape) != 2:
        raise ModelError(f"{directory}: {names.SCORE} must be a float matrix, is {stored.dtype} {list(stored.shape)}.")
    return {"kernel": jnp.asarray(files.rows(stored, 0, stored.shape[0]).T, dtype)}


def resolve_hf(path: str | os.PathLike) -> epath.Path:
    """The local directory of ``hf://org/name`` or ``hf://org/name@revision``; any other path as it is.

    The download is the hub client's own: cached, and without pickle files.
    """
    path = os.fspath(path)
    if not path.startswith(HUB):
        return epath.Path(path)
    name, _, revision = path.removeprefix(HUB).partition("@")
    try:
        import huggingface_hub
    except ImportError:
        raise ModelError(f"{path} needs the package huggingface_hub; install it, or give a local directory.") from None
    try:
        found = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
        )
    except Exception as error:  # The client raises network, authentication and validation errors of many libraries.
        reason = str(error).split("\n")[0]
        raise ModelError(f"{path} cannot be downloaded ({reason}); go online or give a local directory.") from error
    return epath.Path(found)


def _described(path):
    """``(architecture, family, stored tensors by name, directory)``."""
    directory = files.directory(resolve_hf(path))
    family, fields = configs.family_fields(files.read_json(directory / "config.json"), directory)
    stored = _canonical(files.open_tensors(directory), family, directory)
    headless = names.SCORE in stored and names.TABLES[family]["head/kernel"].name not in stored
    return configs.from_fields(family, fields, directory, headless=headless), family, stored, directory


def _read(stored, place: names.Tensor, sizes, shape, index: tuple[slice, ...]) -> np.ndarray:
    """The slice ``index`` of one leaf in the leaf's dtype; the layers of a stacked leaf are read one by one."""
    index = tuple(slice(*part.indices(length)[:2]) for part, length in zip(index, shape.shape, strict=True))
    array = np.empty([part.stop - part.start for part in index], shape.dtype)
    if "{}" not in place.name:
        array[...] = names.take(functools.partial(files.rows, stored[place.name]), place, sizes, index)
        return array
    for row, layer in enumerate(range(index[0].start, index[0].stop)):
        read_rows = functools.partial(files.rows, stored[place.name.format(layer)])
        array[row] = names.take(read_rows, place, sizes, index[1:])
    return array


def _canonical(stored: dict[str, files.Stored], family: str, directory) -> dict[str, files.Stored]:
    """Renames what other savers name otherwise, and leaves out constants that are no weights."""
    renamed = {}
    foreign = []
    for name, where in stored.items():
        if family == "gemma3_text":
            # The multimodal Gemma 3 keeps its text model one level down.
            name = name.replace("language_model.model.", "model.").replace("model.language_model.", "model.")
            name = name.replace("language_model.lm_head.", "lm_head.")
        elif family == "gpt_neox":
            name = name.replace("lm_head.", "embed_out.")
        if name.removeprefix("model.").startswith(("vision_tower.", "multi_modal_projector.")):
            foreign.append(name)
        elif not names.BUFFERS.fullmatch(name):
            renamed[name] = where
    if foreign:
        warnings.warn(f"{directory}: only the text model is read; {len(foreign)} vision tensors are not.", stacklevel=3)
    # A checkpoint of the bare model, without its language modelling class, has no prefix.
    prefix = names.TABLES[family]["embed/tokens"].name.split(".")[0] + "."
    if not any(name.startswith(prefix) for name in renamed):
        bare = {name: where for name, where in renamed.items() if not names.is_head(name)}
        renamed = {name: where for name, where in renamed.items() if names.is_head(name)}
        renamed |= {prefix + name: where for name, where in bare.items()}
        renamed = {name: where for name, where in renamed.items() if not names.BUFFERS.fullmatch(name)}
    return renamed


def _check(stored, table: names.Table, sizes, config, directory) -> None:
    """Every tensor used, every leaf filled, every shape and dtype as expected."""
    expected = {}
    for place in table.values():
        for name in _per_layer(place, config):
            expected[name] = names.file_shape(place, sizes)
    missing = sorted(set(expected) - set(stored))
    if missing:
        raise ModelError(f"{directory} lacks tensors that its config.json asks for: {files.some(missing)}.")
    surplus = set(stored) - set(expected) - {names.SCORE}
    if "head/kernel" not in table:
        surplus -= _tied_copy(stored, table, directory)
    if surplus:
        raise ModelError(
            f"{directory} holds tensors for which its config.json has no place: {files.some(sorted(surplus))}."
        )
    for name, shape in expected.items():
        if stored[name].shape != shape:
            found = list(stored[name].shape)
            raise ModelError(f"{directory}: {name} has shape {found}, but config.json asks for {list(shape)}.")
        if stored[name].dtype not in files.FLOATS:
            kinds = ", ".join(files.FLOATS)
            raise ModelError(f"{directory}: {name} is stored as {stored[name].dtype}; only {kinds} can be read.")


def _tied_copy(stored, table: names.Table, directory) -> set[str]:
    """The output matrix of a tied model, when a saver kept it: it must equal the embedding."""
    copies = {name for name in ("lm_head.weight", "embed_out.weight") if name in stored}
    embedding = stored[table["embed/tokens"].name]
    for name in copies:
        same = stored[name].shape == embedding.shape and stored[name].dtype == embedding.dtype
        rows = embedding.shape[0]
        if not same or not np.array_equal(files.rows(stored[name], 0, rows), files.rows(embedding, 0, rows)):
            raise ModelError(
                f"{directory}: config.json ties the output to the embedding, but {name} differs from it; "
                "set tie_word_embeddings to false in config.json if both are meant."
            )
    return copies


# --- saving ---------------------------------------------------------------------------------------------------------


def save_hf(
    model: Transformer,
    params: dict[str, Any],
    path: str | os.PathLike,
    *,
    tokenizer=None,
    head=None,
    pad_token_id: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a directory that ``transformers`` loads: ``config.json``, safetensors and, when given, the tokenizer.

    Loading it back gives the same bits. A model that was loaded from a directory keeps its family and the fields of its
    ``config.json`` that are not modelled here; a model made from scratch becomes the first family, Llama before all,
    that can express it.

    With a head the family's ``...ForSequenceClassification`` is written, without the vocabulary's output matrix.
    transformers reads the score at the rightmost token that is not ``pad_token_id``, so that a padding token which may
    end a text (say the end-of-sequence token) would move the score: such a one is never written. The order of choice
    is ``pad_token_id``, that of the source's config, the tokenizer's padding token, the beginning-of-sequence token.

    Args:
        model: the transformer.
        params: its parameter tree (``state.params['model']`` of a run).
        path: directory; made when absent.
        tokenizer: a tokenizer with ``save(path)``, ``bos_id`` and ``eos_id``, or a directory to copy its files from.
        head: the score head ``{'kernel': [D, d]}`` of a reward model.
        pad_token_id: padding token for the config of the export.
        max_shard_bytes: most bytes in one file; above it there are numbered files and an index.

    Raises:
        ModelError: no family expresses the model, the tree does not fit it, or a reward model has no padding token.
    """
    directory = epath.Path(path)
    family = configs.family_of(model.config)
    shapes = _shapes(model)
    _check_tree(params, shapes)
    kernel = None if head is None else _score_kernel(head, model.config)
    table, sizes = _table(family, shapes, model.config), configs.sizes(model.config)
    if kernel is not None:
        table = {leaf: place for leaf, place in table.items() if leaf != "head/kernel"}
    leaves = {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    outputs = _outputs(leaves, table, sizes, model.config)
    if kernel is not None:
        score = files.Output(names.SCORE, kernel.size * kernel.dtype.itemsize, lambda: _host(kernel).T.copy())
        outputs.append(score)
    fields = configs.to_fields(family, model.config, dtype=leaves["embed/tokens"].dtype.name)
    fields |= _special_tokens(fields, tokenizer, model.config)
    fields |= {} if pad_token_id is None else {"pad_token_id": pad_token_id}
    if kernel is not None:
        fields |= configs.reward_fields(family, fields, outputs=kernel.shape[1], pad_token_id=pad_token_id)
    write = jax.process_index() == 0
    if write:
        directory.mkdir(parents=True, exist_ok=True)
        files.write_json(directory / "config.json", fields)
        _write_generation(directory, fields, causal=kernel is None)
        _write_tokenizer(directory, tokenizer)
    files.write_tensors(directory, outputs, max_shard_bytes, write=write)


def _outputs(leaves, table: names.Table, sizes, config) -> list[files.Output]:
    """What to write, in the order of the table: a tensor of several leaves is put together when its turn comes."""
    together: dict[str, list[tuple[str, names.Tensor]]] = {}
    for leaf, place in table.items():
        together.setdefault(place.name, []).append((leaf, place))

    def build(parts, layer: int | None) -> np.ndarray:
        array = np.empty(names.file_shape(parts[0][1], sizes), leaves[parts[0][0]].dtype)
        for leaf, place in parts:
            names.put(array, place, sizes, _host(leaves[leaf], layer))
        return array

    outputs = []
    for parts in together.values():
        place = parts[0][1]
        nbytes = int(np.prod(names.file_shape(place, sizes))) * leaves[parts[0][0]].dtype.itemsize
        for layer, name in enumerate(_per_layer(place, config)):
            number = layer if "{}" in place.name else None
            outputs.append(files.Output(name, nbytes, functools.partial(build, parts, number)))
    return outputs


def _host(leaf, layer: int | None = None) -> np.ndarray:
    """A leaf, or one layer of a stacked one, on the host, from whatever devices and processes hold it."""
    if isinstance(leaf, np.ndarray):
        return leaf if layer is None else leaf[layer]
    part = leaf if layer is None else jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
    return np.asarray(part if part.is_fully_addressable else multihost_utils.process_allgather(part, tiled=True))


def _score_kernel(head, config):
    kernel = head["kernel"] if isinstance(head, dict) else head
    width = configs.sizes(config)["D"]
    if kernel.ndim != 2 or kernel.shape[0] != width:
        raise ModelError(f"A score head needs a kernel [{width}, d], got {list(kernel.shape)}.")
    return kernel


def _special_tokens(fields: dict[str, Any], tokenizer, config) -> dict[str, int]:
    """Token ids that the tokenizer knows and the source's config does not."""
    if tokenizer is None or isinstance(tokenizer, str | os.PathLike):
        return {}
    if tokenizer.vocab_size > config.vocab_size:
        raise ModelError(
            f"The tokenizer has {tokenizer.vocab_size} ids, but the model's vocabulary has {config.vocab_size}; "
            "export the model with the tokenizer that it was trained with."
        )
    known = {"bos_token_id": tokenizer.bos_id} if tokenizer.bos_id is not None else {}
    ends = fields.get("eos_token_id")
    if tokenizer.eos_id not in (ends if isinstance(ends, list) else [ends]):
        known["eos_token_id"] = tokenizer.eos_id
    padding = [text for text in tokenizer.special if text.lower().strip("<|[]>") in ("pad", "padding")]
    if padding and fields.get("pad_token_id") is None:
        known["pad_token_id"] = tokenizer.special[padding[0]]
    return known


def _write_generation(directory: epath.Path, fields: dict[str, Any], *, causal: bool) -> None:
    if causal:
        ids = {name: fields.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        known = {name: number for name, number in ids.items() if number is not None}
        files.write_json(directory / "generation_config.json", {"_from_model_config": True, **known})


def _write_tokenizer(directory: epath.Path, tokenizer) -> None:
    if tokenizer is None:
        return
    if not isinstance(tokenizer, str | os.PathLike):
        tokenizer.save(directory)
        return
    source = epath.Path(tokenizer)
    found = [name for name in TOKENIZER_FILES if (source / name).exists()]
    if not {"tokenizer.json", "tokenizer.model", "vocab.json"} & set(found):
        raise ModelError(f"{source} holds no tokenizer (no tokenizer.json, tokenizer.model or vocab.json).")
    for name in found:
        (directory / name).write_bytes((source / name).read_bytes())


# --- the tree -------------------------------------------------------------------------------------------------------


def _shapes(model: Transformer) -> dict[str, Any]:
    """The tree of the model's parameters as shapes and dtypes."""
    declared = {
        tuple(name.split("/")): jax.ShapeDtypeStruct(leaf.shape, model.param_dtype)
        for name, leaf in parameters.table(model.config).items()
    }
    return unflatten_dict(declared)


def _per_layer(place: names.Tensor, config) -> list[str]:
    count = configs.sizes(config)["N"] if "{}" in place.name else 1
    return [place.name.format(layer) for layer in range(count)]


def _table(family: str, shapes, config) -> names.Table:
    """The part of the family's table that this model's leaves use; each leaf must have a place of its own shape."""
    table = names.TABLES[family]
    sizes = configs.sizes(config)
    used = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = leaf_path(path)
        if name not in table:
            raise ModelError(f"The family {family} has no place for the parameter {name} of this model.")
        layers = (sizes["N"],) if "{}" in table[name].name else ()
        expected = layers + names.leaf_shape(table[name], sizes)
        if leaf.shape != expected:
            raise ModelError(f"The parameter {name} has shape {list(leaf.shape)}; {family} expects {list(expected)}.")
        used[name] = table[name]
    return used


def _check_tree(params, shapes) -> None:
    """The parameters must be this model's own tree."""
    given = {leaf_path(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    expected = {leaf_path(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    wrong = sorted(name for name in given.keys() | expected.keys() if given.get(name) != expected.get(name))
    if wrong:
        first = wrong[0]
        raise ModelError(
            f"The parameters are not this model's tree: {first} is {given.get(first, 'absent')}, expected "
            f"{expected.get(first, 'absent')} (of a train state, give params['model'])."
        )
