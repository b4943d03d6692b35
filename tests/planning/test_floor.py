"""The arithmetic floor of a step against counts by hand."""

import jax
import pytest

from jaxpref import configuration, objectives
from jaxpref.planning import floor, program, slices
from jaxpref.training import mesh
from jaxpref.training.throughput import flops_per_token

PROMPT, RESPONSE, PAIRS = 65, 32, 8


def config_of(layout="padded", objective="dpo", **fields):
    config = configuration.default()
    config.model.name = "nano"
    config.data.pairs = dict(kind="pairs", source="unread.jsonl")
    config.length.prompt, config.length.response = PROMPT, RESPONSE
    config.batch.examples = PAIRS
    config.batch.layout = layout
    config.objectives[objective] = objectives.config(objective)
    if objective == "dpo":
        config.reference.kind = "cached"
    for name, value in fields.items():
        section, _, field = name.partition("_")
        config[section][field] = value
    return config


def program_of(*arguments, **fields):
    sections = configuration.sections(config_of(*arguments, **fields))
    return program.program(sections, mesh.make_mesh(sections.mesh, jax.devices()))


def test_padded_pairs_compute_two_rows_of_the_longest_sequence():
    made = program_of()
    config, length = made.drawn.model.config, PROMPT + RESPONSE - 1
    forward = 2 * PAIRS * length * flops_per_token(config, (length + 1) / 2)
    assert floor.flops(made, two_passes=False).model == pytest.approx(3 * forward)


def test_shared_pairs_compute_the_prompt_once_and_responses_that_see_all_of_it():
    made = program_of("shared")
    config, prompt = made.drawn.model.config, PROMPT - 1
    each = prompt * flops_per_token(config, (prompt + 1) / 2, vocabulary=False)  # nothing is scored there
    each += 2 * RESPONSE * flops_per_token(config, prompt + (RESPONSE + 1) / 2)
    assert floor.flops(made, two_passes=False).model == pytest.approx(3 * PAIRS * each)


def test_prompts_of_their_own_lie_before_their_responses():
    (stream,) = program_of("shared", "mapl_inter", reference_kind="cached").shape.streams.values()
    assert (stream.responses, stream.prompt, stream.response) == (4, 1, PROMPT - 1 + RESPONSE)


def test_recomputation_counts_as_hardware_flops_only():
    plain, full = program_of(), program_of(model_remat="full")
    tokens = 2 * PAIRS * (PROMPT + RESPONSE - 1)
    vocabulary = 2 * tokens * 64 * plain.drawn.model.config.vocab_size
    counted, again = floor.flops(plain, two_passes=False), floor.flops(full, two_passes=False)
    assert counted.model == again.model
    assert counted.hardware == pytest.approx(counted.model + vocabulary)
    assert again.hardware == pytest.approx(counted.model * 4 / 3)


def test_a_frozen_reference_is_one_more_forward_and_a_reward_model_needs_no_vocabulary():
    cached, frozen = program_of(), program_of(reference_kind="frozen")
    assert floor.flops(frozen, two_passes=False).model == pytest.approx(
        floor.flops(cached, two_passes=False).model * 4 / 3
    )
    reward = program_of(objective="bradley_terry")
    length = PROMPT + RESPONSE  # the last token is read, too
    forward = 2 * PAIRS * length * flops_per_token(reward.drawn.model.config, (length + 1) / 2, vocabulary=False)
    assert floor.flops(reward, two_passes=False) == floor.Flops(pytest.approx(3 * forward), pytest.approx(3 * forward))


def test_an_adapter_needs_no_gradients_of_weights_and_its_reference_one_more_forward():
    cached, off = program_of(adapter_kind="lora"), program_of(adapter_kind="lora", reference_kind="adapter_off")
    whole = floor.flops(program_of(), two_passes=False).model
    assert floor.flops(cached, two_passes=False).model == pytest.approx(whole * 2 / 3)
    assert floor.flops(off, two_passes=False).model == pytest.approx(whole)


def test_keeping_attention_recomputes_its_output_and_the_mlp():
    kept, none = (floor.flops(program_of(model_remat=remat), two_passes=False) for remat in ("attention", "none"))
    config = program_of().drawn.model.config
    again = config.heads * config.head_dim * config.width + 3 * config.width * config.mlp_width
    tokens = 2 * PAIRS * (PROMPT + RESPONSE - 1)
    assert kept.hardware - none.hardware == pytest.approx(2 * tokens * config.layers * again)


def test_bytes_on_device_are_those_of_its_shards():
    made = program_of()
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(made.drawn.shapes.params))
    held = floor.bytes_on_device(made.drawn.shapes.params)
    assert whole / 8 <= held < whole / 8 + 4 * 64 * 8  # norms are whole everywhere


def test_the_least_time_is_that_of_the_slowest_part():
    made = program_of()
    where = slices.Slice("v5e:2x4", 1, slices.CHIPS["v5e"], 197e12, jax.devices())
    line = floor.roofline(made, floor.Flops(1e15, 197e12 * 8 * 0.5), 100e9, 0, where)
    assert line.compute == pytest.approx(0.5)
    assert line.links == pytest.approx(100e9 / 200e9)
    assert line.seconds == max(line.compute, line.memory, line.links)
    assert floor.Roofline(1.0, 2.0, 0.5).bound == "memory"


def test_a_plan_needs_lengths():
    config = config_of()
    config.length.response = 0
    sections = configuration.sections(config)
    with pytest.raises(ValueError, match="config.length.prompt and config.length.response must be positive"):
        program.program(sections, mesh.make_mesh(sections.mesh, jax.devices()))
