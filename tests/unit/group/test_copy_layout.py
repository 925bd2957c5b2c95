"""The layout of a padded copy: by what the contractions that read it do with it."""

from __future__ import annotations

import pytest

from tilewright.group.plan import plan_program
from tilewright.ir.program_parser import parse_program
from tilewright.machine.target import Target

TARGET = Target.named("x86-avx512")
CONVOLUTION = """program p(x: f32[1, {c}, 20, 20]):
  const k: f32[{o}, {c}, {t}, {t}] @00
  y: f32[n<1, o<{o}, h<20, w<20] = sum(c<{c}, u<{t}, v<{t}) (x[n, c, h + u - 1, w + v - 1] else 0.0) * k[o, c, u, v]
  return y
"""


@pytest.mark.parametrize(
    ("c", "o", "t", "innermost"),
    [
        (64, 64, 2, 1),  # channels, which are summed over
        (64, 64, 9, 3),  # many taps read what lies side by side
        (3, 64, 2, 3),  # a short axis
        (64, 3, 2, 3),  # lanes that do not go along the constant
    ],
)
def test_what_is_summed_lies_side_by_side_in_a_copy(c: int, o: int, t: int, innermost: int) -> None:
    plan, _ = plan_program(parse_program(CONVOLUTION.format(c=c, o=o, t=t)), TARGET)
    copy = next(b.layout for b in plan.buffers if b.name == "x_wide")
    assert copy.stride(innermost) == 1
