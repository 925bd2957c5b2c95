"""Branches, loops and sizes that values define: text, verifier, both interpreters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.errors import UserError
from tilewright.ir.interpreter import run_program
from tilewright.ir.program import Program, statement_reads
from tilewright.ir.program_parser import parse_program
from tilewright.ir.reference import run_reference

BRANCH = """program p format 1(x: f32[N], c: bool[]):
  dim N in 1 .. inf
  a: f32[i<N] = x[i] * 2.0
  y: f32[N], n: i64[] = if c:
    u: f32[i<N] = a[i] + 1.0
    two: i64[] = 2
    yield u, two
  else:
    three: i64[] = 3
    yield x, three
  z: f32[i<N] = y[i] + f32(n[])
  return z
"""
LOOP = """program p format 1(x: f32[N], m: i64[], go: bool[]):
  dim N in 1 .. inf
  zero: f32[i<N] = 0.0
  s: f32[N], old: f32[N], ys: f32[5, N] = while t<5 if go:
    carry a: f32[N] = x, b: f32[N] = zero
    sum_: f32[i<N] = a[i] + b[i] + f32(t[])
    square: f32[i<N] = a[i] * a[i]
    more: bool[] = t[] + 1 < m[]
    next sum_, a stack square if more
  steps: i64[] = t[]*10
  return s, old, ys, steps
"""
NESTED = """program p format 1(x: i64[], n: i64[]):
  s: i64[] = while i<20:
    carry a: i64[] = x
    even: bool[] = a[] % 2 == 0
    b: i64[] = if even:
      half: i64[] = a[] // 2
      yield half
    else:
      up: i64[] = while j<3:
        carry c: i64[] = a
        d: i64[] = c[] + n[]
        next d
      yield up
    next b
  return s
"""
SIZED = """program p format 1(x: f32[N]):
  dim N in 0 .. inf
  some: i64[i<N] = i64(0.0 < x[i])
  count: i64[] = sum(i<N) some[i]
  rank: i64[i<N] = scan sum(i) some[i]
  dim K <= N = count
  at: i64[k<K] = scatter last(i<N) at (where(some[i] == 1, rank[i] - 1, -1)) of i base 0
  y: f32[k<K] = x[at[k]] * 10.0
  total: f32[] = sum(k<K) y[k]
  back: f32[k<K] = y[K - k - 1]
  return at, back, total
"""
TEXTS = [BRANCH, LOOP, NESTED, SIZED]


def both(p: Program, inputs: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    """Results of the fast interpreter, after comparing them with the reference's."""
    fast, slow = run_program(p, inputs), run_reference(p, inputs)
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(a, b)
    return fast


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(text: str) -> None:
    p = parse_program(text)
    assert str(p) == text
    assert parse_program(str(p)) == p


def test_branch() -> None:
    p = parse_program(BRANCH)
    x = np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(both(p, {"x": x, "c": np.asarray(True)})[0], 2 * x + 1 + 2)
    np.testing.assert_array_equal(both(p, {"x": x, "c": np.asarray(False)})[0], x + 3)


@pytest.mark.parametrize(("m", "go"), [(0, True), (3, True), (9, True), (3, False)])
def test_loop(m: int, go: bool) -> None:
    x = np.array([1.0, 2.0], np.float32)
    s, old, ys, steps = both(
        parse_program(LOOP), {"x": x, "m": np.asarray(m), "go": np.asarray(go)}
    )
    a, b, rows = x.astype(np.float64), np.zeros(2), np.zeros((5, 2))
    count = 0
    while go and count < 5 and (count == 0 or count < m):
        rows[count] = a * a
        a, b = a + b + count, a
        count += 1
    np.testing.assert_array_equal(s, a)
    np.testing.assert_array_equal(old, b)
    np.testing.assert_array_equal(ys, rows)
    assert steps == 10 * count


def test_nested() -> None:
    a = 6
    for _ in range(20):
        a = a // 2 if a % 2 == 0 else a + 3 * 5
    (s,) = both(parse_program(NESTED), {"x": np.asarray(6), "n": np.asarray(5)})
    assert s == a


@pytest.mark.parametrize("x", [[], [1.0, -1.0, 2.0, 0.0, 3.0], [-1.0], [4.0, 5.0]])
def test_size_of_a_value(x: list[float]) -> None:
    given = np.array(x, np.float32)
    at, back, total = both(parse_program(SIZED), {"x": given})
    np.testing.assert_array_equal(at, np.flatnonzero(given > 0))
    np.testing.assert_array_equal(back, 10 * given[given > 0][::-1])
    assert total == 10 * given[given > 0].sum()


def test_reads_of_blocks() -> None:
    branch, loop = parse_program(BRANCH).body[1], parse_program(LOOP).body[1]
    assert statement_reads(branch) == {"a", "c", "x"}
    assert statement_reads(loop) == {"x", "zero", "go", "m"}


MALFORMED = [
    (BRANCH.replace("yield u, two", "yield u"), "P005", "a block hands out 1 values instead of 2"),
    (BRANCH.replace("yield x, three", "yield three, three"), "P005", "'three' is three: i64[]"),
    (BRANCH.replace("if c:", "if a:"), "P002", "a condition must be bool[]"),
    (BRANCH.replace("return z", "return u"), "P004", "unknown result 'u'"),
    (BRANCH.replace("three", "two"), "F012", "'two' is defined twice"),
    (
        BRANCH[: BRANCH.index("    yield x")] + "  return a\n",
        "F010",
        "the block has no 'yield' line",
    ),
    (LOOP.replace("stack square if more", "stack square if a"), "P002", "must be bool[]"),
    (LOOP.replace("b: f32[N] = zero", "b: f32[N] = m"), "P005", "where b: f32[N] is needed"),
    (LOOP.replace("ys: f32[5, N]", "ys: f32[4, N]"), "P005", "must have 5 rows"),
    (SIZED.replace("= count", "= total"), "P004", "unknown result 'total'"),
    (SIZED.replace("dim K <= N = count", "dim K <= N = x"), "P002", "must be i64[]"),
    (SIZED.replace("dim K <= N", "dim N <= 4"), "F012", "'N' is defined twice"),
]


@pytest.mark.parametrize(("text", "code", "message"), MALFORMED)
def test_malformed(text: str, code: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_program(text)
    assert caught.value.code == code
    assert message in caught.value.message


def test_size_beyond_its_bound() -> None:
    p = parse_program(SIZED.replace("dim K <= N", "dim K <= 1"))
    for run in (run_program, run_reference):
        with pytest.raises(UserError, match="the size K is 2") as caught:
            run(p, {"x": np.ones(2, np.float32)})
        assert caught.value.code == "R007"
