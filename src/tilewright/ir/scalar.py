"""What every scalar operation means, in NumPy.

In: operation name, operand arrays, result dtype. Out: the value. Invariant: this file is the only
definition; constant folding, both Program interpreters and the nest interpreter call it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tilewright.ir.dtypes import BF16, DType

__all__ = ["SCALAR", "evaluate"]

Array = np.ndarray[Any, np.dtype[Any]]


def _libm(f: Callable[[float], float]) -> Callable[[Array], Array]:
    vectorized = np.frompyfunc(f, 1, 1)

    def apply(x: Array) -> Array:
        return np.asarray(vectorized(np.asarray(x, np.float64)), np.float64).astype(
            np.asarray(x).dtype
        )

    return apply


def _upper_half(x: Array) -> Array:
    bits = np.asarray(x, np.float32).view(np.uint32) >> 16
    return np.asarray(bits.astype(np.uint16).view(BF16.np))


def _bits(x: Array) -> Array:
    return np.asarray(x, np.float32).view(np.int32)


def _erf(x: Array) -> Array:
    x = np.asarray(x)
    if x.size < 256:
        return _libm(math.erf)(x)
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty(flat.shape, np.float64)
    for k in range(0, flat.size, 1 << 15):  # blocks that stay in cache
        out[k : k + (1 << 15)] = _erf_block(flat[k : k + (1 << 15)].astype(np.float64))
    return out.reshape(x.shape).astype(x.dtype)


# Rational approximations of erf and erfc, highest power first.
# Source: Cody 1969, "Rational Chebyshev approximations for the error function".
_ERF_NEAR = (
    (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2,
     3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3,
     2.84423683343917062e3),
)  # fmt: skip
_ERFC_MIDDLE = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1,
     2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
     1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2,
     1.62138957456669019e3, 3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3,
     1.23033935480374942e3),
)  # fmt: skip
_ERFC_FAR = (
    (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1,
     1.25781726111229246e-1, 1.60837851487422766e-2, 6.58749161529837803e-4),
    (1.0, 2.56852019228982242, 1.87295284992346725, 5.27905102951428412e-1,
     6.05183413124413191e-2, 2.33520497626869185e-3),
)  # fmt: skip


def _ratio(x: Array, pair: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    above, below = np.full_like(x, pair[0][0]), np.full_like(x, pair[1][0])
    for a, b in zip(pair[0][1:], pair[1][1:], strict=True):
        above = above * x + a
        below = below * x + b
    return above / below


def _erf_block(x: Array) -> Array:
    """erf in float64 to about 2e-16."""
    a = np.abs(x)
    out = np.sign(x)
    out[np.isnan(x)] = np.nan
    near = a <= 0.46875
    out[near] = x[near] * _ratio(a[near] ** 2, _ERF_NEAR)
    middle = (a > 0.46875) & (a <= 4)
    y = a[middle]
    out[middle] *= 1 - np.exp(-y * y) * _ratio(y, _ERFC_MIDDLE)
    far = (a > 4) & (a < 6.5)
    y = a[far]
    square = 1 / (y * y)
    tail = (1 / math.sqrt(math.pi) - square * _ratio(square, _ERFC_FAR)) / y
    out[far] *= 1 - np.exp(-y * y) * tail
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
    return np.asarray(np.mod(a, b))


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
    power = np.power(a, b)
    # NumPy takes the square root where all exponents are one 1/2; in C99 and IEEE 754 the power of
    # -inf is inf, that of -0 is +0.
    root = np.where(a == -np.inf, np.inf, np.abs(power))
    return np.where(b == 0.5, root, power).astype(np.asarray(power).dtype)


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
    "bits": _bits,
    "upper_half": _upper_half,
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
        low, high = (np.asarray(bound, dtype.np) for bound in (info.min, info.max))
        inside = (wide < float(info.max)) & (wide > float(info.min))
        outside = np.where(wide > 0, high, low)
        return np.where(inside, np.where(inside, wide, 0).astype(dtype.np), outside)
    return x.astype(dtype.np)


def evaluate(op: str, args: list[Array], dtype: DType) -> Array:
    """`op` over arrays that broadcast; the result is in `dtype`.

    Errors: KeyError for an unknown operation.
    """
    if op == "cast":
        return _cast(args[0], dtype)
    out = SCALAR[op](*args)
    return out if out.dtype == dtype.np else out.astype(dtype.np)
