"""Sizes that values define, run natively: against the interpreter at every size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.errors import UserError
from tilewright.group.bounded import bounded, with_shapes
from tilewright.ir.interpreter import run_program
from tilewright.ir.program import Program, Size
from tilewright.ir.program_parser import parse_program
from tilewright.ir.program_verifier import verify_program

CHOSEN = """program p format 1(x: f32[N]):
  dim N in 0 .. inf
  some: i64[i<N] = i64(0.0 < x[i])
  count: i64[] = sum(i<N) some[i]
  rank: i64[i<N] = scan sum(i) some[i]
  dim K <= N = count
  at: i64[k<K] = scatter last(i<N) at (where(some[i] == 1, rank[i] - 1, -1)) of i base 0
  y: f32[k<K] = (x[at[k]] else 0.0) * 10.0
  total: f32[] = sum(k<K) y[k]
  low: f32[] = min(k<K) y[k]
  back: f32[k<K] = y[K - k - 1]
  near: f32[k<(K + 2)] = (y[k - 1] else 7.0)
  pairs: f32[j<K, k<K] = y[j] - y[k] * 2.0
  sums: f32[j<K] = sum(k<K) pairs[j, k]
  running: f32[k<K] = scan sum(k) y[k]
  return at, back, total, low, near, sums, running
"""
PLACES = """program p format 1(x: f32[6, 7], n: i64[], m: i64[]):
  dim A <= 6 = n
  dim B <= 7 = m
  z: f32[i<A, j<B] = x[i, j]
  best: i64[] = argmax(i<A, j<B) z[i, j]
  rows: i64[i<A] = argmin(j<B) z[i, j]
  return best, rows, z
"""
STATES = """program p format 1(x: f32[9, 4], n: i64[], c: bool[]):
  dim T <= 9 = n
  zero: f32[j<4] = 0.0
  recur t<T:
    h: f32[t<T, j<4] = (h[t - 1, j] else zero[j]) * 0.5 + x[T - t - 1, j]
  last: f32[j<4] = (h[T - 1, j] else -1.0)
  s: f32[4], rows: f32[T, 4] = while u<T if c:
    carry a: f32[4] = last
    b: f32[j<4] = a[j] + f32(u[])
    next b stack a
  long: f32[T, 4] = if c:
    yield rows
  else:
    yield h
  return h, last, s, long
"""


SORTED = """program p format 1(x: f32[9], n: i64[]):
  dim K <= 9 = n
  y: f32[k<K] = x[k]*-1.0
  v: f32[K], at: i64[K] = extern sort(y) {axis = 0}
  distinct: f32[K], first: i64[K], place: i64[K], times: i64[K], number: i64[] = extern unique(y)
  dim D <= K = number
  z: f32[d<D] = distinct[d] + f32(times[d])
  return v, at, z, place
"""


def check(p: Program, inputs: dict[str, Any]) -> None:
    verify_program(p)
    got, wanted = tw.compile(p).run(inputs), run_program(p, inputs)
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "x", [[], [1.0, -1.0, 2.0, 0.0, 3.0], [-1.0], [4.0, 5.0], list(range(-20, 50))]
)
def test_chosen_elements(x: list[float]) -> None:
    check(parse_program(CHOSEN), {"x": np.array(x, np.float32)})


@pytest.mark.parametrize(("n", "m"), [(6, 7), (1, 1), (3, 5), (6, 1), (1, 7), (5, 2)])
def test_positions_count_in_the_true_shape(n: int, m: int) -> None:
    x = np.random.default_rng(n * 10 + m).standard_normal((6, 7)).astype(np.float32)
    check(parse_program(PLACES), {"x": x, "n": np.asarray(n), "m": np.asarray(m)})


@pytest.mark.parametrize("n", [0, 1, 4, 9])
@pytest.mark.parametrize("c", [False, True])
def test_states_and_blocks(n: int, c: bool) -> None:
    x = np.random.default_rng(n).standard_normal((9, 4)).astype(np.float32)
    check(parse_program(STATES), {"x": x, "n": np.asarray(n), "c": np.asarray(c)})


@pytest.mark.parametrize("n", [0, 1, 5, 9])
def test_externs_see_the_true_part(n: int) -> None:
    x = np.array([3, 1, 3, 2, 1, 0, -5, 2, 9], np.float32)
    check(parse_program(SORTED), {"x": x, "n": np.asarray(n)})


def test_an_extern_that_fails_natively_is_an_error() -> None:
    text = """program p format 1(x: f32[4], k: i64[]):
  v: f32[2], at: i64[2] = extern topk(x, k) {axis = 0}
  return v, at
"""
    model = tw.compile(parse_program(text))
    x = np.arange(4, dtype=np.float32)
    for k, code in ((9, "R004"), (3, "P001")):  # more than there are; another shape
        with pytest.raises(UserError) as caught:
            model.run({"x": x, "k": np.asarray(k)})
        assert caught.value.code == code
        with pytest.raises(UserError):
            model(x, np.asarray(k), out=(np.zeros(2, np.float32), np.zeros(2, np.int64)))
    assert model.run({"x": x, "k": np.asarray(2)})[1].tolist() == [3, 2]


def test_nothing_is_left_open() -> None:
    p, shapes = with_shapes(parse_program(CHOSEN))
    verify_program(p)
    assert list(shapes) == ["at", "back", "near", "sums", "running"]
    fixed = bounded(p.bind({"N": 8}))
    verify_program(fixed)
    assert not any(isinstance(s, Size) for s in fixed.body)
    assert not any(e.names("dim") for t in fixed.tensors.values() for e in t.shape)


def test_a_program_without_such_sizes_is_itself() -> None:
    p = parse_program("program p format 1(x: f32[4]):\n  y: f32[i<4] = x[i]\n  return y\n")
    assert with_shapes(p) == (p, {})
    assert bounded(p) is p


def test_beyond_the_bound() -> None:
    model = tw.compile(parse_program(PLACES))
    x = np.zeros((6, 7), np.float32)
    for n in (7, -1):
        with pytest.raises(UserError, match="outside its bound") as caught:
            model.run({"x": x, "n": np.asarray(n), "m": np.asarray(1)})
        assert caught.value.code == "R007"


def test_out_and_saved_files(tmp_path: Path) -> None:
    model = tw.compile(parse_program(PLACES))
    given = {"x": np.ones((6, 7), np.float32), "n": np.asarray(2), "m": np.asarray(3)}
    wanted = model.run(given)
    model.save(tmp_path / "m.twa")
    loaded = tw.load(tmp_path / "m.twa")
    for a, b in zip(loaded.run(given), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match="follows from values") as caught:
        model(*given.values(), out=tuple(np.empty_like(w) for w in wanted))
    assert caught.value.code == "R006"
