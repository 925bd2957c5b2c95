"""Minimum and maximum: NaN of either operand, in either place, is the result; so in reductions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import tilewright as tw
from tilewright.machine.target import Target

TARGETS = ["native", "x86-avx2", "x86-sse42"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", ["min", "max"])
@pytest.mark.parametrize(("kind", "signaling"), [("f32", 0x7F800001), ("f64", 0x7FF0000000000001)])
def test_nan_wins_wherever_it_stands(kind: str, signaling: int, op: str, target: str) -> None:
    if Target.named(target).vector_bits > Target.native().vector_bits:
        pytest.skip("the CPU lacks it")
    dtype = np.dtype({"f32": "f4", "f64": "f8"}[kind])
    tiny, huge = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    values = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1, -2, huge, tiny, -tiny], dtype)
    other = np.array([signaling], f"u{dtype.itemsize}").view(dtype)
    values = np.concatenate([values, other])
    pairs = itertools.product(values, values)
    a, b = (np.array(x, dtype) for x in zip(*pairs, strict=True))
    n = len(a)
    elementwise = tw.compile(
        f"a: {kind}[{n}]; b: {kind}[{n}]; y[i] = {op}(a[i], b[i])", threads=1, target=target
    )
    with np.errstate(invalid="ignore"):
        wanted = (np.minimum if op == "min" else np.maximum)(a, b)
    np.testing.assert_array_equal(elementwise(a, b), wanted)
    rng = np.random.default_rng(7)
    rows = rng.integers(-9, 9, (37, n)).astype(dtype)
    few = rng.random(rows.shape) < 0.02
    rows[few] = rng.choice(values, few.sum())
    for axis, text in ((0, f"y[j] = {op}(i) a[i, j]"), (1, f"y[i] = {op}(j) a[i, j]")):
        reduced = tw.compile(f"a: {kind}[37, {n}]; {text}", threads=1, target=target)
        with np.errstate(invalid="ignore"):
            wanted = getattr(np, op)(rows, axis=axis)
        assert 0 < np.isnan(wanted).sum() < wanted.size
        np.testing.assert_array_equal(reduced(rows), wanted)
