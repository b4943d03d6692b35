"""Vectors of losses that read more than one prompt, more than one reference, or a reference that moves."""

import cases
import jax.numpy as jnp

from jaxpref import losses

DIRECT = {
    "dove": losses.dove_loss,
    "spo_sequential": losses.sequential_po_loss,
    "hybrid_dpo_ref_clip": losses.hybrid_dpo_loss,
}
SIDES = ("chosen", "rejected")
NAMES = (*DIRECT, "mapl", "mrpo", "tr_dpo_update")


def evaluate(name, inputs, params):
    if name in DIRECT:
        return cases.evaluate(DIRECT[name], inputs, params)
    return {"mapl": mapl, "mrpo": mrpo, "tr_dpo_update": tr_dpo_update}[name](inputs, params)


def mapl(inputs, params):
    loss = losses.mapl_intra_loss if params["term"] == "intra" else losses.mapl_inter_loss
    return cases.evaluate(loss, inputs, params)


def mrpo(inputs, params):
    """``ref2`` is the base reference."""
    references = [jnp.stack([inputs[f"ref2_{side}_logps"], inputs[f"ref_{side}_logps"]]) for side in SIDES]
    alpha, clip = params["alpha"], params["clip"]
    options = {"alpha": "code" if alpha == "adaptive" else jnp.array([alpha, 1 - alpha])}
    if clip.startswith("adaptive"):
        options["eps_max"] = float(clip.partition("=")[2])
    else:
        options["eps"] = float(clip.partition("=")[2])
    combined = dict(zip(SIDES, losses.mrpo_reference(*references, **options), strict=True))
    tilde = {f"ref_{side}_tilde": value for side, value in combined.items()}
    pair = inputs | {f"ref_{side}_logps": value for side, value in combined.items()}
    return cases.evaluate(losses.dpo_loss, pair, params) | tilde


def tr_dpo_update(inputs, params):
    policy, reference, history = inputs["policy0"], inputs["ref0"], []
    for step in range(1, inputs["steps"] + 1):
        policy = policy + inputs["policy_increment"]
        reference = losses.update_reference(reference, policy, step, **params)
        history.append(reference)
    return {"ref_after_step": jnp.stack(history)}
