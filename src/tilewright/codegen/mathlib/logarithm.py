"""log, log2, log1p, pow, cbrt, asinh, acosh, atanh.

In: a `Tape` and its arguments. Out: the value of the function. Invariant: straight-line code; NaN
in, NaN out.

All split a positive x into 2^k * m with 0.75 <= m < 1.5, so that k = 0 on both sides of 1, and use
a polynomial in f = m - 1, which is exact.
"""

from __future__ import annotations

import math
import sys

from tilewright.codegen.mathlib import coefficients as table
from tilewright.codegen.mathlib.exponential import (
    EXP_RANGE,
    exp_parts,
    exp_polynomial,
    round_shifted,
    scale,
    scale_normal,
)
from tilewright.codegen.mathlib.tape import Tape, Value

__all__ = ["acosh", "asinh", "atanh", "cbrt", "log", "log1p", "log2", "pow"]

THREE_QUARTERS = {"f32": 0x3F400000, "f64": 0x3FE8000000000000}
LARGEST = {"f32": (2.0 - 2.0**-23) * 2.0**127, "f64": sys.float_info.max}
# vfixupimm: a response for each of qnan, snan, 0, 1, -inf, +inf, negative, positive. 0 keeps the
# result, 2 is the NaN made quiet, 3 a NaN, 4 and 5 -inf and +inf.
LOG_RESPONSES = (2, 2, 4, 0, 3, 5, 3, 0)
# From here on asinh(x) = acosh(x) = log(2x) to the last bit, and x^2 is still finite below.
LARGE = 2.0**28


def split(t: Tape, x: Value) -> tuple[Value, Value]:
    """(k, f): x = 2^k (1 + f), 0.75 <= 1 + f < 1.5, k a float, for finite x > 0, denormals too."""
    m = t.mantissa_bits
    if t.has_avx512(t.real):
        kind = t.type(t.real)
        mantissa = t.avx512("getmant", t.real, (kind, x.text), ("i32", "3"), (kind, x.text))
        exponents = [
            t.avx512("getexp", t.real, (kind, v.text), (kind, v.text)) for v in (x, mantissa)
        ]
        return exponents[0] - exponents[1], mantissa - 1.0
    # Denormals times 2^m. Masks select constants against zero, which is cheaper than blending.
    tiny = x < 2.0 ** (1 - t.exponent_bias)
    one = t.exponent_bias << m
    power = t.select(tiny, t.const(t.word, m << m), 0) + one
    moved = t.to_bits(x * t.from_bits(power)) + (one - THREE_QUARTERS[t.dtype])
    # The exponent of 4/3 x, an integer below 2^m, made a float by the exponent bits of 2^m.
    exponent = t.from_bits(moved.lshr(m) | ((t.exponent_bias + m) << m))
    k = (exponent - (2.0**m + t.exponent_bias)) - t.select(tiny, t.real_const(float(m)), 0.0)
    mantissa = t.from_bits((moved & ((1 << m) - 1)) + THREE_QUARTERS[t.dtype])
    return k, mantissa - 1.0


def log_special(t: Tape, x: Value, y: Value) -> Value:
    """`y`, or -inf for x = 0, NaN for x < 0 or NaN, +inf for +inf."""
    if t.has_avx512(t.real):
        kind = t.type(t.real)
        responses = sum(response << (4 * i) for i, response in enumerate(LOG_RESPONSES))
        tokens = (t.type(t.word), t.const(t.word, responses).text)
        operands = ((kind, y.text), (kind, x.text), tokens, ("i32", "0"))
        return t.avx512("fixupimm", t.real, *operands)
    # y is finite for 0 and infinity; all ones is a NaN.
    poles = t.select(x.equals(0.0), t.real_const(-math.inf), 0.0)
    poles = poles + t.select(x.equals(math.inf), t.real_const(math.inf), 0.0)
    outside = t.select(t.not_at_least(x, 0.0), t.const(t.word, -1), 0)
    return t.from_bits(t.to_bits(y + poles) | outside)


def log_sum(t: Tape, k: Value, f: Value) -> Value:
    """k ln(2) + log(1 + f), small terms first."""
    high, low = table.LN2[t.dtype]
    square = f * f
    polynomial = t.horner if t.dtype == "f32" else t.split_horner
    y = (square * f) * polynomial(f, table.LOG[t.dtype])
    y = t.fma(k, low, y)
    y = t.fma(square, -0.5, y)
    return t.fma(k, high, f + y)


