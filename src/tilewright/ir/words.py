"""Dot products of words: sums of products of narrow elements, a few neighbours at a time.

In: definitions. Out: their narrow factors, and the axis that should lie side by side. Invariant:
the product of two factors is exact in the type that is summed.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.ir import expr as E
from tilewright.ir.dtypes import BF16, F32, I8, I32, U8, DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import Definition

__all__ = [
    "WORD_BYTES",
    "half_factors",
    "narrow_factors",
    "single_factors",
    "wide_name",
    "widened",
    "word_axis",
]

WORD_BYTES = 4  # of the groups of neighbouring elements


def narrow_factors(d: Definition) -> tuple[Expr, Expr] | None:
    """The two 8-bit integer reads whose product, widened to 32 bits, a definition sums."""
    return _factors(d, I32, (I8, U8))


def half_factors(d: Definition) -> tuple[Expr, Expr] | None:
    """The two bf16 reads whose product, widened to f32, a definition sums."""
    return _factors(d, F32, (BF16,))


def single_factors(d: Definition) -> tuple[Expr, Expr] | None:
    """The two f32 reads whose product a definition sums."""
    if d.dtype is not F32 or d.body.op != "mul" or d.reduction is None:
        return None
    if d.reduction.monoid != "sum" or d.reduction.guard is not None:
        return None
    left, right = d.body.args
    if any(x.op != "read" or x.dtype is not F32 or x.attr[1] for x in (left, right)):
        return None
    return left, right


def _factors(d: Definition, wide: DType, narrow: tuple[DType, ...]) -> tuple[Expr, Expr] | None:
    body = d.body
    if d.dtype is not wide or body.op != "mul" or d.reduction is None:
        return None
    if d.reduction.monoid != "sum" or d.reduction.guard is not None:
        return None
    inner = [x.args[0] for x in body.args if x.op == "cast" and x.dtype is wide]
    if len(inner) != 2 or any(x.op != "read" or x.dtype not in narrow for x in inner):
        return None
    return inner[0], inner[1]


def widened(d: Definition, read: Expr, name: str = "") -> Definition:
    """A sum of products that reads 16-bit floats as `NAME.wide`, a copy of them in f32 (see
    `wide_name`); the same one where it does not widen what it reads. name: of the copy instead.
    """
    body = d.body
    name = name or wide_name(d, read)
    if name == read.attr[0]:
        return d
    if wide_name(d, read) == read.attr[0]:  # a copy as it is
        copy = E.read(name, list(read.args), read.dtype)
        return replace(d, body=E.substitute(body, {read: copy}))
    wide = E.read(name, list(read.args), F32)
    args = [wide if x.op == "cast" and x.args[0] is read else x for x in body.args]
    return replace(d, body=E.mul(args[0], args[1]))


def wide_name(d: Definition, read: Expr) -> str:
    """The name under which a sum of products reads a packed factor: another one where 16-bit floats
    are packed as f32, so that they are converted once.
    """
    name: str = read.attr[0]
    if d.body.op != "mul" or read.attr[1] or not (read.dtype.is_float and read.dtype.bits == 16):
        return name
    mine = [x for x in d.body.args if x.op == "cast" and x.dtype is F32 and x.args[0] is read]
    return f"{name}.wide" if len(mine) == 1 else name


def word_axis(d: Definition, name: str) -> int | None:
    """Which axis of tensor `name` a dot product of words wants side by side: the longest reduced
    one; None where `d` is no such product of it.
    """
    factors = narrow_factors(d)
    if factors is None or d.reduction is None:
        return None
    for mine, other in (factors, factors[::-1]):
        if mine.attr[0] != name or other.attr[0] == name:
            continue
        used = {x for s in other.args for x in s.names("index")}
        best, longest = None, WORD_BYTES - 1
        for axis in d.reduction.axes:
            size = E.int_value(axis.extent) or 0
            alone = [i for i, s in enumerate(mine.args) if axis.name in s.names("index")]
            plain = len(alone) == 1 and mine.args[alone[0]] is axis.index
            if plain and axis.name in used and size > longest:
                best, longest = alone[0], size
        return best
    return None
