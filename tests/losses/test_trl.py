"""Side by side with TRL's DPO trainer on the same arrays: value and gradient of every loss type."""

import types
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

trl = pytest.importorskip("trl", reason="trl is not installed")
torch = pytest.importorskip("torch")

PAIRS, TOKENS, BETA, SMOOTHING = 4, 7, 0.3, 0.1


@pytest.fixture(scope="module")
def tokens():
    """Token log-probs ``[2 B, T]`` of policy and reference (chosen rows first) and the mask of response tokens."""
    rng = np.random.default_rng(0)
    mask = np.arange(TOKENS) < rng.integers(2, TOKENS + 1, (2 * PAIRS, 1))
    policy, reference, squares = (-rng.gamma(1.0, 1.0, mask.shape) * mask for _ in range(3))
    return policy, reference, squares, mask


class OneProcess:
    """What the trainer asks of its accelerator."""

    device = "cpu"

    @staticmethod
    def gather(values):
        return values

    gather_for_metrics = gather


def theirs(tokens, kind: str, **options) -> tuple[float, np.ndarray]:
    """The batch's loss, and its gradient with respect to the policy's token log-probs."""
    policy, reference, squares = (torch.tensor(array, dtype=torch.float32) for array in tokens[:3])
    mask = torch.tensor(tokens[3])
    policy.requires_grad_()
    # The trainer scores position t + 1 at position t, and shifts the mask for it.
    completion = torch.nn.functional.pad(mask.long(), (1, 0))
    ones = torch.ones_like(policy)
    outputs = types.SimpleNamespace(
        log_probs=policy, log_sum_sq_probs=squares, entropy=ones, mean_logits=ones, is_top1=ones.bool()
    )
    settings = dict(
        beta=BETA, label_smoothing=SMOOTHING, f_divergence_type="reverse_kl", f_alpha_divergence_coef=0.5,
        ld_alpha=None, use_weighting=False, loss_types=[kind], loss_weights=[1.0], precompute_ref_logps=True,
        aux_loss_enabled=False, accelerator=OneProcess, _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0, _tp_size=1, model=types.SimpleNamespace(training=True),
        args=types.SimpleNamespace(discopop_tau=0.05),
    )  # fmt: skip
    trainer = types.SimpleNamespace(**(settings | options))
    sums = (reference * mask).sum(1)
    if trainer.ld_alpha is not None:
        sums = torch.tensor(np.concatenate(desensitised(*np.split(np.asarray(tokens[1]), 2), tokens[3])).astype("f"))
    inputs = {
        "input_ids": torch.zeros_like(completion),
        "attention_mask": torch.ones_like(completion),
        "completion_mask": completion,
        "ref_chosen_logps": sums[:PAIRS],
        "ref_rejected_logps": sums[PAIRS:],
    }
    loss = trl.DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)
    loss.backward()
    return float(loss.detach()), (policy.grad * mask).numpy()


def desensitised(chosen, rejected, mask):
    masks = np.split(mask, 2)
    sizes = [each.sum(1) for each in masks]
    return (
        losses.ld_logps(chosen, masks[0], sizes[1], ld_alpha=0.5),
        losses.ld_logps(rejected, masks[1], sizes[0], ld_alpha=0.5),
    )


def ours(tokens, loss) -> tuple[float, np.ndarray]:
    """The same of ``loss(policy tokens, reference tokens, squares, mask) -> values``."""
    policy, reference, squares, mask = tokens
    value, gradient = jax.value_and_grad(lambda policy: jnp.mean(loss(policy, reference, squares, mask)))(
        jnp.asarray(policy)
    )
    return float(value), np.asarray(gradient)


def on_sums(loss, *, lengths=False, **hyperparameters):
    """A loss of sums (and lengths) as one of tokens."""

    def of_tokens(policy, reference, squares, mask):
        sums = [jnp.split(jnp.sum(jnp.where(mask, array, 0), axis=1), 2) for array in (policy, reference)]
        arrays = [*sums[0], *sums[1]] + (jnp.split(jnp.sum(mask, axis=1), 2) if lengths else [])
        return loss(*arrays, **hyperparameters)

    return of_tokens


