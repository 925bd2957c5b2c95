"""Dot products of vectors: pairs of bf16 where the CPU multiplies them, and that results are right."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tilewright.codegen.llvm import emit_llvm
from tilewright.group.plan import plan_program
from tilewright.ir.kernel import Kernel
from tilewright.ir.program_parser import parse_program
from tilewright.lower.kernel import Lowered, lower
from tilewright.machine.target import Target
from tilewright.runtime.build import emit_assembly
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.schedule import Schedule
from tilewright.verify.schedules import replay

PLAIN = Target.named("x86-avx512")
HALVES = replace(PLAIN, features=PLAIN.features + ",+avx512bf16", has_bf16_dot=True)
HERE = not HALVES.triple.startswith(os.uname().machine) or not HALVES.lacks(Target.native())
TEXT = """program k(a: bf16[{m}, {k}], b: bf16[{k}, {n}]):
  c: f32[i<{m}, j<{n}] = sum(k<{k}) f32(a[i, k]) * f32(b[k, j])
  return c
"""
WINDOW = """program k(a: bf16[18, 18, 6], b: bf16[3, 6, 21]):
  c: f32[i<16, l<18, j<21] = sum(u<3, k<6) f32(a[i + u, l, k]) * f32(b[u, k, j])
  return c
"""


def kernel_of(text: str, target: Target = HALVES) -> Kernel:
    (kernel,) = plan_program(parse_program(text), target)[0].kernels
    return kernel


def assembly(kernel: Kernel, schedule: Schedule, target: Target) -> str:
    low = lower(kernel, schedule, target)
    assert isinstance(low, Lowered)
    return emit_assembly(emit_llvm(low.nest, target), target)


def test_products_of_bf16_take_pairs() -> None:
    kernel = kernel_of(TEXT.format(m=128, n=128, k=256))
    text = assembly(kernel, space_of(kernel, HALVES).default(), HALVES)
    assert text.count("vdpbf16ps") >= 28
    assert "vfmadd" not in text  # pairs cover an even sum


@pytest.mark.parametrize("changed", [PLAIN, HALVES.without_bf16()])
def test_other_targets_widen(changed: Target) -> None:
    kernel = kernel_of(TEXT.format(m=128, n=128, k=256), changed)
    text = assembly(kernel, space_of(kernel, changed).default(), changed)
    assert "vdpbf16ps" not in text and text.count("vfmadd") >= 28


def test_matrix_registers_are_preferred() -> None:
    features = HALVES.features + ",+amx-bf16,+amx-tile"
    assert HALVES.dots_halves
    assert not replace(HALVES, features=features).dots_halves


@pytest.mark.parametrize("k", [1, 2, 3, 31, 64, 67])
@pytest.mark.parametrize("m, n", [(1, 40), (16, 17), (29, 70), (64, 1)])
def test_every_depth(m: int, n: int, k: int) -> None:
    kernel = kernel_of(TEXT.format(m=m, n=n, k=k))
    found = replay(kernel, space_of(kernel, HALVES).default(), HALVES, native=HERE)
    assert found is None, str(found)


def test_windows() -> None:
    kernel = kernel_of(WINDOW)
    space = space_of(kernel, HALVES)
    used, first = 0, space.groups[0]
    for row in first.rows[:6]:
        values = dict(zip(first.names, row, strict=True))
        s = Schedule.of({**dict(space.default().items), **values})
        found = replay(kernel, s, HALVES, native=HERE)
        assert found is None, str(found)
        used += "vdpbf16ps" in assembly(kernel, s, HALVES)
    assert used > 0