def log(t: Tape, x: Value) -> Value:
    """Natural logarithm."""
    return log_special(t, x, log_sum(t, *split(t, x)))


def log2(t: Tape, x: Value) -> Value:
    """Base 2 logarithm, exact at powers of two: (k + f) + f P(f)."""
    k, f = split(t, x)
    polynomial = t.horner if t.dtype == "f32" else t.split_horner
    return log_special(t, x, t.fma(f, polynomial(f, table.LOG2[t.dtype]), k + f))


def log1p(t: Tape, x: Value) -> Value:
    """log(1 + x): k from u = 1 + x, but f = x / 2^k + (1 / 2^k - 1), free of u's rounding."""
    m = t.mantissa_bits
    u = x + 1.0
    k, _ = split(t, u)
    if t.has_avx512(t.real):
        kind = t.type(t.real)
        one = t.real_const(1.0)
        down = -k
        operands = ((kind, one.text), (kind, down.text), (kind, one.text))
        power = t.avx512("scalef", t.real, *operands)
        f = t.fma(x, power, power - 1.0)
    else:
        # 2^(2-k) and x / 4, because 2^-k itself can be denormal; f must be finite.
        x_finite = t.clamp(x, None, LARGEST[t.dtype])
        magic = t.to_bits(k + 1.5 * 2.0**m)
        power = t.from_bits(((t.exponent_bias + 2) << m) - (magic << m))
        f = t.fma(x_finite * 0.25, power, t.fma(power, 0.25, -1.0))
    y = log_special(t, u, log_sum(t, k, f))
    return t.select(t.abs(x) < 2.0 ** -(m + 1), x, y)


def asinh(t: Tape, x: Value) -> Value:
    """sign(x) log1p(a + a^2 / (1 + sqrt(1 + a^2))), a = |x|; f32 is computed in f64."""
    if t.dtype == "f32":
        return t.narrow(asinh(t.as_double(), t.widen(x)))
    a = t.abs(x)
    square = a * a
    large = a > LARGE
    w = a + square / (t.call("sqrt", square + 1.0) + 1.0)
    y = log1p(t, t.select(large, a - 1.0, w)) + t.select(large, t.real_const(math.log(2.0)), 0.0)
    return t.copysign(y, x)


def acosh(t: Tape, x: Value) -> Value:
    """log1p(s + sqrt(2 s + s^2)), s = x - 1; NaN for x < 1; f32 is computed in f64."""
    if t.dtype == "f32":
        return t.narrow(acosh(t.as_double(), t.widen(x)))
    s = x - 1.0
    large = x > LARGE
    w = s + t.call("sqrt", t.fma(s, s, s + s))
    y = log1p(t, t.select(large, s, w)) + t.select(large, t.real_const(math.log(2.0)), 0.0)
    return t.select(x < 1.0, math.nan, y)


def atanh(t: Tape, x: Value) -> Value:
    """sign(x) log1p(2 a / (1 - a)) / 2, a = |x|; f32 is computed in f64."""
    if t.dtype == "f32":
        return t.narrow(atanh(t.as_double(), t.widen(x)))
    a = t.abs(x)
    y = log1p(t, (a + a) / (1.0 - a)) * 0.5
    return t.copysign(y, x)


def cbrt(t: Tape, x: Value) -> Value:
    """Cube root: 2^(log2|x| / 3); f64 with one Newton step on the argument reduced to [3/8, 3)."""
    a = t.abs(x)
    if t.dtype == "f32":
        y = t.narrow(exp2_wide(t.as_double(), log2_wide(t, a) * (1.0 / 3.0)))
    else:
        k, f = split(t, a)
        shifted, j = round_shifted(t, k, 1.0 / 3.0)
        rest = t.fma(j, -3.0, k)
        root = exp2_wide(t, t.fma(f, log2_ratio(t, f), rest) * (1.0 / 3.0))
        magic = t.to_bits(rest + 1.5 * 2.0**t.mantissa_bits)
        reduced = t.from_bits(t.to_bits(f + 1.0) + (magic << t.mantissa_bits))
        square = root * root
        root = root - t.fma(square, root, -reduced) / (square * 3.0)
        y = t.from_bits(t.to_bits(root) + (t.to_bits(shifted) << t.mantissa_bits))
    regular = (a > 0.0) & (a < math.inf)
    return t.select(regular, t.copysign(y, x), x)


