"""The fast interpreter against the reference, and both against NumPy, on hand-written programs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from tilewright.errors import UserError
from tilewright.ir import contraction, interpreter
from tilewright.ir.interpreter import run_program
from tilewright.ir.program_parser import parse_program
from tilewright.ir.reference import run_reference


def inputs_for(text: str, sizes: dict[str, int], seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    out = {}
    for t in parse_program(text).bind(sizes).inputs:
        shape = tuple(e.attr for e in t.shape)
        if t.dtype.is_float:
            out[t.name] = rng.standard_normal(shape).astype(t.dtype.np)
        elif t.dtype.is_int:
            out[t.name] = rng.integers(0, 5, shape).astype(t.dtype.np)
        else:
            out[t.name] = rng.random(shape) < 0.5
    return out


def assert_fast_is_reference(text: str, inputs: dict[str, Any]) -> list[Any]:
    """Reference and fast results, compared; the fast ones are returned."""
    program = parse_program(text)
    slow, fast = run_reference(program, inputs), run_program(program, inputs)
    for name, a, b in zip(program.results, slow, fast, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, name
        if a.dtype.kind == "f":
            np.testing.assert_allclose(
                b.astype(np.float64), a.astype(np.float64), rtol=1e-11, atol=1e-11, err_msg=name
            )
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)
    return fast


CASES = {
    "matmul": ("""program p(x: f32[N, K], w: f32[K, M], b: f32[M]):
  h: f32[i<N, j<M] = sum(k<K) x[i, k] * w[k, j]
  y: f32[i<N, j<M] = max(h[i, j] + b[j], 0.0)
  return y
""", dict(N=3, K=5, M=4)),
    "batched": ("""program p(q: f32[B, H, S, D], k: f32[B, H, S, D]):
  y: f32[b<B, h<H, i<S, j<S] = sum(d<D) q[b, h, i, d] * k[b, h, j, d] * 0.5
  z: f32[b<B, i<S] = sum(h<H, j<S, d<D) y[b, h, i, j] * k[b, h, j, d]
  return y, z
""", dict(B=2, H=3, S=4, D=5)),
    "attention": ("""program p(q: f32[S, D], k: f32[S, D], v: f32[S, D]):
  s: f32[i<S, j<S] = sum(d<D) q[i, d] * k[j, d]
  m: f32[i<S] = max(j<S if j <= i) s[i, j]
  e: f32[i<S] = sum(j<S if j <= i) exp(s[i, j] - m[i])
  y: f32[i<S, d<D] = sum(j<S if j <= i) exp(s[i, j] - m[i]) / e[i] * v[j, d]
  return y
