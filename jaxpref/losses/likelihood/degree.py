"""Self-supervised preference optimisation: how much of a response is left."""

import chex
import jax
import jax.numpy as jnp

from jaxpref.losses.arrays import Array, check_shape, floating


def preference_degree_loss(degree_logits: Array, degree_labels: Array) -> jax.Array:
    r"""The auxiliary loss of self-supervised preference optimisation, beside any loss on pairs.

    .. math:: L = -\log \mathrm{softmax}(h)_j

    where a linear head on the policy's pooled last states tells from h which share of the key phrases, level j of J,
    was deleted from a response. Its gradient flows into the policy; the head is discarded after training.

    See *Self-supervised Preference Optimization: Enhance Your Language Model with Preference Degree Awareness*
    (https://arxiv.org/abs/2409.17791).

    Variant: the cross-entropy alone. The method adds it with a weight (0.1 to 1) for the levels of the chosen and of
    the rejected response; the degraded texts enter no other term.

    Args:
        degree_logits: ``[N, J + 1]``, outputs of the head.
        degree_labels: ``[N]`` integers, the level: 0 is the whole response, J the one without any key phrase.

    Returns:
        ``[N]``.
    """
    chex.assert_rank(degree_logits, 2, custom_message="argument degree_logits")
    check_shape(jnp.shape(degree_logits)[:1], degree_labels=degree_labels)
    logps = jax.nn.log_softmax(floating(degree_logits))
    return -jnp.take_along_axis(logps, jnp.asarray(degree_labels)[:, None], axis=-1)[:, 0]
