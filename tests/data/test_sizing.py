"""The choice of row and region sizes: cheapest on the batches at hand, and only a matter of cost."""

import numpy as np
import pytest

from jaxpref.batch import Layout
from jaxpref.data import Tokenized, first_fit, layouts, sizing
from jaxpref.errors import ConfigError

FREE_ATTENTION = sizing.Cost(pair=0.0)


def pair(prompt, *responses):
    return Tokenized(
        np.ones(prompt, np.int32),
        tuple(np.ones(n, np.int32) for n in responses),
        tuple(np.ones(n, bool) for n in responses),
        {},
        "pairs:1",
    )


def drawn(batches=6, examples=16, seed=0):
    """Batches of ragged pairs of up to 60 + 40 tokens."""
    random = np.random.default_rng(seed)

    def tokens(most):
        return int(np.clip(random.lognormal(np.log(most / 3), 0.8), 2, most))

    return [{"pairs": [pair(tokens(60), tokens(40), tokens(40)) for _ in range(examples)]} for _ in range(batches)]


STREAMS = {"pairs": layouts.StreamShape(16, 2, 60, 40)}


def choose(cost, layout="packed+shared", trials=None, **given):
    return sizing.choose(STREAMS, trials or drawn(), cost, layout=layout, **given)


@pytest.mark.parametrize("layout", ["packed", "packed+shared"])
def test_dear_attention_makes_rows_short_and_free_attention_long(layout):
    dear, cheap = (choose(sizing.Cost(pair=pair, micro_batch=20), layout).layout for pair in (10.0, 1e-6))
    least, _ = layouts.regions(STREAMS, layout=layout)
    assert dear.length <= 1.3 * least.length < cheap.length


def test_a_device_that_needs_many_tokens_gets_them_in_one_micro_batch():
    small, large = (choose(sizing.Cost(pair=1e-3, least=least)) for least in (0, 4000))
    assert small.rows * small.layout.length < 1000
    assert large.rows * large.layout.length > 2 * small.rows * small.layout.length


def test_an_extra_pass_for_several_micro_batches_is_avoided_where_it_costs_more_than_padding():
    separable, coupled = (choose(sizing.Cost(pair=1e-3, several=factor)) for factor in (1.0, 10.0))
    assert separable.micro_batches > 1 == coupled.micro_batches


@pytest.mark.parametrize("layout", ["packed", "packed+shared"])
@pytest.mark.parametrize("final", [False, True])
def test_rows_needed_are_the_rows_that_the_plan_fills(layout, final):
    for batch in drawn(seed=1):
        shape = layouts.batch_shape(STREAMS, layout=layout, rows=32, final=final)
        segments = layouts.plan(batch, shape).rows.segments
        own, partners = first_fit.pieces(batch, STREAMS)
        assert sizing.rows_needed(partners, shape.layout, final=final) == 0
        assert sizing.rows_needed(own, shape.layout, final=final) == np.any(segments > 0, axis=-1).sum()


def test_the_prediction_counts_what_the_plan_computes():
    row = Layout(60, 2, 50)
    assert sizing.attention_pairs(row) == 60 * 30 + 2 * 50 * 85
    cost = sizing.Cost(pair=0.01, micro_batch=7, least=100)
    shape = layouts.BatchShape(row._replace(short=20), 2, 4, STREAMS, True, False)
    batch = 2 * 160 + 0.01 * 2 * 10_300 + 7
    short = 2 * 100 + 0.01 * 2 * (60 * 30 + 2 * 20 * 70) + 7

    def used(*numbers):
        return [sizing.Used(own, 0) for own in numbers]

    assert sizing.predicted(shape, used(2, 2), cost) == pytest.approx(2 * batch)
    assert sizing.predicted(shape, used(1, 3), cost._replace(several=1.5)) == pytest.approx(1.5 * 2 * batch)
    each = sizing.predicted(shape, used(1), cost._replace(least=400), devices=2)
    assert each == pytest.approx(400 + 0.01 * 10_300 + 7)
    apart = sizing.predicted(shape, [sizing.Used(1, 2, 3, 4)], cost._replace(several=1.5, apart=0.4))
    assert apart == pytest.approx((1.5 + 0.4 * 2) * batch + (1.5 * 3 + 0.4 * 4) * short)


def test_what_the_config_fixes_stays():
    assert choose(FREE_ATTENTION, rows=4).rows == 4
    assert choose(FREE_ATTENTION, response_length=70).layout.response == 70
    fixed = choose(FREE_ATTENTION, prompt_length=90, response_length=70, rows=2)
    assert (fixed.rows, fixed.layout) == (2, Layout(90, 2, 70))
    assert choose(FREE_ATTENTION, "packed", length=300).layout.length == 300
    with pytest.raises(ConfigError, match="the longest example needs 99"):
        choose(FREE_ATTENTION, "packed", length=50)


@pytest.mark.parametrize("layout", ["packed", "packed+shared"])
def test_granule_and_devices_divide_the_choice(layout):
    shape = choose(sizing.TYPICAL, layout, granule=128, multiple_of=4)
    assert shape.rows % 4 == shape.layout.response % 128 == shape.layout.prompt % 128 == 0


def test_the_choice_is_the_same_for_every_process():
    assert choose(sizing.TYPICAL) == choose(sizing.TYPICAL)


def test_streams_with_different_numbers_of_responses_and_one_example():
    streams = STREAMS | {"demonstrations": layouts.StreamShape(1, 1, 60, 40)}
    trials = [batch | {"demonstrations": [pair(5, 3)]} for batch in drawn(2)]
    for layout in ("packed", "packed+shared"):
        shape = sizing.choose(streams, trials, sizing.TYPICAL, layout=layout)
        layouts.plan(trials[0], shape)


def test_short_rows_are_chosen_where_they_save_enough():
    """Long prompts with three long pairs of responses and thirteen short ones: rows of one example each."""
    cost, given = sizing.Cost(pair=1e-3), dict(prompt_length=60, response_length=40, rows=1)
    trials = [{"pairs": [pair(50, 35, 38)] * 3 + [pair(40, 9, 12)] * 13}]
    shape = choose(cost, trials=trials, **given)
    assert shape.layout == Layout(60, 2, 40, 12)
    (cut,) = (first_fit.pieces(batch, STREAMS) for batch in trials)
    assert sizing.micro_batches_used(cut, shape) == (3, 0, 13, 0)
    assert choose(cost._replace(least=1e4), trials=trials, **given).layout.short == 0  # nothing to save
    assert choose(cost, trials=trials, short_length=-1, **given).layout.short == 0
    assert choose(cost, trials=trials, short_length=13, granule=4, **given).layout.short == 16
