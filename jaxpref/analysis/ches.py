"""Likelihood displacement: which pairs cause it, and the smallest model that shows it.

See *Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization*
(https://arxiv.org/abs/2410.08847).
"""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxpref import losses
from jaxpref.losses.arrays import Array, at_least_one, check_shape, floating


def ches_score(
    preferred_hidden: Array,
    dispreferred_hidden: Array,
    preferred_mask: Array,
    dispreferred_mask: Array,
    *,
    length_normalize: bool = False,
) -> jax.Array:
    r"""Centred hidden embedding similarity of the responses of a pair: the higher, the likelier displacement.

    .. math:: \langle S^+, S^- \rangle - \lVert S^+ \rVert^2

    with the sums :math:`S` of the hidden states, after the last norm and before the unembedding, from which the tokens
    of a response are predicted. The model is the one that training begins with.

    Args:
        preferred_hidden, dispreferred_hidden: ``[B, T, H]``.
        preferred_mask, dispreferred_mask: ``[B, T]``, which positions count: those of the hidden states, from the last
            token of the prompt to the last but one of the response. Anything may stand elsewhere.
        length_normalize: compare means instead of sums, which are longer for longer responses.

    Returns:
        ``[B]``; 0 for two equal responses.
    """
    chex.assert_rank(preferred_hidden, 3, custom_message="argument preferred_hidden")
    chex.assert_rank(dispreferred_hidden, 3, custom_message="argument dispreferred_hidden")
    preferred = _pooled(preferred_hidden, preferred_mask, length_normalize, "preferred_mask")
    dispreferred = _pooled(dispreferred_hidden, dispreferred_mask, length_normalize, "dispreferred_mask")
    check_shape(preferred.shape, dispreferred_hidden=dispreferred)
    return jnp.sum(preferred * (dispreferred - preferred), axis=-1)


def ches_filter(scores: Array, *, keep_frac: float = 0.05) -> np.ndarray:
    """Indices of the share of pairs with the lowest scores ``[N]``, lowest first, at least one; runs on the host."""
    if not 0 < keep_frac <= 1:
        raise ValueError(f"keep_frac must be above 0 and at most 1; found {keep_frac}.")
    scores = np.asarray(scores)
    chex.assert_rank(scores, 1, custom_message="argument scores")
    count = max(1, math.floor(keep_frac * len(scores) + 1e-9)) if len(scores) else 0
    return np.argsort(scores, kind="stable")[:count]


def displacement_toy(
    unembedding: Array, h0: Array, *, beta: float = 0.1, lr: float = 0.5, steps: int = 100
) -> dict[str, Any]:
    """DPO on one pair of single tokens where only the hidden state that predicts them learns, by gradient descent.

    The gradient of the margin by the hidden state is the difference of the two tokens' rows of the unembedding, so that
    a third token which lies along it gains more than the preferred one.

    Args:
        unembedding: ``[V, H]``; row 0 is the preferred token, row 1 the other.
        h0: ``[H]``, the hidden state to begin with, whose probabilities are the reference.
        beta: of DPO.
        lr: learning rate.
        steps: updates.

    Returns:
        ``logps [steps + 1, V]``, log-probabilities before the first and after every step; among them ``logp_step0``,
        ``logp_step1`` and that of the last step, each ``[V]``; ``h_final [H]``.
    """
    unembedding, h0 = floating(unembedding), floating(h0)
    chex.assert_rank(unembedding, 2, custom_message="argument unembedding")
    check_shape(unembedding.shape[1:], h0=h0)
    logps = lambda h: jax.nn.log_softmax(unembedding @ h)  # noqa: E731
    reference = logps(h0)

    def loss(h):
        policy = logps(h)
        return losses.dpo_loss(policy[:1], policy[1:2], reference[:1], reference[1:2], beta=beta)[0]

    def step(h, _):
        return h - lr * jax.grad(loss)(h), logps(h)

    final, path = jax.lax.scan(step, h0, length=steps)
    path = jnp.concatenate([path, logps(final)[None]])
    named = {f"logp_step{number}": path[number] for number in sorted({0, min(1, steps), steps})}
    return {"logps": path, **named, "h_final": final}


def _pooled(hidden: Array, mask: Array, mean: bool, name: str) -> jax.Array:
    """Sums ``[B, H]`` of the hidden states that count, or their means."""
    check_shape(jnp.shape(hidden)[:2], **{name: mask})
    mask = jnp.asarray(mask).astype(bool)[..., None]
    total = jnp.sum(jnp.where(mask, floating(hidden), 0), axis=1)
    return total / at_least_one(jnp.sum(mask, axis=1)) if mean else total
