"""Errors of the math functions against the next wider type, on every level this machine can run."""

import ctypes
import ctypes.util

import numpy as np
import pytest
from llvmlite import binding as llvm

from tilewright.codegen.mathlib import MATH
from tilewright.codegen.mathlib.harness import (
    LEVELS,
    compile_loop,
    compile_reference,
    sample,
    ulp_error,
    worst_error,
)

_FEATURES = llvm.get_host_cpu_features() if "x86_64" in llvm.get_process_triple() else {}
_NEEDS = {
    "avx512": ("avx512f", "avx512vl", "avx512dq", "avx512bw"),
    "avx2": ("avx2", "fma"),
    "sse42": ("sse4.2",),
}
RUNNABLE = [n for n, needed in _NEEDS.items() if all(_FEATURES.get(f) for f in needed)]
pytestmark = pytest.mark.skipif(not RUNNABLE, reason="the harness is for x86-64")

# Inputs by type and place in RUNNABLE: the best level gets the dense sample.
COUNTS = {"f32": [1 << 20, 1 << 16, 1 << 16], "f64": [1 << 17, 1 << 15, 1 << 15]}


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", MATH)
def test_error_is_within_the_stated_bound(name: str, dtype: str) -> None:
    function = MATH[name]
    reference = compile_reference(name, dtype)
    for level_name, count in zip(RUNNABLE, COUNTS[dtype], strict=False):
        if function.arity == 2:
            count = max(count // 4, 1 << 17)
        level = LEVELS[level_name]
        arguments = sample(dtype, count, function.arity, seed=1)
        loop = compile_loop(name, dtype, level.lanes(dtype), level)
        error, index = worst_error(name, dtype, loop, reference, arguments)
        at = tuple(float(a[index]) for a in arguments)
        assert error <= function.ulp[dtype], f"{level_name}: {name}{at}"


@pytest.mark.parametrize("name", MATH)
def test_results_do_not_depend_on_the_lane_count(name: str) -> None:
    """A vector body and a scalar tail give the same bits."""
    level = LEVELS[RUNNABLE[0]]
    for dtype, word in (("f32", np.uint32), ("f64", np.uint64)):
        every = sample(dtype, 1 << 17, MATH[name].arity, seed=2)
        arguments = tuple(np.concatenate([a[:: 1 << 4], a[-4096:]]) for a in every)
        widest = level.lanes(dtype)
        results = []
        for lanes in (widest, widest // 2, 1):
            y = compile_loop(name, dtype, lanes, level)(*arguments)
            results.append(np.where(np.isnan(y), y.dtype.type(np.nan), y).view(word))
        for other in results[1:]:
            np.testing.assert_array_equal(results[0], other)


def _values(name: str, *arguments: list[float]) -> list[float]:
    level = LEVELS[RUNNABLE[0]]
    lanes = level.lanes("f32")
    padded = [np.resize(np.array(a, np.float32), lanes) for a in arguments]
    return [float(v) for v in compile_loop(name, "f32", lanes, level)(*padded)[: len(arguments[0])]]


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        (
            "exp",
            [[-INF, INF, 0.0, -0.0, -104.0, -103.0]],
            [0.0, INF, 1.0, 1.0, 0.0, 1.401298464e-45],
        ),
        (
            "log",
            [[0.0, -0.0, 1.0, INF, -1.0, 1e-45]],
            [-INF, -INF, 0.0, INF, NAN, -103.27892990343185],
        ),
        ("log2", [[2.0**-149, 2.0**-126, 0.25, 8.0]], [-149.0, -126.0, -2.0, 3.0]),
        ("tanh", [[-0.0, INF, -INF, 1e-45, 20.0]], [-0.0, 1.0, -1.0, 1e-45, 1.0]),
        ("erf", [[-0.0, INF, -INF, 3.876, -5.0, NAN]], [-0.0, 1.0, -1.0, 1.0, -1.0, NAN]),
        ("exp2", [[-1.0, 0.0, 0.0625, 127.0, -149.0]], [0.5, 1.0, 2**0.0625, 2.0**127, 2.0**-149]),
        ("sigmoid", [[-INF, INF, 0.0, -104.0, 104.0]], [0.0, 1.0, 0.5, 0.0, 1.0]),
        (
            "pow",
            [[NAN, 1.0, -1.0, -0.0, -0.0], [0.0, NAN, INF, -3.0, 3.0]],
            [1.0, 1.0, 1.0, -INF, -0.0],
        ),
        ("pow", [[-8.0, -8.0, -INF, 0.0], [3.0, 0.5, -3.0, -2.0]], [-512.0, NAN, -0.0, INF]),
        ("atan2", [[0.0, 0.0, -0.0, 1.0], [-1.0, -0.0, 1.0, 0.0]], [np.pi, np.pi, -0.0, np.pi / 2]),
        ("round", [[0.5, 1.5, 2.5, -0.5]], [0.0, 2.0, 2.0, -0.0]),
        ("max", [[NAN, 1.0, 2.0, INF], [1.0, NAN, 3.0, -INF]], [NAN, NAN, 3.0, INF]),
        ("min", [[NAN, 1.0, 2.0, INF], [1.0, NAN, 3.0, -INF]], [NAN, NAN, 2.0, -INF]),
        ("fmod", [[5.5, -5.5, 5.5, 1e38], [2.0, 2.0, -2.0, 1e-45]], [1.5, -1.5, 1.5, 0.0]),
        ("mod", [[5.5, -5.5, 5.5, -4.0], [2.0, 2.0, -2.0, 2.0]], [1.5, 0.5, -0.5, 0.0]),
        ("isnan", [[NAN, INF, 1.0]], [1.0, 0.0, 0.0]),
        ("isinf", [[NAN, INF, -INF]], [0.0, 1.0, 1.0]),
        ("sign", [[-3.0, 0.0, -0.0, NAN]], [-1.0, 0.0, 0.0, NAN]),  # as np.sign
    ],
)
def test_special_values(name: str, arguments: list[list[float]], expected: list[float]) -> None:
    wanted = np.array(expected, np.float32)
    found = np.array(_values(name, *arguments), np.float32)
    np.testing.assert_array_equal(
        np.signbit(found), np.signbit(wanted) | (np.isnan(wanted) & np.signbit(found))
    )
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("level_name", RUNNABLE)
def test_every_special_case_of_pow(level_name: str, dtype: str) -> None:
    """Pairs of special values, whole, half and huge numbers give what C's pow gives."""
    real = np.dtype({"f32": np.float32, "f64": np.float64}[dtype])
    whole = 2.0 ** (np.finfo(real).nmant + 1)
    sizes = [0.0, 1 / 3, 0.5, 1.0, 1.5, 2.0, 3.0, 127.0, whole / 2 + 1, whole - 1, whole, 1e30, INF]
    sizes += [float(np.finfo(real).smallest_subnormal), float(np.finfo(real).max), NAN]
    values = np.array([*sizes, *(-v for v in sizes)], real)
    x, y = (a.ravel().copy() for a in np.meshgrid(values, values))
    level = LEVELS[level_name]
    x, y = (np.resize(a, -(-len(a) // 64) * 64) for a in (x, y))
    found = compile_loop("pow", dtype, level.lanes(dtype), level)(x, y)
    with np.errstate(all="ignore"):
        wanted = np.array([_c_pow(*p) for p in zip(x, y, strict=True)]).astype(real)
    np.testing.assert_allclose(found, wanted, rtol=4 * np.finfo(real).eps, atol=0)
    defined = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(found)[defined], np.signbit(wanted)[defined])


def _c_pow(x: float, y: float) -> float:
    function = ctypes.CDLL(ctypes.util.find_library("m")).pow
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double] * 2
    return float(function(x, y))


def test_large_angles_match_libm() -> None:
    """The reduction is right where the argument is closest to a multiple of pi/2."""
    assert ctypes.util.find_library("m")
    hard = [16367173.0 * 2.0**72, 1.5707964, 3.1415927, 6381956970095103.0 * 2.0**20, 3.4028235e38]
    x = np.array(hard, np.float32)
    for name, function in (("sin", np.sin), ("cos", np.cos)):
        found = np.array(_values(name, [float(v) for v in x]), np.float32)
        assert np.max(ulp_error(found, function(x.astype(np.float64)))) <= MATH[name].ulp["f32"]
