"""What every scalar operation means, in NumPy.

In: operation name, operand arrays, result dtype. Out: the value. Invariant: this file is the only
definition; constant folding, both Program interpreters and the nest interpreter call it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tilewright.ir.dtypes import DType

__all__ = ["SCALAR", "evaluate"]

Array = np.ndarray[Any, np.dtype[Any]]


def _libm(f: Callable[[float], float]) -> Callable[[Array], Array]:
    vectorized = np.frompyfunc(f, 1, 1)

    def apply(x: Array) -> Array:
        return np.asarray(vectorized(np.asarray(x, np.float64)), np.float64).astype(
            np.asarray(x).dtype
        )

    return apply


def _erf(x: Array) -> Array:
    x = np.asarray(x)
    if x.size < 4096:
        return _libm(math.erf)(x)
    return _erf_series(x.astype(np.float64)).astype(x.dtype)


def _erf_series(x: Array) -> Array:
    """erf in float64 to about 2e-16:

    Taylor series inside 2.5, continued fraction of erfc outside.
    """
    a = np.abs(x)
    out = np.sign(x)
    small = a < 2.5
    xs = x[small]
    term, total, x2 = xs.copy(), xs.copy(), xs * xs
    for n in range(1, 60):
        term = term * (-x2 / n)
        total = total + term / (2 * n + 1)
    out[small] = total * (2 / math.sqrt(math.pi))
    large = (a >= 2.5) & (a < 6.5)
    xl = a[large]
    fraction = np.zeros_like(xl)
    for n in range(60, 0, -1):
        fraction = (n / 2) / (xl + fraction)
    out[large] = np.sign(x[large]) * (1 - np.exp(-xl * xl) / math.sqrt(math.pi) / (xl + fraction))
    out[np.isnan(x)] = np.nan
    return out


def _floordiv(a: Array, b: Array) -> Array:
    if np.asarray(a).dtype.kind in "iu":
        safe = np.where(b == 0, np.ones_like(b), b)
        with np.errstate(over="ignore"):  # the lowest integer over -1 wraps
            return np.where(b == 0, np.zeros_like(a), np.floor_divide(a, safe))
    return np.floor(a / b)


def _mod(a: Array, b: Array) -> Array:
    if np.asarray(a).dtype.kind in "iu":
        safe = np.where(b == 0, np.ones_like(b), b)
        return np.where(b == 0, np.zeros_like(a), np.mod(a, safe))
    return np.asarray(a - np.floor(a / b) * b)


def _fmod(a: Array, b: Array) -> Array:
    if np.asarray(a).dtype.kind in "iu":
        safe = np.where(b == 0, np.ones_like(b), b)
        return np.where(b == 0, np.zeros_like(a), np.fmod(a, safe))
    return np.fmod(a, b)


def _div(a: Array, b: Array) -> Array:
    if np.asarray(a).dtype.kind in "iu":  # integer division truncates towards zero
        # Not through abs, which the lowest integer has none of.
        quotient = _floordiv(a, b)
        inexact = (quotient * b != a) & (b != 0)
        return np.asarray(quotient + (inexact & ((a < 0) != (b < 0))).astype(np.asarray(a).dtype))
    return np.asarray(a / b)


def _shift(left: bool) -> Callable[[Array, Array], Array]:
    def apply(a: Array, b: Array) -> Array:
        b = b & (np.asarray(a).dtype.itemsize * 8 - 1)  # counts are masked, as SPEC section 6 asks
        return np.asarray(np.left_shift(a, b) if left else np.right_shift(a, b))

    return apply


def _pow(a: Array, b: Array) -> Array:
    if np.asarray(a).dtype.kind in "iu":
        negative = b < 0
        power = np.power(a, np.where(negative, np.zeros_like(b), b))
        return np.where(
            negative, np.where(a == 1, 1, np.where(a == -1, 1 - 2 * (b & 1), 0)), power
        ).astype(np.asarray(a).dtype)
    return np.power(a, b)


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(np.asarray(x).dtype)


def _round(x: Array) -> Array:
    return np.rint(x)


SCALAR: dict[str, Callable[..., Array]] = {
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": _round,
    "trunc": np.trunc,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: (1 / np.sqrt(x)).astype(np.asarray(x).dtype),
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "erf": _erf,
    "sigmoid": _sigmoid,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "not": np.invert,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": _div,
    "floordiv": _floordiv,
    "mod": _mod,
    "min": np.minimum,
    "max": np.maximum,
    "pow": _pow,
    "atan2": np.arctan2,
    "fmod": _fmod,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "shl": _shift(True),
    "shr": _shift(False),
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "select": np.where,
}


def _cast(x: Array, dtype: DType) -> Array:
    x = np.asarray(x)
    if dtype.kind == "b":
        return np.asarray(x != 0)
    if dtype.is_int and x.dtype.kind not in "biu":
        info = np.iinfo(dtype.np.name)
        wide = np.nan_to_num(
            np.trunc(x.astype(np.float64)), nan=0.0, posinf=math.inf, neginf=-math.inf
        )
        out = np.where(
            wide >= float(info.max), info.max, np.where(wide <= float(info.min), info.min, 0)
        )
        inside = (wide < float(info.max)) & (wide > float(info.min))
        return np.where(inside, np.where(inside, wide, 0).astype(dtype.np), out.astype(dtype.np))
    return x.astype(dtype.np)


def evaluate(op: str, args: list[Array], dtype: DType) -> Array:
    """`op` over arrays that broadcast; the result is in `dtype`.

    Errors: KeyError for an unknown operation.
    """
    if op == "cast":
        return _cast(args[0], dtype)
    out = SCALAR[op](*args)
    return out if out.dtype == dtype.np else out.astype(dtype.np)
