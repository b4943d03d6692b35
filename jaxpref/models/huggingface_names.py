"""Where each leaf of the parameter tree lies in the files of each family, as one table that is read both ways.

A :class:`Tensor` names a tensor (``{}`` stands for the layer) and says by a pattern how its axes become the leaf's:
``"(H h) D -> D H h"`` reads "split the first axis into heads and head width, then put the model width in front". Axes:

    V vocabulary, D model width, P positions, F width of the mlp,
    H query heads, G key-value heads, h width of a head, I = H h, J = G h,
    and, where one tensor holds several leaves, the axis of its blocks:
    Q = H + G + G heads (query, key, value), T = 3 blocks (query, key, value), U = 2 blocks (gate, up).
"""

import math
import re
from typing import NamedTuple

import numpy as np


class Tensor(NamedTuple):
    """A tensor's name, its pattern, and which block of its Q, T or U axis the leaf is."""

    name: str
    pattern: str
    block: int = 0


Table = dict[str, Tensor]
Sizes = dict[str, int]


# --- reading and writing by pattern ---------------------------------------------------------------------------------


def _blocks(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    return {"Q": (sizes["H"], sizes["G"], sizes["G"]), "T": (1, 1, 1), "U": (1, 1)}


def _axes(pattern: str) -> tuple[list[list[str]], list[str]]:
    """The file's axes, each a list of the axes that it merges, and the leaf's axes."""
    left, right = pattern.split(" -> ")
    groups: list[list[str]] = []
    inside = False
    for word in left.replace("(", "( ").replace(")", " )").split():
        if word in "()":
            inside = word == "("
            groups += [[]] if inside else []
        elif inside:
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups, right.split()


def _length(axis: str, sizes: Sizes) -> int:
    return sum(_blocks(sizes)[axis]) if axis in "QTU" else sizes[axis]


def file_shape(tensor: Tensor, sizes: Sizes) -> tuple[int, ...]:
    """The shape that the tensor has in a file."""
    groups, _ = _axes(tensor.pattern)
    return tuple(math.prod(_length(axis, sizes) for axis in group) for group in groups)


def leaf_shape(tensor: Tensor, sizes: Sizes) -> tuple[int, ...]:
    """The shape that the leaf has in the tree, without the axis of layers."""
    _, leaf_axes = _axes(tensor.pattern)
    return tuple(_blocks(sizes)[axis][tensor.block] if axis in "QTU" else sizes[axis] for axis in leaf_axes)


def _window(tensor: Tensor, sizes: Sizes, index: tuple[slice, ...]) -> dict[str, slice | int]:
    """For each axis of the file, what the slice ``index`` of the leaf needs of it; a block of one is an integer."""
    groups, leaf_axes = _axes(tensor.pattern)
    window: dict[str, slice | int] = {}
    for axis in (axis for group in groups for axis in group):
        first = sum(_blocks(sizes)[axis][: tensor.block]) if axis in "QTU" else 0
        if axis in leaf_axes:
            part = index[leaf_axes.index(axis)]
            window[axis] = slice(first + part.start, first + part.stop)
        else:
            window[axis] = first
    return window


def _order(tensor: Tensor) -> list[int]:
    """The permutation that brings the file's remaining axes into the leaf's order."""
    groups, leaf_axes = _axes(tensor.pattern)
    remaining = [axis for group in groups for axis in group if axis in leaf_axes]
    return [remaining.index(axis) for axis in leaf_axes]


def take(read_rows, tensor: Tensor, sizes: Sizes, index: tuple[slice, ...]) -> np.ndarray:
    """The slice ``index`` (explicit starts and stops) of a leaf, reading only the rows of the file that hold it.

    Args:
        read_rows: function ``(start, stop)`` that returns rows of the tensor's first axis.
        tensor: the leaf's place.
        sizes: length of each axis letter.
        index: one slice for each axis of the leaf, the axis of layers excluded.
    """
    groups, _ = _axes(tensor.pattern)
    window = _window(tensor, sizes, index)
    outer = window[groups[0][0]]
    start, stop = (outer, outer + 1) if isinstance(outer, int) else (outer.start, outer.stop)
    inner = math.prod(_length(axis, sizes) for axis in groups[0][1:])
    window[groups[0][0]] = 0 if isinstance(outer, int) else slice(0, stop - start)
    view = read_rows(start * inner, stop * inner).reshape(
        stop - start, *[_length(axis, sizes) for group in groups for axis in group][1:]
    )
    return view[tuple(window.values())].transpose(_order(tensor))


def put(array: np.ndarray, tensor: Tensor, sizes: Sizes, leaf: np.ndarray) -> None:
    """Writes a leaf of one layer into its place in ``array``, which has :func:`file_shape`."""
    groups, _ = _axes(tensor.pattern)
    view = array.reshape([_length(axis, sizes) for group in groups for axis in group])
    window = _window(tensor, sizes, tuple(slice(0, length) for length in leaf.shape))
    view[tuple(window.values())] = leaf.transpose(np.argsort(_order(tensor)))


# --- the tables -----------------------------------------------------------------------------------------------------
# A table may name leaves that a config switches off (biases, gates, the head of a tied model).


def _affine(leaf: str, name: str) -> Table:
    """A norm."""
    return {f"{leaf}/scale": Tensor(f"{name}.weight", "D -> D"), f"{leaf}/bias": Tensor(f"{name}.bias", "D -> D")}


def _linear(leaf: str, name: str, kernel: str, bias: str, block: int = 0) -> Table:
    """A projection."""
    return {
        f"{leaf}/kernel": Tensor(f"{name}.weight", kernel, block),
        f"{leaf}/bias": Tensor(f"{name}.bias", bias, block),
    }


_LAYER = "model.layers.{}."
_ENDS = {
    "embed/tokens": Tensor("model.embed_tokens.weight", "V D -> V D"),
    "norm/scale": Tensor("model.norm.weight", "D -> D"),
    "head/kernel": Tensor("lm_head.weight", "V D -> D V"),
}
_ATTENTION = {
    **_linear("layers/attention/query", _LAYER + "self_attn.q_proj", "(H h) D -> D H h", "(H h) -> H h"),
    **_linear("layers/attention/key", _LAYER + "self_attn.k_proj", "(G h) D -> D G h", "(G h) -> G h"),
    **_linear("layers/attention/value", _LAYER + "self_attn.v_proj", "(G h) D -> D G h", "(G h) -> G h"),
}
_OUT = _linear("layers/attention/out", _LAYER + "self_attn.o_proj", "D (H h) -> H h D", "D -> D")
_GATE_UP = {
    **_linear("layers/mlp/gate", _LAYER + "mlp.gate_proj", "F D -> D F", "F -> F"),
    **_linear("layers/mlp/up", _LAYER + "mlp.up_proj", "F D -> D F", "F -> F"),
}
_DOWN = _linear("layers/mlp/down", _LAYER + "mlp.down_proj", "D F -> F D", "D -> D")
_PRE_NORMS = {
    **_affine("layers/attention_norm", _LAYER + "input_layernorm"),
    **_affine("layers/mlp_norm", _LAYER + "post_attention_layernorm"),
}
_POST_NORMS = {
    **_affine("layers/attention_post_norm", _LAYER + "post_attention_layernorm"),
    **_affine("layers/mlp_post_norm", _LAYER + "post_feedforward_layernorm"),
}


def _query_key_norms(query: str, key: str) -> Table:
    return {
        "layers/attention/query_norm/scale": Tensor(_LAYER + "self_attn.q_norm.weight", query),
        "layers/attention/key_norm/scale": Tensor(_LAYER + "self_attn.k_norm.weight", key),
    }


_PER_HEAD = _query_key_norms("h -> h", "h -> h")
_OVER_HEADS = _query_key_norms("I -> I", "J -> J")
_LLAMA = {**_ENDS, **_PRE_NORMS, **_ATTENTION, **_OUT, **_GATE_UP, **_DOWN}
_GEMMA_2 = {
    **_LLAMA,
    **_POST_NORMS,
    **_affine("layers/mlp_norm", _LAYER + "pre_feedforward_layernorm"),
}

_QKV = _LAYER + "self_attn.qkv_proj"
_PHI_3 = {
    **_ENDS,
    **_PRE_NORMS,
    **_linear("layers/attention/query", _QKV, "(Q h) D -> D Q h", "(Q h) -> Q h", 0),
    **_linear("layers/attention/key", _QKV, "(Q h) D -> D Q h", "(Q h) -> Q h", 1),
    **_linear("layers/attention/value", _QKV, "(Q h) D -> D Q h", "(Q h) -> Q h", 2),
    **_OUT,
    **_linear("layers/mlp/gate", _LAYER + "mlp.gate_up_proj", "(U F) D -> D F", "(U F) -> F", 0),
    **_linear("layers/mlp/up", _LAYER + "mlp.gate_up_proj", "(U F) D -> D F", "(U F) -> F", 1),
    **_DOWN,
}

# GPT-2 stores its projections (in, out).
_H = "transformer.h.{}."
_GPT_2 = {
    "embed/tokens": Tensor("transformer.wte.weight", "V D -> V D"),
    "embed/positions": Tensor("transformer.wpe.weight", "P D -> P D"),
    **_affine("layers/attention_norm", _H + "ln_1"),
    **_linear("layers/attention/query", _H + "attn.c_attn", "D (T H h) -> D H h", "(T H h) -> H h", 0),
    **_linear("layers/attention/key", _H + "attn.c_attn", "D (T G h) -> D G h", "(T G h) -> G h", 1),
    **_linear("layers/attention/value", _H + "attn.c_attn", "D (T G h) -> D G h", "(T G h) -> G h", 2),
    **_linear("layers/attention/out", _H + "attn.c_proj", "(H h) D -> H h D", "D -> D"),
    **_affine("layers/mlp_norm", _H + "ln_2"),
    **_linear("layers/mlp/up", _H + "mlp.c_fc", "D F -> D F", "F -> F"),
    **_linear("layers/mlp/down", _H + "mlp.c_proj", "F D -> F D", "D -> D"),
    **_affine("norm", "transformer.ln_f"),
    "head/kernel": Tensor("lm_head.weight", "V D -> D V"),
}

# GPT-NeoX interleaves query, key and value inside each head.
_N = "gpt_neox.layers.{}."
_GPT_NEOX = {
    "embed/tokens": Tensor("gpt_neox.embed_in.weight", "V D -> V D"),
    **_affine("layers/attention_norm", _N + "input_layernorm"),
    **_linear("layers/attention/query", _N + "attention.query_key_value", "(H T h) D -> D H h", "(H T h) -> H h", 0),
    **_linear("layers/attention/key", _N + "attention.query_key_value", "(G T h) D -> D G h", "(G T h) -> G h", 1),
    **_linear("layers/attention/value", _N + "attention.query_key_value", "(G T h) D -> D G h", "(G T h) -> G h", 2),
    **_linear("layers/attention/out", _N + "attention.dense", "D (H h) -> H h D", "D -> D"),
    **_affine("layers/mlp_norm", _N + "post_attention_layernorm"),
    **_linear("layers/mlp/up", _N + "mlp.dense_h_to_4h", "F D -> D F", "F -> F"),
    **_linear("layers/mlp/down", _N + "mlp.dense_4h_to_h", "D F -> F D", "D -> D"),
    **_affine("norm", "gpt_neox.final_layer_norm"),
    "head/kernel": Tensor("embed_out.weight", "V D -> D V"),
}

TABLES: dict[str, Table] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, **_PER_HEAD},
    "gemma": _LLAMA,
    "gemma2": _GEMMA_2,
    "gemma3_text": {**_GEMMA_2, **_PER_HEAD},
    "olmo2": {**_ENDS, **_POST_NORMS, **_ATTENTION, **_OVER_HEADS, **_OUT, **_GATE_UP, **_DOWN},
    "phi3": _PHI_3,
    "gpt2": _GPT_2,
    "gpt_neox": _GPT_NEOX,
}

# The score of a reward model, `num_labels` outputs without bias, in every family.
SCORE = "score.weight"

# Constants that older files carry beside the weights: rotary frequencies and causal masks.
BUFFERS = re.compile(
    r"(model\.(layers\.\d+\.self_attn\.)?|gpt_neox\.(layers\.\d+\.attention\.)?)rotary_emb\.inv_freq"
    r"|transformer\.h\.\d+\.attn\.(bias|masked_bias)"
    r"|gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias)"
)


def is_head(name: str) -> bool:
    """Whether a tensor belongs to a head rather than to the bare model."""
    return name in (SCORE, "lm_head.weight", "embed_out.weight")
