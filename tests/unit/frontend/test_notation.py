"""Index notation: what is inferred, and that the values are those of NumPy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.frontend.notation import from_einsum, parse_notation
from tilewright.frontend.terms import FUNCTIONS
from tilewright.ir import expr as E
from tilewright.ir.dtypes import DTYPES, F64
from tilewright.ir.interpreter import run_program
from tilewright.ir.program import MONOIDS
from tilewright.ir.program_parser import parse_program

RNG = np.random.default_rng(5)


def array(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def run(source: str, **inputs: Any) -> Any:
    program = parse_notation(source)
    assert parse_program(str(program)) == program
    out = run_program(program, inputs)
    return out[0] if len(out) == 1 else out


def lines(source: str) -> list[str]:
    """The statements of the Program, without dims."""
    text = str(parse_notation(source)).splitlines()
    return [line.strip() for line in text if not line.startswith("  dim ")]


def test_matmul() -> None:
    source = "C[i,j] = sum(k) A[i,k] * B[k,j]"
    assert lines(source) == [
        "program main format 1(A: f32[I, K], B: f32[K, J]):",
        "C: f32[i<I, j<J] = sum(k<K) A[i, k] * B[k, j]",
        "return C",
    ]
    a, b = array(3, 4), array(4, 5)
    np.testing.assert_allclose(run(source, A=a, B=b), a.astype(float) @ b)


def test_reductions_inside_expressions() -> None:
    x = array(3, 5)
    y = run("y[i,j] = exp(x[i,j]) / sum(k) exp(x[i,k])", x=x)
    e = np.exp(x.astype(float))
    np.testing.assert_allclose(y, e / e.sum(1, keepdims=True))
    source = """
        m[i] = mean(k) x[i,k]                      # one row
        v[i] = mean(k) square(x[i,k] - m[i])
        y[i,j] = (x[i,j] - m[i]) * rsqrt(v[i] + 1e-5) * g[j] + b[j]
    """
    g, b = array(5), array(5)
    w = x.astype(float)
    expected = (w - w.mean(1, keepdims=True)) / np.sqrt(w.var(1, keepdims=True) + 1e-5) * g + b
    np.testing.assert_allclose(run(source, x=x, g=g, b=b), expected, rtol=1e-6)
    q = run("p = argmax(i) x[i]; q = x[p]", x=array(9))
    assert q.shape == ()
    both = run("y[i] = max(k) x[i,k] - min(k) -x[i,k]", x=x)
    np.testing.assert_allclose(both, x.max(1) - (-x).min(1))
    deep = run("y = sum(i) (x[i,0] / sum(k) square(x[i,k]))", x=x)
    np.testing.assert_allclose(deep, (w[:, 0] / (w * w).sum(1)).sum())


def test_a_sum_ends_at_plus() -> None:
    w, b, x = array(4, 5), array(5), array(3, 4)
    assert lines("h[i,j] = sum(k) x[i,k]*w[k,j] + b[j]")[1:3] == [
        "h_1: f32[i<I, j<J] = sum(k<K) x[i, k] * w[k, j]",
        "h: f32[i<I, j<J] = h_1[i, j] + b[j]",
    ]
    y = run("h[i,j] = sum(k) x[i,k]*w[k,j] + b[j]; y[i,j] = relu(h[i,j])", x=x, w=w, b=b)
    np.testing.assert_allclose(y, np.maximum(x.astype(float) @ w + b, 0))


def test_max_is_a_reduction_or_a_function() -> None:
    x, y = array(3, 4), array(3, 4)
    np.testing.assert_array_equal(run("z[i,j] = max(x[i,j], y[i,j])", x=x, y=y), np.maximum(x, y))
    np.testing.assert_array_equal(run("z[i] = max(j) (x[i,j])", x=x), x.max(1))
    np.testing.assert_array_equal(run("z[i] = max(j if j > 1) x[i,j]", x=x), x[:, 2:].max(1))
    i, j = np.arange(3)[:, None], np.arange(4)
    z = run("z[i,j<4] = x[i, max(i, j) - j]", x=x)
    np.testing.assert_array_equal(z, x[i, np.maximum(i, j) - j])


def test_windows() -> None:
    x, w = array(2, 3, 9, 8), array(4, 3, 3, 2)
    source = "y[n,o,h,v] = sum(c,i,j) x[n,c,2*h+i,v+j] * w[o,c,i,j]"
    y = run(source, x=x, w=w)
    view = np.lib.stride_tricks.sliding_window_view(x.astype(float), (3, 2), (2, 3))[:, :, ::2]
    np.testing.assert_allclose(y, np.einsum("nchvij,ocij->nohv", view, w))
    assert "h<((I*-1 + X_2)//2 + 1)" in str(parse_notation(source)).replace(" // ", "//")
    assert lines("y[h] = sum(i<3) (x[h+i-1] else 0.0) * w[i]")[:2] == [
        "program main format 1(x: f32[X_0], w: f32[3]):",
        "y: f32[h<X_0] = sum(i<3) (x[h + i - 1] else 0.0) * w[i]",
    ]
    assert run("y[i] = x[i//2] * 2.0", x=array(3)).shape == (6,)
    a = array(4)
    np.testing.assert_array_equal(run("x: f32[N]; y[i] = x[N-1-i]", x=a), a[::-1])
    np.testing.assert_array_equal(run("y[i<2] = x[i+1]", x=a[:3]), a[1:3])
    np.testing.assert_array_equal(
        run("x: f32[N]; y[i<N-1] = x[i+1] - x[i]", x=a), np.diff(a.astype(float))
    )


def test_explicit_bounds_and_declarations() -> None:
    assert lines("y[i] = sum(k<3) A[i,k]")[0] == "program main format 1(A: f32[I, 3]):"
    source = "A: f32[N, K]\ny[i] = sum(k<3) A[i,k]"
    assert lines(source)[0] == "program main format 1(A: f32[N, K]):"
    source = "y[i<N, j<M] = x[i] + z[j]"
    assert lines(source)[0] == "program main format 1(x: f32[N], z: f32[M]):"
    source = "dim N in 1 .. 64 multiple 4 hint 16\nx: f64[N]; unused: i8[3, N]\ny[i] = x[i] * 0.1"
    program = parse_notation(source)
    assert str(program.dims[0].hint) == "16" and program.dims[0].multiple == 4
    assert [str(t) for t in program.inputs] == ["x: f64[N]", "unused: i8[3, N]"]
    assert "f64(0.1)" in str(program)
    source = "x: f16[...]\ny: f32[i] = sum(k) x[i,k]"
    assert lines(source)[1:3] == [
        "y_1: f16[i<I] = sum(k<K) x[i, k]",
        "y: f32[i<I] = f32(y_1[i])",
    ]


def test_names_that_collide() -> None:
    assert lines("c[i,c] = q[i,c]; I[k] = c[k,0] * K[k]; return I, c")[1:] == [
        "c: f32[i<I_2, c_2<C] = q[i, c_2]",
        "I: f32[k<I_2] = c[k, 0] * K[k]",
        "return I, c",
    ]


def test_gather_scatter_scan() -> None:
    t, ids = array(7, 3), np.asarray([[1, 6], [0, 0]])
    np.testing.assert_array_equal(run("e[b,s,d] = t[ids[b,s], d]", t=t, ids=ids), t[ids])
    at, x = np.asarray([0, 2, 0, 9]), array(4)
    y = run("s[i<3] = scatter sum(n) at (at_[n]) of x[n] base b[i]", at_=at, x=x, b=array(3) * 0)
    np.testing.assert_allclose(y, [x[0] + x[2], 0, x[1]], rtol=1e-6)
    n = run(
        "label: i32[N]\nc: i64[c<3] = scatter sum(n) at (label[n]) of 1 base 0",
        label=at.astype("i"),
    )
    assert n.tolist() == [2, 0, 1]
    z = run("y[i] = x[i] / scan sum(i) x[i]", x=x)
    np.testing.assert_allclose(z, x / np.cumsum(x.astype(float)))


@pytest.mark.parametrize(
    "source",
    [
        "recur t<T:\n  h[t,i] = tanh(sum(j) w[i,j]*(h[t-1,j] else h0[j]) + x[t,i])\ny[i] = h[T-1,i]\nreturn y, h",
        "recur t: h[t,i] = tanh(sum(j) w[i,j]*(h[t-1,j] else h0[j]) + x[t,i])\nT_[a] = h[a,0]; y[i] = h[2,i]; return y, h",
    ],
)
def test_recurrence(source: str) -> None:
    w, h0, x = array(3, 3), array(3), array(3, 3)
    y, h = run(source, w=w, h0=h0, x=x)
    state = h0.astype(float)
    for t in range(3):
        state = np.tanh(w.astype(float) @ state + x[t])
        np.testing.assert_allclose(h[t], state)
    np.testing.assert_allclose(y, state)


def test_recurrence_of_another_dtype() -> None:
    source = "recur t<T:\n  n: i64[t] = (n[t-1] else 5) + k[t]\n  m[t] = f32(n[t])\nreturn n, m"
    n, m = run("k: i64[T]\n" + source, k=np.arange(3))
    assert n.tolist() == [5, 6, 8] and m.tolist() == [5, 6, 8]


def test_extern_is_parsed() -> None:
    source = 'x: f32[N, K]\nv: f32[N, 5], p: i64[N, 5] = extern topk(x) {k = 5, axes = (0, -1), mode = "a", eps = 0.1}'
    assert lines(source)[1:] == [
        'v: f32[N, 5], p: i64[N, 5] = extern topk(x) {k = 5, axes = (0, -1,), mode = "a", eps = 0.1}',
        "return v, p",
    ]


def test_functions_are_numerically_right() -> None:
    x = np.asarray([-200, -3, -0.5, 0, 0.5, 3, 200], np.float32)
    w = x.astype(float)
    np.testing.assert_allclose(run("y[i] = silu(x[i])", x=x), w / (1 + np.exp(-w)), rtol=1e-12)
    np.testing.assert_allclose(run("y[i] = softplus(x[i])", x=x), np.logaddexp(0, w), rtol=1e-12)
    np.testing.assert_allclose(run("y[i] = square(x[i])", x=x), w * w)
    y = run("x: f64[...]\ny[i] = gelu(x[i])", x=w)
    from math import erf

    expected = [v / 2 * (1 + erf(v / 2**0.5)) for v in w]
    np.testing.assert_allclose(y.astype(float), expected, rtol=1e-12, atol=1e-300)


def test_full_program_text() -> None:
    text = "# a comment\nprogram p(x: f32[N]):\n  y: f32[i<N] = x[i] * 2.0\n  return y\n"
    assert parse_notation(text) == parse_program(text)


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("bij,bjk", [(2, 3, 4), (2, 4, 5)]),
        ("ii->", [(3, 3)]),
        ("ij->ji", [(2, 3)]),
        ("i,j", [(2,), (3,)]),
        ("ijk,ijy,kiy->y", [(2, 3, 4), (2, 3, 5), (4, 2, 5)]),
        (",i->i", [(), (3,)]),
    ],
)
def test_einsum(spec: str, shapes: list[tuple[int, ...]]) -> None:
    operands = [array(*s).astype(float) for s in shapes]
    program = from_einsum(spec, F64)
    out = run_program(program, {f"x{k}": x for k, x in enumerate(operands)})[0]
    np.testing.assert_allclose(out.astype(float), np.einsum(spec, *operands), atol=1e-12)


def test_documented_functions_are_the_functions() -> None:
    page = (Path(__file__).parents[3] / "docs" / "notation.md").read_text()
    table = page[page.index("| Kind") : page.index("`where` evaluates")]
    documented = set(re.findall(r"[a-z][a-z0-9_]+", "".join(re.findall(r"`[^`]*`", table))))
    known = E.UNARY | E.BINARY | set(FUNCTIONS) | {"where"}
    assert documented - {"condition", "then", "otherwise"} == known
    assert set(MONOIDS) | {"mean"} <= set(re.findall(r"[a-z]+", page))
    assert set(DTYPES) <= set(re.findall(r"[a-z0-9]+", page))
