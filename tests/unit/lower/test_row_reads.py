"""Rows at computed places: whole vectors where the place is one for all lanes, and what stands
outside of the tensor."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright.errors import TargetError
from tilewright.ir.interpreter import run_program
from tilewright.ir.program_parser import parse_program
from tilewright.machine.target import Target
from tilewright.verify.guards import guarded

ROWS = """program p(t: {dtype}[100, {width}], ids: i64[40]):
  y: {dtype}[i<40, j<{width}] = (t[where(ids[i] < 0, ids[i] + 100, ids[i]), j] else {orelse})
  return y
"""
PARTS = """program p(x: f32[40, 24], t: f32[100, 24], u: f32[50, 24], ids: i64[40, 2]):
  a: f32[i<40, k<1, j<24] = (t[where(ids[i, 0] < 0, ids[i, 0] + 100, ids[i, 0]), j] else 0.0)
  b: f32[i<40, k<1, j<24] = (u[ids[i, 1], j] else 1.0) * 2.0
  y: f32[i<40, k<3, j<24] = where(k < 1, x[i, j], where(k < 2, (a[i, k - 1, j] else 0.0), (b[i, k - 2, j] else 0.0)))
  return y
"""


def runnable(name: str) -> Target:
    target = Target.named(name)
    try:
        target.require_runnable()
    except TargetError as e:
        pytest.skip(str(e))
    return target


@pytest.mark.parametrize("target", ["x86-avx512", "x86-avx2", "x86-sse42"])
@pytest.mark.parametrize(
    ("dtype", "orelse", "width"),
    [("f32", "0.0", 64), ("f32", "7.0", 64), ("f32", "0.0", 37), ("f32", "7.0", 37), ("i32", "i32(3)", 16),
     ("f64", "f64(0.0)", 11), ("f16", "f16(0.0)", 48), ("bool", "true", 19), ("bool", "false", 64)],
)  # fmt: skip
def test_rows_of_a_table_some_of_them_outside(
    dtype: str, orelse: str, width: int, target: str
) -> None:
    program = parse_program(ROWS.format(dtype=dtype, width=width, orelse=orelse))
    model = tw.compile(program, target=runnable(target), threads=1)
    assert "gather" not in str(model.latest.build.built.lowered[0].nest)
    rng = np.random.default_rng(0)
    ids = rng.integers(-100, 100, 40)
    ids[[0, 7, 8, 39]] = -101, 100, 1 << 40, -(1 << 40)
    table = rng.integers(-9, 9, (100, width)).astype(program.inputs[0].dtype.np)
    _, placed, memory = guarded(table, 1, False)
    (want,) = run_program(program, {"t": table, "ids": ids})
    np.testing.assert_array_equal(model(placed, ids), want.astype(table.dtype))
    del memory


@pytest.mark.parametrize("target", ["x86-avx512", "x86-avx2", "x86-sse42"])
def test_a_concatenation_of_rows_reads_them_where_they_lie(target: str) -> None:
    program = parse_program(PARTS)
    model = tw.compile(program, target=runnable(target), threads=2)
    (kernel,) = model.latest.plan.kernels
    assert len(kernel.stages) == 1
    rng = np.random.default_rng(0)
    given = {t.name: rng.standard_normal([int(str(n)) for n in t.shape]).astype(np.float32)
             for t in program.inputs[:3]}  # fmt: skip
    given["ids"] = rng.integers(-60, 60, (40, 2))
    (want,) = run_program(program, given)
    np.testing.assert_allclose(model.run(given)[0], want, rtol=1e-6)


def test_more_parts_than_have_loops_of_their_own_stay_apart() -> None:
    """A body with a hundred choices would ask all of them for each element."""
    count = 70
    inputs = ", ".join(f"x{k}: f32[8]" for k in range(count))
    body = f"(y{count - 1}[i - {8 * (count - 1)}] else 0.0)"
    for k in reversed(range(count - 1)):
        body = f"where(i < {8 * (k + 1)}, (y{k}[i - {8 * k}] else 0.0), {body})"
    parts = "\n".join(f"  y{k}: f32[i<8] = x{k}[i] + {k}.0" for k in range(count))
    text = f"program p({inputs}):\n{parts}\n  z: f32[i<{8 * count}] = {body}\n  return z\n"
    program = parse_program(text)
    model = tw.compile(program, threads=1)
    assert len(model.latest.plan.kernels) == count + 1
    given = {f"x{k}": np.full(8, k, np.float32) for k in range(count)}
    np.testing.assert_array_equal(model.run(given)[0], np.repeat(2 * np.arange(count), 8))
