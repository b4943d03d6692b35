"""The registry: every method that a config can name, and what is known about it."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxpref.batch import IDS, PROMPT_LENGTHS
from jaxpref.errors import ConfigError
from jaxpref.objectives.inputs import Input, table
from jaxpref.objectives.naming import known

# Feedback type -> responses that an example must not lack. The default name of a data stream is its feedback type.
FEEDBACK: dict[str, tuple[int, ...]] = {
    "demonstrations": (0,), "pairs": (0, 1), "unpaired": (0,), "ranked": (0, 1), "joint": (0, 1),
    "crossed": (0, 1, 2, 3), "graded": (0,),
}  # fmt: skip
# Arguments of a loss that the objective itself provides.
PROVIDED = ("state", "key")
TERM_FIELDS = ("objective", "data", "weight")


class Method(NamedTuple):
    """One method of the catalogue; see :func:`register`."""

    name: str
    loss: Callable
    feedback: str
    title: str
    url: str
    formula: str
    disagreements: str
    coupled: bool
    reward_scale: str
    at_reference: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] | None
    reduction: Callable[[Mapping[str, Any]], tuple[dict[str, Any], str]] | None
    init_state: Callable[[Mapping[str, Any]], Any] | None
    aux_metrics: dict[str, str]
    state_metrics: tuple[str, ...] = ()
    state_hyperparameters: Mapping[str, Any] = MappingProxyType({})
    combine: Callable[[Any, Mapping[str, Any]], tuple[Any, dict[str, Any]]] | None = None
    combine_hyperparameters: Mapping[str, Any] = MappingProxyType({})
    classes: tuple[str, str] | None = None
    relevant: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    per_example: bool = True
    surrogate: bool = False
    reference_free: Callable[[Mapping[str, Any]], bool] = lambda values: bool(values.get("reference_free"))
    reward: Callable[[Any, Any, Mapping[str, Any]], Any] | None = None

    @property
    def arguments(self) -> dict[str, bool]:
        """Arrays that the objective can bind: name -> whether the loss requires it."""
        parameters = inspect.signature(self.loss).parameters.values()
        arrays = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
        names = (*table(self.feedback), *PROVIDED)
        return {p.name: p.default is p.empty for p in arrays if p.name in names or p.default is p.empty}

    @property
    def inputs(self) -> dict[str, Input]:
        """What is read for each argument that comes from the data or the model."""
        return {name: table(self.feedback)[name] for name in self.arguments if name in table(self.feedback)}

    @property
    def defaults(self) -> dict[str, Any]:
        """Hyperparameters and their defaults: the loss's, and those that it does not take itself."""
        parameters = inspect.signature(self.loss).parameters.values()
        own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        return {**own, **self.state_hyperparameters, **self.combine_hyperparameters}

    def of_loss(self, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        """The hyperparameters that the loss itself takes."""
        others = {*self.state_hyperparameters, *self.combine_hyperparameters}
        return {name: value for name, value in hyperparameters.items() if name not in others}

    @property
    def needs(self) -> frozenset[str]:
        """Channels that the loss reads."""
        return frozenset().union(*(argument.needs for argument in self.inputs.values()))

    @property
    def sides(self) -> frozenset[str]:
        """Columns of side inputs that the loss reads where the data has them."""
        return frozenset().union(*(argument.sides for argument in self.inputs.values()))

    @property
    def partnered(self) -> bool:
        """Whether every example needs a mismatched response."""
        return any(argument.partner for argument in self.inputs.values())

    @property
    def sampled(self) -> bool:
        """Whether the loss reads samples, further responses that come with the examples."""
        return any("m" in argument.axes for argument in self.inputs.values())

    @property
    def reads(self) -> frozenset[str]:
        """What the loss reads of the data beside the responses that its feedback has: side inputs and ``samples``."""
        return self.sides | ({"samples"} if self.sampled else set())


class Row(NamedTuple):
    """A row of the catalogue, for printing."""

    name: str
    function: str
    title: str
    url: str
    feedback: str
    needs: tuple[str, ...]
    sides: tuple[str, ...]
    defaults: dict[str, Any]
    formula: str
    coupled: bool
    stateful: bool
    surrogate: bool
    disagreements: str


METHODS: dict[str, Method] = {}


def register(
    name: str,
    loss: Callable,
    *,
    feedback: str,
    title: str,
    url: str,
    formula: str,
    disagreements: str = "",
    coupled: bool = False,
    reward_scale: str = "beta",
    at_reference: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] | None = None,
    reduction: Callable[[Mapping[str, Any]], tuple[dict[str, Any], str]] | None = None,
    init_state: Callable[[Mapping[str, Any]], Any] | None = None,
    aux_metrics: Mapping[str, str] | None = None,
    **special: Any,
) -> None:
    """Makes a loss available to configs under a name.

    The loss's arrays are bound by their names (:mod:`jaxpref.objectives.inputs`), its keyword-only arguments are the
    hyperparameters. Its values are summed over the examples that count and divided by their global number.

    Args:
        name: what a config calls it.
        loss: a function of ``jaxpref.losses`` that returns ``[N]``, or ``(values, aux NamedTuple)``; a stateful one
            takes ``state`` and returns ``(values, new_state)`` or ``(values, new_state, aux)``; one that draws takes
            ``key``.
        feedback: one of ``FEEDBACK``.
        title, url: of the paper that defines the method.
        formula: one line for the catalogue.
        disagreements: where published code and papers disagree, and which of them this is.
        coupled: whether an example's gradient depends on other examples, by more than their mismatched responses.
        reward_scale: hyperparameter that scales the logged implicit rewards, if the loss has it.
        at_reference: ``(hyperparameters, side) -> value`` or ``[N]`` of the loss where policy and reference are equal;
            not asked when the hyperparameters leave the reference out.
        reduction: ``hyperparameters -> (replaced hyperparameters, "examples" or "tokens")`` for a loss whose
            batch-level form is a sum over examples divided by something else than their number. What replaces a
            hyperparameter may be a function ``(its value, denominators) -> value``.
        init_state: ``hyperparameters -> state`` of a stateful loss; beside them stands ``examples``, the number of
            examples of its data set.
        aux_metrics: field of aux -> name of its metric, where that is not the field's own name.
        **special: what few methods need:
            ``state_hyperparameters``: names and defaults of hyperparameters that only ``init_state`` or the head reads;
            ``state_metrics``: fields of the state that are logged after every step;
            ``classes``: ``(side input, hyperparameter)`` where the head has an output for each value, 0, 1, ..., of a
            side input, and the hyperparameter says how many there are; such a head only serves training, so that
            exports leave it out;
            ``combine``: ``(gradients, hyperparameters) -> (gradient, {metric: number or vector})`` where one direction
            is made of the gradients of several objectives, stacked; the loss is linear in its hyperparameter
            ``weights``, one for each of them, and the loss of one-hot weights is that objective's;
            ``combine_hyperparameters``: names and defaults of those that only ``combine`` reads;
            ``relevant``: hyperparameter -> the values of others under which alone it changes anything;
            ``per_example``: False where the values do not belong to examples, so that examples cannot have weights;
            ``surrogate``: True where descending the gradient need not lower the value, as factors of it are detached;
            ``reference_free``: ``hyperparameters -> bool``, whether they leave the reference out;
            ``reward``: ``(summed log-probabilities, lengths, hyperparameters) -> [N]``, the logged reward of a response
            without a reference, where it is not the scaled average; lengths are None if the loss does not read them.

    Raises:
        ValueError: the loss has a required array of unknown name, or is stateful without being coupled.
    """
    method = Method(
        name, loss, feedback, title, url, formula, disagreements, coupled, reward_scale, at_reference, reduction,
        init_state, dict(aux_metrics or {}), **special,
    )  # fmt: skip
    if name in METHODS:
        raise ValueError(f"objective {name!r} is registered twice.")
    known(feedback, FEEDBACK, f"objective {name!r} has the feedback type", ValueError)
    for argument in method.arguments:
        known(argument, (*table(feedback), *PROVIDED), f"objective {name!r}: its loss has the argument", ValueError)
    if ("state" in method.arguments) != (init_state is not None):
        raise ValueError(f"objective {name!r}: a loss with the argument 'state' needs init_state, and no other does.")
    if init_state is not None and not coupled:
        raise ValueError(f"objective {name!r} has a state, which sees the whole batch; register it with coupled=True.")
    METHODS[name] = method


