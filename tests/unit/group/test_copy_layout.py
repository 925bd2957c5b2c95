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


@pytest.mark.parametrize(
    ("target", "layout", "taps", "copied"),
    [
        ("x86-avx512", "c, {0}, {1}", 7, False),  # guards are masks
        ("x86-avx512", "c, {0}, {1}", 9, True),
        ("x86-avx512", "{0}, {1}, c", 3, False),  # guards choose pointers
        ("x86-avx512", "{0}, {1}, c", 5, True),
        ("x86-avx2", "c, {0}, {1}", 3, False),
        ("x86-avx2", "{0}, {1}, c", 3, True),
        ("x86-sse42", "c, {0}, {1}", 3, True),  # no load is masked
        ("aarch64", "c, {0}, {1}", 3, True),
    ],
)
def test_a_window_of_taps_alone_is_copied_where_guards_cost_more(
    target: str, layout: str, taps: int, copied: bool
) -> None:
    pad = taps // 2
    at = layout.format(f"h + u - {pad}", f"w + v - {pad}")
    shape = layout.format("20", "20").replace("c", "64")
    text = f"""program p(x: f32[{shape}], k: f32[64, {taps}, {taps}]):
  y: f32[c<64, h<20, w<20] = sum(u<{taps}, v<{taps}) (x[{at}] else 0.0) * k[c, u, v]
  return y
"""
    plan, _ = plan_program(parse_program(text), Target.named(target))
    assert any(b.name == "x_wide" for b in plan.buffers) is copied


def test_a_guarded_scalar_is_no_window() -> None:
    text = """program p(x: f32[]):
  y: f32[h<20] = sum(u<9) (x[] else 0.0)
  return y
"""
    plan, _ = plan_program(parse_program(text), TARGET)
    assert len(plan.kernels) == 1
