"""Unusual arrays and unusual callers: strided, empty, swapped; threads, forks, results that stay."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tilewright as tw
from tilewright.errors import UserError

SOURCE = Path(tw.__file__).parents[1]
NET = """program net(x: f32[N, 33], w: f32[33, 21], b: f32[21]):
  dim N in 0 .. inf
  h: f32[n<N, j<21] = sum(k<33) x[n, k] * w[k, j]
  y: f32[n<N, j<21] = tanh(h[n, j] + b[j])
  s: f32[n<N] = sum(j<21) y[n, j]
  z: f32[n<N, j<21] = y[n, j] / s[n]
  return z, s
"""


def random(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


W, B = random(1, 33, 21), random(2, 21)


def reference(x: Any) -> tuple[Any, Any]:
    y = np.tanh(x.astype(np.float64) @ W + B)
    s = y.sum(1)
    return y / s[:, None], s


@pytest.fixture(scope="module")
def net() -> Any:
    return tw.compile(tw.program(NET), threads=2)


def strided(x: Any) -> Any:
    wide = np.full((2 * x.shape[0], 3 * x.shape[1]), np.nan, x.dtype)
    wide[::2, ::3] = x
    return wide[::2, ::3]


VIEWS = {
    "fortran": np.asfortranarray,
    "strided": strided,
    "reversed": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "unaligned": lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view("f4").reshape(x.shape),
    "read only": lambda x: np.frombuffer(x.tobytes(), "f4").reshape(x.shape),
    "memoryview": memoryview,
    "subclass": lambda x: x.view(np.ma.MaskedArray),
    "memmap": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", VIEWS)
def test_arrays_in_any_order_in_memory(net: Any, kind: str, tmp_path: Path) -> None:
    x = random(3, 7, 33)
    wanted = net(x, W, B)
    if kind == "memmap":
        x.tofile(tmp_path / "x")
        given: Any = np.memmap(tmp_path / "x", np.float32, "r", shape=x.shape)
    else:
        make = VIEWS[kind]
        assert make is not None
        given = make(x)
    before = np.array(given)
    for got, want in zip(net(given, strided(W), B[::-1].copy()[::-1]), wanted, strict=True):
        np.testing.assert_array_equal(got, want)
        assert got.flags.c_contiguous and got.flags.writeable and type(got) is np.ndarray
    np.testing.assert_array_equal(np.array(given), before)


def test_broadcast_views_and_scalars() -> None:
    model = tw.compile(
        "program p(x: f32[4, 6], c: f32[]):\n  y: f32[i<4, j<6] = x[i, j] * c[]\n  return y\n"
    )
    row = np.broadcast_to(np.arange(6, dtype="f4"), (4, 6))
    for c in (np.float32(3), np.array(3, "f4"), np.arange(5, dtype="f4")[3:4].reshape(())):
        np.testing.assert_array_equal(model(row, c), np.asarray(row) * 3)


def test_swapped_bytes_are_refused(net: Any) -> None:
    with pytest.raises(UserError) as caught:
        net(random(3, 7, 33).astype(">f4"), W, B)
    assert caught.value.code == "R002" and ">f4" in caught.value.message


def test_lists_are_refused(net: Any) -> None:
    with pytest.raises(UserError) as caught:
        net(random(3, 7, 33).tolist(), W, B)
    assert caught.value.code == "R005"


EMPTY = {
    "N": "program p(x: f32[N, 5], w: f32[5, M]):\n  y: f32[i<N, j<M] = sum(k<5) x[i, k] * w[k, j]\n  return y\n",
    "K": "program p(x: f32[N, K], w: f32[K, M]):\n  y: f32[i<N, j<M] = sum(k<K) x[i, k] * w[k, j]\n  return y\n",
    "max": "program p(x: f32[N, K]):\n  y: f32[i<N] = max(k<K) x[i, k]\n  return y\n",
    "prod": "program p(x: i32[N, K]):\n  y: i32[i<N] = prod(k<K) x[i, k] + 1\n  return y\n",
    "any": "program p(x: bool[N, K]):\n  y: bool[i<N] = any(k<K) x[i, k]\n  return y\n",
    "softmax": "program p(x: f32[N, K]):\n  m: f32[i<N] = max(k<K) x[i, k]\n"
               "  e: f32[i<N, k<K] = exp(x[i, k] - m[i])\n  s: f32[i<N] = sum(k<K) e[i, k]\n"
               "  y: f32[i<N, k<K] = e[i, k] / s[i]\n  return y\n",
    "scan": "program p(x: f32[N, K]):\n  y: f32[i<N, k<K] = scan sum(k) x[i, k]\n  return y\n",
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize(
    "sizes", [(0, 3, 4), (3, 0, 4), (3, 2, 0), (0, 0, 0), (0, 0, 4), (3, 0, 0), (1, 1, 1)]
)
def test_empty_arrays(name: str, sizes: tuple[int, int, int]) -> None:
    n, k, m = sizes
    program = tw.program(EMPTY[name])
    dims = {d.name: v for d, v in zip(program.dims, (n, k, m), strict=False)}
    dims = {d.name: {"N": n, "K": k, "M": m}[d.name] for d in program.dims}
    rng = np.random.default_rng(0)
    arrays = {}
    for t in program.inputs:
        shape = [e.attr if e.op == "const" else dims[e.attr] for e in t.shape]
        arrays[t.name] = rng.integers(0, 3, shape).astype(t.dtype.np)
    got = tw.compile(program).run(arrays)[0]
    x = arrays["x"]
    with np.errstate(invalid="ignore"):
        match name:
            case "N" | "K":
                wanted = x @ arrays["w"]
            case "max":
                wanted = x.max(1, initial=-np.inf)
            case "prod":
                wanted = (x + 1).prod(1).astype("i4")
            case "any":
                wanted = x.any(1)
            case "softmax":
                e = np.exp(x - x.max(1, initial=-np.inf, keepdims=True))
                wanted = e / e.sum(1, keepdims=True)
            case "scan":
                wanted = np.cumsum(x, 1, dtype="f4")
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_nothing_to_compute_leaves_results_of_their_own() -> None:
    model = tw.compile("program p(x: f32[N]):\n  y: f32[i<N] = x[i]\n  return x, y, x\n")
    x = random(1, 9)
    first, second, third = model(x)
    for a in (first, second, third):
        np.testing.assert_array_equal(a, x)
        assert not np.shares_memory(a, x)
    assert model(x[:0])[0].shape == (0,)


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?", "bf16"]
)
def test_every_element_type(dtype: str) -> None:
    name = {"f2": "f16", "f4": "f32", "f8": "f64", "?": "bool", "i1": "i8", "u1": "u8", "i2": "i16", "u2": "u16",
            "i4": "i32", "u4": "u32", "i8": "i64", "u8": "u64"}.get(dtype, dtype)  # fmt: skip
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bf16" else np.dtype(dtype)
    model = tw.compile(
        f"program p(x: {name}[N], y: {name}[N]):\n  z: {name}[i<N] = max(x[i], y[i])\n  return z\n"
    )
    rng = np.random.default_rng(0)
    for n in (0, 1, 37):
        x, y = (rng.integers(0, 100, n).astype(kind) for _ in range(2))
        got = model(x, y)
        assert got.dtype == kind
        np.testing.assert_array_equal(got, np.maximum(x, y))


# ---- results -----------------------------------------------------------------------------------


def test_results_never_change_under_later_calls(net: Any) -> None:
    kept = []
    for seed in range(12):
        x = random(seed, 5 if seed % 3 else 9, 33)
        got = net(x, W, B)
        kept.append((got, [a.copy() for a in got]))
        kept.append(([got[0][1:3].T], [got[0][1:3].T.copy()]))
    for got, copies in kept:
        for a, b in zip(got, copies, strict=True):
            np.testing.assert_array_equal(a, b)


def test_results_belong_to_the_caller(net: Any) -> None:
    x = random(1, 4, 33)
    first = net(x, W, B)
    wanted = [a.copy() for a in first]
    first[0][...] = np.nan
    for got, want in zip(net(x, W, B), wanted, strict=True):
        np.testing.assert_array_equal(got, want)


def test_reuse_outputs() -> None:
    model = tw.compile(tw.program(NET), reuse_outputs=True)
    x, y = random(1, 4, 33), random(2, 4, 33)
    first = model(x, W, B)
    second = model(y, W, B)
    assert all(a is b for a, b in zip(first, second, strict=True))
    np.testing.assert_allclose(first[0], reference(y)[0], rtol=2e-3, atol=1e-4)
    other = model(random(3, 6, 33), W, B)
    assert other[0].shape == (6, 21) and first[0].shape == (4, 21)


def test_out_is_written_and_returned(net: Any) -> None:
    x = random(1, 4, 33)
    out = (np.empty((4, 21), "f4"), np.empty(4, "f4"))
    assert net(x, W, B, out=out) is out
    for got, want in zip(out, net(x, W, B), strict=True):
        np.testing.assert_array_equal(got, want)


def test_out_that_is_also_an_input() -> None:
    model = tw.compile(
        "program p(x: f32[6, 6]):\n  y: f32[i<6, j<6] = x[j, i] + x[i, j]\n  return y\n"
    )
    x = random(1, 6, 6)
    wanted = x.T + x
    model(x, out=x)
    np.testing.assert_array_equal(x, wanted)


def test_a_result_that_is_returned_twice() -> None:
    model = tw.compile(
        "program p(x: f32[6]):\n  y: f32[i<6] = x[i] + 1.0\n  z: f32[i<6] = x[i]*x[i]\n  return z, y, z\n"
    )
    x = random(1, 6)
    out = tuple(np.empty(6, "f4") for _ in range(3))
    assert model(x, out=out) is out
    for got, want in zip(out, (x * x, x + 1, x * x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    model.bind([x + 1], out)()
    np.testing.assert_allclose(out[2], (x + 1) ** 2, rtol=1e-6)
    with pytest.raises(UserError) as caught:
        model(x, out=out[:2])
    assert caught.value.code == "R006" and "z, y, z" in caught.value.hint


# ---- callers -----------------------------------------------------------------------------------


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x = random(4, 700, 33)
    # Schedules may depend on the number that a model is compiled for, so it is compiled once.
    with tw.config(num_threads=2):
        model = tw.compile(tw.program(NET))
        wanted = model(x, W, B)
    try:
        for threads in (1, 2, 3, 5):
            tw.set_num_threads(threads)
            for got, want in zip(model(x, W, B), wanted, strict=True):
                np.testing.assert_array_equal(got, want)
    finally:
        tw.set_num_threads(None)


def test_eight_python_threads_at_once() -> None:
    model = tw.compile(tw.program(NET), threads=2)
    xs = [random(k, 3 + 40 * (k % 4), 33) for k in range(8)]
    wanted = [model(x, W, B) for x in xs]
    fresh = tw.compile(tw.program(NET), threads=2)  # its variants are compiled under the threads
    wrong: list[Any] = []
    start = threading.Barrier(8)

    def work(k: int) -> None:
        start.wait()
        for turn in range(25):
            j = (k + turn) % 8
            got = fresh(xs[j], W, B)
            if not all(np.array_equal(a, b) for a, b in zip(got, wanted[j], strict=True)):
                wrong.append((k, turn))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_a_forked_child_can_call_and_compile(net: Any) -> None:
    x = random(4, 300, 33)
    wanted = net(x, W, B)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        ok = b"n"
        try:
            same = all(np.array_equal(a, b) for a, b in zip(net(x, W, B), wanted, strict=True))
            other = net(x[:11], W, B)
            new = tw.compile("y[i] = 2.0 * x[i]")(np.ones(100, "f4"))
            close = np.allclose(other[1], reference(x[:11])[1], atol=1e-3)
            ok = b"y" if same and close and (new == 2).all() else b"n"
        finally:
            os.write(writer, ok)
            os._exit(0)
    assert os.read(reader, 1) == b"y"
    assert os.waitpid(pid, 0)[1] == 0
    for got, want in zip(net(x, W, B), wanted, strict=True):
        np.testing.assert_array_equal(got, want)


def _in_a_child(x: Any) -> Any:
    return tw.compile(tw.program(NET), threads=2)(x, W, B)[0]


def test_a_spawned_child(net: Any) -> None:
    x = random(4, 30, 33)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import numpy as np, test_api_arrays as t\n"
        "np.save(sys.argv[3], t._in_a_child(np.load(sys.argv[2])))"
    )
    here = Path(__file__)
    files = [here.parent / f".spawned-{os.getpid()}-{n}.npy" for n in "xy"]
    try:
        np.save(files[0], x)
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        subprocess.run(
            [sys.executable, "-c", code, str(here.parent), *map(str, files)], check=True, env=environment
        )  # fmt: skip
        np.testing.assert_array_equal(np.load(files[1]), net(x, W, B)[0])
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _double(queue: Any, x: Any) -> None:
    queue.put(tw.compile("y[i] = 2.0 * x[i]")(x))


def test_multiprocessing_by_fork(net: Any) -> None:
    net(random(4, 30, 33), W, B)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_double, args=(queue, np.ones(9, "f4")))
    child.start()
    np.testing.assert_array_equal(queue.get(timeout=60), np.full(9, 2, "f4"))
    child.join(60)
    assert child.exitcode == 0
