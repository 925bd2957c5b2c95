"""Splitting and merging axes: the kernel's program computes the same, buffer by buffer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tilewright.group.merge import merge_axes, split_axes
from tilewright.group.plan import canonical
from tilewright.ir.interpreter import run_program
from tilewright.ir.kernel import Kernel, Stage, parse_kernel
from tilewright.ir.layout import Layout, dense, ordered
from tilewright.ir.program import Definition
from tilewright.ir.program_parser import parse_program
from tilewright.verify.generate import random_inputs

CASES = {
    "merge all": """program k(x: f32[4, 6, 5]):
  y: f32[i<4, j<6, k<5] = x[i, j, k] * 2.0
  return y
""",
    "merge reduced": """program k(x: f32[4, 6, 5]):
  y: f32[i<4] = sum(j<6, k<5) x[i, j, k]
  return y
""",
    "merge rows of a contraction": """program k(x: f32[4, 6, 5], w: f32[5, 7]):
  y: f32[i<4, j<6, n<7] = sum(k<5) x[i, j, k] * w[k, n]
  return y
""",
    "split": """program k(x: f32[6, 35], w: f32[21, 8]):
  y: f32[i<10, n<8] = sum(j<21) x[(i * 21 + j) // 35, (i * 21 + j) % 35] * w[j, n]
  return y
""",
    "split heads": """program k(x: f32[3, 7, 4], w: f32[12, 5]):
  y: f32[i<7, n<5] = sum(c<12) x[c // 4, i, c % 4] * w[c, n]
  return y
""",
    "split groups": """program k(x: f32[6, 9], w: f32[8, 3]):
  y: f32[o<8, h<9] = sum(c<3) x[o // 4 * 3 + c, h] * w[o, c]
  return y
""",
    "padding keeps its axes": """program k(x: f32[4, 6]):
  y: f32[i<4, j<9] = sum(u<3) (x[i, j + u - 2] else 0.0)
  return y
""",
    "scan keeps its axis": """program k(x: f32[4, 6, 5]):
  y: f32[i<4, j<6, k<5] = scan sum(j) x[i, j, k]
  return y
""",
    "position keeps its axes": """program k(x: f32[4, 6, 5]):
  y: i64[i<4] = argmax(j<6, k<5) x[i, j, k]
  return y
""",
    "index in the body": """program k(x: f32[4, 6]):
  y: f32[i<4, j<6] = x[i, j] + f32(i * 10 + j)
  return y
""",
    "epilogue": """program k(x: f32[4, 6, 5], b: f32[4, 6]):
  s: f32[i<4, j<6] = sum(k<5) x[i, j, k]
  y: f32[i<4, j<6] = max(s[i, j] + b[i, j], 0.0)
  return y
""",
    "transposed": """program k(x: f32[4, 6, 5]):
  y: f32[k<5, i<4, j<6] = x[i, j, k] + 1.0
  return y
""",
}


def kernel_of(text: str, layouts: dict[str, Layout] | None = None) -> Kernel:
    """One stage, the first reduction its anchor."""
    p = parse_program(text)
    definitions = [s for s in p.body if isinstance(s, Definition)]
    members = tuple(d.name for d in definitions)
    anchor = next((d.name for d in definitions if d.reduction), members[0])
    border = [*(t.name for t in p.inputs), *p.results]
    found = {n: dense([int(str(e)) for e in p.tensors[n].shape]) for n in border}
    found.update(layouts or {})
    return Kernel(p, (Stage(anchor, members),), tuple(found.items()))


def flat_results(kernel: Kernel, flats: dict[str, Any]) -> list[Any]:
    """Result buffers, written through the kernel's layouts."""
    p = kernel.program
    given = {t.name: kernel.layout_of[t.name].unpack(flats[t.name]) for t in p.inputs}
    out = []
    for n, value in zip(p.results, run_program(p, given), strict=True):
        out.append(kernel.layout_of[n].pack(value))
    return out


def check_equal(before: Kernel, after: Kernel) -> None:
    given = random_inputs(before.program, {}, 1)
    flats = {n: before.layout_of[n].pack(a) for n, a in given.items()}
    for x, y in zip(flat_results(before, flats), flat_results(after, flats), strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_reshaping_keeps_the_meaning(name: str) -> None:
    kernel = kernel_of(CASES[name])
    split = split_axes(kernel)
    check_equal(kernel, split)
    merged = merge_axes(split)
    check_equal(kernel, merged)
    assert merge_axes(merged) == merged
    final = canonical(merged)
    assert parse_kernel(str(final)) == final
    assert canonical(final) == final


def axes(kernel: Kernel) -> list[int]:
    return sorted(kernel.extents.values())


def test_what_is_walked_as_one_is_one() -> None:
    assert axes(merge_axes(kernel_of(CASES["merge all"]))) == [120]
    assert axes(merge_axes(kernel_of(CASES["merge reduced"]))) == [4, 30]
    assert axes(merge_axes(kernel_of(CASES["merge rows of a contraction"]))) == [5, 7, 24]
    assert axes(merge_axes(kernel_of(CASES["epilogue"]))) == [5, 24]


def test_what_is_not_stays() -> None:
    for name in ("scan keeps its axis", "position keeps its axes", "index in the body"):
        before = kernel_of(CASES[name])
        assert len(axes(merge_axes(before))) == len(axes(before))
    assert axes(merge_axes(kernel_of(CASES["transposed"]))) == [5, 24]


def test_divided_axes_are_split() -> None:
    assert axes(split_axes(kernel_of(CASES["split heads"]))) == [3, 4, 5, 7]
    assert axes(split_axes(kernel_of(CASES["split groups"]))) == [2, 3, 4, 9]


def test_layouts_decide_what_may_merge() -> None:
    text = CASES["merge all"]
    turned = {"x": ordered((4, 6, 5), (0, 2, 1)), "y": ordered((4, 6, 5), (0, 2, 1))}
    kernel = kernel_of(text, turned)
    merged = merge_axes(kernel)
    check_equal(kernel, merged)
    assert axes(merged) == [120]
    mixed = kernel_of(text, {"y": ordered((4, 6, 5), (0, 2, 1))})
    check_equal(mixed, merge_axes(mixed))
    assert len(axes(merge_axes(mixed))) > 1
    halo = kernel_of(text, {"y": ordered((4, 6, 5), (0, 1, 2), ((0, 0), (1, 1), (0, 0)))})
    check_equal(halo, merge_axes(halo))


def test_shared_axes_merge_only_with_each_other() -> None:
    kernel = replace(kernel_of(CASES["merge all"]), shared=("i",))
    assert axes(merge_axes(kernel)) == [4, 30]
    kernel = replace(kernel, shared=("i", "j"))
    merged = merge_axes(kernel)
    assert axes(merged) == [5, 24]
    assert merged.shared == ("j",)
