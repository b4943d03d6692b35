"""From streams to the shape of batches: packed sizes come from the data and from what the model costs."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxpref import models, objectives
from jaxpref.batch import Layout, computed_tokens
from jaxpref.configuration import schema
from jaxpref.data import Tokenized
from jaxpref.errors import ConfigError
from jaxpref.training import costs, inputs, mesh


def stream(examples=200, seed=0):
    random = np.random.default_rng(seed)

    def tokens(most):
        return random.integers(1, 50, random.integers(2, most))

    return [
        Tokenized(
            tokens(120), answers := (tokens(60), tokens(60)), tuple(np.ones(len(a), bool) for a in answers), {}, ""
        )
        for _ in range(examples)
    ]


ONE = costs.Machine()


def make(method="dpo", machine=ONE, **batch):
    objective = objectives.build({"term": objectives.config(method, data="rows")})
    section = schema.Batch(examples=16, **batch)
    return inputs.make({"rows": stream()}, objective, section, schema.Train(steps=10), seed=3, machine=machine)


def test_packed_sizes_come_from_the_data():
    padded, packed = (make(layout=layout) for layout in ("padded", "packed+shared"))

    def computed(made):
        batches = [made.batch(step) for step in range(10)]
        return sum(int(computed_tokens(batch)) for batch in batches)

    assert computed(packed) < 0.5 * computed(padded)
    assert padded.shape.micro_batches == 1


def test_fixed_sizes_are_kept():
    shape = make(layout="packed+shared", rows=2, prompt_length=200, response_length=100, short_length=30).shape
    assert (shape.rows, shape.layout) == (2, Layout(200, 2, 100, 30))
    assert make(layout="packed+shared", short_length=-1).shape.layout.short == 0
    with pytest.raises(ConfigError, match="batch.short_length is 30, but mesh.sequence divides the tokens of a row"):
        make(layout="packed", short_length=30, machine=costs.Machine(sequence=2))
    assert make(layout="packed", machine=costs.Machine(sequence=2)).shape.layout.short == 0


def test_rows_may_be_given_for_each_device():
    shape = make(rows_per_device=3, machine=costs.Machine(devices=4)).shape
    assert shape.rows == 12
    with pytest.raises(ConfigError, match="batch.rows is 4 and batch.rows_per_device is 3; give one of them"):
        make(rows=4, rows_per_device=3)


def test_kernels_that_compute_blocks_get_whole_ones():
    for layout in ("padded", "packed", "shared", "packed+shared"):
        row = make(layout=layout, machine=costs.Machine(granule=128)).shape.layout
        assert row.prompt % 128 == row.response % 128 == 0


def test_a_mesh_of_tpus_computes_blocks_and_one_of_cpus_does_not(v5p):
    machines = [
        costs.machine(models.BUILTIN["nano"], mesh.make_mesh(schema.Mesh(data=2, fsdp=2), devices))
        for devices in (v5p, jax.devices()[:4])
    ]
    assert [(found.devices, found.granule) for found in machines] == [(4, 128), (4, 1)]


def test_reward_heads_feed_one_more_token():
    assert (
        make("bradley_terry", layout="shared").shape.layout.response == 1 + make(layout="shared").shape.layout.response
    )


def test_wide_models_pay_less_for_attention():
    narrow, wide = models.BUILTIN["micro"], dataclasses.replace(models.BUILTIN["llama3-8b"], vocab_size=512)
    assert costs.of(wide, "cpu").pair < 0.1 * costs.of(narrow, "cpu").pair


@pytest.mark.parametrize("reference, several", [(False, 4 / 3), (True, 6 / 4)])
def test_coupled_objectives_pay_a_forward_for_several_micro_batches(reference, several):
    assert costs.of(models.BUILTIN["nano"], "cpu", coupled=True, reference=reference).several == pytest.approx(several)
    assert costs.of(models.BUILTIN["nano"], "cpu", reference=reference).several == 1.0


def test_an_unmeasured_platform_counts_floating_point_operations():
    config = models.BUILTIN["nano"]
    token = 2 * config.width * (2 * config.width + 2 * config.key_value_heads * config.head_dim + 3 * config.mlp_width)
    token = config.layers * token + 2 * config.width * config.vocab_size
    pair = 4 * config.layers * config.heads * config.head_dim
    assert costs.of(config, "elsewhere").pair == pytest.approx(pair / token)
