"""Bytes between devices, read from the text of compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxpref.planning import traffic
from jaxpref.training import mesh
from tests.planning.sections import mesh_section

KIB = 1024

# A loop of 32 turns whose body gathers; inside it a loop whose counter grows by 2 up to 8, unrolled twice, that
# permutes; and a loop whose bound arrives with the data.
NESTED = """
HloModule jit_step, is_scheduled=true

%inner_condition (state.1: (bf16[8,128], u32[])) -> pred[] {
  %limit = u32[]{:T(128)} constant(8), metadata={op_name="x"}
  %state.1 = (bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) parameter(0)
  %counter.1 = u32[]{:T(128)} get-tuple-element(%state.1), index=1
  ROOT %less.1 = pred[]{:T(512)} compare(%counter.1, %limit), direction=LT, metadata={op_name="x"}
}

%inner_body (state.2: (bf16[8,128], u32[])) -> (bf16[8,128], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %state.2 = (bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) parameter(0)
  %part = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%state.2), index=0
  %counter.2 = u32[]{:T(128)} get-tuple-element(%state.2), index=1
  %permuted = (bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%part), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %arrived = bf16[8,128]{1,0:T(8,128)(2,1)} collective-permute-done(%permuted)
  %grown = u32[]{:T(128)} add(%counter.2, %two), metadata={op_name="x"}
  ROOT %state.3 = (bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) tuple(%arrived, %grown)
}

%outer_condition (state.4: (bf16[8,128], s32[])) -> pred[] {
  %layers = s32[]{:T(128)} constant(32)
  %state.4 = (bf16[8,128]{1,0:T(8,128)(2,1)}, s32[]{:T(128)}) parameter(0)
  %counter.4 = s32[]{:T(128)} get-tuple-element(%state.4), index=1
  ROOT %less.4 = pred[]{:T(512)} compare(%counter.4, %layers), direction=LT
}

%outer_body (state.5: (bf16[8,128], s32[])) -> (bf16[8,128], s32[]) {
  %state.5 = (bf16[8,128]{1,0:T(8,128)(2,1)}, s32[]{:T(128)}) parameter(0)
  %kernel = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%state.5), index=0
  %counter.5 = s32[]{:T(128)} get-tuple-element(%state.5), index=1
  %gathered = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather(%kernel), channel_id=2, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}
  %start = (bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) tuple(%kernel, %counter.5)
  %inner = (bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) while(%start), condition=%inner_condition, body=%inner_body
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%counter.5, %one)
  ROOT %state.6 = (bf16[8,128]{1,0:T(8,128)(2,1)}, s32[]{:T(128)}) tuple(%kernel, %next)
}

%open_condition (state.7: (f32[64], s32[], s32[])) -> pred[] {
  %state.7 = (f32[64]{0:T(256)}, s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %counter.7 = s32[]{:T(128)} get-tuple-element(%state.7), index=1
  %bound = s32[]{:T(128)} get-tuple-element(%state.7), index=2
  ROOT %less.7 = pred[]{:T(512)} compare(%counter.7, %bound), direction=LT
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %c = f32[]{:T(128)} add(%a, %b)
}

%open_body (state.8: (f32[64], s32[], s32[])) -> (f32[64], s32[], s32[]) {
  %state.8 = (f32[64]{0:T(256)}, s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %values = f32[64]{0:T(256)} get-tuple-element(%state.8), index=0
  %counter.8 = s32[]{:T(128)} get-tuple-element(%state.8), index=1
  %bound.8 = s32[]{:T(128)} get-tuple-element(%state.8), index=2
  %reduced = f32[64]{0:T(256)} all-reduce(%values), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %state.9 = (f32[64]{0:T(256)}, s32[]{:T(128)}, s32[]{:T(128)}) tuple(%reduced, %counter.8, %bound.8)
}

ENTRY %main (p0: bf16[8,128], p1: s32[], p2: f32[64]) -> f32[64] {
  %p0 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %p2 = f32[64]{0:T(256)} parameter(2)
  %first = (bf16[8,128]{1,0:T(8,128)(2,1)}, s32[]{:T(128)}) tuple(%p0, %p1)
  %layers.1 = (bf16[8,128]{1,0:T(8,128)(2,1)}, s32[]{:T(128)}) while(%first), condition=%outer_condition, body=%outer_body
  %second = (f32[64]{0:T(256)}, s32[]{:T(128)}, s32[]{:T(128)}) tuple(%p2, %p1, %p1)
  %micro = (f32[64]{0:T(256)}, s32[]{:T(128)}, s32[]{:T(128)}) while(%second), condition=%open_condition, body=%open_body
  ROOT %result = f32[64]{0:T(256)} get-tuple-element(%micro), index=0
}
"""  # noqa: E501  as compilers print it


def test_collectives_in_loops_count_once_a_turn():
    found = {c.kind: c for c in traffic.collectives(NESTED, micro_batches=5)}
    part = 8 * 128 * 2
    assert found["all-gather"] == traffic.Collective("all-gather", 4 * part * 3 / 4, 32, 4)
    assert found["collective-permute"] == traffic.Collective("collective-permute", part, 32 * 4, 0)
    assert found["all-reduce"] == traffic.Collective("all-reduce", 2 * 64 * 4 * 3 / 4, 5, 4)


def test_bytes_by_kind_leaves_out_what_does_not_occur():
    sent = traffic.bytes_by_kind(traffic.collectives(NESTED, micro_batches=1))
    assert sent == {
        "all-gather": 32 * 6 * KIB,
        "all-reduce": 2 * 64 * 4 * 3 / 4,
        "collective-permute": 32 * 4 * 2 * KIB,
    }


@pytest.mark.parametrize("turns", [1, 7])
def test_a_compiled_program_sends_what_arithmetic_says(turns):
    """Eight devices add up a [256, 64] float32 product of divided rows once in every turn of a loop."""
    devices = mesh.make_mesh(mesh_section(fsdp=8), jax.devices())
    place = lambda *axes: NamedSharding(devices, PartitionSpec(*axes))  # noqa: E731

    def step(x, weights):
        def turn(total, weight):
            product = jnp.einsum("nd,nf->df", x * weight, x[:, :64])
            return total + jax.lax.with_sharding_constraint(product, place()), None

        return jax.lax.scan(turn, jnp.zeros((256, 64)), weights)[0]

    x = jax.ShapeDtypeStruct((512, 256), np.float32, sharding=place("fsdp"))
    weights = jax.ShapeDtypeStruct((turns,), np.float32, sharding=place())
    text = jax.jit(step, out_shardings=place()).lower(x, weights).compile().as_text()
    sent = traffic.bytes_by_kind(traffic.collectives(text))
    assert sent == {"all-reduce": turns * 2 * 256 * 64 * 4 * 7 / 8}
