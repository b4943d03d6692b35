"""Intervals for evaluation results: shares, means, paired differences, clustered and multi-seed results.

Every function states its method. Arrays are per example; missing ones have been dropped before (and counted). The
bootstraps are percentile intervals of the mean from resampled weights, deterministic by ``seed``; they need a few dozen
independent units to mean what they say, and shrink to a point when all values are equal, where :func:`wilson` does not.

See *Adding Error Bars to Evals: A Statistical Approach to Language Model Evaluations*
(https://arxiv.org/abs/2411.00640) on paired and clustered comparisons.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import scipy.stats

from jaxpref.errors import DataError

CHUNK = 4_000_000  # resampling weights held at once


class Interval(NamedTuple):
    """An estimate with its confidence interval.

    Attributes:
        value: the estimate.
        low, high: ends of the interval.
        count: independent units behind it (examples, or clusters).
        method: how the interval was made, in words for a table's caption.
    """

    value: float
    low: float
    high: float
    count: int
    method: str

    def excludes(self, value: float) -> bool:
        """Whether ``value`` lies outside."""
        return not self.low <= value <= self.high


def wilson(successes: float, count: int, *, confidence: float = 0.95) -> Interval:
    r"""Wilson score interval of a share of independent examples.

    .. math:: \frac{\hat p + z^2/2n \pm z \sqrt{\hat p (1-\hat p)/n + z^2/4n^2}}{1 + z^2/n}

    Ties may count as half a success; the interval is then slightly wide, since halves vary less than wholes.
    See *Probable Inference, the Law of Succession, and Statistical Inference* (https://doi.org/10.2307/2276774).

    Raises:
        DataError: for no examples, or successes outside [0, count].
    """
    if count < 1 or not 0 <= successes <= count:
        raise DataError(f"A share needs at least one example and successes in [0, {count}]; found {successes}.")
    z, share = _quantile(confidence), successes / count
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / scale
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    # Rounding must not exclude the estimate itself at 0 and 1.
    return Interval(share, min(low, share), max(high, share), count, f"Wilson {confidence:.0%}")


def normal(values: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """``mean +- z * standard deviation / sqrt(n)`` (``ddof=1``) of independent examples ``[N]``, a hundred or more."""
    values = _vector(values)
    if len(values) < 2:
        raise DataError(f"A standard error needs at least two examples; found {len(values)}.")
    half = _quantile(confidence) * float(values.std(ddof=1)) / math.sqrt(len(values))
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half, len(values), f"normal {confidence:.0%}")


def student(values: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """``mean +- t * standard deviation / sqrt(n)`` with Student's t: of a few runs with different seeds, ``[N]``.

    See *The Probable Error of a Mean* (https://doi.org/10.1093/biomet/6.1.1).
    """
    values = _vector(values)
    if len(values) < 2:
        raise DataError(f"A standard error needs at least two runs; found {len(values)}.")
    _quantile(confidence)
    half = scipy.stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    mean = float(values.mean())
    return Interval(mean, mean - float(half), mean + float(half), len(values), f"Student's t {confidence:.0%}")


def bootstrap(values: np.ndarray, *, confidence: float = 0.95, draws: int = 2000, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean of independent examples ``[N]``.

    See *Bootstrap Methods: Another Look at the Jackknife* (https://doi.org/10.1214/aos/1176344552).
    """
    values = _vector(values)
    means = [weights @ values / len(values) for weights in _resamples(len(values), draws, seed)]
    return _percentiles(values.mean(), means, confidence, len(values), "bootstrap over examples")


def paired(first: np.ndarray, second: np.ndarray, **options) -> Interval:
    """Bootstrap of ``mean(first - second)`` where both hold the same examples ``[N]`` in the same order.

    Pairing removes what makes examples easy or hard for both, so the interval is narrower than from two separate ones.
    ``options`` are those of :func:`bootstrap`.
    """
    first, second = _vector(first), _vector(second)
    if first.shape != second.shape:
        raise DataError(f"A paired comparison needs the same examples twice; found {len(first)} and {len(second)}.")
    return bootstrap(first - second, **options)._replace(method=f"paired bootstrap over examples {_percent(options)}")


def clustered(
    values: np.ndarray, clusters: np.ndarray, *, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """Bootstrap of the mean of examples ``[N]`` that resamples whole clusters ``[N]``, say all samples of a prompt.

    Examples of a cluster stay together, so that their correlation widens the interval. The estimate is the mean over
    examples (a ratio of sums where clusters differ in size).
    """
    values, clusters = _vector(values), np.asarray(clusters)
    if clusters.shape != values.shape:
        raise DataError(f"Every example needs its cluster; found {len(values)} examples and {clusters.size} clusters.")
    _, place = np.unique(clusters, return_inverse=True)
    interval = ratio(np.bincount(place, values), np.bincount(place), confidence=confidence, draws=draws, seed=seed)
    return interval._replace(method=f"bootstrap over clusters {confidence:.0%}")


def ratio(
    numerators: np.ndarray, denominators: np.ndarray, *, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """Bootstrap over units ``[N]`` of ``sum(numerators) / sum(denominators)``, say the nats and tokens of responses."""
    numerators, denominators = _vector(numerators), _vector(denominators)
    if numerators.shape != denominators.shape or (denominators < 0).any() or denominators.sum() <= 0:
        raise DataError("A ratio needs a denominator of at least 0 for every numerator, and one that is positive.")
    value, means = numerators.sum() / denominators.sum(), []
    for weights in _resamples(len(numerators), draws, seed):
        # A resample may hold empty units only; it says nothing and counts as the estimate.
        total = weights @ denominators
        means.append(np.where(total > 0, (weights @ numerators) / np.where(total > 0, total, 1), value))
    return _percentiles(value, means, confidence, len(numerators), "bootstrap over examples")


def pooled(
    values: np.ndarray,
    counts: np.ndarray | None = None,
    *,
    random_seeds: bool = True,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Pools runs with several seeds on the same examples, ``[S, N]``: the mean of all, with one interval.

    With ``counts`` (say tokens of each example, ``[N]``) the estimate is ``sum(values) / (S * sum(counts))``.

    With ``random_seeds`` both the runs and the examples are resampled, independently of each other (the pigeonhole
    bootstrap): the interval speaks of a new seed and new examples, and is slightly wide rather than narrow. Few runs
    tell little about their share of the variance, so give at least three. Without ``random_seeds`` only examples are
    resampled, all runs of an example together: the interval speaks of these very runs on new examples.

    See *The Pigeonhole Bootstrap* (https://arxiv.org/abs/0712.1111).
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise DataError(f"Pooling needs finite values of shape [seeds, examples]; found shape {list(values.shape)}.")
    runs, examples = values.shape
    counts = np.ones(examples) if counts is None else _vector(counts)
    if counts.shape != (examples,) or (counts <= 0).any():
        raise DataError(
            f"Pooling needs a positive count for each of the {examples} examples; found {counts.tolist()[:8]}."
        )
    run_weights = np.random.default_rng([seed, 1]).multinomial(runs, np.full(runs, 1 / runs), size=draws)
    if not random_seeds:
        run_weights = np.ones_like(run_weights)
    means, start = [], 0
    for weights in _resamples(examples, draws, seed):
        chosen = run_weights[start : start + len(weights)]
        means.append(np.sum((weights @ values.T) * chosen, axis=1) / (runs * (weights @ counts)))
        start += len(weights)
    over = f"{runs} seeds and examples" if random_seeds else f"examples, {runs} seeds together"
    return _percentiles(values.sum() / (runs * counts.sum()), means, confidence, examples, f"bootstrap over {over}")


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise DataError(f"A confidence lies between 0 and 1; found {confidence}.")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _percent(options: dict) -> str:
    return f"{options.get('confidence', 0.95):.0%}"


def _vector(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise DataError(f"Statistics need a vector of at least one example; found shape {list(values.shape)}.")
    if not np.isfinite(values).all():
        raise DataError(f"{np.sum(~np.isfinite(values))} of {values.size} values are not finite; drop and count them.")
    return values


def _resamples(units: int, draws: int, seed: int):
    """How often each unit is drawn when as many are drawn with replacement: blocks ``[n, units]`` of ``draws`` rows."""
    generator = np.random.default_rng([seed, 0])
    block = max(1, min(draws, CHUNK // units))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        yield generator.multinomial(units, np.full(units, 1 / units), size=size).astype(np.float64)


def _percentiles(value, means: list[np.ndarray], confidence: float, count: int, method: str) -> Interval:
    _quantile(confidence)
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high), count, f"{method} {confidence:.0%}")
