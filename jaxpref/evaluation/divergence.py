"""Kullback-Leibler divergence of a policy from its reference, estimated on the policy's own samples."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.errors import ConfigError, DataError
from jaxpref.evaluation import statistics

ESTIMATORS = ("k1", "k2", "k3", "abs")


def kl_estimators(logps: jax.Array, ref_logps: jax.Array, *, estimator: str = "k1") -> jax.Array:
    r"""Per-token terms whose mean over the policy's samples estimates :math:`KL(\pi\|\pi_{ref})`, in nats.

    With :math:`d = \log\pi - \log\pi_{ref}` of the sampled token: ``k1`` is d (unbiased, may be negative), ``k2``
    :math:`d^2/2` (small variance, biased), ``k3`` :math:`e^{-d} - 1 + d` (unbiased, never negative; its variance grows
    fast where the policy is far from the reference), ``abs`` :math:`|d|` (a distance, no estimate of the KL).

    Only samples of the policy estimate this divergence; chosen and rejected responses of a data set do not.

    See *Approximating KL Divergence* (http://joschu.net/blog/kl-approx.html).

    Args:
        logps: log-probabilities of sampled tokens under the policy, any shape.
        ref_logps: the same under the reference.
        estimator: ``"k1"``, ``"k2"``, ``"k3"`` or ``"abs"``.

    Returns:
        An array of the same shape.
    """
    if jnp.shape(logps) != jnp.shape(ref_logps):
        raise ValueError(
            f"logps and ref_logps must have one shape; found {jnp.shape(logps)} and {jnp.shape(ref_logps)}."
        )
    ratio = jnp.asarray(logps) - jnp.asarray(ref_logps)
    if estimator == "k1":
        return ratio
    if estimator == "k2":
        return jnp.square(ratio) / 2
    if estimator == "k3":
        # expm1 keeps the difference of nearly equal models from cancelling.
        return jnp.expm1(-ratio) + ratio
    if estimator == "abs":
        return jnp.abs(ratio)
    raise ConfigError(f"There is no KL estimator '{estimator}'; choose one of {', '.join(ESTIMATORS)}.")


def sequence_kl(
    logps: np.ndarray, ref_logps: np.ndarray, mask: np.ndarray, *, estimator: str = "k1", **options
) -> statistics.Interval:
    """KL of whole responses, in nats: the mean over samples of the sum over tokens, with a bootstrap interval.

    Args:
        logps: token log-probabilities of the policy's samples under the policy at temperature 1, ``[N, T]``.
        ref_logps: the same under the reference.
        mask: tokens that count, end of sequence included, ``[N, T]`` bool; anything may stand where it is False.
        estimator: see :func:`kl_estimators`.
        **options: of :func:`jaxpref.evaluation.statistics.bootstrap`.
    """
    logps, ref_logps, mask = np.asarray(logps, np.float64), np.asarray(ref_logps, np.float64), np.asarray(mask, bool)
    if not logps.shape == ref_logps.shape == mask.shape or mask.ndim != 2:
        shapes = [list(array.shape) for array in (logps, ref_logps, mask)]
        raise DataError(f"Log-probabilities, reference and mask must have one shape [samples, tokens]; found {shapes}.")
    terms = kl_estimators(np.where(mask, logps, 0), np.where(mask, ref_logps, 0), estimator=estimator)
    interval = statistics.bootstrap(np.asarray(terms, np.float64).sum(-1), **options)
    return interval._replace(method=f"{estimator}, {interval.method}")
