"""Channels: what the forward pass computes for every token of a row, and the two views of them for notebooks."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxpref.batch import Layout, Rows
from jaxpref.errors import ModelError
from jaxpref.models import adapters, vocabulary
from jaxpref.models.config import Transformer, wide_dtype
from jaxpref.models.sharding import BATCH, constrain
from jaxpref.models.transformer import hidden

_SCORE = "score/"


def channels(
    model: Transformer, params: Any, rows: Rows, layout: Layout, needs: frozenset[str], reference: Any = None
) -> dict[str, jax.Array]:
    """Computes per-token values of rows.

    Args:
        model: the transformer.
        params: ``{"model": tree, "heads": {term: {"kernel": [D, d]}}, "adapter": Adapter}``; heads are read by scores
            only, and the adapter is left out where there is none.
        rows: arrays ``[R, T]``.
        layout: static regions of a row.
        needs: names of channels: 'logps', 'entropy', 'sum_p2' (of the distribution that predicts ``targets``),
            'ref_logps', 'kl' (with a reference; KL(reference || policy)), 'hidden', 'score/<term>'.
        reference: parameter tree of a second model of the same architecture, like ``params["model"]``, or
            ``adapters.OFF`` for the policy without its adapter; no gradient flows into it.

    Returns:
        ``{name: [R, T]}`` float32 (float64 where the compute dtype is), except 'hidden' ``[R, T, D]`` in the compute
        dtype, and scores of heads with d > 1 ``[R, T, d]``. Values at positions that score nothing mean nothing.

    Raises:
        ModelError: a channel is unknown, or its reference or head is missing.
    """
    over_vocabulary = needs & vocabulary.FUNCTIONS.keys()
    _check(needs, params, reference)
    policy = adapters.policy(params)
    states = hidden(model, policy, rows, layout)
    values = {name: states for name in needs & {"hidden"}}
    for name in sorted(needs - over_vocabulary - {"hidden"}):
        values[name] = _score(states, params["heads"][name.removeprefix(_SCORE)]["kernel"])
    if over_vocabulary:
        other, prompt = None, layout.prompt  # a prompt region scores nothing, so it never meets the vocabulary
        if over_vocabulary & vocabulary.OF_REFERENCE:
            frozen = adapters.detach(policy) if isinstance(reference, adapters.Off) else reference
            frozen = jax.lax.stop_gradient(frozen)
            other = (_flat(hidden(model, frozen, rows, layout)[:, prompt:]), head_kernel(model, frozen))
        scanned = vocabulary.scan(
            _flat(states[:, prompt:]),
            head_kernel(model, policy),
            rows.targets[:, prompt:].reshape(-1),
            {name: vocabulary.FUNCTIONS[name] for name in sorted(over_vocabulary)},
            chunk=model.chunk,
            soft_cap=model.config.final_soft_cap,
            reference=other,
        )
        whole = ((0, 0), (prompt, 0))
        values |= {name: jnp.pad(value.reshape(len(states), -1), whole) for name, value in scanned.items()}
    return values


def logits(model: Transformer, params: Any, tokens: jax.Array) -> jax.Array:
    """Next-token logits ``[B, T, V]`` of sequences ``[B, T]``, for tests and notebooks; training never forms them."""
    rows, layout = _plain_rows(tokens)
    return head_logits(model, params, hidden(model, params, rows, layout))


def token_logps(
    model: Transformer, params: Any, tokens: jax.Array, response_mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of every response token given the tokens before it.

    Args:
        model: the transformer.
        params: its parameter tree.
        tokens: ``[B, T]`` int, one sequence a row from its first token on; padding, if any, at the end.
        response_mask: ``[B, T]`` bool, the tokens to score.

    Returns:
        ``(logps, mask)``, both ``[B, T]``: ``logps[:, t] = log p(tokens[:, t] | tokens[:, :t])`` float32, 0 where
        masked; the mask is False at position 0, which nothing predicts.
    """
    if response_mask.shape != tokens.shape:
        raise ModelError(f"response_mask has shape {response_mask.shape}; expected that of tokens, {tokens.shape}.")
    rows, layout = _plain_rows(tokens)
    values = channels(model, {"model": params}, rows, layout, frozenset({"logps"}))["logps"]
    mask = jnp.asarray(response_mask, bool).at[:, :1].set(False)
    return jnp.where(mask, jnp.roll(values, 1, axis=1), 0), mask


def head_kernel(model: Transformer, params: Any) -> jax.Array:
    """Kernel ``[D, V]`` of the vocabulary head: its own, or the transposed token embedding."""
    return params["embed"]["tokens"].T if model.config.tied_embeddings else params["head"]["kernel"]


def head_logits(model: Transformer, params: Any, states: jax.Array) -> jax.Array:
    """Logits ``[..., V]`` of hidden states ``[..., D]``, float32 at least, with the family's soft cap."""
    kernel = head_kernel(model, params).astype(states.dtype)
    product = jnp.einsum("...d,dv->...v", states, kernel, preferred_element_type=wide_dtype(states.dtype))
    return vocabulary.cap(product, model.config.final_soft_cap)


def _plain_rows(tokens: jax.Array) -> tuple[Rows, Layout]:
    tokens = jnp.asarray(tokens, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    rows = Rows(tokens, jnp.roll(tokens, -1, axis=1), positions, jnp.ones_like(tokens))
    return rows, Layout(0, 1, tokens.shape[1])


def _flat(states: jax.Array) -> jax.Array:
    return constrain(states.reshape(-1, states.shape[-1]), BATCH, None)


def _score(states: jax.Array, kernel: jax.Array) -> jax.Array:
    wide = wide_dtype(states.dtype)
    values = jnp.einsum("rtm,md->rtd", states.astype(wide), kernel.astype(wide))
    return values[..., 0] if kernel.shape[1] == 1 else values


def _check(needs: frozenset[str], params: Any, reference: Any) -> None:
    heads = params.get("heads", {})
    for name in needs:
        if name.startswith(_SCORE):
            if name.removeprefix(_SCORE) not in heads:
                raise ModelError(f"channel {name!r} needs a head of that name; the heads are {sorted(heads)}.")
        elif name not in vocabulary.FUNCTIONS and name != "hidden":
            known = ", ".join([*vocabulary.FUNCTIONS, "hidden", "score/<term>"])
            raise ModelError(f"channel {name!r} is unknown; expected one of {known}.")
        elif name in vocabulary.OF_REFERENCE and reference is None:
            raise ModelError(f"channel {name!r} needs the parameters of a reference model; pass reference=.")
