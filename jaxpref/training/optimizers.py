"""Optimizers by config.

    gradient -> clip by global norm -> direction -> + weight decay -> x (-learning rate) -> x the group's lr_scale

The direction is AdamW's, Adafactor's, Lion's, Muon's or SGD's. Weight decay is decoupled in all of them (multiplied by
the learning rate, added to no moment).

Leaves under ``layers`` are stacked over layers, so a leaf's rank says nothing by itself. What belongs to a layer
(Muon's matrices, Adafactor's clipping) is therefore decided by the leaf's path.
"""

import difflib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxpref.errors import ConfigError
from jaxpref.training import trees

# What each optimizer reads beside learning_rate, schedule, clip_norm, weight_decay and moment_dtype; with defaults.
HYPERPARAMETERS = {
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "adafactor": {"eps": 1e-30, "momentum": 0.0},
    "lion": {"b1": 0.9, "b2": 0.99},
    "muon": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "momentum": 0.95},
    "sgd": {"momentum": 0.0},
}
SCHEDULES = {"constant": False, "linear": True, "cosine": True, "inverse_sqrt": False}  # does it read end_factor?
GROUP_OPTIONS = ("lr_scale", "frozen", "weight_decay")

UNDECAYED = re.compile(r"(^|/)(scale|bias|positions)$")
STACKED = re.compile(r"(^|/)layers/")

# Axes of the matrices that Muon makes orthogonal, counted from the end so that the layer axis in front is a batch axis.
MUON_AXES = {
    r"attention/(query|key|value)/(kernel|b)$": optax.contrib.MuonDimensionNumbers((-3,), (-2, -1)),
    r"attention/out/(kernel|a)$": optax.contrib.MuonDimensionNumbers((-3, -2), (-1,)),
    r"(mlp/(gate|up|down)/kernel|/[ab])$": optax.contrib.MuonDimensionNumbers((-2,), (-1,)),  # a, b: low-rank factors
}


def make(section, groups: Sequence, params, *, steps: int) -> tuple[optax.GradientTransformation, Callable]:
    """Builds the optimizer of a run.

    Args:
        section: the config's ``optimizer``: ``name``, ``learning_rate``, ``schedule``, ``warmup_steps``,
            ``end_factor``, ``clip_norm`` (0: none), ``weight_decay``, ``b1``, ``b2``, ``eps``, ``momentum``,
            ``moment_dtype``. A hyperparameter that is None has the optimizer's default; one that the optimizer does
            not read must be None, or at the section's own default.
        groups: ``[(regex, dict(lr_scale=, frozen=, weight_decay=))]`` over paths; the first match counts.
        params: the whole tree of parameters (shapes are enough).
        steps: number of steps of the run, the end of the schedule.

    Returns:
        ``(transformation, learning_rate)``: ``transformation`` works on the trainable leaves (the others None) and gets
        gradients of at least float32; ``learning_rate(step)`` is the schedule, for logging.

    Weight decay spares norms, biases, position embeddings and whatever has at most one axis per layer; a group's own
    ``weight_decay`` applies to all leaves of the group.
    """
    hyperparameters = _hyperparameters(section)
    learning_rate = schedule(section, steps)
    options = group_options(params, groups)
    decay = {
        path: float(options[path].get("weight_decay", section.weight_decay if _decays(path, leaf) else 0.0))
        for path, leaf in trees.leaves(params).items()
    }
    scale = {path: float(options[path].get("lr_scale", 1.0)) for path in options}
    transformation = optax.chain(
        clip_by_global_norm(section.clip_norm),
        with_moments(_direction(section.name, hyperparameters), section.moment_dtype),
        optax.stateless(lambda updates, params: _add_decay(updates, params, decay)),
        optax.scale_by_learning_rate(learning_rate),
        optax.stateless(lambda updates, _: trees.map_paths(lambda path, update: update * scale[path], updates)),
    )
    return transformation, learning_rate


# ------------------------------------------------------------------------------------------------ groups


def group_options(params, groups: Sequence) -> dict[str, dict[str, Any]]:
    """The options of the first group that matches each leaf, by path; empty for leaves of no group."""
    options: dict[str, dict[str, Any]] = {path: {} for path in trees.leaves(params)}
    free = set(options)
    for number, (pattern, given) in enumerate(groups):
        given = _check_group(number, pattern, given)
        matched = {path for path in free if re.search(pattern, path)}
        if not matched:
            taken = any(re.search(pattern, path) for path in options)
            reason = "an earlier group has taken all that it matches" if taken else "it matches no parameter"
            raise ConfigError(f"groups[{number}]: {reason}: {pattern!r}; parameters are {_sample(options)}.")
        options |= {path: given for path in matched}
        free -= matched
    return options


