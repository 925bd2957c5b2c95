"""Running sums along the lanes of vectors, in the code that LLVM makes of them."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright.codegen.llvm import emit_llvm
from tilewright.group.plan import plan_program
from tilewright.machine.target import Target
from tilewright.runtime.build import emit_assembly
from tilewright.runtime.link import lower_kernel
from tilewright.schedule.kernel_space import space_of


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_lanes_move_by_permutation(dtype: str) -> None:
    """Expansion under a mask does it too, at half the pace of the whole loop on a Zen 5."""
    program = tw.program(f"x: {dtype}[64, 4096]; y[i, j] = scan sum(j) x[i, j]")
    target = Target.named("x86-avx512")
    (kernel,) = plan_program(program, target)[0].kernels
    nest = lower_kernel(kernel, space_of(kernel, target, 1).default(), target).nest
    assembly = emit_assembly(emit_llvm(nest, target), target)
    assert "vperm" in assembly and "vexpand" not in assembly


@pytest.mark.parametrize("n", [1, 15, 16, 17, 331])
def test_running_sums_of_zeros_and_infinities(n: int) -> None:
    x = np.zeros((3, n), np.float32)
    x[0] = -0.0
    x[1, n // 2] = np.inf
    x[2] = np.linspace(-1, 1, n, dtype=np.float32)
    y = tw.compile(f"x: f32[3, {n}]; y[i, j] = scan sum(j) x[i, j]", threads=1)(x)
    np.testing.assert_array_equal(y[:2], np.cumsum(x[:2], 1))
    np.testing.assert_allclose(y[2], np.cumsum(x[2].astype(np.float64)), atol=1e-5)