def without_shift(*pair, beta):
    return losses.nca_pair_loss(*pair, beta=beta, loss_type="biasedNCA")


def on_chosen(policy, reference, squares, mask):
    return losses.sft_loss(policy[:PAIRS], mask[:PAIRS])


def with_weights(policy, reference, squares, mask):
    weights = jnp.split(losses.wpo_weights(policy, squares, mask), 2)
    return on_sums(lambda *pair: losses.wpo_loss(*pair, *weights, beta=BETA, clamp=False))(
        policy, reference, squares, mask
    )


def with_common_length(policy, reference, squares, mask):
    tokens = *jnp.split(policy, 2), *jnp.split(jnp.asarray(reference), 2), *jnp.split(jnp.asarray(mask), 2)
    return losses.ld_dpo_loss(*tokens, beta=BETA, ld_alpha=0.5)


TYPES = {
    "sigmoid": on_sums(losses.dpo_loss, beta=BETA),
    "hinge": on_sums(losses.dpo_hinge_loss, beta=BETA),
    "ipo": on_sums(losses.ipo_loss, lengths=True, tau=BETA),
    "exo_pair": on_sums(losses.exo_pair_loss, beta=BETA, label_smoothing=SMOOTHING),
    "nca_pair": on_sums(losses.nca_pair_loss, beta=BETA),
    "robust": on_sums(losses.rdpo_loss, beta=BETA, label_smoothing=SMOOTHING),
    "bco_pair": on_sums(without_shift, beta=BETA),  # TRL has left out the shift, with which the method begins
    "sppo_hard": on_sums(losses.sppo_hard_loss, beta=BETA),
    "aot": on_sums(losses.aot_loss, beta=BETA, label_smoothing=SMOOTHING),
    "aot_unpaired": on_sums(losses.aot_loss, beta=BETA, label_smoothing=SMOOTHING, paired=False),
    "apo_zero": on_sums(losses.apo_loss, beta=BETA, kind="zero"),
    "apo_down": on_sums(losses.apo_loss, beta=BETA, kind="down"),
    "discopop": on_sums(losses.discopop_loss, beta=BETA, tau=0.05),
    "sft": on_chosen,
    "sigmoid_norm": on_sums(losses.ln_dpo_loss, lengths=True, beta=BETA),
}
OPTIONS = {
    "forward_kl": ({"f_divergence_type": "forward_kl"}, on_sums(losses.f_dpo_loss, beta=BETA, divergence="forward_kl")),
    "js": ({"f_divergence_type": "js_divergence"}, on_sums(losses.f_dpo_loss, beta=BETA, divergence="js")),
    "alpha": (  # TRL's coefficient is 1 - alpha
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
        on_sums(losses.f_dpo_loss, beta=BETA, divergence="alpha", alpha=0.7),
    ),
    "weighted": ({"use_weighting": True}, with_weights),
    "length desensitised": ({"ld_alpha": 0.5}, with_common_length),
}


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    np.testing.assert_allclose(one[1], other[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", TYPES)
def test_loss_type(tokens, kind):
    assert_same(ours(tokens, TYPES[kind]), theirs(tokens, kind))


@pytest.mark.parametrize("option", OPTIONS)
def test_option(tokens, option):
    fields, loss = OPTIONS[option]
    assert_same(ours(tokens, loss), theirs(tokens, "sigmoid", **fields))


def test_trap_label_smoothing_is_ignored_there(tokens):
    """TRL's sigmoid loss accepts label smoothing and leaves it out; ours applies it."""
    assert_same(ours(tokens, TYPES["sigmoid"]), theirs(tokens, "sigmoid", label_smoothing=0.4))
    smoothed = ours(tokens, on_sums(losses.dpo_loss, beta=BETA, label_smoothing=0.4))
    assert smoothed[0] != pytest.approx(theirs(tokens, "sigmoid", label_smoothing=0.4)[0], rel=1e-3)
