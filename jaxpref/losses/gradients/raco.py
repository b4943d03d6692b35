"""Reward-free alignment for conflicting objectives: one direction out of the gradients of several losses."""

import itertools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, check_shape, floating

LARGEST_ENUMERATION = 6  # objectives up to which all 2^m - 1 faces of the simplex are solved
LINE_SEARCHES = 500  # for more


class RacoLossAux(NamedTuple):
    """What each objective makes of each pair, ``[B, m]``.

    Attributes:
        losses: DPO on the pair as the objective prefers it.
        margins: reward of the response that the objective prefers minus that of the other.
        accuracies: whether that is above 0.
    """

    losses: jax.Array
    margins: jax.Array
    accuracies: jax.Array


def raco_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    prefers: Array,
    *,
    weights: Array = (0.5, 0.5),
    beta: float = 0.1,
) -> tuple[jax.Array, RacoLossAux]:
    r"""DPO for several objectives, which may prefer different responses of a pair, mixed by their weights.

    .. math::
        L_b = \sum_i w_i \ell_{ib}, \quad \ell_{ib} = -\log \sigma(\beta s_{ib} D_b)

    with the difference :math:`D_b` of the log-ratios of the stored chosen and rejected responses. Alone this is a
    linear mixture of losses; the method descends :func:`raco_direction` (with its ``c`` and ``clip``) of the gradients
    of the objectives' own mean losses, which are those of one-hot weights.

    See *Reward-free Alignment for Conflicting Objectives* (https://arxiv.org/abs/2602.02495).

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        ref_chosen_logps, ref_rejected_logps: ``[B]``, the same under the reference; constants.
        prefers: ``[B, m]``, 1 where objective i prefers the stored chosen response, -1 where the rejected one.
        weights: ``[m]``, >= 0, sum to 1.
        beta: strength of the KL constraint, > 0.

    Returns:
        ``(values [B], RacoLossAux)``.
    """
    domains.positive(beta=beta)
    domains.simplex(weights=weights)
    difference = scores.pair_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    chex.assert_rank(jnp.asarray(prefers), 2, custom_message="argument prefers")
    check_shape((difference.size, jnp.shape(prefers)[1]), prefers=prefers)
    weights = floating(weights)
    if weights.shape != jnp.shape(prefers)[1:]:
        raise ValueError(
            f"there are {weights.size} weights, but prefers has {jnp.shape(prefers)[1]} numbers a pair; give one "
            "weight for each objective."
        )
    margins = beta * floating(prefers) * difference[:, None]
    losses = links.logistic(margins)
    return jnp.sum(weights * losses, axis=-1), RacoLossAux(losses, margins, margins > 0)


class RacoAux(NamedTuple):
    """What the direction is made of.

    Attributes:
        p: ``[m]``, the minimiser on the simplex.
        p_clipped: ``[m]``, the same clipped by the weights (or not).
        coef: ``[m]``, coefficients of the gradients in the direction.
        phi: scalar, the minimum at ``p``.
    """

    p: jax.Array
    p_clipped: jax.Array
    coef: jax.Array
    phi: jax.Array


@jax.default_matmul_precision("highest")  # accelerators would round float32 gradients
def raco_direction(grads: Any, weights: Array, *, c: float = 0.4, clip: bool = True) -> tuple[Any, RacoAux]:
    r"""A direction to descend that respects the weights of m objectives and averts the conflicts of their gradients.

    .. math::
        G = g_0 + c \lVert g_0 \rVert \frac{G_p}{\lVert G_p \rVert}, \quad g_0 = \sum_i w_i g_i, \quad
        G_p = \sum_i \min(p_i, w_i)\, g_i, \quad
        p = \arg\min_{p \in \Delta} \, \langle g_0, g_p \rangle + c \lVert g_0 \rVert \lVert g_p \rVert

    with :math:`g_p = \sum_i p_i g_i`. It is within :math:`c \lVert g_0 \rVert` of :math:`g_0`, so that
    :math:`\langle G, g_0 \rangle \ge (1 - c) \lVert g_0 \rVert^2`. Where :math:`G_p` vanishes it is :math:`g_0`.

    See *Reward-free Alignment for Conflicting Objectives* (https://arxiv.org/abs/2602.02495).

    Variant: p is clipped by the weights, without renormalisation, as the paper has it; the released scripts leave the
    clip off by default, which is conflict-averse gradient descent with weights. Up to six objectives are solved exactly
    on every face of the simplex; more by exact line searches between pairs.

    Args:
        grads: pytree whose leaves stack the gradients of the objectives on a leading axis m. They must be those of the
            global batch, summed over devices.
        weights: ``[m]``, >= 0, sum to 1.
        c: how far the direction may go from the weighted one, from 0 to below 1.
        clip: whether no objective has a larger share of the correction than its weight.

    Returns:
        ``(direction, RacoAux)``; the direction has the structure and the types of one objective's gradient.
    """
    domains.below_one(c=c)
    domains.simplex(weights=weights)
    chex.assert_rank(jnp.asarray(weights), 1, custom_message="argument weights")
    weights = floating(weights)
    for leaf in jax.tree.leaves(grads):
        check_shape(weights.shape, grads=jnp.zeros(jnp.shape(leaf)[:1]))
    gram = _gram(grads)
    # Without a unit: products of gradients are tiny for large models.
    scale = jnp.max(jnp.abs(gram))
    gram = gram / jnp.where(scale > 0, scale, 1)
    linear = gram @ weights
    radius = c * jnp.sqrt(jnp.maximum(weights @ linear, 0))
    p = _minimizer(gram, linear, radius)
    clipped = jnp.minimum(p, weights) if clip else p
    norm = _norm(gram, clipped)
    # Gradients that cancel up to rounding leave no direction.
    present = norm > 2 * jnp.sqrt(jnp.finfo(norm.dtype).eps) * (clipped @ jnp.sqrt(jnp.diag(gram)))
    coef = weights + jnp.where(present, radius / jnp.where(present, norm, 1), 0) * clipped

    def combined(leaf):
        return jnp.tensordot(coef, floating(leaf), axes=1).astype(jnp.asarray(leaf).dtype)

    aux = RacoAux(p, clipped, coef, scale * _value(gram, linear, radius, p))
    return jax.tree.map(combined, grads), aux


