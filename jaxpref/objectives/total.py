"""Terms of a config, and their weighted sum, which is what the engine calls."""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpref.batch import Examples
from jaxpref.objectives import metrics, schedules


class Objective(NamedTuple):
    """A loss bound to a data stream: one term of a config.

    Attributes:
        name: of the term.
        method: the registered name of its method.
        stream: the data stream that it reads.
        needs: channels of the forward: ``logps``, ``ref_logps``, ``score``, ...
        reads: of the data beside its responses: side inputs, and ``samples``.
        init: ``(key, model, examples of the data set) -> (parts, state)``: trainable heads and the running state, empty
            where there is none.
        denominators: ``(examples) -> {"examples": n, "tokens": n}`` from data only, at least 1: examples that count,
            and target tokens of their first responses; their ``samples`` where the method reads these.
        loss: ``(outputs, examples, denominators, state, key, step) -> (scalar, {metric: (sum, count)}, state)``.
        coupled: whether an example's gradient depends on other examples, by more than their mismatched responses.
        partnered: whether every example needs a mismatched response as response 1.
        weight: of the term in the total, a number or a Schedule.
        at_reference: ``(examples) -> float``, the loss at step 0 when policy and reference are equal; None if unknown.
        gradients: how many the method combines, each of a loss of its own; 0 where it takes the gradient of ``loss``.
        losses: of the arguments of ``loss``, those losses ``[gradients]``.
        combine: ``(their gradients stacked, step) -> (gradient, {metric: (value, 1)})``.
        classes: ``(side input, how many values it has)`` of a head that is a classifier.
    """

    name: str
    method: str
    stream: str
    needs: frozenset[str]
    reads: frozenset[str]
    init: Callable[..., tuple[dict, Any]]
    denominators: Callable[[Examples], dict[str, jax.Array]]
    loss: Callable[..., tuple[jax.Array, metrics.Metrics, Any]]
    coupled: bool
    partnered: bool
    weight: Any
    at_reference: Callable[[Examples], float] | None
    gradients: int = 0
    losses: Callable[..., jax.Array] | None = None
    combine: Callable[[Any, Any], tuple[Any, metrics.Metrics]] | None = None
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
    def gradients(self) -> int:
        """Number of :meth:`losses`, of whose gradients :meth:`combine` makes one; 0 where that is the total's."""
        apart = sum(term.gradients for term in self.terms.values())
        return apart + bool(self._plain.terms) if apart else 0

    @property
    def _plain(self) -> "Total":
        """The terms whose gradients are just added."""
        return Total({name: term for name, term in self.terms.items() if not term.gradients})

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

    @property
    def reads(self) -> dict[str, frozenset[str]]:
        """Data stream -> what its terms read of the data beside its responses."""
        reads: dict[str, frozenset[str]] = {}
        for term in self.terms.values():
            reads[term.stream] = reads.get(term.stream, frozenset()) | term.reads
        return reads

    def sized(self, examples: Mapping[str, int]) -> "Total":
        """The same with running states for data streams of so many examples."""
        init = {name: functools.partial(t.init, examples=examples[t.stream]) for name, t in self.terms.items()}
        return Total({name: term._replace(init=init[name]) for name, term in self.terms.items()})

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
            arguments = self._of_term(name, outputs, examples, denominators, state, key)
            value, term_metrics, term_state = term.loss(*arguments, step)
            total += schedules.at(term.weight, step) * value
            collected |= {f"{metric}/{name}": pair for metric, pair in term_metrics.items()}
            if name in state:
                new_state[name] = term_state
        return total, collected, new_state

    def losses(self, outputs, examples, denominators, state, key, step) -> jax.Array:
        """The losses ``[gradients]`` whose gradients :meth:`combine` makes one of; arguments as of :meth:`loss`.

        First the total of the terms that combine nothing, where there are any, then those of each that does.
        """
        plain = self._plain
        given = outputs, examples, denominators, state, key
        found = [plain.loss(*given, step)[0][None]] if plain.terms else []
        found += [t.losses(*self._of_term(name, *given), step) for name, t in self.terms.items() if t.gradients]
        return jnp.concatenate(found)

    def combine(self, gradients: Any, step: jax.Array) -> tuple[Any, metrics.Metrics]:
        """One gradient of those of :meth:`losses`, stacked on the first axis, and the metrics ``<metric>/<term>``."""
        first = int(bool(self._plain.terms))
        summands, collected = [jax.tree.map(lambda leaf: leaf[0], gradients)] * first, {}
        for name, term in self.terms.items():
            if term.gradients:
                own = jax.tree.map(lambda leaf, at=slice(first, first + term.gradients): leaf[at], gradients)
                direction, term_metrics = term.combine(own, step)
                weight = schedules.at(term.weight, step)
                summands.append(jax.tree.map(lambda leaf, weight=weight: weight * leaf, direction))
                collected |= {f"{metric}/{name}": pair for metric, pair in term_metrics.items()}
                first += term.gradients
        return jax.tree.map(lambda *leaves: sum(leaves), *summands), collected

    def _of_term(self, name: str, outputs, examples, denominators, state, key) -> tuple:
        """What of the arguments of :meth:`loss` is a term's, but for the step."""
        term_key = None if key is None else _term_key(key, name)
        return outputs[name], examples[self.terms[name].stream], denominators[name], state.get(name, {}), term_key

    def closed_forms(self, examples: dict[str, Examples]) -> dict[str, float]:
        """Terms whose loss is known at step 0 when policy and reference are equal -> that loss on this batch."""
        return {n: t.at_reference(examples[t.stream]) for n, t in self.terms.items() if t.at_reference is not None}


def _term_key(key: jax.Array, name: str) -> jax.Array:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
