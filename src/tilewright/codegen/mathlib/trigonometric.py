"""sin, cos, tan, asin, acos, atan, atan2.

In: a `Tape` and its arguments. Out: the value of the function. Invariant: straight-line code; NaN
in, NaN out.

f32 sin, cos and tan are right for every finite argument: the argument times 2/pi is formed in f64
from that part of 2/pi that can matter for the argument's exponent. The f64 ones subtract n pi/2 in
three parts, for |x| < 2^45.
"""

from __future__ import annotations

import math

from tilewright.codegen.mathlib import coefficients as table
from tilewright.codegen.mathlib.exponential import round_shifted
from tilewright.codegen.mathlib.tape import Tape, Value

__all__ = ["acos", "asin", "atan", "atan2", "cos", "sin", "tan"]

# Where one part of `TWO_OVER_PI_GROUPS` gives way to the next.
GROUP_BOUNDS = (2.0**48, 2.0**75, 2.0**102)


def quadrants_f32(t: Tape, a: Value) -> tuple[Value, Value]:
    """(r, n): a = n pi/2 + r modulo 2 pi for an f32 a >= 0; r is f64, |r| <= pi/4, n is i32."""
    double = t.as_double()
    groups = table.TWO_OVER_PI_GROUPS["f32"]
    high, low = double.real_const(groups[0]), double.real_const(groups[1])
    for index, bound in enumerate(GROUP_BOUNDS):
        beyond = a >= bound
        high = t.select(beyond, groups[2 * index + 2], high)
        low = t.select(beyond, groups[2 * index + 3], low)
    wide = t.widen(a)
    product, error = double.two_product(wide, high)
    # Multiples of four quadrants go, exactly.
    product = double.fma(t.call("roundeven", product * 0.25), -4.0, product)
    error = double.fma(wide, low, error)
    shifted, n = round_shifted(double, product + error, None)
    rest = ((product - n) + error) * (math.pi / 2)
    return rest, t.low_word(double.to_bits(shifted))


def quadrants_f64(t: Tape, a: Value) -> tuple[Value, Value, Value]:
    """(high, low, n): a = n pi/2 + high + low for 0 <= a < 2^45, |high| <= pi/4, n is i64."""
    shifted, n = round_shifted(t, a, 2.0 / math.pi)
    first, second, third = table.HALF_PI["f64"]
    if t.isa.fma:
        rest, error1 = t.fma(n, -first, a), t.real_const(0.0)
    else:
        product, lost = t.two_product(n, t.real_const(first))
        rest, error1 = t.two_sum(a - product, -lost)
    product, lost = t.two_product(n, t.real_const(second))
    rest, error2 = t.two_sum(rest, -product)
    low = (error1 + error2) - t.fma(n, third, lost)
    high, low = t.fast_two_sum(rest, low)
    return high, low, t.to_bits(shifted)


def sin_cos(t: Tape, a: Value) -> tuple[Value, Value, Value]:
    """(s, c, n): sine and cosine of the rest of `a` >= 0 after n quadrants."""
    if t.dtype == "f32":
        rest, n = quadrants_f32(t, a)
        return *sin_cos_short(t, t.narrow(rest)), n
    high, low, n = quadrants_f64(t, a)
    square = high * high
    tail = (high * square) * t.horner(square, table.SIN["f64"])
    s = high + t.fma(low, t.fma(square, -0.5, 1.0), tail)
    half = square * 0.5
    most = 1.0 - half
    tail = t.fma(square * square, t.horner(square, table.COS["f64"]), -(high * low))
    return s, most + (((1.0 - most) - half) + tail), n


def sin_cos_short(t: Tape, r: Value) -> tuple[Value, Value]:
    """Sine and cosine of |r| <= pi/4."""
    square = r * r
    s = t.fma(r * square, t.horner(square, table.SIN[t.dtype]), r)
    return s, t.horner(square, (1.0, -0.5, *table.COS[t.dtype]))


def is_odd(n: Value) -> Value:
    """Mask of the odd quadrants."""
    return (n & 1).differs(0)


def sin(t: Tape, x: Value) -> Value:
    """Sine: +s, +c, -s, -c by quadrant, times the sign of x."""
    s, c, n = sin_cos(t, t.abs(x))
    sign = t.sign_bit(x) ^ ((n & 2) << (t.bits - 2))
    return t.flip_sign(t.select(is_odd(n), c, s), sign)


