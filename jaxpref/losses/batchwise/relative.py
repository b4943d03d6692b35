"""Relative preference optimisation: responses to similar prompts are compared as well."""

import chex
import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array, check_shape, floating, masked_mean, selection
from jaxpref.losses.batchwise.transport import both_selections


def relative_rpo_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    chosen_prompt_embeddings: Array | None = None,
    rejected_prompt_embeddings: Array | None = None,
    where: Array | None = None,
    rejected_where: Array | None = None,
    *,
    beta: float = 0.1,
    distance_temperature: float = 0.5,
    variant: str = "paired",
    diagonal_weight: float = 0.8,
) -> jax.Array:
    r"""Relative preference optimisation: every chosen response against every rejected one, nearer prompts first.

    .. math::
        L_i = -\frac{1}{N} \sum_j \log \sigma(\beta\, w_{ij} (a_i - b_j)), \quad
        w_{ij} = \mathrm{softmax}_j\!\left( -\frac{1 - \cos(e_i, e_j)}{\tau} \right)

    with log-ratios a of chosen and b of rejected responses, and embeddings e of their prompts.

    See *Relative Preference Optimization: Enhancing LLM Alignment through Contrasting Responses across Identical and
    Diverse Prompts* (https://arxiv.org/abs/2402.10958).

    Variant: the weights multiply the logit, as in the official code, so that the effective beta falls with the number
    of rejected responses; they carry no gradient. ``diagonal`` needs no embeddings: a pair's own comparison weighs
    diagonal_weight and the mean of the others the rest, all with the whole beta. Rows are of the global batch.

    Args:
        chosen_logps, ref_chosen_logps: ``[M]``, summed log-probabilities under policy and reference (a constant).
        rejected_logps, ref_rejected_logps: ``[M]``, the same of the rejected responses; ``[N]`` if unpaired.
        chosen_prompt_embeddings: ``[M, E]``; not read by ``diagonal``.
        rejected_prompt_embeddings: ``[M, E]``, ``[N, E]`` if unpaired; of ``paired`` data None is the chosen ones.
        where: ``[M]``, rows that count; of the rejected ones as well, where there are as many. Excluded rows have
            value 0 and change nothing.
        rejected_where: ``[M]``, rejected rows that count; ``[N]`` if unpaired, where nothing else says which do.
        beta: strength of the KL constraint, > 0.
        distance_temperature: tau > 0; a small one compares with the nearest prompts only.
        variant: ``paired``, ``unpaired`` or ``diagonal``.
        diagonal_weight: share of a pair's own comparison, in [0, 1]; all of it where the batch has no other.

    Returns:
        ``[M]``, row i the mean over the rejected responses that count.
    """
    domains.positive(beta=beta, distance_temperature=distance_temperature)
    domains.fraction(diagonal_weight=diagonal_weight)
    domains.choice(("paired", "unpaired", "diagonal"), variant=variant)
    chosen = scores.log_ratio(chosen_logps, ref_chosen_logps)
    rejected = scores.log_ratio(rejected_logps, ref_rejected_logps)
    if variant != "unpaired":
        check_shape(chosen.shape, rejected_logps=rejected_logps)
    rows, others = both_selections(where, rejected_where, chosen.size, rejected.size)
    if variant == "unpaired" and rejected_where is not None:  # rows of either side are others, even if as many
        others = selection(rejected_where, rejected.size, "rejected_where")
    margins = beta * (jnp.where(rows, chosen, 0)[:, None] - jnp.where(others, rejected, 0))
    embeddings = _embeddings(chosen, rejected, chosen_prompt_embeddings, rejected_prompt_embeddings, variant)
    if variant == "diagonal":
        values = _own_and_others(links.logistic(margins), others, diagonal_weight)
    else:
        weights = _nearness(*embeddings, rows, others, distance_temperature)
        values = masked_mean(links.logistic(weights * margins), others)
    return jnp.where(rows, values, 0)


def _own_and_others(values: jax.Array, others: jax.Array, weight: float) -> jax.Array:
    off_diagonal = others & ~jnp.eye(others.size, dtype=bool)
    own, mean = jnp.diagonal(values), masked_mean(values, off_diagonal)
    return jnp.where(jnp.any(off_diagonal, axis=-1), weight * own + (1 - weight) * mean, own)


def _embeddings(chosen, rejected, chosen_embeddings, rejected_embeddings, variant) -> tuple[jax.Array, ...]:
    if rejected_embeddings is None and variant != "unpaired":
        rejected_embeddings = chosen_embeddings
    if chosen_embeddings is None or rejected_embeddings is None:
        if variant == "diagonal":
            return ()
        raise ValueError(f"variant is {variant!r}, which needs prompt embeddings; 'diagonal' needs none.")
    chex.assert_rank(jnp.asarray(chosen_embeddings), 2, custom_message="argument chosen_prompt_embeddings")
    width = jnp.shape(chosen_embeddings)[1]
    check_shape((chosen.size, width), chosen_prompt_embeddings=chosen_embeddings)
    check_shape((rejected.size, width), rejected_prompt_embeddings=rejected_embeddings)
    return floating(chosen_embeddings), floating(rejected_embeddings)


def _nearness(chosen, rejected, rows, others, temperature) -> jax.Array:
    """``[M, N]``: each row a distribution over the rejected responses that count, by cosine distance of prompts."""

    def unit(embeddings, count):
        embeddings = jax.lax.stop_gradient(jnp.where(count[:, None], embeddings, 0))
        size = jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
        return embeddings / jnp.where(size == 0, 1, size)

    distances = 1 - unit(chosen, rows) @ unit(rejected, others).T
    logits = jnp.where(others, -distances / temperature, -jnp.finfo(distances.dtype).max)
    return jax.nn.softmax(logits, axis=-1)
