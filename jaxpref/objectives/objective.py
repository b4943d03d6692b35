"""From a config's terms to objectives: a loss bound to a batch, with its hyperparameters, heads and running state."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.batch import Examples, lengths
from jaxpref.errors import ConfigError
from jaxpref.losses import domains
from jaxpref.objectives import inputs, metrics, registry, schedules
from jaxpref.objectives.naming import known

HEAD_SCALE = 0.02  # standard deviation of a fresh head's entries


class Objective(NamedTuple):
    """A loss bound to a data stream: one term of a config.

    Attributes:
        name: of the term.
        method: the registered name of its method.
        stream: the data stream that it reads.
        needs: channels of the forward: ``logps``, ``ref_logps``, ``score``, ...
        init: ``(key, model) -> (parts, state)``: trainable heads and the running state, empty where there is none.
        denominators: ``(examples) -> {"examples": n, "tokens": n}`` from data only, at least 1: examples that count,
            and target tokens of their first responses.
        loss: ``(outputs, examples, denominators, state, key, step) -> (scalar, {metric: (sum, count)}, state)``.
        coupled: whether an example's gradient depends on other examples, by more than their mismatched responses.
        partnered: whether every example needs a mismatched response as response 1.
        weight: of the term in the total, a number or a Schedule.
        at_reference: ``(examples) -> float``, the loss at step 0 when policy and reference are equal; None if unknown.
        combine: how gradients of several objectives are combined, where a method says so.
        classes: ``(side input, how many values it has)`` of a head that is a classifier.
    """

    name: str
    method: str
    stream: str
    needs: frozenset[str]
    init: Callable[[Any, Any], tuple[dict, Any]]
    denominators: Callable[[Examples], dict[str, jax.Array]]
    loss: Callable[..., tuple[jax.Array, metrics.Metrics, Any]]
    coupled: bool
    partnered: bool
    weight: Any
    at_reference: Callable[[Examples], float] | None
    combine: Callable[[Any], Any] | None = None
    classes: tuple[str, int] | None = None


class Total(NamedTuple):
    """The weighted sum of a config's terms, each on its own data stream. This is what the engine calls.

    Attributes:
        terms: term name -> :class:`Objective`.
    """

    terms: dict[str, Objective]

    @property
    def coupled(self) -> bool:
        return any(term.coupled for term in self.terms.values())

    @property
    def partnered(self) -> frozenset[str]:
        """Data streams whose examples need a mismatched response."""
        return frozenset(term.stream for term in self.terms.values() if term.partnered)

    @property
    def needs(self) -> dict[str, frozenset[str]]:
        """Data stream -> channels that its terms read; a head's scores are named ``score/<term>``."""
        needs: dict[str, frozenset[str]] = {}
        for name, term in self.terms.items():
            channels = {f"score/{name}" if need == "score" else need for need in term.needs}
            needs[term.stream] = needs.get(term.stream, frozenset()) | channels
        return needs

    def init(self, key: jax.Array, model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fresh ``(heads, state)``: term name -> tree, for the terms that have one; no term depends on another."""
        made = {name: term.init(_term_key(key, name), model) for name, term in self.terms.items()}
        heads = {name: parts for name, (parts, _) in made.items() if parts}
        return heads, {name: state for name, (_, state) in made.items() if jax.tree.leaves(state)}

    def denominators(self, examples: dict[str, Examples]) -> dict[str, dict[str, jax.Array]]:
        """Denominators of every term, from the data of the global batch only."""
        return {name: term.denominators(examples[term.stream]) for name, term in self.terms.items()}

    def loss(
        self,
        outputs: dict[str, dict[str, jax.Array]],
        examples: dict[str, Examples],
        denominators: dict[str, dict[str, jax.Array]],
        state: dict[str, Any],
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, metrics.Metrics, dict[str, Any]]:
        """The total and the metrics ``<metric>/<term>``.

        Args:
            outputs: term -> channel -> ``[N, K, L]`` (``[N, K]`` for ``score``), zero where masked.
            examples: stream -> examples; where not ``coupled``, ``where`` and ``mask`` may be restricted to a
                micro-batch; of partnered streams, whose mismatched responses are always all read, only ``where``.
            denominators: of the global batch.
            state: as :meth:`init` made it or the last call returned it.
            key: of this step.
            step: number of finished steps, for schedules.
        """
        total, collected, new_state = jnp.zeros((), jnp.result_type(float)), {}, {}
        for name, term in self.terms.items():
            term_key = None if key is None else _term_key(key, name)
            value, term_metrics, term_state = term.loss(
                outputs[name], examples[term.stream], denominators[name], state.get(name, {}), term_key, step
            )
            total += schedules.at(term.weight, step) * value
            collected |= {f"{metric}/{name}": pair for metric, pair in term_metrics.items()}
            if name in state:
                new_state[name] = term_state
        return total, collected, new_state

    def closed_forms(self, examples: dict[str, Examples]) -> dict[str, float]:
        """Terms whose loss is known at step 0 when policy and reference are equal -> that loss on this batch."""
        return {n: t.at_reference(examples[t.stream]) for n, t in self.terms.items() if t.at_reference is not None}


def build(config: Mapping[str, Any], *, others: int = 1) -> Total:
    """Builds the objective of a run from ``config.objectives``: term name -> the fields of ``objectives.config(...)``.

    Args:
        config: the terms.
        others: number of further references, ``config.reference.others``.

    Raises:
        ConfigError: no terms, an unknown objective or field, a missing field, a hyperparameter (or an end of its
            schedule) outside its domain, or a method for several references without any but the first.
    """
    if not config:
        raise ConfigError("config.objectives is empty; add a term, for example objectives.config('dpo').")
    return Total({name: _build_term(name, dict(term), others) for name, term in dict(config).items()})


def _build_term(name: str, fields: dict[str, Any], others: int) -> Objective:
    place = f"config.objectives.{name}"
    if "objective" not in fields:
        raise ConfigError(f"{place} names no objective; make it with objectives.config(...), for example 'dpo'.")
    method = registry.method(fields.pop("objective"))
    defaults = method.defaults
    missing = [field for field in ("data", "weight", *defaults) if field not in fields]
    if missing:
        raise ConfigError(
            f"{place} is the objective {method.name!r} but lacks {', '.join(missing)}: an objective cannot be changed "
            f"by its name alone; choose it by the config's argument (--config=X.py:{method.name}) or write "
            f"objectives.config({method.name!r}) there."
        )
    for field in fields:
        known(field, ("data", "weight", *defaults), f"{place} ({method.name}) has the field", ConfigError)
    stream = fields.pop("data")
    if not isinstance(stream, str) or not stream:
        raise ConfigError(f"{place}.data is {stream!r}; expected the name of a data stream.")
    values = {field: schedules.read(f"{place}.{field}", value) for field, value in fields.items()}
    for field, value in values.items():
        fixed = isinstance(defaults.get(field), bool | str) or field in method.state_hyperparameters
        if isinstance(value, schedules.Schedule) and fixed:
            raise ConfigError(
                f"{place}.{field} is a schedule; only numbers can move with the step, of the loss itself."
            )
        if isinstance(defaults.get(field), bool) and not isinstance(value, bool):
            raise ConfigError(f"{place}.{field} is {value!r}; expected True or False.")
    weight = values.pop("weight")
    if inputs.OTHERS in method.needs and not others:
        raise ConfigError(
            f"{place} ({method.name}) compares with several references, but config.reference.others is empty; "
            "name there where the parameters of the further ones come from."
        )
    _check(place, method, weight, values, others)
    return bind(name, method, stream, weight, values)


def _check(place: str, method: registry.Method, weight: Any, hyperparameters: dict[str, Any], others: int) -> None:
    """Traces the loss on dummy arrays at both ends of every schedule, so that its own domain checks speak."""
    arrays = {name: inputs.dummy(argument, others) for name, argument in method.inputs.items()}
    if "key" in method.arguments:
        arrays["key"] = jax.random.key(0)
    try:
        for end in schedules.ends({"weight": weight}):
            domains.nonnegative(**end)
        if method.classes is not None:
            domains.several(**{method.classes[1]: hyperparameters[method.classes[1]]})
        for end in schedules.ends(hyperparameters):
            if method.init_state is not None:
                arrays["state"] = method.init_state(end)
            jax.eval_shape(lambda arrays, end=end: method.loss(**arrays, **method.of_loss(end)), arrays)
    except ValueError as error:
        raise ConfigError(f"{place} ({method.name}): {error}") from error


def bind(name: str, method: registry.Method, stream: str, weight: Any, hyperparameters: dict[str, Any]) -> Objective:
    """Binds a method to a data stream; hyperparameters are numbers, names or Schedules."""
    replaced, denominator = method.reduction(hyperparameters) if method.reduction else ({}, "examples")
    reference_free = method.reference_free(hyperparameters)
    needs = method.needs - {"ref_logps"} if reference_free else method.needs
    classes = (method.classes[0], int(hyperparameters[method.classes[1]])) if method.classes else None

    def init(key, model):
        parts = {}
        if "score" in needs:
            size = model.config.width, classes[1] if classes else 1
            parts = {"kernel": HEAD_SCALE * jax.random.normal(key, size, model.param_dtype)}
        return parts, method.init_state(schedules.ends(hyperparameters)[0]) if method.init_state else {}

    def denominators(examples):
        return {unit: jnp.maximum(count, 1) for unit, count in counts(method, examples).items()}

    def loss(outputs, examples, denominators, state, key, step):
        now = {field: schedules.at(value, step) for field, value in hyperparameters.items()}
        view = inputs.View(outputs, examples, valid(method, examples))
        absent = {"ref_logps": jnp.zeros_like(outputs["logps"])} if reference_free else {}
        read = view._replace(outputs=outputs | absent)
        arrays = {argument: inputs.read(source, read) for argument, source in _present(name, method, examples).items()}
        if method.partnered and "where" in arrays:
            # A row whose own response lies in another micro-batch still has a mismatched one.
            arrays["where"] |= view.partners
        provided = {a: v for a, v in (("state", state), ("key", key)) if a in method.arguments}
        used = method.of_loss(now) | {f: v(now[f], denominators) if callable(v) else v for f, v in replaced.items()}
        values, state, aux = _unpack(method, method.loss(**arrays, **provided, **used), state)
        chex.assert_shape(values, view.valid.shape)
        values = jnp.where(view.valid, values, 0)
        if "weight" in examples.side:
            if not method.per_example:
                raise ConfigError(
                    f"config.objectives.{name} ({method.name}): its values do not belong to examples, so that the "
                    f"weights of its data stream {stream!r} cannot count; take the column 'weight' out of the data."
                )
            values *= jnp.where(view.valid, examples.side["weight"], 0).astype(values.dtype)
        value = jnp.sum(values)
        collected = metrics.collect(method, view, arrays, now, aux)
        collected["loss"] = jax.lax.stop_gradient(value), counts(method, examples)[denominator]
        return value / denominators[denominator], collected, state

    def at_reference(examples):
        start = schedules.ends(hyperparameters)[0]
        each = np.asarray(method.at_reference(start, examples.side), float)
        where = np.asarray(valid(method, examples))
        each = np.where(where, each * np.asarray(examples.side.get("weight", 1.0)), 0)
        return float(np.sum(each) / np.asarray(denominators(examples)[denominator]))

    has_closed_form = method.at_reference is not None and "ref_logps" in needs
    return Objective(
        name=name,
        method=method.name,
        stream=stream,
        needs=needs,
        init=init,
        denominators=denominators,
        loss=loss,
        coupled=method.coupled,
        partnered=method.partnered,
        weight=weight,
        at_reference=at_reference if has_closed_form else None,
        classes=classes,
    )


def valid(method: registry.Method, examples: Examples) -> jax.Array:
    """Rows ``[N]`` that count: not padding, and no response that the method reads is empty."""
    return examples.where & jnp.all(lengths(examples)[:, list(registry.FEEDBACK[method.feedback])] > 0, axis=-1)


def counts(method: registry.Method, examples: Examples) -> dict[str, jax.Array]:
    """Examples that count, and target tokens of their first responses."""
    where = valid(method, examples)
    numbers = {"examples": jnp.sum(where), "tokens": jnp.sum(examples.mask[:, 0] & where[:, None])}
    return {unit: number.astype(jnp.result_type(float)) for unit, number in numbers.items()}


def _present(term: str, method: registry.Method, examples: Examples) -> dict[str, inputs.Input]:
    """Arguments that can be bound: all but optional side inputs that the data does not have."""
    own, number = inputs.PROMPT_LENGTHS in examples.side, examples.mask.shape[1]
    of_method = inputs.PROMPT_LENGTHS in method.sides, len(registry.FEEDBACK[method.feedback])
    if (own or of_method[0]) and (own, number) != of_method:
        raise ConfigError(
            f"config.objectives.{term} ({method.name}) learns from {method.feedback}, but an example of its data "
            f"stream has {number} responses under {'prompts of their own' if own else 'one prompt'}; set "
            f"config.objectives.{term}.data to a stream of kind {method.feedback!r}."
        )
    present = {}
    for argument, source in method.inputs.items():
        lacking = [side for side in source.sides if side not in examples.side]
        if lacking and method.arguments[argument]:
            raise ConfigError(
                f"config.objectives.{term} ({method.name}) needs the side input {lacking[0]!r}, which its data stream "
                f"lacks; set config.objectives.{term}.data to a stream of {method.feedback} that has it in every row."
            )
        if not lacking:
            present[argument] = source
    return present


def _unpack(method: registry.Method, result: Any, state: Any) -> tuple[jax.Array, Any, Any]:
    """Values, new state and aux of whatever a loss returns."""
    if not isinstance(result, tuple):
        return result, state, None
    values, *rest = result
    if method.init_state is not None:
        state = rest.pop(0)
    return values, state, rest[0] if rest else None


def _term_key(key: jax.Array, name: str) -> jax.Array:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
