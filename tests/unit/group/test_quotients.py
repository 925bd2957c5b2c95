"""Axes whose quotient names a row: normalization by groups of channels is one kernel."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright.group.plan import plan_program
from tilewright.ir.interpreter import run_program
from tilewright.ir.plan import KernelCall
from tilewright.machine.target import Target
from tilewright.tools.fuzz.campaign import runnable

TARGET = Target.named("x86-avx2")
NORM = """
x: f32[3, 24, 20, 17]; g: f32[24]; b: f32[24]
u[n<3, a<6] = mean(d<4, h<20, w<17) x[n, 4*a + d, h, w]
v[n<3, a<6] = mean(d<4, h<20, w<17) square(x[n, 4*a + d, h, w] - u[n, a])
y[n<3, c<24, h<20, w<17] = (x[n, c, h, w] - u[n, c // 4]) * rsqrt(v[n, c // 4] + 1e-05) * g[c] + b[c]
"""
AFTER = NORM + "z[n<3, c<24, h<20, w<17] = y[n, c, h, w] * sigmoid(y[n, c, h, w])\n"
READ_BY_A_SUM = AFTER + "k: f32[8, 24]\ns[n<3, o<8, h<20, w<17] = sum(c<24) z[n, c, h, w] * k[o, c]\n"


def kernels(text: str) -> int:
    plan, _ = plan_program(tw.program(text), TARGET)
    return sum(isinstance(s, KernelCall) for s in plan.steps)


@pytest.mark.parametrize(("text", "count"), [(NORM, 1), (AFTER, 1), (READ_BY_A_SUM, 2)])
def test_one_kernel(text: str, count: int) -> None:
    """Nothing is copied: rows are written where the tensor's own axes have them."""
    assert kernels(text) == count


@pytest.mark.parametrize("text", [NORM, AFTER, READ_BY_A_SUM])
@pytest.mark.parametrize("target", ["x86-avx512", "x86-avx2", "x86-sse42"])
def test_results(text: str, target: str) -> None:
    program = tw.program(text)
    rng = np.random.default_rng(0)
    given = {t.name: rng.standard_normal([int(str(n)) for n in t.shape]).astype(np.float32) for t in program.inputs}
    if target not in runnable(["x86-sse42", target]):
        pytest.skip("this machine does not run the target")
    got = tw.compile(program, target=target)(*given.values())
    for a, b in zip(got if isinstance(got, tuple) else (got,), run_program(program, given), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        ("c // 4", "c // 5"),  # rows of another length than the reduction's: 24 is no multiple
        ("u[n, c // 4]", "u[n, c // 8]"),  # two divisors
    ],
)
def test_what_is_no_row_stays(change: tuple[str, str]) -> None:
    assert kernels(NORM.replace(*change)) == 2
