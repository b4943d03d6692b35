"""Margin-aware preference optimisation, of diffusion models and carried over to language models."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, check_shape, floating


class MapoDiffusionAux(NamedTuple):
    """Attributes: mse_w, mse_l: ``[B]``, errors of both; ratio_losses: ``[B]``, what is subtracted, beta included."""

    mse_w: jax.Array
    mse_l: jax.Array
    ratio_losses: jax.Array


def mapo_score(error: Array) -> jax.Array:
    r""":math:`u / (e^u - 1)`: 1 for an error of 0, falling to 0; elementwise, exact near 0, finite for all u."""
    u = floating(error)
    near = jnp.abs(u) < 0.1
    small = jnp.where(near, u, 0)
    square = small**2
    series = 1 - small / 2 + square / 12 * (1 - square / 60 * (1 - square / 42 * (1 - square / 40)))
    size = jnp.where(near, 1, jnp.abs(u))
    return jnp.where(near, series, jax.nn.relu(-u) + size * jnp.exp(-size) / -jnp.expm1(-size))


def mapo_diffusion_loss(
    model_pred: Array, target: Array, *, beta: float = 0.1, snr_value: float = 0.5, T: int = 1000
) -> tuple[jax.Array, MapoDiffusionAux]:
    r"""Margin-aware preference optimisation of a diffusion model: denoise the chosen image, and better than the other.

    .. math::
        L = e_w - \beta \log \sigma(T [s(e_w) - s(e_l)]), \quad s(e) = \frac{w e}{e^{w e} - 1}

    where e is the mean squared error of an image's denoising and w the signal-to-noise weight. No reference model.

    See *Margin-aware Preference Optimization for Aligning Diffusion Models without Reference*
    (https://arxiv.org/abs/2406.06424).

    Variant: the official code's. s falls with the error, so the margin is positive where the chosen image is denoised
    better; both images of a pair share timestep and noise.

    Args:
        model_pred: ``[2B, ...]``, predicted noise, the chosen images first.
        target: ``[2B, ...]``, the noise.
        beta: weight of the margin term, >= 0.
        snr_value: w, > 0.
        T: number of diffusion timesteps, > 0.

    Returns:
        ``(values [B], MapoDiffusionAux)``.
    """
    domains.nonnegative(beta=beta)
    domains.positive(snr_value=snr_value, T=T)
    model_pred, target = floating(model_pred), floating(target)
    check_shape(model_pred.shape, target=target)
    chex.assert_is_divisible(len(model_pred), 2, custom_message="argument model_pred")
    mse = jnp.mean((model_pred - target) ** 2, axis=tuple(range(1, model_pred.ndim)))
    chosen, rejected = jnp.split(mse, 2)
    ratio_losses = -beta * links.logistic(T * (mapo_score(snr_value * chosen) - mapo_score(snr_value * rejected)))
    return chosen - ratio_losses, MapoDiffusionAux(chosen, rejected, ratio_losses)


def mapo_lm_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    chosen_lengths: Array,
    rejected_lengths: Array,
    *,
    beta: float = 0.1,
    T: float = 1.0,
    w: float = 1.0,
) -> jax.Array:
    r"""Margin-aware preference optimisation with token likelihoods in the place of denoising errors.

    .. math::
        L = e_w - \beta \log \sigma(T [s(e_w) - s(e_l)]), \quad s(e) = \frac{w e}{e^{w e} - 1}, \quad
        e = -\frac{\log \pi(y|x)}{n}

    See *Margin-aware Preference Optimization for Aligning Diffusion Models without Reference*
    (https://arxiv.org/abs/2406.06424).

    Variant: the paper has images only; this transfer to language models is a reconstruction, close to ORPO.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        chosen_lengths, rejected_lengths: ``[B]``, tokens of the responses.
        beta: weight of the margin term, >= 0; with 0 it is fine-tuning on the chosen responses.
        T: scale of the margin, > 0.
        w: scale of the errors inside the score, > 0.

    Returns:
        ``[B]``.
    """
    domains.nonnegative(beta=beta)
    domains.positive(T=T, w=w)
    averages = scores.pair_averages(chosen_logps, rejected_logps, chosen_lengths, rejected_lengths)
    chosen, rejected = -averages[0], -averages[1]
    return chosen + beta * links.logistic(T * (mapo_score(w * chosen) - mapo_score(w * rejected)))
