import math

import pytest

from jaxpref.errors import TrainingError
from jaxpref.training import selfcheck


def test_trap_01_policy_equal_to_reference_gives_the_closed_form():
    selfcheck.check_closed_form({"dpo": math.log(2)}, {"loss/dpo": 0.693147}, "float32")
    with pytest.raises(TrainingError, match="objective 'dpo' is 0.700000 .* must be 0.693147"):
        selfcheck.check_closed_form({"dpo": math.log(2)}, {"loss/dpo": 0.7}, "float32")


def test_a_metric_that_is_not_finite_stops_the_run():
    selfcheck.check_finite(3, {"loss": 1.0})
    with pytest.raises(TrainingError, match="step 3: gradient_norm, loss became NaN or infinite"):
        selfcheck.check_finite(3, {"loss": math.nan, "gradient_norm": math.inf, "margin": 0.0})


def test_trap_65_trainable_leaves_move_and_frozen_ones_do_not():
    trainable = {"a": True, "b": False, "c/bias": True}
    before = {"a": 1, "b": 2, "c/bias": 3}
    selfcheck.check_movement(before, before | {"a": 9}, trainable, [r"c/bias$"])
    with pytest.raises(TrainingError, match="1 trainable parameters have not moved.*c/bias"):
        selfcheck.check_movement(before, before | {"a": 9}, trainable, [])
    with pytest.raises(TrainingError, match="frozen parameters have moved: b"):
        selfcheck.check_movement(before, {"a": 9, "b": 9, "c/bias": 9}, trainable, [])
