"""The schema of a config: frozen dataclasses, one per section, every field with its meaning.

A config is built into :class:`Sections` before anything else happens, so a field that is not declared here cannot
exist. Fields annotated ``Mapping`` are free-form: their builders (data streams, objectives, evals) check them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


def number(default: float | None, *, least: float | None = None, most: float | None = None) -> Any:
    """A numeric field with the domain ``least <= x <= most``."""
    return dataclasses.field(default=default, metadata={"least": least, "most": most})


def section(section_class: type) -> Any:
    """A field that holds a section of its own, by default as it is."""
    return dataclasses.field(default_factory=section_class)


def free(default: Mapping[str, Any] | None = None) -> Any:
    """A free-form field."""
    return dataclasses.field(default_factory=lambda: dict(default or {}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The transformer: what is computed, and how."""

    name: str = ""  # built-in architecture ('nano', 'llama3-8b', ...) to start from scratch, or to expect of init_from
    overrides: Mapping[str, Any] = free()  # fields of ModelConfig that replace the architecture's own
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # of activations and matrix products
    param_dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # of stored parameters
    remat: str = "none"  # what the backward pass recomputes: none | dots | attention | full | offload
    attention: str = "xla"  # attention implementation by name
    chunk: int = number(512, least=1)  # tokens whose logits exist at one time, on each data-parallel device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Text to tokens."""

    path: str = ""  # 'byte', or a directory with tokenizer.json; empty: the one of init_from, 'byte' from scratch
    template: str = ""  # none | chatml | human-assistant | tokenizer (its own); empty: its own if it has one, else none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Length:
    """The declared rule for examples that are too long; what it does is counted and shown."""

    prompt: int = number(512, least=0)  # most tokens of a prompt; 0: no limit
    response: int = number(512, least=0)  # most tokens of a response, its end of sequence included; 0: no limit
    prompt_keep: Literal["start", "end"] = "end"  # which part of a too long prompt stays
    response_keep: Literal["start", "end"] = "start"  # which part of a too long response stays
    on_long: Literal["truncate", "drop", "error"] = "truncate"  # what happens to a too long example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """How many examples make a step, and how they lie in rows (which changes no number)."""

    examples: int = number(32, least=1)  # examples of a global batch, of each data stream
    streams: Mapping[str, int] = free()  # data stream -> its own number of examples
    layout: Literal["padded", "packed", "shared", "packed+shared"] = "padded"  # shared: responses share their prompt
    rows: int = number(0, least=0)  # rows of a micro-batch; 0: one micro-batch, or the cheapest where rows are packed
    rows_per_device: int = number(0, least=0)  # instead of rows: for each device that examples are divided over
    length: int = number(0, least=0)  # tokens of a packed row; 0: the cheapest for this data, model and device
    prompt_length: int = number(0, least=0)  # prompt region of a packed+shared row; 0: the cheapest
    response_length: int = number(0, least=0)  # response region of a packed+shared row; 0: the cheapest
    short_length: int = number(0, least=-1)  # response region (packed: tokens) of short rows; 0: the cheapest; -1: none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """The model that objectives compare the policy with."""

    # frozen: a copy; cached: its log-probs on disk; adapter_off: the bare base; moving: a copy that follows the policy
    kind: Literal["none", "frozen", "cached", "adapter_off", "moving"] = "none"  # what kind of model it is
    path: str = ""  # where its parameters come from, as init_from; empty: the policy at step 0
    cache: str = ""  # folder of the cached log-probs; empty: in the run folder
    others: tuple[str, ...] = ()  # where further references come from, for methods that have several; always cached
    mode: Literal["soft", "hard"] = "soft"  # how it moves: mixed with the policy, or replaced by it
    alpha: float = number(0.6, least=0, most=1)  # the policy's share in a soft update
    every: int = number(1, least=1)  # steps between updates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """Low-rank factors that are trained in place of the model's own weights, which stay as they are."""

    kind: Literal["none", "lora"] = "none"  # none: the weights themselves are trained
    rank: int = number(16, least=1)  # columns of the first factor, rows of the second
    alpha: float = number(32.0, least=0)  # numerator of the scale
    scaling: Literal["lora", "rslora"] = "lora"  # scale: alpha / rank, or alpha / sqrt(rank)
    targets: tuple[str, ...] = ()  # of query, key, value, out, gate, up, down; empty: all that the architecture has
    base: Literal["", "int8", "nf4"] = ""  # how the frozen kernels of the layers are stored; empty: as they are


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The update rule. A field that is None has the optimizer's default; one that it does not read must be None."""

    name: Literal["adamw", "adafactor", "lion", "muon", "sgd"] = "adamw"
    learning_rate: float = number(1e-3, least=0)  # peak
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "constant"  # after the warm-up
    warmup_steps: int = number(0, least=0)  # steps of linear warm-up
    end_factor: float | None = number(None, least=0, most=1)  # last learning rate over peak (linear, cosine); None: 0
    clip_norm: float = number(1.0, least=0)  # largest global norm of the gradient; 0: no clipping
    weight_decay: float = number(0.0, least=0)  # decoupled; spares norms, biases and position embeddings
    b1: float | None = number(None, least=0, most=1)  # decay of the first moment (adamw, lion, muon)
    b2: float | None = number(None, least=0, most=1)  # decay of the second moment (adamw, lion, muon)
    eps: float | None = number(None, least=0)  # added to the second moment or its root (adamw, adafactor, muon)
    momentum: float | None = number(None, least=0, most=1)  # (adafactor, muon, sgd)
    moment_dtype: Literal["float32", "bfloat16"] = "float32"  # of all moments as stored
    offload: bool = False  # keep moments in the hosts' memory between updates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """How long."""

    steps: int = number(0, least=0)  # updates; 0: as many as epochs need
    epochs: float = number(1.0, least=0)  # passes over the first data stream, may be fractional


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Devices along each axis; -1 on one axis means all that remain."""

    data: int = number(1, least=-1)  # copies of the model
    fsdp: int = number(-1, least=-1)  # parameters and optimizer state divided, batch too
    tensor: int = number(1, least=-1)  # heads and hidden units divided
    sequence: int = number(1, least=-1)  # tokens of a row divided
    distributed: Literal["auto", "on", "off"] = "auto"  # several processes; auto: when a cluster is detected


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """Which checkpoint is kept besides the newest."""

    metric: str = ""  # evaluation metric, for example 'heldout/accuracy/dpo'; empty: none
    mode: Literal["min", "max"] = "min"  # whether less or more is better


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is saved. The last step always is."""

    every: int = number(0, least=0)  # steps between checkpoints; 0: only at the end and when stopped
    keep: int = number(2, least=1)  # newest checkpoints that stay; with 2 there is one to fall back to
    keep_every: int = number(0, least=0)  # steps whose multiples stay for ever; 0: none
    best: Best = section(Best)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """Ends a run whose evaluations no longer improve."""

    metric: str = ""  # evaluation metric; empty: never stop early
    mode: Literal["min", "max"] = "min"  # whether less or more is better
    patience: int = number(3, least=1)  # evaluations without improvement before the end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ema:
    """Moving average of the policy's parameters, kept beside them, evaluated and exported instead."""

    decay: float = number(0.0, least=0, most=1)  # per step; 0: no average


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """Who hears of the run besides metrics.jsonl."""

    every: int = number(1, least=1)  # steps between lines
    progress: bool = True  # progress bar on a terminal
    tensorboard: bool = False  # needs tensorboardX
    wandb: str = ""  # Weights & Biases project; empty: none; needs wandb


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sections:
    """A whole config. With ``stages`` only ``seed``, ``stages`` and ``compare`` are read at this level."""

    seed: int = number(0, least=0)  # of initial parameters, order and sampling; added to the stages' own seeds
    init_from: str = ""  # a run, a checkpoint, a Hugging Face directory, hf://org/name, stage:<name>; empty: scratch
    model: Model = section(Model)
    tokenizer: Tokenizer = section(Tokenizer)
    data: Mapping[str, Any] = free({"on_bad_row": "error"})  # stream -> source; on_bad_row: error | skip, for all
    length: Length = section(Length)
    batch: Batch = section(Batch)
    objectives: Mapping[str, Any] = free()  # term -> objectives.config(...)
    reference: Reference = section(Reference)
    adapter: Adapter = section(Adapter)
    optimizer: Optimizer = section(Optimizer)
    groups: tuple = ()  # (regex on parameter path, dict(lr_scale=, frozen=, weight_decay=)); the first match counts
    train: Train = section(Train)
    mesh: Mesh = section(Mesh)
    checkpoint: Checkpoint = section(Checkpoint)
    evals: Mapping[str, Any] = free()  # name -> dict(data=, every=, metrics=, samples=)
    early_stop: EarlyStop = section(EarlyStop)
    ema: Ema = section(Ema)
    log: Log = section(Log)
    profile: tuple[int, int] = (0, 0)  # first and last step of a profiler trace; (0, 0): none
    stages: Mapping[str, Any] = free()  # name -> a whole config, run in this order in workdir/<name>
    compare: Mapping[str, Any] = free()  # the table that compares the stages at the end
