"""Semantic losses: preference losses as statements of logic about what a model accepts."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpref.losses import domains, links, scores
from jaxpref.losses.arrays import Array
from jaxpref.losses.sequences import log1mexp

WORLDS = ("TT", "TF", "FT", "FF")  # whether the chosen response is accepted, and whether the rejected one is
# Worlds in the numerator and in the denominator of the ratio.
SEMANTIC_LOSSES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "CE": (("TT", "TF"), ("FT", "FF")),
    "CEUnl": (("TF",), ("TT", "FT", "FF")),
    "CPO": (("TT", "TF"), ("TT", "FT")),
    "ORPO": (("TF",), ("FT",)),
    "unCPO": (("TT", "TF", "FF"), ("FT",)),
    "cCPO": (("TT", "TF"), ("FT",)),
    "sCPO": (("TT", "TF", "FF"), ("TT", "FT", "FF")),
    "fUNL": (("TF", "FF"), ("TT", "FT")),
    "cfUNL": (("TF",), ("TT", "FT")),
    "qfUNL": (("TF", "FF"), ("FT",)),
    "qfUNL_alt": (("TF", "FF"), ("FT", "FF")),
}


class SemanticAux(NamedTuple):
    """Attributes: rho: ``[B]``, log-ratio of the worlds that satisfy the preference to those that violate it."""

    rho: jax.Array


def semantic_preference_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    chosen_lengths: Array,
    rejected_lengths: Array,
    *,
    name: str = "CPO",
    numerator_rows: Sequence[str] | None = None,
    denominator_rows: Sequence[str] | None = None,
    beta: float = 1.0,
) -> tuple[jax.Array, SemanticAux]:
    r"""A preference loss from its truth table: which outcomes count for it and which against it.

    The model accepts a response with probability p, independently for both. Four worlds follow: ``TF`` accepts the
    chosen response and not the rejected one, and so on. With the worlds in which a preference holds and those in which
    it is broken,

    .. math::
        L = -\log \sigma(\beta \rho), \quad
        \rho = \log \frac{\sum_{u \in \mathrm{numerator}} P(u)}{\sum_{u \in \mathrm{denominator}} P(u)}, \quad
        P(\mathrm{TF}) = p_w (1 - p_l), \ldots, \quad \log p = \frac{\log \pi(y|x)}{n}

    A world may stand in both, in one, or in neither; 256 losses can be written so. If one loss entails another (its
    numerator is a part of the other's and its denominator contains the other's), it is never below the other.

    See *Understanding the Logic of Direct Preference Alignment through Logic* (https://arxiv.org/abs/2412.17696).

    Variant: p is the geometric mean of the token probabilities, since a response's own probability is close to 0. Of
    the named losses, CE, CEUnl, CPO, ORPO and unCPO are certain; the other tables are read from descriptions of them,
    and qfUNL has two readings, of which ``qfUNL_alt`` is the other. Average log-probabilities are held at -1e-6.

    Args:
        chosen_logps, rejected_logps: ``[B]``, summed log-probabilities of the responses under the policy.
        chosen_lengths, rejected_lengths: ``[B]``, tokens of the responses.
        name: CE, CEUnl, CPO, ORPO, unCPO, cCPO, sCPO, fUNL, cfUNL, qfUNL or qfUNL_alt.
        numerator_rows, denominator_rows: worlds among TT, TF, FT, FF that replace those of the name.
        beta: scale of the ratio, > 0.

    Returns:
        ``(values [B], SemanticAux)``.
    """
    domains.positive(beta=beta)
    domains.choice(SEMANTIC_LOSSES, name=name)
    averages = scores.pair_averages(chosen_logps, rejected_logps, chosen_lengths, rejected_lengths)
    accepted = [jnp.minimum(average, -1e-6) for average in averages]
    log_probs = [{"T": logp, "F": log1mexp(logp)} for logp in accepted]
    log_worlds = {world: log_probs[0][world[0]] + log_probs[1][world[1]] for world in WORLDS}

    def log_weight(rows, default, field):
        rows = default if rows is None else tuple(rows)
        if not rows:
            raise ValueError(f"{field} is empty, but must name at least one of {', '.join(WORLDS)}.")
        for row in rows:
            domains.choice(WORLDS, **{field: row})
        return jax.nn.logsumexp(jnp.stack([log_worlds[row] for row in dict.fromkeys(rows)]), axis=0)

    numerator, denominator = SEMANTIC_LOSSES[name]
    rho = log_weight(numerator_rows, numerator, "numerator_rows")
    rho -= log_weight(denominator_rows, denominator, "denominator_rows")
    return links.logistic(beta * rho), SemanticAux(rho)
