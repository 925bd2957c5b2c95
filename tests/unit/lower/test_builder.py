"""What lowering keeps apart: loads before and after a store, axes along which a read may leave its tensor."""

from __future__ import annotations

import pytest

import tilewright
from tilewright.errors import TargetError
from tilewright.group.plan import plan_program
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F32
from tilewright.ir.kernel import parse_kernel
from tilewright.ir.nest import TileType
from tilewright.ir.program_parser import parse_program
from tilewright.lower.builder import Builder
from tilewright.lower.kernel import Lowered, lower
from tilewright.machine.target import Target
from tilewright.schedule.kernel_space import space_of
from tilewright.verify.oracle import check
from tilewright.verify.schedules import replay


def test_a_load_after_a_store_is_another_value() -> None:
    """In the body of the store and in those inside of which it stands; one before it is shared."""
    b = Builder()
    b.written = {"t"}
    b.enter("l0")
    outer = b.body

    def load() -> str:
        return b.load(TileType(F32), "t", E.const(0), (), (), 0.0).name

    first = load()
    assert load() == first
    tile = b.fill(TileType(F32), 1.0)
    b.enter("l1")
    b.store("t", E.const(0), (), tile, ())
    b.leave()
    assert b.body is outer
    assert load() != first
    assert load() != load()


def test_reads_padded_along_later_axes_only() -> None:
    """The first axis is inside its tensor, the others are not; the input has no room around it."""
    try:
        Target.native().require_runnable()
    except TargetError:
        pytest.skip("no native target")
    text = """program p(x: f32[3, 9, 21]):
  y: f32[c<3, i<12, j<25] = (x[c, i - 1, j - 2] else 0.5) * 2.0
  z: f32[c<3, i<9] = max(u<3, v<23) (x[c, i + u - 1, v - 1] else -1.0)
  return y, z
"""
    program = parse_program(text)
    report = check(tilewright.compile(program), program, seeds=2)
    assert report.ok, str(report)


def test_results_in_panels() -> None:
    """Positions of a register tile that no stride leads through are stored one by one."""
    text = """kernel format 1:
  stage t1 of t1
  layout t0: [3,50] a0*50+a1*1 size 150
  layout t1: [3,50] a0*12+a1%12*1+a1//12*36 size 180
program k format 1(t0: f32[3, 50]):
  t1: f32[a0<3, a1<50] = t0[a0, a1] * 2.0
  return t1
"""
    kernel, target = parse_kernel(text), Target.named("x86-avx2")
    schedule = space_of(kernel, target).default()
    low = lower(kernel, schedule, target)
    assert isinstance(low, Lowered) and "scatter t1" in str(low.nest)
    assert replay(kernel, schedule, target, native=False) is None


_SCATTER = """program p(u: f32[31, 70], k: i64[31]):
  y: f32[{shape}] = scatter sum(r<31, q<70) at ({at}) of u[r, q] base 0.5
  return y
"""


@pytest.mark.parametrize(
    ("shape", "at", "lanes"),
    [("a<40, c<70", "k[r], q", True), ("a<70, c<70", "q, q", False)],
)
def test_contributions_are_vectors_where_a_row_goes_straight(
    shape: str, at: str, lanes: bool
) -> None:
    """Not on a diagonal: positions of one axis in two places are no row."""
    program = parse_program(_SCATTER.format(shape=shape, at=at))
    report = check(tilewright.compile(program), program, seeds=2)
    assert report.ok, str(report)
    target = Target.named("x86-avx512")
    (kernel,) = plan_program(program, target)[0].kernels
    low = lower(kernel, space_of(kernel, target).default(), target)
    assert isinstance(low, Lowered)
    assert ("scatter add" not in str(low.nest)) is lanes
