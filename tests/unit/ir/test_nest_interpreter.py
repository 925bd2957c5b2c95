"""The nest interpreter where native code cannot be compared: errors, and a few meanings by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.errors import InternalError
from tilewright.ir.nest import parse_nest
from tilewright.ir.nest_interpreter import run_nest


def run(body: str, **buffers: np.ndarray) -> dict[str, np.ndarray]:
    kinds = {"float32": "f32", "int64": "i64", "bool": "bool", "int32": "i32"}
    head = "".join(f"  arg {k}: {kinds[str(v.dtype)]}[{v.size}]\n" for k, v in buffers.items())
    lines = "".join(f"    {line}\n" for line in body.strip("\n").split("\n"))
    run_nest(parse_nest(f"nest n format 1:\n{head}  phase:\n{lines}"), buffers, {})
    return buffers


def test_outside_access_is_an_error() -> None:
    with pytest.raises(InternalError, match=r"Load touches X\[2 .. 5\] of 4"):
        run("a: f32[n:4*] = load X[2] by (n=1)", X=np.zeros(4, np.float32))


def test_limits_guard_and_else() -> None:
    out = run(
        "a: f32[n:4*] = load X[-1] by (n=1) within (n: 1 .. 3) else 9.0\nstore Y[0] by (n=1) = a",
        X=np.array([1, 2], np.float32), Y=np.zeros(4, np.float32),
    )  # fmt: skip
    assert out["Y"].tolist() == [9, 1, 2, 9]


def test_scatter_combines_duplicates_in_order() -> None:
    out = run(
        "o: i64[n:3*] = load I[0] by (n=1)\nv: f32[n:3*] = load X[0] by (n=1)\n"
        "scatter add S[0] at o = v\nscatter L[0] at o = v",
        I=np.array([1, 1, 0]), X=np.array([1, 2, 4], np.float32), S=np.zeros(2, np.float32),
        L=np.zeros(2, np.float32),
    )  # fmt: skip
    assert out["S"].tolist() == [4, 3]
    assert out["L"].tolist() == [4, 2]


def test_lane_reduction_halves() -> None:
    x = np.array([1e8, 1, -1e8, 1, 0], np.float32)
    out = run("a: f32[n:5*] = load X[0] by (n=1)\ns: f32[] = reduce add n a\nstore Y[0] = s",
              X=x, Y=np.zeros(1, np.float32))  # fmt: skip
    f = np.float32
    want = ((x[0] + x[4]) + (x[2] + f(0))) + ((x[1] + f(0)) + (x[3] + f(0)))
    assert out["Y"][0] == want


def test_zero_trips_leave_the_initial_value() -> None:
    out = run(
        "z: f32[] = fill 3.0\nfor i in 2 .. 2 step 1 carry (a = z) -> (r):\n"
        "  b: f32[] = add a, a\n  yield b\nstore Y[0] = r",
        Y=np.zeros(1, np.float32),
    )
    assert out["Y"][0] == 3
