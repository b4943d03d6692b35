"""An adapter alone, as Hugging Face's PEFT reads it: ``adapter_config.json`` and ``adapter_model.safetensors``."""

import os
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from etils import epath
from jax.experimental import multihost_utils

from jaxpref.errors import ModelError
from jaxpref.models import huggingface_config as configs
from jaxpref.models import huggingface_files as files
from jaxpref.models import huggingface_names as names
from jaxpref.models.adapters import Adapter
from jaxpref.models.config import Transformer

_PREFIX = "base_model.model."


def save_peft(model: Transformer, adapter: Adapter, path: str | os.PathLike, *, base: str = "") -> None:
    """Writes a directory that ``peft.PeftModel.from_pretrained(base, path)`` reads.

    Args:
        model: the transformer; its family names the modules.
        adapter: of that model.
        path: directory; made when absent.
        base: name or directory of the base model, for the adapter's config; PEFT asks for the base model anyway.

    Raises:
        ModelError: the family keeps an adapted kernel together with others in one tensor, or transposed, so that its
            factors have no place of their own.
    """
    directory = epath.Path(path)
    tensors = _tensors(configs.family_of(model.config), adapter)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": adapter.rank,
        "lora_alpha": adapter.scale * adapter.rank,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    if jax.process_index() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        files.write_json(directory / "adapter_config.json", described)
        written = safetensors.numpy.save(tensors, metadata={"format": "pt"})
        (directory / "adapter_model.safetensors").write_bytes(written)


def _tensors(family: str, adapter: Adapter) -> dict[str, np.ndarray]:
    """``lora_A [r, inputs]`` and ``lora_B [outputs, r]`` of every layer, by their names in the file."""
    table, tensors = names.TABLES[family], {}
    together = [place.name for place in table.values()]
    for block, targets in adapter.layers.items():
        for target, factors in targets.items():
            place = table[f"layers/{block}/{target}/kernel"]
            a, b = (_host(factors[name]) for name in "ab")
            if together.count(place.name) > 1 or not _outputs_first(place, inputs=a.ndim - 2):
                raise ModelError(
                    f"{family} keeps {block}/{target} in {place.name}, together with other kernels or transposed, "
                    "where PEFT has no place for its factors; export the merged model instead."
                )
            module = _PREFIX + place.name.removesuffix(".weight")
            for layer in range(a.shape[0]):
                tensors[f"{module.format(layer)}.lora_A.weight"] = a[layer].reshape(-1, adapter.rank).T.copy()
                tensors[f"{module.format(layer)}.lora_B.weight"] = b[layer].reshape(adapter.rank, -1).T.copy()
    return tensors


def _outputs_first(place: names.Tensor, *, inputs: int) -> bool:
    """Whether the tensor's rows are the kernel's outputs, in the kernel's own order."""
    file, leaf = (side.replace("(", "").replace(")", "").split() for side in place.pattern.split(" -> "))
    return file == leaf[inputs:] + leaf[:inputs]


def _host(leaf: Any) -> np.ndarray:
    """A factor on the host, from whatever devices and processes hold it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)
