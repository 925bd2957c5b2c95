"""exp, exp2, expm1, sigmoid, tanh, erf, sinh, cosh.

In: a `Tape` and its arguments. Out: the value of the function. Invariant: straight-line code; NaN
in, NaN out; a denormal result is rounded once more at most.

All reduce to 2^n * p(r) with n an integer and |r| <= 1/2 (or ln(2)/2). n is found by adding
1.5 * 2^m, m the number of mantissa bits: the sum's low bits are then n itself, in two's complement,
ready to be moved to the exponent field.
"""

from __future__ import annotations

import math

from tilewright.codegen.mathlib import coefficients as table
from tilewright.codegen.mathlib.tape import Tape, Value

__all__ = ["cosh", "erf", "exp", "exp2", "exp_parts", "expm1", "round_shifted", "scale", "sigmoid"]
__all__ += ["sinh", "tanh"]

LOG2E = 1.0 / math.log(2.0)
# exp(x) is 0 at the first and infinite at the second bound; both leave n in the range of `scale`.
EXP_RANGE = {"f32": (-104.0, 89.0), "f64": (-746.0, 710.0)}
EXP2_RANGE = {"f32": (-151.0, 129.0), "f64": (-1076.0, 1025.0)}
# expm1(x) is -1 below the first bound.
EXPM1_RANGE = {"f32": (-20.0, 89.0), "f64": (-40.0, 710.0)}
# sinh and cosh are infinite at the bound; exp(bound) / 4 is finite.
HYPERBOLIC_BOUND = {"f32": 89.5, "f64": 710.5}
# tanh and erf are 1 at the bound.
TANH_BOUND = {"f32": 10.0, "f64": 20.0}
ERF_BOUND = {"f32": 4.0, "f64": 6.0}


def round_shifted(t: Tape, x: Value, factor: float | None) -> tuple[Value, Value]:
    """(shifted, n): n = round(x * factor) as a float, and the float whose low bits are n."""
    magic = 1.5 * 2.0**t.mantissa_bits
    shifted = x + magic if factor is None else t.fma(x, factor, magic)
    return shifted, shifted - magic


def scale(t: Tape, p: Value, shifted: Value, n: Value) -> Value:
    """p * 2^n for p in [1/2, 2): right for denormal results and for overflow.

    Without `scalef` by the factors 2^(n>>1) and 2^(n-(n>>1)).
    """
    if t.has_avx512(t.real):
        kind = t.type(t.real)
        operands = ((kind, p.text), (kind, n.text), (kind, p.text))
        return t.avx512("scalef", t.real, *operands)
    bits = t.to_bits(shifted)
    half = bits.lshr(1)
    one = t.exponent_bias << t.mantissa_bits
    first = t.from_bits((half << t.mantissa_bits) + one)
    second = t.from_bits(((bits - half) << t.mantissa_bits) + one)
    return p * first * second


def scale_normal(t: Tape, p: Value, shifted: Value) -> Value:
    """p * 2^n where the result is a normal number; anything if p is NaN."""
    return t.from_bits(t.to_bits(p) + (t.to_bits(shifted) << t.mantissa_bits))


def exp_parts(t: Tape, x: Value) -> tuple[Value, Value, Value]:
    """(r, shifted, n): x = n * ln(2) + r with |r| <= ln(2)/2."""
    high, low = table.LN2[t.dtype]
    shifted, n = round_shifted(t, x, LOG2E)
    r = t.fma(n, -high, x)
    return t.fma(n, -low, r), shifted, n


def exp_polynomial(t: Tape, r: Value) -> Value:
    """exp(r) for |r| <= ln(2)/2."""
    return t.horner(r, (1.0, 1.0, *table.EXP[t.dtype]))


def exp(t: Tape, x: Value) -> Value:
    """e^x."""
    r, shifted, n = exp_parts(t, t.clamp(x, *EXP_RANGE[t.dtype]))
    return scale(t, exp_polynomial(t, r), shifted, n)


def exp2(t: Tape, x: Value) -> Value:
    """2^x."""
    x = t.clamp(x, *EXP2_RANGE[t.dtype])
    shifted, n = round_shifted(t, x, None)
    return scale(t, t.horner(x - n, (1.0, *table.EXP2[t.dtype])), shifted, n)


