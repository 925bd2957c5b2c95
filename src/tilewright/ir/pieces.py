"""f32 numbers as sums of three bf16, so that matrix registers multiply them.

In: an f32 expression. Out: definitions of its pieces, and which products of pieces make a product.
Invariants: the pieces of a number of ordinary size add up to it exactly; infinities and NaN stay
what they are in every sum of products.

A bf16 has eight significant bits and the exponents of f32, so three of them hold what an f32 holds:
x = x0 + x1 + x2 with |x1| < 2^-7 |x|, |x2| < 2^-15 |x|. Each product of two pieces is exact in f32.
Of the nine for two numbers the smallest three, below 2^-21 of the whole and some 2^-24 on average,
are left out. Sums of 32 positions begin at zero, so that large sums are rounded less often than in
a chain of multiply-adds. Products and sums below the smallest normal f32 become zero, as matrix
registers have it. (Henry, Tang, Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype
For Higher-Precision Computations", 2019.)

What is not finite goes into the last piece, which meets the first piece of the other factor alone;
its other pieces are those of the largest number, with the sign of an infinity. As all pieces of a
number have its sign, an infinity then meets a number with that number's sign, a zero as NaN,
another infinity as an infinity.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.ir import expr as E
from tilewright.ir.dtypes import BF16, F32
from tilewright.ir.expr import Expr
from tilewright.ir.program import Axis, Definition

__all__ = ["PIECES", "PRODUCTS", "definitions_of_pieces"]

PIECES = 3
_LARGEST = 2.0**128 - 2.0**104  # that an f32 holds
# Pieces of the two factors, small products first; neighbours have one piece in common.
PRODUCTS = ((2, 0), (1, 0), (1, 1), (0, 1), (0, 0), (0, 2))


def definitions_of_pieces(
    names: Sequence[str], axes: Sequence[Axis], value: Expr
) -> tuple[Definition, ...]:
    """The pieces of an f32 expression over `axes`, as tensors of these names."""
    high, low = E.const(_LARGEST, F32), E.const(-_LARGEST, F32)
    # Comparisons that are false for NaN, as the CPU's minimum and maximum have them.
    below = E.select(E.compare("lt", value, high), value, high)
    finite = E.select(E.compare("lt", low, below), below, low)
    at = [a.index for a in axes]
    first, second = (E.cast(E.read(n, at, BF16), F32) for n in names[:2])
    # What is left of an infinity or NaN is the same again.
    bodies = (finite, E.sub(finite, first), E.sub(E.sub(value, first), second))
    return tuple(
        Definition(n, BF16, tuple(axes), E.unary("upper_half", b))
        for n, b in zip(names, bodies, strict=True)
    )
