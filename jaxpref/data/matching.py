"""Underlying distribution matching: how likely a prompt is one of a desirable response.

Where desirable and undesirable responses come from different prompts, binary classifier optimisation weighs the
undesirable ones by the density ratio p / (1 - p) of their prompts. A stream of kind ``unpaired`` has p estimated from
all of its rows with ``prob_desirable="words"`` or ``"embedding"``, or ``dict(features=..., examples=..., penalty=...,
seed=...)``; the loss reads it as ``prob_desirable``.

See *Binary Classifier Optimization for Large Language Model Alignment* (https://arxiv.org/abs/2404.04656).
"""

import inspect
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxpref.data.fields import Text, kind_of
from jaxpref.data.records import Record
from jaxpref.errors import ConfigError, DataError, hint

EMBEDDING = "prompt_embedding"
BUCKETS = 1024
NEWTON_STEPS, CHUNK = 50, 4096
Located = tuple[str, Record]


def estimated(path: str, described: Any, groups: list[list[Located]]) -> list[list[Located]]:
    """The records of a stream's sources, each with the number ``prob_desirable``.

    The classifier sees the rows as they are read, before the shares of a mixture.

    Args:
        path: of the config's field, for messages.
        described: the name of the features, or a dict with the arguments of :func:`probabilities`.
        groups: located records of each source, with the number ``label``.

    Raises:
        ConfigError: unknown features or options.
        DataError: all labels are the same, a row lacks its embedding, or has a ``prob_desirable`` of its own.
    """
    options = dict(described) if hasattr(described, "items") else {"features": described}
    known = list(inspect.signature(probabilities).parameters)[1:]
    for option in options:
        if option not in known:
            raise ConfigError(f"{path} has no field {option!r}; {hint(option, known)}")
    located = [each for group in groups for each in group]
    for origin, record in located:
        if "prob_desirable" in record.side:
            raise DataError(f"{origin}: the row has 'prob_desirable' already; remove {path}, or the field.")
    try:
        found = iter(probabilities(located, **options).tolist())
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return [[(o, r._replace(side=r.side | {"prob_desirable": next(found)})) for o, r in group] for group in groups]


def probabilities(
    located: Sequence[Located],
    features: str = "words",
    examples: int = 512,
    penalty: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """p of every record, from a logistic regression of its label on features of its prompt.

    The regression is balanced, as if there were as many desirable responses as undesirable ones, so that p / (1 - p) is
    the ratio of the prompts' densities.

    Args:
        located: ``(origin, record)``, the record with the number ``label``.
        features: ``words`` tells prompts apart by which words they have (:func:`word_features`), not by what they mean;
            ``embedding`` by the numbers in the field ``prompt_embedding`` of the rows, for example of a sentence
            encoder. Both are scaled to length 1.
        examples: most responses of each label that the regression is fitted on.
        penalty: weight of half the squared length of the coefficients, > 0; a larger one draws p to 1/2.
        seed: of the draw of these responses.

    Returns:
        ``[N]`` float64 in (0, 1), to six digits, so that machines agree.
    """
    if features not in _FEATURES:
        raise ConfigError(f"features is {features!r}; {hint(features, _FEATURES)}")
    if not isinstance(examples, int) or examples < 1:
        raise ConfigError(f"examples is {examples!r}; expected a whole number, 1 or above.")
    if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not 0 < penalty < float("inf"):
        raise ConfigError(f"penalty is {penalty!r}; expected a finite number above 0.")
    labels = np.array([record.side["label"] > 0 for _, record in located])
    if labels.all() or not labels.any():
        raise DataError(f"all {len(labels)} responses have the same label; expected desirable and undesirable ones.")
    draws, represent = np.random.default_rng(seed), _FEATURES[features]
    chosen = np.concatenate(
        [np.sort(draws.permutation(np.flatnonzero(labels == label))[:examples]) for label in (False, True)]
    )
    coefficients = fit(represent([located[n] for n in chosen]), labels[chosen], penalty=penalty)
    logits = [
        _with_constant(represent(located[start : start + CHUNK])) @ coefficients
        for start in range(0, len(located), CHUNK)
    ]
    return np.round(np.clip(_sigmoid(np.concatenate(logits)), 1e-6, 1 - 1e-6), 6)


def fit(features: np.ndarray, labels: np.ndarray, *, penalty: float) -> np.ndarray:
    """Coefficients ``[F + 1]`` of a balanced logistic regression on ``[N, F]``, the constant last and not penalised."""
    used = np.any(features, axis=0)  # the others' coefficients are zero
    inputs, target = _with_constant(features[:, used]), labels.astype(float)
    shares = np.where(labels, np.mean(labels), 1 - np.mean(labels))
    weights, ridge = 0.5 / shares, np.append(np.full(np.sum(used), float(penalty)), 1e-9)

    def loss(coefficients):
        signed = np.where(labels, -1, 1) * (inputs @ coefficients)
        return np.sum(weights * np.logaddexp(0, signed)) + np.sum(ridge * coefficients**2) / 2

    coefficients = np.zeros(inputs.shape[1])
    for _ in range(NEWTON_STEPS):
        predicted = _sigmoid(inputs @ coefficients)
        gradient = inputs.T @ (weights * (predicted - target)) + ridge * coefficients
        curvature = (inputs.T * (weights * predicted * (1 - predicted))) @ inputs + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        while loss(coefficients - step) > loss(coefficients) + 1e-9:
            step /= 2
        coefficients = coefficients - step
        if np.max(np.abs(step)) < 1e-10:
            break
    whole = np.zeros(features.shape[1] + 1)
    whole[np.append(used, True)] = coefficients
    return whole


def word_features(texts: Sequence[str]) -> np.ndarray:
    """``[N, 1024]``: which words a text has, each in the place of its hash, scaled to length 1."""
    found = np.zeros((len(texts), BUCKETS))
    for row, text in zip(found, texts, strict=True):
        for word in re.findall(r"\w+", text.lower()):
            row[zlib.crc32(word.encode()) % BUCKETS] = 1
    return _unit(found)


def _words(located: Sequence[Located]) -> np.ndarray:
    return word_features([_said(record.prompt) for _, record in located])


def _said(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else " ".join(message.content for message in prompt)


def _embeddings(located: Sequence[Located]) -> np.ndarray:
    size, rows = None, []
    for origin, record in located:
        value = (record.meta | record.side).get(EMBEDDING)
        try:
            row = np.array(value, float)
        except (TypeError, ValueError):
            row = np.zeros(0)
        size = row.size if size is None else size
        if row.ndim != 1 or row.size != size or not row.size or not np.all(np.isfinite(row)):
            raise DataError(
                f"{origin}: field {EMBEDDING!r} is {kind_of(value)}; expected a list of finite numbers, as many in "
                "every row."
            )
        rows.append(row)
    return _unit(np.array(rows))


_FEATURES: dict[str, Callable[[Sequence[Located]], np.ndarray]] = {"words": _words, "embedding": _embeddings}


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _with_constant(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -values))