def expm1(t: Tape, x: Value) -> Value:
    """e^x - 1 = 2 (h q + (h - 1/2)), h = 2^(n-1), q = expm1(r): n can be 128, where 2^n is not."""
    r, shifted, _ = exp_parts(t, t.clamp(x, *EXPM1_RANGE[t.dtype]))
    q = t.fma(r * r, t.horner(r, table.EXP[t.dtype]), r)
    power = t.to_bits(shifted) << t.mantissa_bits
    h = t.from_bits(power + ((t.exponent_bias - 1) << t.mantissa_bits))
    y = t.fma(h, q, h - 0.5)
    return t.select(t.abs(x) < 2.0 ** -(t.mantissa_bits + 1), x, y + y)


def sigmoid(t: Tape, x: Value) -> Value:
    """1 / (1 + e^-x): with e = e^-|x| and w = e / (1 + e), 1 - w for x >= 0 and e - e w for x < 0.

    No overflow, denormals kept, and the rounding of the quotient hardly matters.
    """
    down = t.clamp(-t.abs(x), EXP_RANGE[t.dtype][0], None)
    r, shifted, n = exp_parts(t, down)
    e = scale(t, exp_polynomial(t, r), shifted, n)
    base = t.select(x < 0.0, e, 1.0)
    return t.fma(-base, e / (e + 1.0), base)


def tanh(t: Tape, x: Value) -> Value:
    """x + x^3 P(x^2) for |x| < 0.63, else 1 - 2 / (e^(2|x|) + 1)."""
    a = t.abs(x)
    square = a * a
    small = t.fma(a * square, t.horner(square, table.TANH[t.dtype]), a)
    limited = t.clamp(a, None, TANH_BOUND[t.dtype])
    shifted, n = round_shifted(t, limited, 2.0 * LOG2E)
    r = t.fma(limited, 2.0 * LOG2E, -n)
    e = scale_normal(t, t.horner(r, (1.0, *table.EXP2[t.dtype])), shifted)
    large = 1.0 - 2.0 / (e + 1.0)
    return t.copysign(t.select(a >= 0.63, large, small), x)


def erf(t: Tape, x: Value) -> Value:
    """x + x P(x^2) for |x| < 0.93, else 1 - 2^-R(|x|) with R = -log2(erfc)."""
    a = t.abs(x)
    square = a * a
    small = t.fma(a, t.horner(square, table.ERF[t.dtype]), a)
    limited = t.clamp(a, None, ERF_BOUND[t.dtype])
    down = -t.horner(limited, table.ERFC_LOG2[t.dtype])
    shifted, n = round_shifted(t, down, None)
    coefficients = table.EXP2_SHORT["f32"] if t.dtype == "f32" else table.EXP2["f64"]
    e = scale_normal(t, t.horner(down - n, (1.0, *coefficients)), shifted)
    return t.copysign(t.select(a >= 0.93, 1.0 - e, small), x)


def half_exp(t: Tape, a: Value) -> Value:
    """e^a / 2 for a >= 0, infinite only where the result is."""
    r, shifted, _ = exp_parts(t, t.clamp(a, None, HYPERBOLIC_BOUND[t.dtype]))
    p = exp_polynomial(t, r)
    power = t.to_bits(shifted) << t.mantissa_bits
    quarter = t.from_bits(power + ((t.exponent_bias - 2) << t.mantissa_bits))
    return (p * quarter) * 2.0


def sinh(t: Tape, x: Value) -> Value:
    """x + x^3 P(x^2) for |x| < 1, else h - 1/(4h) with h = e^|x| / 2."""
    a = t.abs(x)
    square = a * a
    small = t.fma(a * square, t.horner(square, table.SINH[t.dtype]), a)
    h = half_exp(t, a)
    large = h - 0.25 / h
    return t.copysign(t.select(a >= 1.0, large, small), x)


def cosh(t: Tape, x: Value) -> Value:
    """h + 1/(4h) with h = e^|x| / 2."""
    h = half_exp(t, t.abs(x))
    return h + 0.25 / h
