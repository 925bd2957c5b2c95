"""States of a recurrence that nothing else reads: room for the last steps only."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright.group.plan import plan_program
from tilewright.ir.kernel import Kernel
from tilewright.ir.layout import Layout, dense
from tilewright.machine.target import Target

SCAN = """
a: {dtype}[T, C]; x: {dtype}[T, C]
recur t<T:
  s: {dtype}[t, k] = a[t, k] * (s[t - {back}, k] else 0) + x[t, k]
  y: {dtype}[t, k] = s[t, k] * 2.0
return y{more}
"""


def kernel(text: str, **sizes: int) -> Kernel:
    plan = plan_program(tw.program(text).bind(sizes), Target.native())[0]
    return next(k for k in plan.kernels if k.sequence)


def scanned(a: np.ndarray, x: np.ndarray, back: int) -> np.ndarray:
    s = np.zeros(a.shape)
    for t in range(len(a)):
        before = s[t - back] if t >= back else 0.0
        s[t] = a[t].astype(float) * before + x[t]
    return 2.0 * s


@pytest.mark.parametrize("back", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["f32", "f64", "f16"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 50])
def test_the_last_steps_are_enough(dtype: str, back: int, steps: int) -> None:
    text = SCAN.format(dtype=dtype, back=back, more="")
    rng = np.random.default_rng(steps)
    kind = np.dtype({"f32": "f4", "f64": "f8", "f16": "f2"}[dtype])
    a, x = rng.random((steps, 19)).astype(kind), rng.standard_normal((steps, 19)).astype(kind)
    found = np.asarray(tw.compile(text, [a, x], threads=1)(a, x), np.float64)
    tolerance = 2e-2 if dtype == "f16" else 1e-5
    np.testing.assert_allclose(found, scanned(a, x, back), rtol=tolerance, atol=tolerance)
    k = kernel(text, T=steps, C=19)
    state = next(iter(k.definitions))
    assert k.layout_of[state].size == 19 * min(steps, back + 1)
    assert k.layout_of[state].is_ring == (steps > back + 1)


def test_states_that_are_read_elsewhere_are_whole() -> None:
    for more in (", s", "\nz[k] = sum(t) s[t, k]\nreturn y, z"):
        text = SCAN.format(dtype="f32", back=1, more="")
        text = text.replace("return y", "return y, s") if more == ", s" else text.replace("return y", more)
        k = kernel(text, T=50, C=19)
        assert not any(x.is_ring for _, x in k.layouts)
        a, x = np.full((50, 19), 0.5, np.float32), np.ones((50, 19), np.float32)
        y, other = tw.compile(text, [a, x], threads=1)(a, x)
        s = scanned(a, x, 1) / 2
        np.testing.assert_allclose(y, 2 * s, rtol=1e-5)
        np.testing.assert_allclose(other, s if more == ", s" else s.sum(0), rtol=1e-5)


def test_a_ring_takes_part_in_no_result_and_is_small() -> None:
    text = SCAN.format(dtype="f32", back=1, more="")
    model = tw.compile(text, [np.ones((4096, 512), np.float32)] * 2, threads=1)
    assert model.stats["peak_bytes"] < 4096 * 512 * 4


def test_text_of_a_ring_comes_back() -> None:
    k = kernel(SCAN.format(dtype="f32", back=1, more=""), T=50, C=19)
    layouts = [x for _, x in k.layouts if x.is_ring]
    assert len(layouts) == 1 and [Layout.parse(str(x)) for x in layouts] == layouts
    assert not dense((50, 19)).is_ring and not Layout.parse("[50,19] a0//8*1+a0%8*7+a1*56 size 1064").is_ring