def trainable_mask(params, groups: Sequence):
    """Tree of bools over ``params``: False where the first matching group is frozen.

    With an adapter the model's own leaves are frozen, except those of a group that says ``frozen=False``.
    """
    options = group_options(params, groups)
    adapted = any(path.startswith("adapter/") for path in options)

    resting = {path for path in options if adapted and path.startswith("model/")}
    mask = trees.map_paths(lambda path, _: not options[path].get("frozen", path in resting), params)
    leaves = trees.leaves(params)
    integers = [path for path, keep in trees.leaves(mask).items() if keep and leaves[path].dtype.kind in "iu"]
    if integers:
        raise ConfigError(f"groups train {integers[0]}, which adapter.base stores as integers; leave it frozen.")
    if not any(jax.tree.leaves(mask)):
        raise ConfigError("groups freeze every parameter; leave at least one to train.")
    for number, (pattern, given) in enumerate(groups):
        if "frozen" not in given and resting.issuperset(p for p in options if re.search(pattern, p)):
            raise ConfigError(
                f"groups[{number}] ({pattern!r}) matches only weights that stay as they are beside an adapter; "
                "add frozen=False to train them."
            )
    return mask


def _check_group(number: int, pattern, given) -> dict[str, Any]:
    given, where = dict(given), f"groups[{number}] ({pattern!r})"
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ConfigError(f"{where}: not a regular expression: {error}.") from error
    for option in given:
        if option not in GROUP_OPTIONS:
            raise ConfigError(f"{where}: unknown option {option!r}{_nearest(option, GROUP_OPTIONS)}.")
    if given.get("frozen", False) and len(given) > 1:
        raise ConfigError(f"{where}: a frozen group reads no other option, but it has {sorted(given)}.")
    if not given:
        raise ConfigError(f"{where}: has no option; give one of {', '.join(GROUP_OPTIONS)}.")
    if not isinstance(given.get("frozen", False), bool):
        raise ConfigError(f"{where}: frozen must be True or False, not {given['frozen']!r}.")
    _check_number(f"{where}: lr_scale", given.get("lr_scale", 1.0), above=0, hint=" (to stop them, use frozen=True)")
    _check_number(f"{where}: weight_decay", given.get("weight_decay", 0.0), least=0)
    return given


def _decays(path: str, leaf) -> bool:
    axes = len(leaf.shape) - bool(STACKED.search(path))
    return axes >= 2 and not UNDECAYED.search(path)


def _add_decay(updates, params, decay: dict[str, float]):
    return trees.map_paths(
        lambda path, update, leaf: update + decay[path] * leaf.astype(update.dtype) if decay[path] else update,
        updates,
        params,
    )


# ------------------------------------------------------------------------------------------------ learning rate


def schedule(section, steps: int) -> Callable[[jax.Array | int], jax.Array]:
    """The learning rate of a step, counted from 0.

    With peak p, w warm-up steps and T steps in all::

        warm-up       p · (s + 1) / w                                     for s < w, so that the first step moves
        constant      p
        linear        p · (1 - (1 - e) · x),              x = (s - w) / (T - w), e = end_factor
        cosine        p · (e + (1 - e) · (1 + cos πx) / 2)
        inverse_sqrt  p · √(max(w, 1) / max(s + 1, w, 1))
    """
    name, peak, warmup = section.schedule, section.learning_rate, section.warmup_steps
    _check_choice("optimizer.schedule", name, SCHEDULES)
    _check_number("optimizer.learning_rate", peak, above=0)
    _check_number("optimizer.warmup_steps", warmup, least=0, below=steps, hint=f" (the run has {steps} steps)")
    if not SCHEDULES[name] and not _untouched(section, "end_factor"):
        raise ConfigError(
            f"optimizer.end_factor is read by linear and cosine only, and optimizer.schedule is {name!r}."
        )
    end = section.end_factor or 0.0
    _check_number("optimizer.end_factor", end, least=0, most=1)

    def learning_rate(step):
        step = jnp.asarray(step, jnp.float32)
        ramp = jnp.minimum(1.0, (step + 1) / max(warmup, 1))
        x = jnp.clip((step - warmup) / (steps - warmup), 0.0, 1.0)
        shape = {
            "constant": jnp.ones_like(x),
            "linear": 1 - (1 - end) * x,
            "cosine": end + (1 - end) * 0.5 * (1 + jnp.cos(jnp.pi * x)),
            "inverse_sqrt": jnp.sqrt(max(warmup, 1) / jnp.maximum(step + 1, max(warmup, 1))),
        }[name]
        return peak * ramp * shape

    return learning_rate


