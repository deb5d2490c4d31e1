"""Bytes sent, from HLO text written by hand."""

import pytest

from experiments import hlo

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
