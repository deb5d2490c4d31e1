"""Bytes sent, from HLO text written by hand."""

import pytest

from experiments.common import hlo

TEXT = """HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=1
  %g = bf16[16,4]{1,0} all-gather(%x), channel_id=1, replica_groups=[4,2]<=[8], dimensions={0}, metadata={op_name="g"}
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %x)
}

%cond (p: (s32[], f32[8,4])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %w = (s32[], f32[8,4]{1,0}) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"24"}}
  %r = (f32[8]{0}, /*index=1*/f32[2]{0}) all-reduce(%x, %y), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %s = f32[2,4]{1,0} reduce-scatter(%x), replica_groups=mesh['a'=4,'b'=2], device_ids=([8]) {'a'}, to_apply=%add
  ROOT %c = f32[8,4]{1,0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
}
"""


def test_loops_are_multiplied_out_and_every_kind_has_its_share():
    found = hlo.traffic(TEXT, 8)
    assert found.calls == {"all-gather": 24, "all-reduce": 1, "reduce-scatter": 1, "collective-permute": 1}
    assert found.sent == pytest.approx({
        "all-gather": 24 * 16 * 4 * 2 / 2, "all-reduce": 2 * (8 + 2) * 4 * 3 / 4,
        "reduce-scatter": 4 * 2 * 4 * 4 * 3 / 4,
        "collective-permute": 8 * 4 * 4})
    assert found.total() == pytest.approx(sum(found.sent.values()))
    assert found.sources["all-gather", "g"] == found.sent["all-gather"]
    assert found.unknown_loops == 0
    unknown = hlo.traffic(TEXT.replace("known_trip_count", "other"), 8)
    assert unknown.calls["all-gather"] == 1
    assert unknown.unknown_loops == 1


def test_bytes_of_types_and_sizes_of_groups():
    assert hlo.shape_bytes("(f32[4,8]{1,0}, s32[], pred[3]{0}, bf16[2,2])") == 128 + 4 + 3 + 8
    assert hlo.group_size("replica_groups={{0,2},{4,6}}, x", 8) == 2
    assert hlo.group_size("replica_groups=[1,8]<=[8]", 8) == 8
    assert hlo.group_size("replica_groups={}", 8) == 8
    assert hlo.group_size("replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'a','b'}, x", 8) == 8


# As XLA writes programs for GPUs (all-gather, all-reduce, collective-permute have starts of their own) and TPUs (tiled
# layouts, contexts of the runtime in the tuple); all others are wrapped: "reduce-scatter-start", or async-start.
STARTED = """HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}

%wrapped (q: f32[8,4]) -> f32[8,4] {
  %q = f32[8,4]{1,0} parameter(0)
  ROOT %wrapped_a = f32[8,4]{1,0} all-to-all(f32[8,4]{1,0} %q), replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (x: f32[8,4], y: bf16[2,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %y = bf16[2,4]{1,0} parameter(1)
  %g = (f32[8,4]{1,0:T(8,128)}, f32[32,4]{1,0:T(8,128)S(1)}) all-gather-start(f32[8,4]{1,0} %x), replica_groups=[1,4]<=[4], dimensions={0}, use_global_device_ids=true, channel_id=1, metadata={op_name="g"}
  %gd = f32[32,4]{1,0} all-gather-done((f32[8,4]{1,0}, f32[32,4]{1,0}) %g), metadata={op_name="g"}
  %h = ((f32[8,4]{1,0}, bf16[2,4]{1,0}), (f32[16,4]{1,0}, bf16[4,4]{1,0})) all-gather-start(f32[8,4]{1,0} %x, bf16[2,4]{1,0} %y), replica_groups=[2,2]<=[4], dimensions={0}, use_global_device_ids=true, channel_id=2
  %hd = (f32[16,4]{1,0}, bf16[4,4]{1,0}) all-gather-done(%h)
  %r = f32[8,4]{1,0} all-reduce-start(f32[8,4]{1,0} %x), replica_groups={{0,1,2,3}}, to_apply=%add
  %rd = f32[8,4]{1,0} all-reduce-done(f32[8,4]{1,0} %r)
  %v = (f32[8,4]{1,0}, bf16[2,4]{1,0}) all-reduce-start(f32[8,4]{1,0} %x, bf16[2,4]{1,0} %y), replica_groups={{0,1},{2,3}}, to_apply=%add
  %vd = (f32[8,4]{1,0}, bf16[2,4]{1,0}) all-reduce-done(%v)
  %p = (bf16[2,4]{1,0}, bf16[2,4]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(bf16[2,4]{1,0} %y), source_target_pairs={{0,1},{1,0}}
  %pd = bf16[2,4]{1,0} collective-permute-done(%p)
  %s = ((f32[8,4]{1,0}), f32[2,4]{1,0}, u32[]) reduce-scatter-start(f32[8,4]{1,0} %x), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
  %sd = f32[2,4]{1,0} reduce-scatter-done(%s)
  %a = ((f32[8,4]{1,0}), f32[8,4]{1,0}, u32[]) async-start(f32[8,4]{1,0} %x), calls=%wrapped
  %au = ((f32[8,4]{1,0}), f32[8,4]{1,0}, u32[]) async-update(%a), calls=%wrapped
  ROOT %ad = f32[8,4]{1,0} async-done(%au), calls=%wrapped
}
"""  # noqa: E501


def test_a_collective_in_two_halves_counts_once_and_by_its_result():
    found = hlo.traffic(STARTED, 4)
    assert found.calls == {"all-gather": 2, "all-reduce": 2, "collective-permute": 1, "reduce-scatter": 1,
                           "all-to-all": 1}
    assert found.sent == pytest.approx({
        "all-gather": 32 * 4 * 4 * 3 / 4 + (16 * 4 * 4 + 4 * 4 * 2) / 2,
        "all-reduce": 2 * 8 * 4 * 4 * 3 / 4 + 2 * (8 * 4 * 4 + 2 * 4 * 2) / 2,
        "collective-permute": 2 * 4 * 2,
        "reduce-scatter": 4 * 2 * 4 * 4 * 3 / 4,
        "all-to-all": 8 * 4 * 4 * 3 / 4})
    assert found.sources["all-gather", "g"] == 32 * 4 * 4 * 3 / 4
    # The same program with its collectives whole sends as much.
    whole = STARTED.replace("%g = (f32[8,4]{1,0:T(8,128)}, f32[32,4]{1,0:T(8,128)S(1)}) all-gather-start",
                            "%g = f32[32,4]{1,0:T(8,128)S(1)} all-gather")
    assert whole != STARTED
    assert hlo.traffic(whole, 4) == found


def test_elements_of_a_tuple_type():
    assert hlo.elements("((f32[4,8]{1,0:T(8,128)}, s32[]), bf16[2]{0}, /*index=2*/u32[])") == [
        "(f32[4,8]{1,0:T(8,128)}, s32[])", "bf16[2]{0}", "/*index=2*/u32[]"]