""", dict(S=5, D=3)),
    "conv": ("""program p(x: f32[N, 4, H, W], w: f32[6, 2, 3, 3], b: f32[6]):
  y: f32[n<N, o<6, h<((H - 1)//2 + 1), v<W] = sum(c<2, i<3, j<3) (x[n, (o//3)*2 + c, 2*h + i - 1, v + 2*j - 2] else 0.0) * w[o, c, i, j]
  z: f32[n<N, o<6, h<((H - 1)//2 + 1), v<W] = max(y[n, o, h, v] + b[o], 0.0)
  d: f32[n<N, c<4, h<H, v<W] = sum(i<3) (x[n, c, h + i - 1, v] else 0.0) * w[c, 0, i, 0]
  return z, d
""", dict(N=2, H=7, W=5)),
    "transposed conv": ("""program p(x: f32[C, H], w: f32[C, 4]):
  y: f32[t<(2*H + 2)] = sum(c<C, i<4 if (t - i) % 2 == 0 and t >= i and (t - i)//2 < H) x[c, (t - i)//2] * w[c, i]
  return y
""", dict(C=2, H=5)),
    "pools": ("""program p(x: f32[C, H, W]):
  m: f32[c<C, h<3, v<3] = max(i<3, j<3) (x[c, 2*h + i - 1, 2*v + j - 1] else -inf)
  s: f32[c<C, h<3, v<3] = sum(i<3, j<3 if 2*h + i - 1 >= 0 and 2*h + i - 1 < H and 2*v + j - 1 >= 0 and 2*v + j - 1 < W) x[c, 2*h + i - 1, 2*v + j - 1]
  n: i64[h<3, v<3] = sum(i<3, j<3 if 2*h + i - 1 >= 0 and 2*h + i - 1 < H and 2*v + j - 1 >= 0 and 2*v + j - 1 < W) 1
  a: f32[c<C, h<3, v<3] = s[c, h, v] / f32(n[h, v])
  return m, s, n, a
""", dict(C=2, H=5, W=6)),
    "normalise": ("""program p(x: f32[N, D], g: f32[D]):
  mean: f32[i<N] = sum(k<D) x[i, k] / f32(D)
  var: f32[i<N] = sum(k<D) (x[i, k] - mean[i]) * (x[i, k] - mean[i])
  y: f32[i<N, j<D] = (x[i, j] - mean[i]) * rsqrt(var[i] / f32(D) + 0.00001) * g[j]
  l: f32[i<N] = logsumexp(k<D) x[i, k]
  t: f32[] = logsumexp(i<N, k<D if k != i) x[i, k]
  return y, l, t
""", dict(N=3, D=7)),
    "reshape": ("""program p(x: f32[A, 4, 3]):
  y: f32[i<(A*12)] = x[i//12, i//3%4, i%3]
  z: f32[a<6, b<(A*2)] = x[(a*A*2 + b)//12, (a*A*2 + b)//3%4, (a*A*2 + b)%3]
  f: f32[c<3, a<A, b<4] = x[a, 3 - b, c]
  u: f32[a<A, b<8] = x[a, b//2, 1]
  return y, z, f, u
""", dict(A=3)),
    "gather": ("""program p(t: f32[V, D], ids: i32[B, S], at: i64[S]):
  e: f32[b<B, s<S, d<D] = t[ids[b, s], d]
  f: f32[b<B, s<S] = (e[b, at[s], s] else 2.5)
  g: f32[s<S, d<D] = (t[at[s] - 2, d + at[s] - 1] else f[0, s])
  c: f32[s<S] = t[min(max(at[s] - 2, 0), V - 1), 0]
  h: f32[s<S, d<D] = where(at[s] < V, t[at[s], d], 0.0)
  return e, f, g, c, h
""", dict(V=5, D=4, B=2, S=3)),
    "scans": ("""program p(x: f32[N, M], k: i32[N, M]):
  a: f32[i<N, j<M] = scan sum(i) x[i, j]
  b: f32[i<N, j<M] = scan prod(j) x[i, j] * 0.5
  c: f32[i<N, j<M] = scan max(j) x[i, j]
  d: i32[i<N, j<M] = scan min(i) k[i, j]
  e: f32[i<N, j<M] = scan logsumexp(j) x[i, j]
  f: bool[i<N, j<M] = scan any(j) x[i, j] > 1.0
  return a, b, c, d, e, f
""", dict(N=4, M=5)),
    "lstm": ("""program p(x: f32[T, D], w: f32[4, H, D], r: f32[4, H, H], h0: f32[H], c0: f32[H]):
  recur t<T:
    g: f32[t<T, k<4, i<H] = sum(d<D) w[k, i, d] * x[t, d]
    s: f32[t<T, k<4, i<H] = sum(j<H) r[k, i, j] * (h[t - 1, j] else h0[j])
    c: f32[t<T, i<H] = sigmoid(g[t, 1, i] + s[t, 1, i]) * (c[t - 1, i] else c0[i]) + sigmoid(g[t, 0, i] + s[t, 0, i]) * tanh(g[t, 2, i] + s[t, 2, i])
    h: f32[t<T, i<H] = sigmoid(g[t, 3, i] + s[t, 3, i]) * tanh(c[t, i])
  last: f32[i<H] = h[T - 1, i]
  return h, last
""", dict(T=6, D=3, H=4)),
    "scatter": ("""program p(x: f32[N], at: i64[N], b: f32[M]):
  s: f32[i<M] = scatter sum(n<N) at (at[n]) of x[n] base b[i]
  l: f32[i<M] = scatter last(n<N) at (at[n] - 1) of x[n] base 0.0
  m: f32[i<M] = scatter max(n<N) at (at[n]) of x[n] base -inf
  p: f32[i<M, j<2] = scatter prod(n<N) at (at[n], n % 3) of x[n] base 1.0
  z: f32[] = scatter sum(n<N) at () of x[n] base 1.0
  return s, l, m, p, z
""", dict(N=9, M=4)),
    "integers": ("""program p(a: i8[N, K], b: u8[K, M], c: i64[N, K], d: u64[K, M]):
  y: i32[i<N, j<M] = sum(k<K) i32(a[i, k]) * i32(b[k, j])
  w: u64[i<N, j<M] = sum(k<K) u64(c[i, k]) * d[k, j] * u64(9223372036854775809)
  q: i8[i<N, k<K] = a[i, k] * i8(100) + i8(100)
  r: i64[i<N, k<K] = c[i, k] // 3 - c[i, k] % 3
  s: i8[i<N] = prod(k<K) q[i, k]
  t: bool[k<K] = all(i<N) c[i, k] > 0
  return y, w, q, r, s, t
""", dict(N=3, K=5, M=2)),
    "small floats": ("""program p(x: f16[N], y: bf16[N], z: f64[N]):
  a: f16[i<N] = x[i] * 3.0
  b: f32[i<N] = f32(bf16(f32(x[i]) * 3.0))
  c: f64[i<N] = z[i] / 3.0
  d: f64[] = sum(i<N) z[i] * z[i]
  e: bf16[i<N] = bf16(z[i]) + y[i]
  return a, b, c, d, e
""", dict(N=5)),
    "shared factors": ("""program p(x: f32[N, M], y: f32[M], z: f32[N]):
  a: f32[j<3] = sum(i<N, k<M) x[i, k] * y[k]
  b: f32[i<N, j<2] = sum(k<M, l<4) z[i] * y[k]
  c: f32[i<N] = sum(k<M) -(x[i, k] * y[k] * z[i]) * exp(y[k])
  d: f32[i<N, j<M] = sum(k<3) z[i] * y[j]
  return a, b, c, d
""", dict(N=3, M=4)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_fast_is_reference(name: str) -> None:
    text, sizes = CASES[name]
    assert_fast_is_reference(text, inputs_for(text, sizes))


@pytest.mark.parametrize("name", CASES)
def test_small_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contraction, "BLOCK", 7)
    monkeypatch.setattr(interpreter, "_BLOCK", 5)
    monkeypatch.setattr(interpreter, "_FOLD_BLOCK", 3)
    text, sizes = CASES[name]
    assert_fast_is_reference(text, inputs_for(text, sizes))


@pytest.mark.parametrize("name", CASES)
def test_naive_is_close(name: str) -> None:
    text, sizes = CASES[name]
    program, inputs = parse_program(text), inputs_for(text, sizes)
    exact, naive = run_program(program, inputs), run_program(program, inputs, precision="naive")
    for result, a, b in zip(program.results, exact, naive, strict=True):
        wide = program.tensors[result].dtype.name == "f64"
        if a.dtype.kind == "f":
            assert b.dtype == (np.float64 if wide else np.float32)
            np.testing.assert_allclose(b.astype(np.float64), a.astype(np.float64), 2e-2, 1e-4)
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("zero", ["N", "K", "M"])
def test_zero_sizes(zero: str) -> None:
    text = """program p(x: f32[N, K], w: f32[K, M]):
  y: f32[i<N, j<M] = sum(k<K) x[i, k] * w[k, j]
  m: f32[j<M] = max(k<K) w[k, j]
  l: f32[i<N] = logsumexp(k<K) x[i, k]
  s: f32[i<N, k<K] = scan sum(k) x[i, k]
  a: bool[i<N] = all(k<K) x[i, k] > 0.0
  g: f32[i<N] = (x[i, 2] else 1.0)
  return y, m, l, s, a, g
"""
    assert_fast_is_reference(text, inputs_for(text, dict(N=2, K=3, M=4) | {zero: 0}))


def test_positions() -> None:
    text = """program p(x: f32[N, M]):
  a: i64[i<N] = argmax(k<M) x[i, k]
  b: i64[i<N] = argmin(k<M) x[i, k]
  c: i64[i<N] = argmax(k<M if k > i) x[i, k]
  d: i64[] = argmax(i<N, k<M) x[i, k]
  e: i64[i<N] = argmax(k<M if k > 0) -inf
  return a, b, c, d, e
"""
    nan = np.nan
    x = np.asarray([[1, 3, 3, 0], [2, 2, 2, 2], [1, nan, 5, nan], [0, 0, 0, -np.inf]], np.float32)
    a, b, c, d, e = assert_fast_is_reference(text, {"x": x[:3]})
    assert a.tolist() == [1, 0, 1] and b.tolist() == [3, 0, 1]
    assert c.tolist() == [1, 2, 3] and d == 9 and e.tolist() == [1, 1, 1]
    with pytest.raises(UserError, match=r"^\[P001\] argmax of nothing in 'c'"):
        run_program(parse_program(text), {"x": x})
    with pytest.raises(UserError, match=r"^\[P001\] argmax of nothing in 'c'"):
        run_reference(parse_program(text), {"x": x})


def test_positions_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """program p(x: f32[N, M], k: i32[N, M]):
  a: i64[] = argmax(i<N, k<M if k != 2) x[i, k]
  b: i64[] = argmin(i<N, j<M if j > i) k[i, j]
  return a, b
"""
    monkeypatch.setattr(interpreter, "_FOLD_BLOCK", 3)
    for seed in range(20):
        inputs = inputs_for(text, dict(N=5, M=4), seed)
        inputs["x"] = np.round(inputs["x"])
        if seed % 2:
            inputs["x"][seed % 5, 1] = np.nan
        assert_fast_is_reference(text, inputs)


def test_an_infinite_factor_of_a_sum_meets_every_term() -> None:
    """(1 + 2 - 1) * inf is inf, inf + inf - inf is not."""
    text = """program p(x: f32[3], w: f32[N]):
  y: f32[n<N] = sum(i<3) x[i] * w[n]
  z: f32[n<N] = sum(i<3, j<2) x[i] * w[n]
  return y, z
"""
    inputs = {"x": np.asarray([1, 2, -1], np.float32), "w": np.asarray([np.inf, 2], np.float32)}
    y, z = assert_fast_is_reference(text, inputs)
    np.testing.assert_array_equal(y, [np.nan, 4])
    np.testing.assert_array_equal(z, [np.nan, 8])


def test_nan_and_infinity() -> None:
    text = """program p(x: f32[N, M]):
  a: f32[i<N] = max(k<M) x[i, k]
  b: f32[i<N] = min(k<M) x[i, k]
  l: f32[i<N] = logsumexp(k<M) x[i, k]
  s: f32[i<N] = sum(k<M if k < 1) x[i, k] * x[0, k]
  return a, b, l, s
"""
    inf, nan = np.inf, np.nan
    x = np.asarray([[1, nan], [-inf, -inf], [inf, 1], [0, -inf], [inf, -inf]], np.float32)
    a, _, l, s = assert_fast_is_reference(text, {"x": x})
    np.testing.assert_array_equal(a, [nan, -inf, inf, 0, inf])
    np.testing.assert_array_equal(l, [nan, -inf, inf, 0, inf])
    np.testing.assert_array_equal(s, [1, -inf, inf, 0, inf])


def test_rounding_is_declared() -> None:
    """Only a cast to f16 rounds in the oracle; the naive evaluation also rounds what it stores."""
    text = """program p(x: f32[N]):
  a: f16[i<N] = f16(x[i])
  b: f16[i<N] = a[i] / f16(3.0)
  return a, b
"""
    x = np.asarray([1.0001, 2.5], np.float32)
    a, b = assert_fast_is_reference(text, {"x": x})
    assert a.tolist() == [1.0, 2.5] and b.tolist() == [1 / 3, 2.5 / 3]
    _, b = run_program(parse_program(text), {"x": x}, precision="naive")
    assert b[0] == np.float16(1 / 3)


def test_keep_and_values() -> None:
    text = """program p(x: f32[N]):
  const c: f32[N] @key
  a: f32[i<N] = x[i] + c[i]
  b: f32[i<N] = a[i] * 2.0
  return b, x
"""
    program = parse_program(text)
    x, c = np.ones(3, np.float32), np.arange(3, dtype=np.float32)
    b, y, a = run_program(program, {"x": x}, values={"key": c}, keep={"a"})
    assert b.tolist() == [2, 4, 6] and a.tolist() == [1, 2, 3] and not np.shares_memory(x, y)
    with pytest.raises(UserError, match=r"^\[R001\] the value of constant 'c' is missing"):
        run_program(program, {"x": x})


def test_symbolic_sizes() -> None:
    text = """program p(x: f32[2*N + 1, N], y: f32[M]):
  dim M in 1 .. 8 multiple 2
  s: f32[i<(N//2)] = x[2*i + 1, i] * y[0]
  return s
"""
    program = parse_program(text)
    x, y = np.ones((9, 4), np.float32), np.ones(2, np.float32)
    assert run_program(program, {"x": x, "y": y})[0].shape == (2,)
    for bad, code in (
        ({"x": x[:8], "y": y}, "R004"),
        ({"x": x, "y": y[:1]}, "R004"),
        ({"x": x[0], "y": y}, "R003"),
        ({"x": x}, "R001"),
        ({"x": x.astype(np.int32), "y": y}, "R002"),
    ):
        with pytest.raises(UserError) as caught:
            run_program(program, bad)
        assert caught.value.code == code


@pytest.mark.parametrize("runner", [run_program, run_reference])
def test_read_outside(runner: Any) -> None:
    def run(body: str) -> None:
        text = f"program p(x: f32[4], at: i64[3]):\n  y: f32[i<3] = {body}\n  return y\n"
        runner(parse_program(text), {"x": np.ones(4, np.float32), "at": np.asarray([0, 9, -1])})

    for body in ("x[i + 2]", "x[at[i]]", "x[i - 1] * 2.0", "sum(k<3) x[i + k]"):
        with pytest.raises(UserError) as caught:
            run(body)
        assert caught.value.code == "P001" and "outside" in caught.value.message
        assert "y: f32[i<3]" in caught.value.where
    run("where(at[i] < 4 and at[i] >= 0, x[at[i]], 0.0)")
    run("sum(k<3 if i + k < 4) x[i + k]")
    run("where(i > 0, x[i - 1] * 2.0, exp(x[i]))")


def test_recurrence_reads_only_the_past() -> None:
    text = """program p(x: f32[T]):
  recur t<T:
    a: f32[t<T] = b[t] + x[t]
    b: f32[t<T] = a[t]
  return b
"""
    with pytest.raises(UserError, match=r"^\[P001\] b\[t\] is outside"):
        run_program(parse_program(text), {"x": np.ones(3, np.float32)})


def test_long_double_products() -> None:
    text = """program p(x: f64[N, K], w: f64[K, M]):
  y: f64[i<N, j<M] = sum(k<K) x[i, k] * w[k, j]
  return y
"""
    inputs = inputs_for(text, dict(N=90, K=700, M=80))
    inputs["x"][3] *= 1e30
    y = run_program(parse_program(text), inputs)[0]
    wide = inputs["x"].astype(np.longdouble)[:, :, None] * inputs["w"].astype(np.longdouble)
    error = np.abs(y - wide.sum(1)) / np.abs(wide).sum(1)
    assert y.dtype == np.longdouble and error.max() < 1e-18


def test_big_matmul_is_quick() -> None:
    text = """program p(x: f32[N, N], w: f32[N, N]):
  y: f32[i<N, j<N] = sum(k<N) x[i, k] * w[k, j]
  return y
"""
    inputs = inputs_for(text, dict(N=1024))
    start = time.perf_counter()
    y = run_program(parse_program(text), inputs)[0]
    assert time.perf_counter() - start < 5
    np.testing.assert_allclose(y, inputs["x"].astype(float) @ inputs["w"].astype(float))


def test_a_guard_keeps_a_sum_inside_the_steps_that_are_done() -> None:
    text = """
program cholesky(a: f64[3, 5, 5]):
  recur t<5:
    q: f64[t<5, g<3, i<5] = sum(s<5 if s < t) l[s, g, i] * l[s, g, t]
    l: f64[t<5, g<3, i<5] = where(i < t, 0.0, (a[g, i, t] - q[t, g, i]) / sqrt(a[g, t, t] - q[t, g, t]))
  y: f64[g<3, i<5, j<5] = l[j, g, i]
  return y
"""
    half = np.random.default_rng(0).standard_normal((3, 5, 5))
    a = half @ half.swapaxes(1, 2) + np.eye(5)
    (y,) = assert_fast_is_reference(text, {"a": a})
    np.testing.assert_allclose(y.astype(np.float64), np.linalg.cholesky(a), atol=1e-12)


def test_the_naive_value_of_a_long_sum_is_summed_in_order() -> None:
    """A library's blocked sum errs less; the bound for everybody comes from the plain order."""
    text = """
program p(a: f32[2, 9000], b: f32[9000, 400]):
  c: f32[i<2, j<400] = sum(k<9000) a[i, k] * b[k, j]
  return c
"""
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 9000), np.float32), rng.random((9000, 400), np.float32)
    (naive,) = run_program(parse_program(text), {"a": a, "b": b}, precision="naive")
    plain = np.zeros((), np.float32)
    for x, y in zip(a[0], b[:, 0], strict=True):
        plain += x * y
    assert naive[0, 0] == plain
