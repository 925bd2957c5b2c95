"""Axes of a tensor inside a kernel are merged only where its readers walk them as one, too."""

from __future__ import annotations

import numpy as np

import tilewright as tw
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F32, I64
from tilewright.ir.interpreter import run_program
from tilewright.ir.program import Axis, Definition, Program, Tensor

# Queries are scaled first and lie side by side (all heads of a position in one row); the scores read
# them head by head through axes of their own.
TEXT = """
program heads format 1(qkv: f32[18, 96], keys: f32[2, 4, 8, 9], mask: f32[2, 1, 9, 9]):
  q: f32[b<2, h<4, s<9, d<8] = qkv[b*9 + s, h*8 + d] * 0.59460355
  scores: f32[b<2, h<4, s<9, t<9] = sum(d<8) q[b, h, s, d] * keys[b, h, d, t]
  kept: f32[b<2, h<4, s<9, t<9] = scores[b, h, s, t] + mask[b, 0, s, t]
  top: f32[b<2, h<4, s<9] = max(t<9) kept[b, h, s, t]
  power: f32[b<2, h<4, s<9, t<9] = exp(kept[b, h, s, t] - top[b, h, s])
  total: f32[b<2, h<4, s<9] = sum(t<9) power[b, h, s, t]
  weight: f32[b<2, h<4, s<9, t<9] = power[b, h, s, t] / total[b, h, s]
  y: f32[b<2, h<4, s<9, d<8] = sum(t<9) weight[b, h, s, t] * qkv[b*9 + t, h*8 + d + 64]
  return y
"""


def test_scaled_queries_read_head_by_head() -> None:
    p = tw.program(TEXT)
    rng = np.random.default_rng(0)
    given = {t.name: rng.standard_normal([int(s.attr) for s in t.shape]).astype(np.float32) for t in p.inputs}
    (want,) = run_program(p, given)
    (got,) = tw.compile(p).run(given)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_float_arithmetic_in_a_subscript() -> None:
    e = E.add(E.mul(E.cast(E.index("i"), F32), E.const(1.7, F32)), E.const(1.4, F32))
    at = E.minimum(E.cast(E.unary("floor", e), I64), E.const(15))
    d = Definition("y", F32, (Axis("i", E.const(7)),), E.read("x", [at], F32))
    p = Program("pick", (Tensor("x", F32, (E.const(16),)),), (d,), ("y",))
    x = np.arange(16, dtype=np.float32)
    (want,) = run_program(p, {"x": x})
    np.testing.assert_array_equal(tw.compile(p)(x), want)
