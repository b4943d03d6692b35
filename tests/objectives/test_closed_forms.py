"""The loss where policy and reference are equal, for variants that the defaults of the properties do not reach."""

import jax
import pytest

from tests.objectives.example_batches import batch, build, scored, state_of


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("apo", {"kind": "down"}),
        ("apo", {"kind": "down", "offset": False}),
        ("apo", {"offset": False}),
        ("exo_pair", {"label_smoothing": 0.2}),
        ("exo_pair", {"log_epsilon": -10.0}),
        ("f_dpo", {"divergence": "js"}),
        ("f_dpo", {"divergence": "forward_kl"}),
        ("f_dpo", {"divergence": "alpha", "alpha": -1.0}),
        ("nca_pair", {"loss_type": "biasedNCA"}),
        ("reward_aware_rpo", {"distance": "rpo_fwd_kl", "gt_reward_scale": 3.0}),
        ("reward_aware_rpo", {"distance": "rpo_sq", "gt_reward_scale": 3.0}),
        ("todo", {"alpha": 2.0, "label_smoothing": 0.2}),
    ],
)
def test_trap_01_variants_at_the_reference(name, options):
    with jax.enable_x64(True):
        objective = build(name, **options)
        outputs, examples = batch(name)
        outputs["ref_logps"] = outputs["logps"]
        arguments = outputs, examples, objective.denominators(examples), state_of(name, objective)
        (value, _, _), _ = scored(objective)(*arguments)
        assert float(value) == pytest.approx(objective.at_reference(examples), rel=1e-12)


def test_trap_01_one_win_rate_for_each_pair():
    """Self-play preference optimisation without the rejected response's own win rate takes 1 - that of the chosen."""
    with jax.enable_x64(True):
        objective = build("sppo", beta=0.1)
        outputs, examples = batch("sppo")
        outputs["ref_logps"] = outputs["logps"]
        examples = examples._replace(side={n: v for n, v in examples.side.items() if n != "rejected_win_prob"})
        (value, _, _), _ = scored(objective)(outputs, examples, objective.denominators(examples), {})
        assert float(value) == pytest.approx(objective.at_reference(examples), rel=1e-12)
