"""What the arguments of a loss mean: argument name -> the channels it needs and how it is read.

A loss is bound to a batch by the names of its arguments: a new one needs nothing here unless it reads something new.
Of a pair, response 0 is the chosen and response 1 the rejected one; of an unpaired example, response 0 is its own and
response 1 the mismatched one (another example's response under this example's prompt). Of a ranked example there are as
many responses as the longest list of the data has, the best first; arguments of its losses have them all, ``[N, K]``.
Where responses have prompts of their own, these are the responses' first tokens, targets too: joint examples have two
such responses, the chosen first; crossed ones four, both of a pair under the prompt ``hi``, then under ``lo``.
Samples, further responses to the prompt that a model gave, come behind those of a pair or a demonstration.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpref.batch import FIRST_SAMPLE, IDS, PROMPT_LENGTHS, Examples, lengths
from jaxpref.losses import scores, wpo_weights

OTHERS = "other_ref_logps"  # channel [N, K, L, O] that travels with the examples: log-probs under O further references


class View(NamedTuple):
    """What a reader sees: the channels in example order, the examples, and the rows ``[N]`` that count.

    A micro-batch has a part of the rows that count; mismatched responses are those of the whole batch.
    """

    outputs: dict[str, jax.Array]
    examples: Examples
    valid: jax.Array

    @property
    def partners(self) -> jax.Array:
        """Rows ``[N]`` of the whole batch that have both responses; those that pad have none."""
        return jnp.all(lengths(self.examples) > 0, axis=-1)


class Input(NamedTuple):
    """One argument of a loss.

    Attributes:
        read: reads it from a :class:`View`.
        axes: its axes, of N examples, K responses, L tokens, m samples, O further references,
            M objectives, E entries of an embedding and C classes that a head tells apart.
        needs: channels that it reads.
        sides: columns of side inputs that it reads.
        dtype: float, int or bool.
        partner: whether it reads the mismatched response that the data room draws for unpaired examples. No gradient
            flows into it, so that such responses are computed apart, forward only.
    """

    read: Callable[[View], jax.Array]
    axes: str = "N"
    needs: frozenset[str] = frozenset()
    sides: tuple[str, ...] = ()
    dtype: Any = float
    partner: bool = False


def _sums(channel: str, response: int) -> Input:
    return Input(lambda view: jnp.sum(view.outputs[channel][:, response], axis=-1), needs=frozenset({channel}))


def _tokens(channel: str, response: int) -> Input:
    return Input(lambda view: view.outputs[channel][:, response], axes="NL", needs=frozenset({channel}))


def _others(response: int) -> Input:
    return Input(lambda view: jnp.sum(view.outputs[OTHERS][:, response], axis=1), axes="NO", needs=frozenset({OTHERS}))


def _score(response: int) -> Input:
    return Input(lambda view: view.outputs["score"][:, response], needs=frozenset({"score"}))


def _class_logits(response: int) -> Input:
    return _score(response)._replace(axes="NC")


def _length(response: int) -> Input:
    return Input(lambda view: lengths(view.examples)[:, response])


def _mask(response: int) -> Input:
    return Input(lambda view: view.examples.mask[:, response], axes="NL", dtype=bool)


def _side(column: str, dtype: Any = float, axes: str = "N") -> Input:
    def read(view):
        return view.examples.side[column].astype(jnp.result_type(dtype))

    return Input(read, axes=axes, sides=(column,), dtype=dtype)


def _score_gap(view: View) -> jax.Array:
    return (view.examples.side["chosen_score"] - view.examples.side["rejected_score"]).astype(jnp.result_type(float))


def _on_policy_weight(response: int) -> Input:
    def read(view):
        logps, square = view.outputs["logps"][:, response], view.outputs["sum_p2"][:, response]
        mask = view.examples.mask[:, response]
        return wpo_weights(logps, jnp.log(jnp.where(mask, square, 1)), mask)

    return Input(read, needs=frozenset({"logps", "sum_p2"}))


TABLE: dict[str, Input] = {
    "chosen_logps": _sums("logps", 0),
    "rejected_logps": _sums("logps", 1),
    "ref_chosen_logps": _sums("ref_logps", 0),
    "ref_rejected_logps": _sums("ref_logps", 1),
    "other_ref_chosen_logps": _others(0),
    "other_ref_rejected_logps": _others(1),
    "chosen_lengths": _length(0),
    "rejected_lengths": _length(1),
    "chosen_rewards": _score(0),
    "rejected_rewards": _score(1),
    "degree_logits": _class_logits(0),
    "logps": _sums("logps", 0),
    "ref_logps": _sums("ref_logps", 0),
    "lengths": _length(0),
    "kl_logps": _sums("logps", 1)._replace(partner=True),
    "kl_ref_logps": _sums("ref_logps", 1)._replace(partner=True),
    "kl_where": Input(lambda view: view.partners, dtype=bool, partner=True),
    "where": Input(lambda view: view.valid, dtype=bool),
    "positive_logps": _sums("logps", 0),
    "positive_lengths": _length(0),
    "ids": _side(IDS, int),
    # Offline, the responses by which value-incentivised preference optimisation calibrates are the chosen ones.
    "cal_logps": _sums("logps", 0),
    "ref_cal_logps": _sums("ref_logps", 0),
    "kl_ref_to_policy": _sums("kl", 0),
    "sft_logps": _sums("logps", 0),
    "token_logps": _tokens("logps", 0),
    "mask": _mask(0),
    "chosen_token_logps": _tokens("logps", 0),
    "rejected_token_logps": _tokens("logps", 1),
    "ref_chosen_token_logps": _tokens("ref_logps", 0),
    "ref_rejected_token_logps": _tokens("ref_logps", 1),
    "chosen_mask": _mask(0),
    "rejected_mask": _mask(1),
    "chosen_weights": _on_policy_weight(0),
    "rejected_weights": _on_policy_weight(1),
    "labels": _side("label", bool),
    "margin": _side("margin"),
    "target_prob": _side("target_prob"),
    "tie": _side("tie", bool),
    "annotator_ids": _side("user_id", int),
    "preference_strength": _side("preference_strength"),
    "reward_gap": Input(_score_gap, sides=("chosen_score", "rejected_score")),
    "gt_rewards_chosen": _side("chosen_score"),
    "gt_rewards_rejected": _side("rejected_score"),
    "reward_1": _side("chosen_score"),
    "reward_2": _side("rejected_score"),
    "chosen_probs_win": _side("chosen_win_prob"),
    "chosen_probs_lose": _side("rejected_win_prob"),
    "prob_desirable": _side("prob_desirable"),
    "degree_labels": _side("degree", int),
    "prefers": _side("prefers", axes="NM"),
    "prompt_embeddings": _side("prompt_embedding", axes="NE"),
}


def _all_sums(channel: str) -> Input:
    return Input(lambda view: jnp.sum(view.outputs[channel], axis=-1), axes="NK", needs=frozenset({channel}))


def _all_averages(view: View) -> jax.Array:
    return scores.average(jnp.sum(view.outputs["logps"], axis=-1), lengths(view.examples))


def _scores(view: View) -> jax.Array:
    return view.examples.side["scores"].astype(jnp.result_type(float))


RANKED: dict[str, Input] = {
    "logps": _all_sums("logps"),
    "ref_logps": _all_sums("ref_logps"),
    "avg_logps": Input(_all_averages, axes="NK", needs=frozenset({"logps"})),
    "mask": Input(lambda view: lengths(view.examples) > 0, axes="NK", dtype=bool),
    "rewards": Input(_scores, axes="NK", sides=("scores",)),
    "where": TABLE["where"],
}


def _of_samples(first: int) -> dict[str, Input]:
    """Arguments ``[N, m]`` that read the samples of examples, of which some may have fewer than others."""

    def behind(of_all: Input) -> Input:
        return of_all._replace(read=lambda view: of_all.read(view)[:, first:], axes="Nm")

    logps, ref_logps = behind(_all_sums("logps")), behind(_all_sums("ref_logps"))
    return {
        "online_logps": logps,
        "ref_online_logps": ref_logps,
        "negative_logps": logps,
        "ref_negative_logps": ref_logps,
        "sample_logps": logps,
        "ref_sample_logps": ref_logps,
        "negative_lengths": behind(Input(lambda view: lengths(view.examples))),
        "sample_mask": behind(RANKED["mask"]),
    }


SAMPLED = {feedback: _of_samples(first) for feedback, first in FIRST_SAMPLE.items()}


def scored(view: View, *, prompts: bool) -> View:
    """The view in which only the responses' own prompts count, or only what comes after them."""
    places = jnp.arange(view.examples.mask.shape[-1])
    mask = view.examples.mask & ((places < view.examples.side[PROMPT_LENGTHS][..., None]) == prompts)
    outputs = {channel: jnp.where(mask, values, 0) for channel, values in view.outputs.items()}
    return view._replace(outputs=outputs, examples=view.examples._replace(mask=mask))


