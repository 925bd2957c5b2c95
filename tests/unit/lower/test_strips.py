"""Accumulators in scratch: where they lie, and that they give the same numbers."""

from __future__ import annotations

import re

import pytest

import tilewright as tw
from tilewright.errors import TargetError
from tilewright.group.plan import plan_program
from tilewright.ir.program_parser import parse_program
from tilewright.lower.kernel import Lowered, lower
from tilewright.machine.target import Target
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.schedule import Schedule
from tilewright.schedule.space import Space
from tilewright.verify.oracle import check

PRODUCT = """program p(x: f32[{m}, {k}], w: f32[{k}, {n}]):
  y: f32[i<{m}, j<{n}] = sum(k<{k}) x[i, k] * w[k, j]
  return y
"""


def test_the_rows_of_a_tile_lie_side_by_side() -> None:
    """A strip apart, 16 rows of 16 KB would share one set of the first level of cache."""
    target = Target.named("x86-avx512")
    (kernel,) = plan_program(parse_program(PRODUCT.format(m=16, k=4096, n=4096)), target)[0].kernels
    schedule = space_of(kernel, target, 1).default()
    assert dict(schedule.items)["s0.strip"] == 4096
    made = lower(kernel, schedule, target)
    assert isinstance(made, Lowered)
    places = re.findall(r"(?:load|store) f0\[l\d+\*(\d+)\] by \(a0=(\d+), a1=1\)", str(made.nest))
    assert places and set(places) == {("256", "16")}


@pytest.mark.parametrize("target", ["x86-avx512", "x86-avx2", "x86-sse42"])
@pytest.mark.parametrize(("m", "k", "n"), [(16, 300, 517), (3, 37, 100), (7, 64, 1000), (5, 200, 33)])
@pytest.mark.parametrize(("rows", "strip"), [(16, 128), (4, 64), (8, 16), (8, 4096)])
def test_strips_of_any_width(
    rows: int, strip: int, m: int, k: int, n: int, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        Target.named(target).require_runnable()
    except TargetError as e:
        pytest.skip(str(e))
    default = Space.default

    def chosen(self: Space) -> Schedule:
        return Schedule.of({**dict(default(self).items), "s0.rows": rows, "s0.strip": strip})

    monkeypatch.setattr(Space, "default", chosen)
    p = parse_program(PRODUCT.format(m=m, k=k, n=n))
    model = tw.compile(p, target=Target.named(target), threads=1)
    assert "scratch f0" in str(model.latest.build.built.lowered[0].nest)
    check(model, p, 1).raise_if_wrong()
