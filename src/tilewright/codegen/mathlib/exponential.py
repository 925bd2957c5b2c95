"""exp, exp2, expm1, sigmoid, tanh, erf, sinh, cosh.

In: a `Tape` and its arguments. Out: the value of the function. Invariant: straight-line code; NaN
in, NaN out; a denormal result is rounded once more at most.

All reduce to 2^n * p(r) with n an integer and |r| <= 1/2 (or ln(2)/2). n is found by adding
1.5 * 2^m, m the number of mantissa bits: the sum's low bits are then n itself, in two's complement,
ready to be moved to the exponent field. Where one instruction looks up sixteen numbers, the sum's
low bits choose among sixteen polynomials (tanh, erf) or roots of 2 (exp, exp2), which lets the
polynomials be short.
"""

from __future__ import annotations

import math

from tilewright.codegen.mathlib import coefficients as table
from tilewright.codegen.mathlib.tape import Tape, Value

__all__ = ["cosh", "erf", "exp", "exp2", "exp_parts", "expm1", "odd_pieces", "round_shifted"]
__all__ += ["scale", "sigmoid", "sinh", "tanh"]

LOG2E = 1.0 / math.log(2.0)
ROOTS = tuple(2.0 ** (k / 16) for k in range(16))
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
# How far the centres of the pieces of tanh and erf are apart.
TANH_PIECE, ERF_PIECE = 75 / 128, 0.25


def round_shifted(
    t: Tape, x: Value, factor: float | None, fraction: int = 0
) -> tuple[Value, Value]:
    """(shifted, n): n = x * factor rounded to `fraction` bits after the point, and the float whose
    low bits are n.
    """
    magic = 1.5 * 2.0 ** (t.mantissa_bits - fraction)
    shifted = x + magic if factor is None else t.fma(x, factor, magic)
    return shifted, shifted - magic


def scale(t: Tape, p: Value, shifted: Value, n: Value, fraction: int = 0) -> Value:
    """p * 2^floor(n) for p in [1/2, 2), `fraction` bits of n being behind the point: right for
    denormal results and for overflow.

    Without `scalef` by the factors 2^(n>>1) and 2^(n-(n>>1)).
    """
    if t.has_avx512(t.real):
        kind = t.type(t.real)
        operands = ((kind, p.text), (kind, n.text), (kind, p.text))
        return t.avx512("scalef", t.real, *operands)
    bits = t.to_bits(shifted)
    if fraction:
        bits = bits.lshr(fraction)
    half = bits.lshr(1)
    one = t.exponent_bias << t.mantissa_bits
    first = t.from_bits((half << t.mantissa_bits) + one)
    second = t.from_bits(((bits - half) << t.mantissa_bits) + one)
    return p * first * second


def scale_normal(t: Tape, p: Value, shifted: Value) -> Value:
    """p * 2^n where the result is a normal number; anything if p is NaN."""
    return t.from_bits(t.to_bits(p) + (t.to_bits(shifted) << t.mantissa_bits))


def exp_parts(t: Tape, x: Value, fraction: int = 0) -> tuple[Value, Value, Value]:
    """(r, shifted, n): x = n * ln(2) + r with |r| <= ln(2)/2, or /2^(1 + fraction)."""
    high, low = table.LN2[t.dtype]
    shifted, n = round_shifted(t, x, LOG2E, fraction)
    r = t.fma(n, -high, x)
    return t.fma(n, -low, r), shifted, n


def exp_polynomial(t: Tape, r: Value) -> Value:
    """exp(r) for |r| <= ln(2)/2."""
    return t.horner(r, (1.0, 1.0, *table.EXP[t.dtype]))


def times_root(t: Tape, p: Value, shifted: Value, n: Value) -> Value:
    """2^n (1 + p) where n is a multiple of 1/16 and the low four bits of `shifted` count those."""
    root = t.look_up(ROOTS, t.to_bits(shifted))
    return scale(t, t.fma(root, p, root), shifted, n, 4)


def exp_within(t: Tape, x: Value) -> Value:
    """e^x for x in EXP_RANGE."""
    if not t.has_table():
        r, shifted, n = exp_parts(t, x)
        return scale(t, exp_polynomial(t, r), shifted, n)
    r, shifted, n = exp_parts(t, x, 4)
    return times_root(t, t.horner(r, (1.0, *table.EXP_ROOT["f32"])) * r, shifted, n)


def exp(t: Tape, x: Value) -> Value:
    """e^x."""
    return exp_within(t, t.clamp(x, *EXP_RANGE[t.dtype]))


def exp2(t: Tape, x: Value) -> Value:
    """2^x."""
    x = t.clamp(x, *EXP2_RANGE[t.dtype])
    if t.has_table():
        shifted, n = round_shifted(t, x, None, 4)
        r = x - n
        return times_root(t, t.horner(r, table.EXP2_ROOT["f32"]) * r, shifted, n)
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
    e = exp_within(t, down)
    base = t.select(x < 0.0, e, 1.0)
    return t.fma(-base, e / (e + 1.0), base)


def odd_pieces(t: Tape, x: Value, width: float, pieces: tuple[tuple[float, ...], ...]) -> Value:
    """The polynomial of |x| - i * width whose i is nearest, with the sign of x; the coefficients
    by power, then by i. Beyond the last piece its end, which is 1.
    """
    a = t.clamp(t.abs(x), None, (len(pieces[0]) - 0.501) * width)
    shifted, i = round_shifted(t, a, 1.0 / width)
    apart = t.fma(i, -width, a)
    index = t.to_bits(shifted)
    y = t.look_up(pieces[-1], index)
    for coefficients in reversed(pieces[:-1]):
        y = t.fma(y, apart, t.look_up(coefficients, index))
    return t.copysign(y, x)


def tanh(t: Tape, x: Value) -> Value:
    """x + x^3 P(x^2) for |x| < 0.63, else 1 - 2 / (e^(2|x|) + 1); or by pieces."""
    if t.has_table():
        return odd_pieces(t, x, TANH_PIECE, table.TANH_PIECES)
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
    """x + x P(x^2) for |x| < 0.93, else 1 - 2^-R(|x|) with R = -log2(erfc); or by pieces."""
    if t.has_table():
        return odd_pieces(t, x, ERF_PIECE, table.ERF_PIECES)
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
