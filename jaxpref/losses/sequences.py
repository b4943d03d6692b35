"""From logits to log-probabilities of whole responses, and logarithms that stay exact."""

import chex
import jax
import jax.numpy as jnp

from jaxpref.losses.arrays import Array, check_shape, floating


def token_logps(logits: Array, ids: Array, mask: Array) -> tuple[jax.Array, jax.Array]:
    """Log-probability of every response token, for notebooks and small vocabularies.

    The logits at position t predict token t + 1, so token 0 is never scored. Logits and ids that are masked out reach
    neither value nor gradient, whatever they hold. A trainer uses ``jaxpref.models``, which never forms ``[B, T, V]``.

    Args:
        logits: ``[B, T, V]``.
        ids: token ids ``[B, T]``.
        mask: ``[B, T]``, 1 on the tokens of the response, its end-of-sequence token included; 0 on prompt and padding.

    Returns:
        ``(logps [B, T], mask [B, T] bool)``: position t scores token t, 0 where masked; the mask without token 0.
    """
    chex.assert_rank(logits, 3, custom_message="argument logits")
    check_shape(jnp.shape(logits)[:2], ids=ids, mask=mask)
    scored = jnp.asarray(mask)[:, 1:].astype(bool)
    targets = jnp.where(scored, jnp.asarray(ids)[:, 1:], 0)
    logits = jnp.where(scored[..., None], floating(logits)[:, :-1], 0)
    logps = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    first = ((0, 0), (1, 0))
    return jnp.pad(jnp.where(scored, logps, 0), first), jnp.pad(scored, first)


def sequence_logps(logits: Array, ids: Array, mask: Array) -> tuple[jax.Array, jax.Array]:
    r"""Summed log-probability and length in tokens of every response; arguments as in :func:`token_logps`.

    .. math::
        \log p_i = \sum_{t=0}^{T-2} m_{i,t+1} \log \mathrm{softmax}(z_{i,t})_{y_{i,t+1}}, \quad
        n_i = \sum_{t=1}^{T-1} m_{i,t}

    Returns:
        ``(logps [B], lengths [B])``.
    """
    logps, scored = token_logps(logits, ids, mask)
    return jnp.sum(logps, axis=-1), jnp.sum(floating(scored), axis=-1)


def log1mexp(x: Array) -> jax.Array:
    r""":math:`\log(1 - e^x)` for :math:`x < 0`, to full precision near 0 and for very negative x. Elementwise.

    At 0 and above, where the logarithm is infinite or undefined, it is held at its value for the smallest representable
    distance from 0, with gradient 0: the odds of a response of probability 1 stay finite.

    See *Accurately Computing log(1 - exp(-|a|))* (https://cran.r-project.org/web/packages/Rmpfr/vignettes/log1mexp-note.pdf).
    """
    x = floating(x)
    x = jnp.where(x > -jnp.finfo(x.dtype).tiny, -jnp.finfo(x.dtype).tiny, x)
    near = x > -jnp.log(2.0)
    return jnp.where(near, jnp.log(-jnp.expm1(jnp.where(near, x, -1))), jnp.log1p(-jnp.exp(jnp.where(near, -1, x))))
