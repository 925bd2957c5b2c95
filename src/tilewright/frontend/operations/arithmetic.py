"""Arithmetic of one or two scalars that several front ends share.

In: expressions of one dtype. Out: an expression of that dtype. Invariant: exact where the result
is representable.
"""

from __future__ import annotations

from tilewright.frontend.values import like
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr

__all__ = [
    "both",
    "copysign",
    "either",
    "floor_divide",
    "floor_modulo",
    "negative",
    "truncate_divide",
]


def both(a: Expr, b: Expr) -> Expr:
    """a and b, of bools."""
    return E.logical("and", a, b)


def either(a: Expr, b: Expr) -> Expr:
    """a or b, of bools."""
    return E.logical("or", a, b)


def floor_modulo(a: Expr, b: Expr) -> Expr:
    """The remainder with the sign of the divisor; exact, and right for an infinite divisor."""
    if not a.dtype.is_float:
        return E.mod(a, b)
    # Unlike a - floor(a/b) * b, which rounds.
    rest, zero = E.binary("fmod", a, b), like(a, 0)
    other_side = E.compare("ne", E.compare("lt", rest, zero), E.compare("lt", b, zero))
    return E.select(both(E.compare("ne", rest, zero), other_side), E.add(rest, b), rest)


def negative(x: Expr) -> Expr:
    """Is the sign bit set (-0.0 and NaN included as far as 1/x and comparisons can tell)?"""
    zero, one = like(x, 0), like(x, 1)
    below_zero = E.compare("lt", E.binary("div", one, x), zero)
    return either(E.compare("lt", x, zero), both(E.compare("eq", x, zero), below_zero))


def copysign(a: Expr, b: Expr) -> Expr:
    """|a| with the sign of b."""
    size = E.unary("abs", a)
    return E.select(negative(b), E.neg(size), size)


def floor_divide(a: Expr, b: Expr) -> Expr:
    """floor(a / b), from the exact remainder for floats; a / b where b is 0."""
    if not a.dtype.is_float:
        return E.floordiv(a, b)
    zero, one = like(a, 0), like(a, 1)
    plain = E.binary("div", a, b)
    rest = floor_modulo(a, b)
    quotient = E.binary("div", E.sub(a, rest), b)
    low = E.unary("floor", quotient)
    near = E.select(E.compare("lt", like(a, 0.5), E.sub(quotient, low)), E.add(low, one), low)
    kept = E.select(E.compare("eq", quotient, zero), copysign(zero, plain), near)
    # A finite number over an infinity: 0, or -1 where the signs differ.
    most = like(a, float("inf"))
    differ = E.compare("lt", E.mul(a, b), zero)
    far = E.select(differ, like(a, -1), copysign(zero, plain))
    is_far = E.logical(
        "and",
        E.compare("eq", E.unary("abs", b), most),
        E.compare("lt", E.unary("abs", a), most),
    )
    return E.select(E.compare("eq", b, zero), plain, E.select(is_far, far, kept))


def truncate_divide(a: Expr, b: Expr) -> Expr:
    """a / b towards zero."""
    q = E.binary("div", a, b)
    return E.unary("trunc", q) if a.dtype.is_float else q