def cos(t: Tape, x: Value) -> Value:
    """Cosine: +c, -s, -c, +s by quadrant."""
    s, c, n = sin_cos(t, t.abs(x))
    sign = ((n + 1) & 2) << (t.bits - 2)
    return t.flip_sign(t.select(is_odd(n), s, c), sign)


def tan(t: Tape, x: Value) -> Value:
    """Tangent: s/c or -c/s; f32 numerator and denominator come from f64."""
    a = t.abs(x)
    if t.dtype == "f32":
        rest, n = quadrants_f32(t, a)
        s, c = (t.narrow(v) for v in sin_cos_short(t.as_double(), rest))
    else:
        s, c, n = sin_cos(t, a)
    odd = is_odd(n)
    quotient = t.select(odd, c, s) / t.select(odd, s, c)
    return t.flip_sign(quotient, t.sign_bit(x) ^ ((n & 1) << (t.bits - 1)))


def arc_tail(t: Tape, s: Value, square: Value, coefficients: tuple[float, ...]) -> Value:
    """s * square * P(square), what is to be added to s."""
    return (s * square) * t.horner(square, coefficients)


def asin(t: Tape, x: Value) -> Value:
    """x + x^3 P(x^2), beyond 1/2 by pi/2 - 2 asin(sqrt((1 - |x|) / 2))."""
    a = t.abs(x)
    large = a > 0.5
    square = t.select(large, t.fma(a, -0.5, 0.5), a * a)
    s = t.select(large, t.call("sqrt", square), a)
    tail = arc_tail(t, s, square, table.ASIN[t.dtype])
    high, low = table.HALF_PI[t.dtype][:2]
    top, lost = t.fast_two_sum(t.real_const(high), -(s + s))
    from_top = top - (t.fma(tail, 2.0, -low) - lost)
    return t.copysign(t.select(large, from_top, s + tail), x)


def acos(t: Tape, x: Value) -> Value:
    """pi/2 - asin(x), beyond 1/2 by 2 asin(sqrt((1 - x) / 2)) and its mirror image."""
    a = t.abs(x)
    large = a > 0.5
    square = t.select(large, t.fma(a, -0.5, 0.5), a * a)
    s = t.select(large, t.call("sqrt", square), a)
    p = s + arc_tail(t, s, square, table.ASIN[t.dtype])
    high, low = table.HALF_PI[t.dtype][:2]
    middle = high - (t.copysign(p, x) - low)
    twice = p + p
    ends = t.select(x < 0.0, 2.0 * high - (twice - 2.0 * low), twice)
    return t.select(large, ends, middle)


def atan(t: Tape, x: Value) -> Value:
    """x + x^3 P(x^2), beyond 1 by pi/2 - atan(1/|x|)."""
    a = t.abs(x)
    large = a > 1.0
    q = t.select(large, 1.0, a) / t.select(large, a, 1.0)
    p = q + arc_tail(t, q, q * q, table.ATAN[t.dtype])
    high, low = table.HALF_PI[t.dtype][:2]
    return t.copysign(t.select(large, high - (p - low), p), x)


def atan2(t: Tape, y: Value, x: Value) -> Value:
    """The angle of the point (x, y), with the special values of C99."""
    a, b = t.abs(y), t.abs(x)
    steep = a > b
    quotient = t.select(steep, b, a) / t.select(steep, a, b)
    # 0 / 0 counts as 0 and inf / inf as 1.
    equal = t.select(a.equals(0.0), t.real_const(0.0), 1.0)
    quotient = t.select(a.equals(b), equal, quotient)
    p = quotient + arc_tail(t, quotient, quotient * quotient, table.ATAN[t.dtype])
    # The angle is base + p or base - p with base = 0, pi/2 or pi.
    high, low = table.HALF_PI[t.dtype][:2]
    left = t.to_bits(x) < 0
    base = t.select(steep, t.real_const(high), t.select(left, t.real_const(2.0 * high), 0.0))
    base_low = t.select(steep, t.real_const(low), t.select(left, t.real_const(2.0 * low), 0.0))
    p = t.select(steep ^ left, -p, p)
    return t.copysign(base + (base_low + p), y)