def _gram(grads: Any) -> jax.Array:
    """Inner products ``[m, m]`` of the objectives' gradients."""

    def products(leaf):
        leaf, axes = floating(leaf), list(range(1, jnp.ndim(leaf)))
        return jnp.tensordot(leaf, leaf, axes=(axes, axes))

    return sum(products(leaf) for leaf in jax.tree.leaves(grads))


def _norm(gram: jax.Array, p: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.maximum(p @ gram @ p, 0))


def _value(gram: jax.Array, linear: jax.Array, radius: jax.Array, p: jax.Array) -> jax.Array:
    return linear @ p + radius * _norm(gram, p)


def _minimizer(gram: jax.Array, linear: jax.Array, radius: jax.Array) -> jax.Array:
    """The point of the simplex at which :func:`_value` is least; the problem is convex."""
    if len(linear) > LARGEST_ENUMERATION:
        return _by_line_searches(gram, linear, radius)
    points = jnp.eye(len(linear), dtype=gram.dtype)
    if faces := [face for face in itertools.product((0, 1), repeat=len(linear)) if sum(face) > 1]:
        inside = jax.vmap(lambda face: _stationary(gram, linear, radius, face))(jnp.array(faces, gram.dtype))
        points = jnp.concatenate([points, inside.reshape(-1, len(linear))])
    return _least(gram, linear, radius, points)


def _least(gram: jax.Array, linear: jax.Array, radius: jax.Array, points: jax.Array) -> jax.Array:
    """The one of the points at which :func:`_value` is least; those of NaN are not there."""
    return points[jnp.nanargmin(jax.vmap(lambda p: _value(gram, linear, radius, p))(points))]


def _stationary(gram: jax.Array, linear: jax.Array, radius: jax.Array, face: jax.Array) -> jax.Array:
    """Points ``[3, m]`` of a face at which the minimum may lie, NaN where there is none.

    With H, b and 1 restricted to the face, stationary points are proportional to H^-1 (v 1 - b), where v solves
    (1'H^-1 1) v^2 - 2 (1'H^-1 b) v + b'H^-1 b - radius^2 = 0. Where H has no inverse, a minimum that no smaller face
    has can only lie where the combined gradient vanishes. Any point of the simplex may be among them: a false root does
    no harm to a minimum over points.
    """
    inverse = jnp.linalg.pinv(gram * face * face[:, None], hermitian=True)
    ones, constant = inverse @ face, inverse @ (linear * face)
    a, b, d = face @ ones, linear @ ones, linear @ constant
    root = jnp.sqrt(jnp.maximum(b**2 - a * (d - radius**2), 0))
    levels = jnp.stack([b - root, b + root]) / jnp.where(a > 0, a, 1)
    vanishing = face - face * (gram @ ones)
    points = jnp.concatenate([levels[:, None] * ones - constant, vanishing[None]])
    points = points / jnp.sum(points, axis=1, keepdims=True)
    rounding = jnp.sqrt(jnp.finfo(gram.dtype).eps)
    points = jnp.where(jnp.all(points > -rounding, axis=1, keepdims=True), jnp.maximum(points, 0), jnp.nan)
    return points / jnp.sum(points, axis=1, keepdims=True)


def _by_line_searches(gram: jax.Array, linear: jax.Array, radius: jax.Array) -> jax.Array:
    """Moves weight from the worst objective in use to the best one as far as the value falls, again and again."""
    tiny = jnp.finfo(gram.dtype).tiny

    def step(_, p):
        slope = linear + radius * (gram @ p) / jnp.maximum(_norm(gram, p), tiny)
        best, worst = jnp.argmin(slope), jnp.argmax(jnp.where(p > 0, slope, -jnp.inf))
        move = jnp.zeros_like(p).at[best].add(1).at[worst].add(-1)
        # Along the move the squared norm is curvature (t - bottom)^2 + rest, and the linear part rises by rise t.
        rise, curvature = linear @ move, jnp.maximum(move @ gram @ move, tiny)
        bottom = -(p @ gram @ move) / curvature
        rest = jnp.maximum(p @ gram @ p - curvature * bottom**2, 0)
        excess = radius**2 * curvature - rise**2
        turn = bottom - rise * jnp.sqrt(rest / jnp.maximum(curvature * excess, tiny))
        steps = jnp.stack([jnp.zeros_like(turn), p[worst], jnp.clip(jnp.where(excess > 0, turn, 0), 0, p[worst])])
        return jnp.maximum(_least(gram, linear, radius, p + steps[:, None] * move), 0)

    # From every objective: one path may end where its gradients cancel, though the value falls elsewhere.
    starts = jnp.eye(len(linear), dtype=gram.dtype)
    ends = jax.vmap(lambda start: jax.lax.fori_loop(0, LINE_SEARCHES, step, start))(starts)
    end = _least(gram, linear, radius, ends)
    exact = _stationary(gram, linear, radius, (end > 0).astype(gram.dtype))
    return _least(gram, linear, radius, jnp.concatenate([ends, exact]))
