"""A tabular bandit: every prompt has K single-letter responses with known rewards, so that everything is exact.

A prompt is ``"state 3: "``, a response one of the letters ``a, b, c, ...`` (one byte, one token). Policies are tables
of log-probabilities ``[S, K]``. The KL-regularised optimum, expected reward and KL have closed forms.

See *Direct Preference Optimization: Your Language Model is Secretly a Reward Model*
(https://arxiv.org/abs/2305.18290), equation 4, for the optimum.
"""

import dataclasses
import functools
import string
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxpref.data.worlds import annotation
from jaxpref.errors import DataError

LETTERS = string.ascii_lowercase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bandit:
    """The world. Splits share their prompts (a table says nothing about a state unseen) and differ in their draws.

    Attributes:
        states: number of prompts S.
        arms: number of responses K, 2 to 26.
        spread: standard deviation of the rewards, which are normal draws.
        seed: of the rewards.
        table: rewards ``[S][K]`` to use instead of random ones; sets states and arms.
        reference: reference probabilities ``[S][K]`` or ``[K]``, from which responses are drawn; None is uniform.
    """

    states: int = 8
    arms: int = 8
    spread: float = 1.0
    seed: int = 0
    table: tuple[tuple[float, ...], ...] | None = None
    reference: tuple | None = None

    def __post_init__(self):
        if self.table is not None:
            object.__setattr__(self, "table", tuple(tuple(row) for row in self.table))
            object.__setattr__(self, "states", len(self.table))
            object.__setattr__(self, "arms", len(self.table[0]))
        if self.states < 1 or not 2 <= self.arms <= len(LETTERS):
            raise DataError(
                f"A bandit world of {self.states} states and {self.arms} arms cannot be made; "
                f"give at least 1 state and 2 to {len(LETTERS)} arms."
            )
        if self.reference is not None:
            object.__setattr__(self, "reference", self._checked(np.asarray(self.reference, np.float64)))

    @functools.cached_property
    def rewards(self) -> np.ndarray:
        """True rewards ``[S, K]``."""
        if self.table is not None:
            return np.asarray(self.table, np.float64)
        draws = annotation.uniforms(self.seed, self.states, self.arms)
        pairs = np.array([[(next(draws), next(draws)) for _ in range(self.arms)] for _ in range(self.states)])
        # Box-Muller from plain uniforms: the same table on every machine and numpy.
        return self.spread * np.sqrt(-2 * np.log1p(-pairs[..., 0])) * np.cos(2 * np.pi * pairs[..., 1])

    @functools.cached_property
    def reference_log_probs(self) -> np.ndarray:
        """Log-probabilities of the reference, ``[S, K]``."""
        if self.reference is None:
            return np.full((self.states, self.arms), -np.log(self.arms))
        return np.log(np.asarray(self.reference, np.float64))

    def prompts(self, split: str = "train") -> list[str]:
        """All prompts, ``"state 0: "`` and so on: the same in every split."""
        return [f"state {state}: " for state in range(self.states)]

    def phrases(self) -> list[str]:
        """What a word-level tokenizer makes one token of: the prompts; a letter is one byte. See :mod:`.words`."""
        return self.prompts()

    def responses(self) -> list[str]:
        """The arms' letters, in the order of the tables' columns."""
        return list(LETTERS[: self.arms])

    def records(
        self,
        kind: str,
        *,
        size: int,
        seed: int = 0,
        split: str = "train",
        shown: int | None = None,
        noise: float = 0.0,
        temperature: float = 1.0,
        annotators: Mapping[str, Mapping[str, Any]] | None = None,
        tie_margin: float = 0.0,
        threshold: float = 0.0,
        responses: int = 2,
    ) -> list[dict]:
        """Records with the fields of users' data, responses drawn from the reference.

        Args:
            kind: "demonstrations", "pairs", "unpaired", "ranked" or "prompts".
            size: number of records; states come in shuffled passes.
            seed: of draws and labels.
            split: "train", "validation" or "test": different draws of the same states.
            shown: only the first ``shown`` arms ever appear (data without coverage); None is all.
            noise, temperature, annotators, tie_margin, threshold, responses: see
                :class:`jaxpref.data.worlds.annotation.Labelling`; annotators have no tastes here.

        Returns:
            The same fields as :func:`jaxpref.data.worlds.sentiment.records`.
        """
        labelling = annotation.Labelling(noise, 0.0, temperature, annotators, tie_margin, threshold, responses)
        sample = functools.partial(self.sample, shown=shown)
        source = annotation.Source("bandit", self.prompts(split), sample, self._read)
        return annotation.make(source, kind, labelling, size=size, seed=seed, split=split)

    def sample(self, prompt: str, draws: Iterator[float], *, shown: int | None = None) -> str:
        """One letter from the reference, restricted to the first ``shown`` arms."""
        cumulative = np.cumsum(np.exp(self.reference_log_probs[self._state(prompt)][:shown]))
        arm = int(np.searchsorted(cumulative, next(draws) * cumulative[-1], side="right"))
        return LETTERS[min(arm, len(cumulative) - 1)]

    def reward(self, prompt: str, response: str) -> float:
        """True reward; text that is not an arm has reward 0 (see :meth:`well_formed`)."""
        if not self.well_formed(response):
            return 0.0
        return float(self.rewards[self._state(prompt), LETTERS.index(response.strip())])

    def well_formed(self, response: str, *, prompt: str | None = None) -> bool:
        """Whether the text is exactly one of the arms' letters."""
        return response.strip() in self.responses()

    def optimal_policy(self, beta: float) -> np.ndarray:
        """``log(reference * exp(reward / beta) / Z)``, ``[S, K]``: the best policy for ``E[reward] - beta * KL``."""
        logits = self.reference_log_probs + self.rewards / beta
        return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)

    def evaluate(self, log_probs: np.ndarray) -> tuple[float, float]:
        """Exact expected reward and ``KL(policy || reference)`` in nats of a policy ``[S, K]``, means over the states.

        Mass that a policy puts outside the arms counts as reward 0 and is left out of the KL.
        """
        log_probs = np.asarray(log_probs, np.float64)
        if log_probs.shape != self.rewards.shape:
            raise DataError(
                f"A policy of this bandit world is a table of shape {list(self.rewards.shape)}; "
                f"found shape {list(log_probs.shape)}."
            )
        probabilities = np.exp(log_probs)
        terms = np.where(probabilities > 0, log_probs - self.reference_log_probs, 0.0)
        return float((probabilities * self.rewards).sum(-1).mean()), float((probabilities * terms).sum(-1).mean())

    def optimum(self, beta: float) -> tuple[float, float]:
        """Exact expected reward and KL of :meth:`optimal_policy`: a point of the reward-KL frontier."""
        return self.evaluate(self.optimal_policy(beta))

    def _checked(self, given: np.ndarray) -> tuple[tuple[float, ...], ...]:
        shape = (self.states, self.arms)
        if given.shape not in (shape, shape[1:]) or not np.allclose(given.sum(-1), 1) or (given <= 0).any():
            raise DataError(
                f"The reference of a bandit world must hold positive probabilities that sum to 1, of shape "
                f"[{self.arms}] or {list(shape)}; found {list(given.shape)} with sums {given.sum(-1).tolist()}."
            )
        return tuple(map(tuple, np.broadcast_to(given, shape).tolist()))

    def _state(self, prompt: str) -> int:
        prompts = self.prompts()
        if prompt not in prompts:
            raise DataError(f"This bandit world has no prompt '{prompt}'; it has '{prompts[0]}' to '{prompts[-1]}'.")
        return prompts.index(prompt)

    def _read(self, prompt: str, response: str, tastes: Mapping[str, float]) -> float:
        if tastes:
            raise DataError("Annotators of the bandit world have no tastes; remove them or use the sentiment world.")
        return self.reward(prompt, response)