def _part(channel: str, response: int, *, prompts: bool = False) -> Input:
    whole = _sums(channel, response)
    return whole._replace(read=lambda view: whole.read(scored(view, prompts=prompts)), sides=(PROMPT_LENGTHS,))


JOINT: dict[str, Input] = {
    "chosen_logps": _part("logps", 0),
    "rejected_logps": _part("logps", 1),
    "ref_chosen_logps": _part("ref_logps", 0),
    "ref_rejected_logps": _part("ref_logps", 1),
    "chosen_prompt_logps": _part("logps", 0, prompts=True),
    "rejected_prompt_logps": _part("logps", 1, prompts=True),
    "ref_chosen_prompt_logps": _part("ref_logps", 0, prompts=True),
    "ref_rejected_prompt_logps": _part("ref_logps", 1, prompts=True),
}
CROSSED: dict[str, Input] = {
    "hi_chosen_logps": _part("logps", 0),
    "hi_rejected_logps": _part("logps", 1),
    "hi_ref_chosen_logps": _part("ref_logps", 0),
    "hi_ref_rejected_logps": _part("ref_logps", 1),
    "lo_chosen_logps": _part("logps", 2),
    "lo_rejected_logps": _part("logps", 3),
    "lo_ref_chosen_logps": _part("ref_logps", 2),
    "lo_ref_rejected_logps": _part("ref_logps", 3),
}


def table(feedback: str) -> dict[str, Input]:
    """The arguments that losses on a type of feedback may have."""
    return {"ranked": RANKED, "joint": JOINT, "crossed": CROSSED}.get(feedback) or TABLE | SAMPLED.get(feedback, {})


def read(argument: Input, view: View) -> jax.Array:
    """Reads one argument; rows that do not count hold zeros, so that nothing in them reaches value or gradient."""
    value, where = argument.read(view), view.valid
    if argument.partner:
        value, where = jax.lax.stop_gradient(value), view.partners
    return jnp.where(where.reshape(-1, *(1,) * (value.ndim - 1)), value, jnp.zeros_like(value))


def dummy(argument: Input, others: int = 1, objectives: int = 2) -> jax.ShapeDtypeStruct:
    """Shape and type of an argument for two examples of four responses of three tokens."""
    sizes = {"N": 2, "K": 4, "L": 3, "O": others, "M": objectives, "E": 3, "m": 2, "C": 4}
    return jax.ShapeDtypeStruct(tuple(sizes[axis] for axis in argument.axes), jnp.result_type(argument.dtype))