def log2_ratio(t: Tape, f: Value) -> Value:
    """log2(1 + f) / f on a double tape, to 2^-35."""
    return t.split_horner(f, table.LOG2_WIDE["f64"])


def log2_wide(t: Tape, x: Value) -> Value:
    """log2(x) of an f32 value x > 0 as f64, to 2^-35."""
    k, f = split(t, x)
    double, wide = t.as_double(), t.widen(f)
    return double.fma(wide, log2_ratio(double, wide), t.widen(k))


def exp2_wide(t: Tape, x: Value) -> Value:
    """2^x for |x| < 1000 on a double tape, to 2^-28."""
    shifted, n = round_shifted(t, x, None)
    return scale_normal(t, t.horner(x - n, (1.0, *table.EXP2_SHORT["f64"])), shifted)


def pow(t: Tape, x: Value, y: Value) -> Value:
    """x^y with the special values of C99; f32 through f64, f64 through a logarithm in two parts."""
    a = t.abs(x)
    result = pow_f32(t, a, y) if t.dtype == "f32" else pow_f64(t, a, y)
    half = y * 0.5
    truncated = t.call("trunc", y)
    odd = truncated.equals(y) & t.call("trunc", half).differs(half)
    sign = t.select(odd, t.sign_bit(x), t.const(t.word, 0))
    result = t.flip_sign(result, sign)
    # A negative finite base needs a whole exponent.
    invalid = (x < 0.0) & (a < math.inf) & truncated.differs(y)
    result = t.select(invalid, math.nan, result)
    return t.select(y.equals(0.0) | x.equals(1.0), 1.0, result)


def pow_f32(t: Tape, a: Value, y: Value) -> Value:
    """a^y for a >= 0: 2^(y log2 a) in f64. The finite bound on y makes 1^inf = 2^0."""
    double = t.as_double()
    logarithm = t.select(a < math.inf, log2_wide(t, a), t.widen(a))
    logarithm = t.select(a.equals(0.0), -math.inf, logarithm)
    power = double.clamp(t.widen(y), -1.0e300, 1.0e300) * logarithm
    return t.narrow(exp2_wide(double, double.clamp(power, -300.0, 300.0)))


def pow_f64(t: Tape, a: Value, y: Value) -> Value:
    """a^y for a >= 0: exp of y log(a) with both factors' product kept in two parts."""
    high, low = log_two_parts(t, a)
    high = t.select(a < math.inf, high, a)
    high = t.select(a.equals(0.0), -math.inf, high)
    y = t.clamp(y, -1.0e300, 1.0e300)
    product, error = t.two_product(y, high)
    error = t.select(t.abs(product) < 2000.0, t.fma(y, low, error), 0.0)
    r, shifted, n = exp_parts(t, t.clamp(product, *EXP_RANGE["f64"]))
    return scale(t, exp_polynomial(t, r + error), shifted, n)


def log_two_parts(t: Tape, x: Value) -> tuple[Value, Value]:
    """log(x) as an unevaluated sum, to about 2^-65: 2 s + 2/3 s^3 + s^5 R(s^2), s = f / (2 + f)."""
    k, f = split(t, x)
    divisor = f + 2.0
    lost = f - (divisor - 2.0)
    inverse = 1.0 / divisor
    s = f * inverse
    product, error = t.two_product(s, divisor)
    s_low = (((f - product) - error) - s * lost) * inverse
    square, square_low = t.two_product(s, s)
    square_low = t.fma(s + s, s_low, square_low)
    cube, cube_low = t.two_product(square, s)
    cube_low = cube_low + t.fma(square, s_low, square_low * s)
    two_thirds, two_thirds_low = table.TWO_THIRDS["f64"]
    third, third_low = t.two_product(cube, t.real_const(two_thirds))
    third_low = third_low + t.fma(cube_low, two_thirds, cube * two_thirds_low)
    tail = (cube * square) * t.horner(square, table.ATANH_TAIL["f64"])
    high, low = table.LN2["f64"]
    sum1, error1 = t.fast_two_sum(k * high, s + s)
    sum2, error2 = t.fast_two_sum(sum1, third)
    rest = ((s_low + s_low) + third_low) + t.fma(k, low, tail)
    return t.fast_two_sum(sum2, (error1 + error2) + rest)
