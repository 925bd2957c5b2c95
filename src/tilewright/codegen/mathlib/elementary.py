"""Rounding, sqrt and division, min and max, fmod and mod, sign, tests for NaN and infinity.

In: a `Tape` and its arguments. Out: the value of the function. Invariant: straight-line code.
"""

from __future__ import annotations

import math

from tilewright.codegen.mathlib.tape import Tape, Value

__all__ = ["ceil", "floor", "fmod", "isinf", "isnan", "maximum", "minimum", "mod"]
__all__ += ["reciprocal", "round_half_even", "rsqrt", "sign", "sqrt", "trunc"]

# vfixupimm: quiet NaNs of the second operand replace the result, the rest keeps it.
NAN_RESPONSES = 0x22
# Steps of the f32 `fmod`, by `Isa.fma`: quotients go up to 2^277.
FMOD_STEPS = {True: 6, False: 11}


def sqrt(t: Tape, x: Value) -> Value:
    """Square root, correctly rounded."""
    return t.call("sqrt", x)


def rsqrt(t: Tape, x: Value) -> Value:
    """1 / sqrt(x), two roundings."""
    return 1.0 / t.call("sqrt", x)


def reciprocal(t: Tape, x: Value) -> Value:
    """1 / x, correctly rounded."""
    del t
    return 1.0 / x


def floor(t: Tape, x: Value) -> Value:
    """Round down."""
    return t.call("floor", x)


def ceil(t: Tape, x: Value) -> Value:
    """Round up."""
    return t.call("ceil", x)


def trunc(t: Tape, x: Value) -> Value:
    """Round towards zero."""
    return t.call("trunc", x)


def round_half_even(t: Tape, x: Value) -> Value:
    """Round to nearest, ties to even."""
    return t.call("roundeven", x)


def extremum(t: Tape, x: Value, y: Value, first: Value) -> Value:
    """`first ? x : y`, which is the hardware's min or max (NaN gives y), then NaN of x put back."""
    y = t.select(first, x, y)
    if t.has_avx512(t.real):
        kind = t.type(t.real)
        tokens = (t.type(t.word), t.const(t.word, NAN_RESPONSES).text)
        operands = ((kind, y.text), (kind, x.text), tokens, ("i32", "0"))
        return t.avx512("fixupimm", t.real, *operands)
    return t.select(x.is_nan(), x, y)


def maximum(t: Tape, x: Value, y: Value) -> Value:
    """The larger; NaN if either is NaN; either zero for -0 and +0."""
    return t.call("maximum", x, y) if t.isa.nan_max else extremum(t, x, y, x > y)


def minimum(t: Tape, x: Value, y: Value) -> Value:
    """The smaller; NaN if either is NaN; either zero for -0 and +0."""
    return t.call("minimum", x, y) if t.isa.nan_max else extremum(t, x, y, x < y)


def sign(t: Tape, x: Value) -> Value:
    """-1, 0 or 1, or x itself for NaN."""
    nonzero = (x < 0.0) | (x > 0.0)
    return t.select(nonzero, t.copysign(t.real_const(1.0), x), x + 0.0)  # -0.0 + 0.0 is 0.0


def isnan(t: Tape, x: Value) -> Value:
    """Mask of NaN."""
    del t
    return x.is_nan()


def isinf(t: Tape, x: Value) -> Value:
    """Mask of infinities."""
    return t.abs(x).equals(math.inf)


def fmod(t: Tape, x: Value, y: Value) -> Value:
    """x - trunc(x / y) y, exact, sign of x; f64 for |x / y| < 2^53."""
    a, b = t.abs(x), t.abs(y)
    rest = fmod_f32(t, a, b) if t.dtype == "f32" else fmod_f64(t, a, b)
    # fmod(x, inf) = x; infinite x, zero y and NaN give NaN.
    rest = t.select(b.equals(math.inf) & (a < math.inf), a, rest)
    return t.copysign(rest, x)


def fmod_f32(t: Tape, a: Value, b: Value) -> Value:
    """a mod b in f64: subtract multiples of b that never exceed what is left, each step exact.

    With fused multiply-add a step takes 50 quotient bits, otherwise 28, because the product of the
    24 bits of b and 29 of the quotient has to fit in 53.
    """
    double = t.as_double()
    rest, divisor = t.widen(a), t.widen(b)
    inverse = (1.0 / divisor) * (1.0 - 2.0**-51)
    for _ in range(FMOD_STEPS[t.isa.fma]):
        quotient = t.call("trunc", rest * inverse)
        if not t.isa.fma:
            quotient = double.from_bits(double.to_bits(quotient) & (-1 << 24))
        rest = double.fma(quotient, -divisor, rest)
    return t.narrow(double.select(rest >= divisor, rest - divisor, rest))


def fmod_f64(t: Tape, a: Value, b: Value) -> Value:
    """a mod b for a / b < 2^53: the rounded quotient is off by one at most."""
    quotient = t.call("trunc", a / b)
    if t.isa.fma:
        rest = t.fma(quotient, -b, a)
    else:
        # Halves of a product as large as b overflow: work with b / 2^200.
        huge = b > 2.0**800
        down = t.select(huge, t.real_const(2.0**-200), 1.0)
        product, error = t.two_product(quotient, b * down)
        rest = ((a * down - product) - error) * t.select(huge, t.real_const(2.0**200), 1.0)
    rest = t.select(rest < 0.0, rest + b, rest)
    rest = t.select(rest >= b, rest - b, rest)
    return t.select(a < b, a, rest)


def mod(t: Tape, x: Value, y: Value) -> Value:
    """fmod moved to the sign of y, as Python's and NumPy's %; a zero result has the sign of y."""
    rest = fmod(t, x, y)
    opposite = (t.to_bits(rest) ^ t.to_bits(y)) < 0
    moved = t.select(opposite & rest.differs(0.0), rest + y, rest)
    return t.select(moved.equals(0.0), t.copysign(moved, y), moved)