def method(name: str) -> Method:
    """The method of a name; ConfigError with the nearest name when there is none."""
    known(name, METHODS, "config names the objective", ConfigError)
    return METHODS[name]


def config(name: str, /, **overrides: Any) -> ConfigDict:
    """A term of ``config.objectives`` with every field filled in.

    Args:
        name: a method of :func:`catalogue`.
        **overrides: ``data`` (the data stream, by default named after the feedback type), ``weight`` (1.0) and the
            loss's hyperparameters. Weight and hyperparameters may be schedules.

    Raises:
        ConfigError: unknown objective or unknown field, with the nearest right name.
    """
    chosen = method(name)
    fields = {"objective": name, "data": chosen.feedback, "weight": 1.0, **chosen.defaults}
    for field in overrides:
        known(field, list(fields)[1:], f"objectives.config({name!r}) was given the field", ConfigError)
    return ConfigDict({**fields, **overrides})


def catalogue() -> list[Row]:
    """One row for every registered method, by name."""
    return [
        Row(
            name=m.name,
            function=m.loss.__name__,
            title=m.title,
            url=m.url,
            feedback=m.feedback,
            needs=tuple(sorted(m.needs)),
            sides=tuple(sorted(m.reads - {PROMPT_LENGTHS, IDS})),  # which no row has, but every one gets
            defaults=m.defaults,
            formula=m.formula,
            coupled=m.coupled or m.partnered,
            stateful=m.init_state is not None,
            surrogate=m.surrogate,
            disagreements=m.disagreements,
        )
        for _, m in sorted(METHODS.items())
    ]