# ------------------------------------------------------------------------------------------------ transformations


def clip_by_global_norm(limit: float | None) -> optax.GradientTransformation:
    """Scales gradients by min(1, limit / norm); the norm over all leaves is summed in float32 at least."""
    if not limit:
        _check_number("optimizer.clip_norm", limit or 0.0, least=0)
        return optax.identity()
    _check_number("optimizer.clip_norm", limit, above=0)

    def clip(updates, _):
        norm = optax.tree.norm(jax.tree.map(trees.widen, updates))
        scale = jnp.minimum(1.0, limit / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
        return jax.tree.map(lambda update: trees.widen(update) * scale, updates)

    return optax.stateless(clip)


class MomentState(NamedTuple):
    """State of :func:`with_moments` in bfloat16: number of updates (the key of the rounding) and the stored moments."""

    count: jax.Array
    moments: Any


def with_moments(inner: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """Stores every moment of a transformation in ``dtype``, and computes in float32 at least.

    The parameters' dtype does not matter: ``"float32"`` keeps float32 moments of bfloat16 parameters (and float64 ones
    of float64 parameters). With ``"bfloat16"`` every moment is stored so, second moments too, and stays so. They are
    rounded stochastically, without bias: rounded to nearest, a second moment would never fall again, because
    (1 - b2) = 0.001 of it is less than half of bfloat16's spacing. The random bits depend on the number of updates.
    """
    _check_choice("optimizer.moment_dtype", dtype, ("float32", "bfloat16"))
    if dtype == "float32":
        return optax.GradientTransformation(
            lambda params: inner.init(jax.tree.map(trees.widen, params)),
            lambda updates, state, params: inner.update(
                jax.tree.map(trees.widen, updates), state, jax.tree.map(trees.widen, params)
            ),
        )

    def init(params):
        state = inner.init(jax.tree.map(trees.widen, params))
        zero = jnp.zeros((), jnp.int32)
        return MomentState(zero, _store(state, trees.leaves(params), zero))

    def update(updates, state, params):
        wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, state.moments)
        updates, moments = inner.update(jax.tree.map(trees.widen, updates), wide, jax.tree.map(trees.widen, params))
        count = optax.safe_increment(state.count)
        return updates, MomentState(count, _store(moments, trees.leaves(params), count))

    return optax.GradientTransformation(init, update)


def _store(state, parameters, count):
    """Rounds the leaves that belong to a parameter; counters and coefficients stay as they are."""
    belongs = sorted(path for path in trees.leaves(state) if trees.parameter_of(path, parameters))
    keys = {path: number for number, path in enumerate(belongs)}
    base = jax.random.fold_in(jax.random.key(0), count)

    def store(path, leaf):
        return round_stochastically(leaf, jax.random.fold_in(base, keys[path])) if path in keys else leaf

    return trees.map_paths(store, state)


def round_stochastically(values: jax.Array, key: jax.Array) -> jax.Array:
    """bfloat16 neighbours of ``values``, up or down with probabilities that make the mean exact."""
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    noise = jax.random.bits(key, values.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(values), rounded, values).astype(jnp.bfloat16)


# ------------------------------------------------------------------------------------------------ directions


def _direction(name: str, hyper: dict[str, float]) -> optax.GradientTransformation:
    return {"adamw": _adam, "adafactor": _adafactor, "lion": _lion, "muon": _muon, "sgd": _sgd}[name](**hyper)


def _adam(b1, b2, eps):
    """See *Decoupled Weight Decay Regularization* (https://arxiv.org/abs/1711.05101)."""
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)


def _lion(b1, b2):
    """See *Symbolic Discovery of Optimization Algorithms* (https://arxiv.org/abs/2302.06675)."""
    return optax.scale_by_lion(b1=b1, b2=b2)


def _sgd(momentum):
    return optax.trace(decay=momentum) if momentum else optax.identity()


