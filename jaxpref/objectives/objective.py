"""From a config's terms to objectives: a loss bound to a batch, with its hyperparameters, heads and running state."""

from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.batch import FIRST_SAMPLE, PROMPT_LENGTHS, Examples, lengths
from jaxpref.errors import ConfigError
from jaxpref.losses import domains
from jaxpref.objectives import inputs, metrics, registry, schedules
from jaxpref.objectives.naming import known
from jaxpref.objectives.total import Objective, Total

HEAD_SCALE = 0.02  # standard deviation of a fresh head's entries


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
        fixed = isinstance(defaults.get(field), bool | str | tuple) or field in method.state_hyperparameters
        if isinstance(value, schedules.Schedule) and fixed:
            raise ConfigError(
                f"{place}.{field} is a schedule; only numbers can move with the step, of the loss itself."
            )
        if isinstance(defaults.get(field), bool) and not isinstance(value, bool):
            raise ConfigError(f"{place}.{field} is {value!r}; expected True or False.")
        if isinstance(defaults.get(field), tuple) and not (isinstance(value, tuple | list) and value):
            raise ConfigError(f"{place}.{field} is {value!r}; expected a list of numbers.")
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
    objectives = len(hyperparameters["weights"]) if method.combine else 2
    arrays = {name: inputs.dummy(argument, others, objectives) for name, argument in method.inputs.items()}
    if "key" in method.arguments:
        arrays["key"] = jax.random.key(0)
    try:
        for end in schedules.ends({"weight": weight}):
            domains.nonnegative(**end)
        if method.classes is not None:
            domains.several(**{method.classes[1]: hyperparameters[method.classes[1]]})
        for end in schedules.ends(hyperparameters):
            if method.init_state is not None:
                arrays["state"] = method.init_state(end | {"examples": 2})
            jax.eval_shape(lambda arrays, end=end: method.loss(**arrays, **method.of_loss(end)), arrays)
            if method.combine is not None:
                jax.eval_shape(lambda end=end: method.combine(jnp.ones((objectives, 1)), end)[0])
    except ValueError as error:
        raise ConfigError(f"{place} ({method.name}): {error}") from error


def bind(name: str, method: registry.Method, stream: str, weight: Any, hyperparameters: dict[str, Any]) -> Objective:
    """Binds a method to a data stream; hyperparameters are numbers, names or Schedules."""
    replaced, denominator = method.reduction(hyperparameters) if method.reduction else ({}, "examples")
    reference_free = method.reference_free(hyperparameters)
    needs = method.needs - {"ref_logps"} if reference_free else method.needs
    several = len(hyperparameters["weights"]) if method.combine else 0
    classes = (method.classes[0], int(hyperparameters[method.classes[1]])) if method.classes else None

    def at(step):
        return {field: schedules.at(value, step) for field, value in hyperparameters.items()}

    def init(key, model, examples=0):
        parts = {}
        if "score" in needs:
            size = model.config.width, classes[1] if classes else 1
            parts = {"kernel": HEAD_SCALE * jax.random.normal(key, size, model.param_dtype)}
        start = schedules.ends(hyperparameters)[0] | {"examples": examples}
        return parts, method.init_state(start) if method.init_state else {}

    def denominators(examples):
        return {unit: jnp.maximum(count, 1) for unit, count in counts(method, examples).items()}

    def loss(outputs, examples, denominators, state, key, step, **instead):
        now = at(step) | instead
        view = inputs.View(outputs, examples, valid(method, examples))
        absent = {"ref_logps": jnp.zeros_like(outputs["logps"])} if reference_free else {}
        read = view._replace(outputs=outputs | absent)
        arrays = {argument: inputs.read(source, read) for argument, source in _present(name, method, examples).items()}
        if method.partnered and "where" in arrays:
            # A row whose own response lies in another micro-batch still has a mismatched one.
            arrays["where"] |= view.partners
        provided = {a: v for a, v in (("state", state), ("key", key)) if a in method.arguments}
        used = method.of_loss(now) | {f: v(now[f], denominators) if callable(v) else v for f, v in replaced.items()}
        try:
            result = method.loss(**arrays, **provided, **used)
        except ValueError as error:
            raise ConfigError(f"config.objectives.{name} ({method.name}), data stream {stream!r}: {error}") from error
        values, state, aux = _unpack(method, result, state)
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
        collected = metrics.collect(method, view, arrays, now, aux, state)
        collected["loss"] = jax.lax.stop_gradient(value), counts(method, examples)[denominator]
        return value / denominators[denominator], collected, state

    def losses(*arguments):
        return jax.vmap(lambda weights: loss(*arguments, weights=weights)[0])(jnp.eye(several))

    def combine(gradients, step):
        gradient, measured = method.combine(gradients, at(step))
        return gradient, metrics.of_step(measured)

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
        reads=method.reads,
        init=init,
        denominators=denominators,
        loss=loss,
        coupled=method.coupled,
        partnered=method.partnered,
        weight=weight,
        at_reference=at_reference if has_closed_form else None,
        gradients=several,
        losses=losses if several else None,
        combine=combine if several else None,
        classes=classes,
    )


def valid(method: registry.Method, examples: Examples) -> jax.Array:
    """Rows ``[N]`` that count: not padding, and no response that the method reads is empty."""
    return examples.where & jnp.all(lengths(examples)[:, list(registry.FEEDBACK[method.feedback])] > 0, axis=-1)


def counts(method: registry.Method, examples: Examples) -> dict[str, jax.Array]:
    """Examples that count, target tokens of their first responses, and their samples where these are read."""
    where = valid(method, examples)
    numbers = {"examples": jnp.sum(where), "tokens": jnp.sum(examples.mask[:, 0] & where[:, None])}
    if method.sampled:
        present = lengths(examples)[:, FIRST_SAMPLE[method.feedback] :] > 0
        numbers["samples"] = jnp.sum(present & where[:, None])
    return {unit: number.astype(jnp.result_type(float)) for unit, number in numbers.items()}


def _present(term: str, method: registry.Method, examples: Examples) -> dict[str, inputs.Input]:
    """Arguments that can be bound: all but optional side inputs that the data does not have."""
    own, number = PROMPT_LENGTHS in examples.side, examples.mask.shape[1]
    of_method = PROMPT_LENGTHS in method.sides, len(registry.FEEDBACK[method.feedback])
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
