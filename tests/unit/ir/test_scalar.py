"""Scalar operations: the meanings that NumPy does not give by itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tilewright.ir.dtypes import BOOL, DTYPES, F32, F64, I8, I32, I64, U8, U64
from tilewright.ir.scalar import SCALAR, evaluate


def test_erf() -> None:
    x = np.concatenate(
        [np.linspace(-7, 7, 20001), np.linspace(-0.5, 0.5, 2001), [np.nan, np.inf, -np.inf, -0.0]]
    )
    expected = np.asarray([math.erf(v) for v in x])
    many, few = (
        SCALAR["erf"](x),
        np.concatenate([SCALAR["erf"](x[k : k + 200]) for k in range(0, len(x), 200)]),
    )
    for got in (many, few):
        np.testing.assert_allclose(got, expected, rtol=1e-15)
        assert np.isnan(got[-4]) and np.signbit(got[-1])
    assert SCALAR["erf"](x.astype(np.float32)).dtype == np.float32


def test_division_of_integers() -> None:
    a = np.asarray([7, -7, 7, -7, 5], np.int32)
    b = np.asarray([2, 2, -2, -2, 0], np.int32)
    assert evaluate("floordiv", [a, b], I32).tolist() == [3, -4, -4, 3, 0]
    assert evaluate("mod", [a, b], I32).tolist() == [1, 1, -1, -1, 0]
    assert evaluate("div", [a, b], I32).tolist() == [3, -3, -3, 3, 0]
    assert evaluate("fmod", [a, b], I32).tolist() == [1, -1, 1, -1, 0]


def test_integers_wrap() -> None:
    low = np.asarray([-128], np.int8)
    assert evaluate("neg", [low], I8).tolist() == [-128]
    assert evaluate("add", [low, low], I8).tolist() == [0]
    assert evaluate("shl", [np.asarray([3], np.uint8), np.asarray([9], np.uint8)], U8).tolist() == [
        6
    ]
    assert evaluate(
        "pow", [np.asarray([2, 2, 1, -1, 0]), np.asarray([3, -1, -5, -3, -2])], I64
    ).tolist() == [8, 0, 1, -1, 0]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_powers_of_special_values(dtype: type) -> None:
    """As C99 says, whether the exponent is an array, one number, or one number that is spread."""
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 0.25, 2.0**-20, 4096.0, math.inf, math.nan]
    values += [-v for v in values]
    for y in values:
        x = np.asarray(values, dtype)
        with np.errstate(all="ignore"):
            expected = np.asarray([_c99_power(float(a), y) for a in x]).astype(dtype)
            exponents = [np.full(len(x), y, dtype), np.asarray(y, dtype)]
            exponents.append(np.broadcast_to(exponents[1], x.shape))
            for e in exponents:
                np.testing.assert_allclose(SCALAR["pow"](x, e), expected, rtol=2e-3)
                regular = ~np.isnan(expected)
                signs = np.signbit(SCALAR["pow"](x, e))
                np.testing.assert_array_equal(signs[regular], np.signbit(expected)[regular])
                for k, a in enumerate(x):
                    np.testing.assert_allclose(SCALAR["pow"](a, exponents[1]), expected[k], rtol=2e-3)


def _c99_power(x: float, y: float) -> float:
    """pow of C, through Python's, which raises where C gives inf or NaN."""
    odd = math.isfinite(y) and y == math.floor(y) and int(y) % 2 == 1
    try:
        return math.pow(x, y)
    except OverflowError:
        return -math.inf if x < 0 and odd else math.inf
    except ValueError:
        return math.nan if x else math.copysign(math.inf, x) if odd else math.inf


def test_casts_saturate() -> None:
    x = np.asarray([np.nan, np.inf, -np.inf, 1e30, -1e30, 2.9, -2.9, 127.5], np.float32)
    assert evaluate("cast", [x], I8).tolist() == [0, 127, -128, 127, -128, 2, -2, 127]
    assert evaluate("cast", [x], U8).tolist() == [0, 255, 0, 255, 0, 2, 0, 127]
    top = evaluate("cast", [np.asarray([2.0**63, -(2.0**63), 2.0**62])], I64)
    assert top.tolist() == [2**63 - 1, -(2**63), 2**62]
    top = evaluate("cast", [np.asarray([2.0**64, -1.0, 2.0**63, np.nan])], U64)
    assert top.tolist() == [2**64 - 1, 0, 2**63, 0]
    assert evaluate("cast", [x[:1]], BOOL).tolist() == [True]


@pytest.mark.parametrize("name", [n for n, d in DTYPES.items() if d.is_float])
def test_floats(name: str) -> None:
    dtype = DTYPES[name]
    x = np.asarray([-90, -1, 0, 1, 90], np.float32).astype(dtype.np)
    sigmoid = evaluate("sigmoid", [x], dtype).astype(float)
    assert np.isfinite(sigmoid).all() and sigmoid[2] == 0.5 and sigmoid[-1] == 1
    half = np.asarray([0.5, 1.5, -0.5], np.float32).astype(dtype.np)
    assert evaluate("round", [half], dtype).astype(float).tolist() == [0, 2, 0]


def test_nan_wins() -> None:
    nan = np.asarray([np.nan])
    one = np.asarray([1.0])
    for op in ("max", "min"):
        assert np.isnan(evaluate(op, [nan, one], F64)) and np.isnan(evaluate(op, [one, nan], F64))
    assert evaluate("mod", [np.asarray([-1.5], "f"), np.asarray([1.0], "f")], F32).tolist() == [0.5]