def _adafactor(eps, momentum):
    """Factored second moments; updates of each layer's leaf clipped to root mean square 1.

    The learning rate is absolute, as for AdamW: it is not multiplied by the parameters' scale.
    See *Adafactor: Adaptive Learning Rates with Sublinear Memory Cost* (https://arxiv.org/abs/1804.04235).
    """
    one = optax.chain(optax.scale_by_factored_rms(epsilon=eps), optax.clip_by_block_rms(1.0))
    direction = optax.partition({"stacked": _each_layer(one), "single": one}, _stacking)
    return optax.chain(direction, optax.ema(momentum, debias=False)) if momentum else direction


def _stacking(params):
    return trees.map_paths(lambda path, _: "stacked" if STACKED.search(path) else "single", params)


def _each_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a transformation to every layer of stacked leaves by itself."""

    def over_layers(function, *trees_):
        return jax.vmap(function)(*trees_) if jax.tree.leaves(trees_[0]) else function(*trees_)

    return optax.GradientTransformation(
        lambda params: over_layers(inner.init, params),
        lambda updates, state, params: over_layers(inner.update, updates, state, params),
    )


def _muon(b1, b2, eps, momentum):
    """Muon for the layers' matrices, Adam for everything else (embeddings, head, norms, biases, reward heads).

    A matrix joins all heads of its projection. Updates are scaled by 0.2·√max(fan in, fan out), which gives them
    AdamW's root mean square, so that one learning rate serves both. See *Muon is Scalable for LLM Training*
    (https://arxiv.org/abs/2502.16982).
    """
    matrices = optax.chain(
        optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=_muon_axes),
        optax.stateless(lambda updates, _: trees.map_paths(_scale_as_adam, updates)),
    )
    return optax.partition({"muon": matrices, "adam": _adam(b1, b2, eps)}, _muon_labels)


def _axes_of(path: str) -> optax.contrib.MuonDimensionNumbers | None:
    return next((axes for pattern, axes in MUON_AXES.items() if re.search(pattern, path)), None)


def _muon_labels(params):
    return trees.map_paths(lambda path, _: "muon" if _axes_of(path) else "adam", params)


def _muon_axes(params):
    return trees.map_paths(lambda path, _: _axes_of(path), params)


def _scale_as_adam(path: str, update: jax.Array) -> jax.Array:
    axes = _axes_of(path)
    fans = [math.prod(update.shape[axis] for axis in group) for group in axes]
    return update * (0.2 * math.sqrt(max(fans)))


# ------------------------------------------------------------------------------------------------ checks


def _hyperparameters(section) -> dict[str, float]:
    _check_choice("optimizer.name", section.name, HYPERPARAMETERS)
    reads = HYPERPARAMETERS[section.name]
    given = {name: getattr(section, name) for name in ("b1", "b2", "eps", "momentum")}
    for name, value in given.items():
        if name not in reads and not _untouched(section, name):
            raise ConfigError(f"optimizer.{name} is {value}, but {section.name} does not read it; leave it out.")
        if name in reads and value is not None:
            _check_number(f"optimizer.{name}", value, **({"above": 0} if name == "eps" else {"least": 0, "below": 1}))
    _check_number("optimizer.weight_decay", section.weight_decay, least=0)
    return {name: default if given[name] is None else given[name] for name, default in reads.items()}


def _untouched(section, name: str) -> bool:
    """Whether a field is as nobody has set it."""
    value = getattr(section, name)
    return value is None or value == getattr(type(section), name, None)


def _check_choice(field: str, value, choices) -> None:
    if value not in choices:
        raise ConfigError(f"{field} is {value!r}{_nearest(str(value), choices)}; choose one of {', '.join(choices)}.")


def _check_number(field, value, *, least=-math.inf, above=-math.inf, most=math.inf, below=math.inf, hint=""):
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not (least <= value <= most and above < value < below):
        bounds = {"at least": least, "above": above, "at most": most, "below": below}
        domain = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if math.isfinite(bound))
        raise ConfigError(f"{field} is {value!r} but must be a number {domain}{hint}.")


def _nearest(value: str, choices) -> str:
    close = difflib.get_close_matches(value, choices, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _sample(paths, count: int = 6) -> str:
    shown = sorted(paths)[:count]
    return ", ".join(shown) + (f" … ({len(paths)} in all)" if len(paths) > count else "")
