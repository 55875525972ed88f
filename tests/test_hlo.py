"""What is read from a compiled program: counts by hand, loops as often as they run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jepa_vl.training import hlo

TEXT = """\
HloModule step, is_scheduled=true

%fused_computation (param_0: bf16[12,8,128], param_1: s32[]) -> bf16[8,128] {
  %param_0 = bf16[12,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %slice = bf16[1,8,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%param_0, %param_1), dynamic_slice_sizes={1,8,128}
  ROOT %bitcast = bf16[8,128]{1,0:T(8,128)(2,1)} bitcast(%slice)
}

%fused_product (param_0.1: bf16[8,128], param_1.1: bf16[128,256]) -> bf16[8,256] {
  %param_0.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1.1 = bf16[128,256]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution = bf16[8,256]{1,0:T(8,128)(2,1)} convolution(%param_0.1, %param_1.1), dim_labels=bf_io->bf
}

%condition (p: (s32[], bf16[12,8,128], /*index=2*/bf16[128,256])) -> pred[] {
  %p = (s32[]{:T(128)}, bf16[12,8,128]{2,1,0}, /*index=2*/bf16[128,256]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(12)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (q: (s32[], bf16[12,8,128], bf16[128,256])) -> (s32[], bf16[12,8,128], bf16[128,256]) {
  %q = (s32[]{:T(128)}, bf16[12,8,128]{2,1,0}, bf16[128,256]{1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %stack = bf16[12,8,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%q), index=1
  %weights = bf16[128,256]{1,0:T(8,128)(2,1)} get-tuple-element(%q), index=2
  %layer = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%stack, %j), kind=kLoop, calls=%fused_computation
  %product = bf16[8,256]{1,0:T(8,128)(2,1)S(1)} fusion(%layer, %weights), kind=kOutput, calls=%fused_product, backend_config={"window_config":{"estimated_cycles":"50"}}, metadata={op_name="jit(step)/mlp"}
  %gathered = bf16[16,256]{1,0:T(8,128)(2,1)S(1)} all-gather(%product), channel_id=3, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  %again = bf16[16,256]{1,0:T(8,128)(2,1)S(1)} all-gather(%product), channel_id=3, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  ROOT %next = (s32[]{:T(128)}, bf16[12,8,128]{2,1,0}, bf16[128,256]{1,0}) tuple(%j, %stack, %weights)
}

ENTRY %main (a: bf16[12,8,128], b: bf16[128,256]) -> f32[256] {
  %a = bf16[12,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[128,256]{1,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, bf16[12,8,128]{2,1,0}, bf16[128,256]{1,0}) tuple(%zero, %a, %b)
  %loop = (s32[]{:T(128)}, bf16[12,8,128]{2,1,0}, bf16[128,256]{1,0}) while(%start), condition=%condition, body=%body
  %sum = f32[256]{0:T(256)} custom-call(%b), custom_call_target="Sum", backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %total = f32[256]{0:T(256)} all-reduce(%sum), channel_id=4, replica_groups=[2,4]<=[8], to_apply=%add
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def program():
    return hlo.Program(TEXT)


def test_a_loop_counts_as_often_as_it_runs(program):
    assert program.runs["body"] == 12 and program.runs["main"] == 1
    assert program.flops() == 12 * 2 * 8 * 128 * 256


def test_the_cycles_of_a_loop_count_as_often_as_it_runs(program):
    assert program.cycles() == 12 * 50 + 7
    assert hlo.Program(TEXT.replace("estimated_cycles", "other")).cycles() == 0


def test_costs_are_told_by_the_name_that_tracing_gave(program):
    # The layer and the product stay on the chip, the weights are read in each round.
    assert program.costs["jit(step)/mlp"] == (12 * 50, 12 * 128 * 256 * 2)
    assert program.costs[""][0] == 7


def test_collectives_are_counted_once_a_channel_with_the_bytes_of_their_results(program):
    assert program.collectives() == [
        hlo.Collective("all-gather", 4, 12, 12 * 16 * 256 * 2),
        hlo.Collective("all-reduce", 4, 1, 256 * 4),
    ]


def test_a_reduce_scatter_of_the_tpu_compiler_is_told_from_an_all_reduce():
    """It is a fusion of that name; others of another shape may have its channel."""
    text = """\
%all-reduce-scatter.1 (a: bf16[16,64]) -> bf16[4,64] {
  %a = bf16[16,64]{1,0} parameter(0)
  %sum = bf16[16,64]{1,0} all-reduce(%a), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %own = bf16[4,64]{1,0} dynamic-slice(%sum), dynamic_slice_sizes={4,64}
}

ENTRY %main (b: bf16[16,64], c: f32[32]) -> bf16[4,64] {
  %b = bf16[16,64]{1,0} parameter(0)
  %c = f32[32]{0} parameter(1)
  %all = f32[32]{0} all-reduce(%c), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %scattered = bf16[4,64]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    assert hlo.Program(text).collectives() == [
        hlo.Collective("all-reduce", 4, 1, 32 * 4),
        hlo.Collective("reduce-scatter", 4, 1, 4 * 64 * 2),
    ]


def test_of_a_stack_a_slice_moves_and_what_stays_on_the_chip_does_not(program):
    # A layer of the stack and the weights are read in each round; the products stay on the chip.
    inside = 12 * (8 * 128 * 2 + 4 + 128 * 256 * 2)
    inside += 12 * (4 + 4 + 1)  # the loop compares its counter
    after = (128 * 256 * 2 + 256 * 4) + 2 * 256 * 4
    assert program.bytes_moved() == inside + after


def test_a_slice_that_is_fetched_ahead_moves_its_own_bytes_alone():
    """Its operation names the whole array as well, which stays where it is."""
    text = """\
ENTRY %main (a: bf16[32,128]) -> bf16[8,128] {
  %a = bf16[32,128]{1,0:T(8,128)(2,1)} parameter(0)
  %ahead = ((bf16[32,128]{1,0:T(8,128)(2,1)}), bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:8], [0:128]}
  ROOT %there = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} slice-done(%ahead)
}
"""  # noqa: E501
    assert hlo.Program(text).bytes_moved() == 8 * 128 * 2
    outside = text.replace("S(1)", "")  # both ends in main memory
    assert hlo.Program(outside).bytes_moved() == 2 * 8 * 128 * 2


def test_a_loop_of_unknown_length_is_not_guessed():
    with pytest.raises(ValueError, match="loop: a loop of unknown length"):
        hlo.Program(TEXT.replace("constant(12)", "parameter(1)")).flops()


@pytest.mark.parametrize(
    ("left", "right", "labels", "window", "expected"),
    [
        # A product over a batch, as XLA:TPU writes it: 4 x [8, 16] [16, 32].
        ((4, 8, 16), (4, 16, 32), "0bf_0io->0bf", "size=4 stride=3 pad=0_0 lhs_dilate=4", 4),
        ((8, 16), (16, 32), "bf_io->bf", "", 1),
        # A 3 x 3 convolution with padding of 1 on 5 x 5: corners meet fewer kernel places.
        ((2, 5, 5, 3), (3, 3, 3, 7), "b01f_01io->b01f", "size=3x3 pad=1_1x1_1", 13 * 13),
    ],
)
def test_padding_is_not_counted_in_convolutions(left, right, labels, window, expected):
    sizes = {"0bf_0io->0bf": (4, 8, 32), "bf_io->bf": (8, 32), "b01f_01io->b01f": (2, 5, 5, 7)}
    shape = ",".join(map(str, sizes[labels]))
    text = f"  %c = f32[{shape}]{{0}} convolution(%l, %r), window={{{window}}}, dim_labels={labels}"
    operation = hlo._operation(text)
    batch, inputs, outputs = left[labels.index("b")], right[-2], right[-1]
    assert hlo._convolution(left, right, operation) == 2 * batch * inputs * outputs * expected


def test_a_real_program_of_the_cpu_compiler_is_read():
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    rows, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())

    def loss(weights, x):
        y, _ = jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, weights)
        return jnp.mean(y)

    weights = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=whole)
    x = jax.ShapeDtypeStruct((32, 64), jnp.float32, sharding=rows)
    step = jax.jit(jax.grad(loss), out_shardings=whole)
    program = hlo.Program(step.lower(weights, x).compile().as_text())
    forward = 5 * 2 * (32 // 4) * 64 * 64
    assert program.flops() == 3 * forward  # a loop is one: x of the first layer has a gradient too
    (summed,) = program.collectives()
    assert (summed.kind, summed.group, summed.bytes) == ("all-reduce", 4, 5 * 64 * 64 * 4)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}, dimensions={0}", 4),
        ("[2,4]<=[8], use_global_device_ids=true", 4),
        ("mesh['a'=2,'b'=4] {'b'}, dimensions={0}", 4),
        ("mesh['a'=1,'b'=16,'c'=4], device_ids=([4,16]T(1,0)) {'b'}, dimensions={0}", 16),
        ("mesh['a'=2,'b'=16] {'a','b'}, use_global_device_ids=true", 32),
    ],
)
def test_groups_of_a_collective_are_read_however_they_are_told(groups, size):
    assert hlo.group_size(f", channel_id=1, replica_groups={groups}") == size


def test_groups_told_in_another_way_are_not_taken_for_none():
    assert hlo.group_size(", source_target_pairs={{0,1},{1,0}}") == 0
    with pytest.raises(ValueError, match="groups of a collective: replica_groups=other"):
        hlo.group_size(", replica_groups=other(8)")
