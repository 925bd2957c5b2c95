"""Gathers whose offsets are the same in every tile: what is emitted, and that results are right."""

from __future__ import annotations

import pytest

from tilewright.codegen.llvm import emit_llvm
from tilewright.group.plan import plan_program
from tilewright.ir.kernel import Kernel
from tilewright.ir.program_parser import parse_program
from tilewright.lower.kernel import Lowered, lower
from tilewright.machine.target import Target
from tilewright.schedule.kernel_space import space_of
from tilewright.verify.schedules import replay

TEXT = """program k(x: {dtype}[{m}, {k}]):
  y: {dtype}[i<{m}, j<{n}] = x[i, {at}]
  return y
"""
NEAR = [
    ("j // 2", 64, 128),
    ("j // 3", 35, 105),
    ("(j + 1) // 4 * 3", 99, 130),
    ("j // 2 + j % 2", 65, 128),
]
FAR = [("j // 2 * 40", 2600, 128), ("j % 2 * 900 + j // 2", 1000, 128)]


def kernel_of(text: str, target: Target) -> Kernel:
    (kernel,) = plan_program(parse_program(text), target)[0].kernels
    return kernel


def code(kernel: Kernel, target: Target) -> str:
    low = lower(kernel, space_of(kernel, target).default(), target)
    assert isinstance(low, Lowered)
    return emit_llvm(low.nest, target)


@pytest.mark.parametrize("at, k, n", NEAR)
@pytest.mark.parametrize("name", ["x86-avx512", "x86-avx2", "x86-sse42"])
def test_neighbours_are_loaded_once(name: str, at: str, k: int, n: int) -> None:
    target = Target.named(name)
    kernel = kernel_of(TEXT.format(dtype="f32", m=3, k=k, n=n, at=at), target)
    text = code(kernel, target)
    assert "shufflevector" in text
    found = replay(kernel, space_of(kernel, target).default(), target, interpret=True)
    assert found is None, str(found)


@pytest.mark.parametrize("at, k, n", FAR)
def test_what_lies_far_apart_is_gathered(at: str, k: int, n: int) -> None:
    target = Target.named("x86-avx512")
    kernel = kernel_of(TEXT.format(dtype="f32", m=3, k=k, n=n, at=at), target)
    assert "llvm.masked.gather" in code(kernel, target)
    found = replay(kernel, space_of(kernel, target).default(), target, interpret=True)
    assert found is None, str(found)


@pytest.mark.parametrize("dtype", ["f64", "bf16", "i8", "bool"])
def test_other_dtypes(dtype: str) -> None:
    target = Target.named("x86-avx512")
    kernel = kernel_of(TEXT.format(dtype=dtype, m=3, k=70, n=140, at="j // 2"), target)
    assert "llvm.masked.gather" not in code(kernel, target)
    found = replay(kernel, space_of(kernel, target).default(), target, interpret=True)
    assert found is None, str(found)
