"""What a transformer is: one frozen description that expresses every supported family.

A family (Llama, Gemma, GPT-2, ...) is a choice of field values, never a copy of the maths.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxpref.errors import ModelError
from jaxpref.models import attention

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
NORMS = ("rms", "layer")
QUERY_KEY_NORMS = ("none", "head", "all")
ROPE_SCALINGS = ("default", "linear", "llama3", "longrope")
REMATS = ("none", "dots", "attention", "full", "offload")


def wide_dtype(dtype: Any):
    """float32, or float64 where the compute dtype is."""
    return jnp.promote_types(dtype, jnp.float32)


def _build(kind, values):
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    missing = sorted(n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values)
    if unknown or missing:
        names = ", ".join(fields)
        raise ModelError(f"a {kind.__name__} has no field {unknown} and lacks {missing}; its fields are {names}.")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _positive(name, value):
    if not value > 0:
        raise ModelError(f"{name} is {value}; expected a positive number.")


def _choice(name, value, choices):
    if value not in choices:
        raise ModelError(f"{name} is {value!r}; expected one of {', '.join(choices)}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding: dimension pair i turns by ``position * frequency_i``.

    Attributes:
        theta: base of the frequencies ``theta ** (-2 i / rotary_dim)``.
        scaling: 'default' (none), 'linear' (frequencies divided by ``factor``), 'llama3' (only the slow ones, with a
            smooth transition) or 'longrope' (each frequency divided by a factor of its own).
        factor: of 'linear' and 'llama3'.
        low_frequency_factor, high_frequency_factor: ends of the transition of 'llama3', in wavelengths per
            ``original_positions``.
        original_positions: sequence length before scaling ('llama3' and 'longrope').
        short_factors, long_factors: divisors of 'longrope', one for each rotated dimension pair.
        long_context: whether 'longrope' uses ``long_factors``. One choice for every sequence: a choice by the longest
            sequence of a batch, as Hugging Face makes, would let one example change the log-probs of another.
        attention_factor: multiplies the rotated queries and keys ('longrope').
    """

    theta: float = 10_000.0
    scaling: str = "default"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    long_context: bool = False
    attention_factor: float = 1.0

    def __post_init__(self):
        _choice("rope.scaling", self.scaling, ROPE_SCALINGS)
        for name in ("theta", "factor", "attention_factor"):
            _positive(f"rope.{name}", getattr(self, name))
        if self.scaling in ("llama3", "longrope"):
            _positive("rope.original_positions", self.original_positions)
        if self.scaling == "llama3" and not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise ModelError(
                f"rope.low_frequency_factor is {self.low_frequency_factor} and rope.high_frequency_factor is "
                f"{self.high_frequency_factor}; expected 0 < low < high."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of a decoder-only transformer; hashable, so that it can be a static argument of ``jax.jit``.

    Attributes:
        family: the Hugging Face ``model_type`` that files are written as; the maths does not read it.
        vocab_size: V, rows of the token embedding.
        width: D, width of the residual stream.
        layers: number of blocks.
        heads: H, query heads.
        key_value_heads: G, key and value heads; H is a multiple of it (grouped-query attention).
        head_dim: width of one head.
        mlp_width: F, hidden width of the MLP.
        max_positions: longest sequence that the weights were made for; rows of the table when ``learned_positions``.
        learned_positions: absolute positions are embedded and added to the tokens (GPT-2).
        rope: rotary positions, or None.
        local_rope: rotary positions of the local layers when they differ (Gemma 3), or None.
        rotary_dim: how many of a head's dimensions are rotated, the first ones; None means all (GPT-NeoX has some).
        window: a local layer sees positions ``i - window < j <= i``; None means no limit.
        local_layers: for each layer whether it is local; empty means all of them when ``window`` is set, else none.
        norm: 'rms' or 'layer' (LayerNorm).
        norm_epsilon: added to the mean square (or the variance).
        norm_offset: added to the stored scale (Gemma stores w of 1 + w).
        norm_bias: whether norms have a bias.
        pre_norm: whether a block normalises the input of attention and of the MLP.
        post_norm: whether it normalises their output before adding it (Gemma 2 and 3; OLMo 2 has only these).
        parallel_residual: attention and MLP read the same input, ``x + attention(x) + mlp(x)`` (GPT-NeoX).
        query_key_norm: 'none', 'head' (each head by itself; Qwen 3, Gemma 3) or 'all' (all heads together; OLMo 2).
        attention_bias: biases of query, key and value.
        attention_out_bias: bias of the output projection.
        attention_scalar: scores are divided by its square root; None means ``head_dim``.
        attention_soft_cap: scores become ``cap * tanh(scores / cap)``; None means no cap.
        activation: 'silu', 'gelu', 'gelu_tanh' (also called gelu_new) or 'relu'.
        gated: the MLP is ``down(activation(gate(x)) * up(x))`` instead of ``down(activation(up(x)))``.
        mlp_bias: biases of the MLP.
        scale_embeddings: token embeddings are multiplied by sqrt(D), rounded to the compute dtype (Gemma).
        tied_embeddings: the vocabulary head is the transposed token embedding.
        final_soft_cap: soft cap of the logits; None means no cap.
        source: text of the config.json it was read from, for the fields that only an export needs; not compared.
    """

    family: str = "llama"
    vocab_size: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    mlp_width: int
    max_positions: int
    learned_positions: bool = False
    rope: Rope | None = Rope()
    local_rope: Rope | None = None
    rotary_dim: int | None = None
    window: int | None = None
    local_layers: tuple[bool, ...] = ()
    norm: str = "rms"
    norm_epsilon: float = 1e-5
    norm_offset: float = 0.0
    norm_bias: bool = False
    pre_norm: bool = True
    post_norm: bool = False
    parallel_residual: bool = False
    query_key_norm: str = "none"
    attention_bias: bool = False
    attention_out_bias: bool = False
    attention_scalar: float | None = None
    attention_soft_cap: float | None = None
    activation: str = "silu"
    gated: bool = True
    mlp_bias: bool = False
    scale_embeddings: bool = False
    tied_embeddings: bool = False
    final_soft_cap: float | None = None
    source: str = dataclasses.field(default="", compare=False, repr=False)

    def __post_init__(self):
        sizes = ("vocab_size", "width", "layers", "heads", "key_value_heads", "head_dim", "mlp_width", "max_positions")
        for name in (*sizes, "norm_epsilon"):
            _positive(name, getattr(self, name))
        for name in ("rotary_dim", "window", "attention_scalar", "attention_soft_cap", "final_soft_cap"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        _choice("norm", self.norm, NORMS)
        _choice("activation", self.activation, ACTIVATIONS)
        _choice("query_key_norm", self.query_key_norm, QUERY_KEY_NORMS)
        if self.heads % self.key_value_heads:
            raise ModelError(
                f"heads is {self.heads} and key_value_heads is {self.key_value_heads}; heads must be a multiple of it."
            )
        if not (self.pre_norm or self.post_norm):
            raise ModelError("pre_norm and post_norm are both False; a block needs at least one of them.")
        if self.parallel_residual and self.post_norm:
            raise ModelError("parallel_residual and post_norm are both True; no known family has both.")
        self._check_rope()
        self._check_local()

    def _check_local(self):
        if self.local_layers and len(self.local_layers) != self.layers:
            raise ModelError(f"local_layers has {len(self.local_layers)} entries; expected {self.layers}, one a layer.")
        if any(self.local_layers) and self.window is None and self.local_rope is None:
            raise ModelError("local_layers marks local layers, but window and local_rope are both None; set one.")
        if self.local_rope is not None and not any(self.local):
            raise ModelError("local_rope is set, but no layer is local; set local_layers or window.")

    def _check_rope(self):
        if self.rope is None and (self.local_rope is not None or self.rotary_dim is not None):
            raise ModelError("rope is None, so local_rope and rotary_dim must be None too.")
        if self.rope is None:
            return
        rotated = self.rotated
        if rotated % 2 or rotated > self.head_dim:
            raise ModelError(f"{rotated} dimensions are rotated; expected an even number up to {self.head_dim}.")
        for rope in (self.rope, self.local_rope):
            if rope is None or rope.scaling != "longrope":
                continue
            for name in ("short_factors", "long_factors"):
                if len(getattr(rope, name)) != rotated // 2:
                    raise ModelError(f"rope.{name} has {len(getattr(rope, name))} entries; expected {rotated // 2}.")

    @property
    def rotated(self) -> int:
        """How many dimensions of a head are rotated."""
        if self.rope is None:
            return 0
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def local(self) -> tuple[bool, ...]:
        """For each layer, whether it is local."""
        return self.local_layers or (self.window is not None,) * self.layers

    @property
    def longest_sequence(self) -> int:
        """Longest sequence that the weights and the chosen rotary factors were made for."""
        if self.rope is not None and self.rope.scaling == "longrope" and not self.rope.long_context:
            return min(self.rope.original_positions, self.max_positions)
        return self.max_positions

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; :meth:`from_dict` undoes it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Builds a config from what :meth:`to_dict` gave, also after a trip through JSON.

        Raises:
            ModelError: a field is unknown or missing, or a value is outside its domain.
        """
        ropes = {name: _build(Rope, values[name]) for name in ("rope", "local_rope") if values.get(name) is not None}
        return _build(cls, dict(values) | ropes)


@dataclasses.dataclass(frozen=True)
class Transformer:
    """How an architecture is computed; hashable.

    Attributes:
        config: the architecture.
        dtype: of activations and of weights when they are used. Norms, softmax and everything over the vocabulary are
            float32 at least.
        param_dtype: of stored parameters.
        remat: what the backward pass recomputes, from most memory to least: 'none' (keeps all), 'dots' (keeps the
            results of weight multiplications and of attention), 'attention' (keeps the input of each layer, what its
            attention reads and what it gives), 'full' (keeps the input of each layer only), 'offload' (as 'full', but
            keeps it in the host's memory).
        attention: name of the kernel that computes attention, or 'auto' (:mod:`jaxpref.models.attention`). Generation
            with a cache always takes 'xla'.
        chunk: tokens of a vocabulary chunk on each data-parallel device.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: str = "none"
    attention: str = "xla"
    chunk: int = 512

    def __post_init__(self):
        for name in ("dtype", "param_dtype"):
            dtype = jnp.dtype(getattr(self, name))
            if not jnp.issubdtype(dtype, jnp.floating):
                raise ModelError(f"{name} is {dtype.name}; expected a floating-point type such as float32 or bfloat16.")
            object.__setattr__(self, name, dtype)
        _choice("remat", self.remat, REMATS)
        _choice("attention", self.attention, attention.NAMES)
        _positive("chunk", self.chunk)
