"""Schedules that were lowered wrongly once, each with the kernel it belongs to."""

from __future__ import annotations

import pytest

from tilewright.ir.kernel import parse_kernel
from tilewright.machine.target import Target
from tilewright.schedule.schedule import Schedule
from tilewright.verify.schedules import replay

# A load of the masked tail was moved out of its branch, over the end of the tensor.
BRANCH = (
    """kernel format 1:
  stage t1 of t1
  layout t0: [50,70] a0*70+a1*1 size 3500
  layout t1: [70,50] a0*50+a1*1 size 3500
program k format 1(t0: f32[50, 70]):
  t1: f32[a0<70, a1<50] = t0[a1, a0]
  return t1
""",
    "x86-sse42",
    '{"format":1,"chunk":8,"par":2,"s0.lane":"b0","s0.nt":0,"s0.order":"b0,b1","s0.reg.b0":16,"s0.reg.b1":1,"s0.tail.b0":"peel","s0.tile.b0":48,"s0.tile.b1":32}',
)
# The same for a gather.
BRANCH_GATHER = (
    """kernel format 1:
  stage t1 of t1
  layout t0: [1,5,9,10] a1*90+a2*10+a3*1 size 450
  layout t1: [450] a0*1 size 450
program k format 1(t0: f32[1, 5, 9, 10]):
  t1: f32[a0<450] = t0[0, a0 // 90, a0 // 10 % 9, a0 % 10] + f32(a0)
  return t1
""",
    "x86-avx512",
    '{"format":1,"chunk":1,"par":1,"s0.lane":"b0","s0.nt":0,"s0.order":"b0","s0.reg.b0":32,"s0.tile.b0":128}',
)
# A lane axis whose block is one point was still a masked vector, whose positions shared a place.
ONE_POINT = (
    """kernel format 1:
  shared a1
  stage t2 of t2
  stage t3 of t3
  layout t0: [5,20] a0*20+a1*1 size 100
  layout t3: [5] a0*1 size 5
program k format 1(t0: f32[5, 20]):
  t2: f32[a1<5] = max(a2<20) t0[a1, a2]
  t3: f32[a1<5] = sum(a2<20) exp(t0[a1, a2] - t2[a1])
  return t3
""",
    "x86-avx512",
    '{"format":1,"block.0":1,"chunk":1,"par":1,"s0.lane":"b0","s0.nt":0,"s0.order":"b0","s0.prefetch":0,"s0.reg.b0":16,"s0.reg.k0":1,"s0.tile.b0":1,"s1.lane":"k0","s1.nt":0,"s1.order":"b0","s1.prefetch":1,"s1.reg.b0":1,"s1.reg.k0":32,"s1.tile.b0":1}',
)
# Packing operand A lost the mask of a lane axis that is reduced.
REDUCED_LANE = (
    """kernel format 1:
  stage t4 of t4
  layout t0: [37,29] a0*29+a1*1 size 1073
  layout t1: [29,45] a0*45+a1*1 size 1305
  layout t4: [37,45] a0*45+a1*1 size 1665
program k format 1(t0: f32[37, 29], t1: f32[29, 45]):
  t4: f32[a0<37, a1<45] = sum(a2<29) t0[a0, a2] * t1[a2, a1]
  return t4
""",
    "x86-sse42",
    '{"format":1,"chunk":8,"par":2,"s0.lane":"k0","s0.order":"n0:L2,m0:L2,n0,m0","s0.pack.a":"block","s0.pack.b":"panel","s0.reg.k0":4,"s0.reg.m0":5,"s0.reg.n0":1,"s0.tail.m0":"overlap","s0.tile.m0":32,"s0.tile.n0":32}',
)


# A tensor times itself: both factors, and what follows, were read from the packed block of one.
GRAM = (
    """kernel format 1:
  stage t2 of t2, t1
  layout t0: [3,31] a0*31+a1*1 size 93
  layout t1: [31,31] a0*31+a1*1 size 961
program k format 1(t0: f32[3, 31]):
  t2: f32[a0<31, a1<31] = sum(a2<3 if t0[a2, a1] < -0.5) t0[a2, a1] * t0[a2, a0]
  t1: f32[a0<31, a1<31] = cos(max(t2[a0, a1], t0[min(a0, 2), a1]))
  return t1
""",
    "x86-avx512",
    '{"format":1,"chunk":1,"par":0,"s0.ahead":0,"s0.fetch":1,"s0.lane":"n0","s0.order":"m0:L2,n0,m0","s0.pack.a":"block","s0.pack.b":"none","s0.reg.k0":2,"s0.reg.m0":12,"s0.reg.n0":32,"s0.rows":0,"s0.strip":0,"s0.tail.m0":"peel","s0.tile.m0":24,"s0.tile.n0":31}',
)
# The same for 16-bit floats that are packed as f32.
GRAM_HALF = (
    """kernel format 1:
  stage t1 of t1
  layout t0: [37,19] a0*19+a1*1 size 703
  layout t1: [37,37] a0*37+a1*1 size 1369
program k format 1(t0: f16[37, 19]):
  t1: f32[a0<37, a1<37] = sum(a2<19) f32(t0[a0, a2]) * f32(t0[a1, a2])
  return t1
""",
    "x86-avx2",
    '{"format":1,"chunk":1,"par":1,"s0.ahead":0,"s0.fetch":0,"s0.lane":"n0","s0.order":"m0:L2,n0,m0","s0.pack.a":"block","s0.pack.b":"panel","s0.reg.k0":2,"s0.reg.m0":6,"s0.reg.n0":16,"s0.rows":0,"s0.strip":0,"s0.tail.m0":"peel","s0.tile.m0":12,"s0.tile.n0":37}',
)
# A block of operand A was of one matrix where a tile reads one of every position of its lane.
LANE_OF_MATRICES = (
    """kernel format 1:
  stage t3 of t3, t2
  layout t0: [16,5,16] a0*80+a1*16+a2*1 size 1280
  layout t1: [5,24,1,16] a0*384+a1*16+a3*1 size 1920
  layout t2: [16,1,24,16] a0*384+a2*16+a3*1 size 6144
program k format 1(t0: f32[16, 5, 16], t1: f32[5, 24, 1, 16]):
  t3: f32[a0<16, a1<1, a2<24, a3<16] = sum(a4<5) t0[a3, a4, a0] * t1[a4, a2, a1, a0]
  t2: f32[a0<16, a1<1, a2<24, a3<16] = trunc(t3[a0, a1, a2, a3] * 3.0) / (abs(t0[a0, 3, a3]) + 0.5)
  return t2
""",
    "x86-sse42",
    '{"format":1,"chunk":1,"par":2,"s0.ahead":64,"s0.lane":"b0","s0.order":"b0,m0:L2,m0,n0","s0.pack.a":"block","s0.pack.b":"none","s0.reg.b0":4,"s0.reg.k0":4,"s0.reg.m0":8,"s0.reg.n0":1,"s0.tail.m0":"overlap","s0.tile.b0":8,"s0.tile.m0":24,"s0.tile.n0":16}',
)


@pytest.mark.parametrize(
    "case", [BRANCH, BRANCH_GATHER, ONE_POINT, REDUCED_LANE, GRAM, GRAM_HALF, LANE_OF_MATRICES]
)
def test_schedule(case: tuple[str, str, str]) -> None:
    text, target, schedule = case
    finding = replay(
        parse_kernel(text), Schedule.parse(schedule), Target.named(target), native=False
    )
    assert finding is None, str(finding)
