"""Reads and writes at computed positions.

In: values, indices. Out: subscripts, and scatters. Invariants: indices counted from the end are
made positive in the subscript, unless they are known not to be negative; constant indices that
rise or fall evenly become a formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import gcd

import numpy as np

from tilewright.frontend.values import Array, Definer, Value
from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64, DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import Scatter

__all__ = ["Subscripts", "outside", "position", "reflected", "scatter"]

_RAMP_FROM, _RAMP_TO = 8, 1 << 16  # elements; fewer are a list, more take long to look at
_MOST_STEP = 8
_DIVISORS = (1, 2, 4, 8)  # of lengths of vectors: all vectors of results read in the same way

Subscripts = Callable[..., Sequence[Expr]]


def position(indices: Value, at: Sequence[Expr], size: Expr) -> Expr:
    """The subscript that `indices[at]` means on an axis of `size`: negative ones count from the
    end.
    """
    if indices.array is not None and indices.array.size:
        flat = indices.array.reshape(-1)
        if indices.array.ndim == 1 and len(flat) > 1:
            step = int(flat[1]) - int(flat[0])
            if np.array_equal(flat, int(flat[0]) + step * np.arange(len(flat))) and flat.min() >= 0:
                return at[0] * step + int(flat[0])
            if flat.min() >= 0 and (ramp := _ramp(flat.astype(np.int64), at[0])) is not None:
                return ramp
        e = E.cast(indices.at(*at), I64)
        if flat.min() >= 0:
            return e
        if (value := E.int_value(e)) is not None:
            return size + value if value < 0 else e
    else:
        e = E.cast(indices.at(*at), I64)
        if indices.dtype.kind == "u":
            return e
        if e.op != "read" and e.op != "cast":
            return e  # a size expression
    return E.select(E.compare("lt", e, E.const(0)), e + size, e)


def _ramp(values: Array, i: Expr) -> Expr | None:
    """values[i] as a*i + b over c, rounded down, between the least and the largest value; None
    where they are no such ramp, or more than half of it is flat at the ends.

    What enlarges or repeats an axis reads it so; a formula is a load and a shuffle, a table of
    positions a gather.
    """
    count, low, high = len(values), int(values.min()), int(values.max())
    rising, falling = values > low, values < high
    if not _RAMP_FROM <= count <= _RAMP_TO or 2 * int((rising & falling).sum()) < count:
        return None
    at, sign = np.arange(count), 1 if values[-1] >= values[0] else -1
    for c, step in product(_DIVISORS, range(1, _MOST_STEP + 1)):
        if gcd(c, step) > 1:
            continue
        a = sign * step
        least = c * values - a * at  # of b, where the quotient must not be less than the value
        most = least + c - 1
        first, last = int(least.max()), int(most.min())
        if first <= last:
            return E.floordiv(i * a + first, E.const(c))
        first, last = int(least[rising].max()), int(most[falling].min())
        if first > last:
            continue
        e = E.floordiv(i * a + first, E.const(c))
        found = (a * at + first) // c
        if found.min() < low:
            e = E.maximum(e, E.const(low))
        return E.minimum(e, E.const(high)) if found.max() > high else e
    return None


def outside(n: Definer, indices: Value, sizes: Sequence[Expr]) -> int | None:
    """What a read at `indices` gives outside the axis: nothing where they are known to be inside,
    else 0, so that data never makes a Program read outside a tensor. `sizes`: of the axis, or one
    per component along the last axis of the indices. Errors: F006 for constants outside.
    """
    if indices.array is None:
        return None if indices.known is not None else 0
    array = indices.array.astype(np.int64)
    for k, size in enumerate(sizes):
        part = array[..., k] if len(sizes) > 1 else array
        if not part.size:
            continue
        low, high = int(part.min()), int(part.max())
        need = max(high + 1, -low)
        if n.sizes.decide("lt", size, E.const(need)):
            raise n.contradiction(f"an index of {low} to {high} is outside an axis of {size}")
        if not n.sizes.decide("le", E.const(need), size):
            return 0
    return None


def scatter(
    n: Definer,
    dtype: DType,
    shape: Sequence[Expr],
    source: Sequence[Expr],
    monoid: str | None,
    place: Subscripts,
    body: Callable[..., Expr],
    base: Callable[..., Expr],
    suffix: str = "",
) -> Value:
    """`y[place(source)] monoid= body(source)` on top of `base`."""
    axes = n.axes(shape)
    inner = n.axes(source, [f"s{k}" for k in range(len(source))])
    index = [a.index for a in inner]
    s = Scatter(
        n.builder.fresh(f"{n.hint}_{suffix}" if suffix else n.hint),
        dtype,
        axes,
        monoid,
        inner,
        tuple(place(*index)),
        body(*index),
        base(*(a.index for a in axes)),
    )
    n.builder.add(s)
    return n.value(n.builder.tensors[s.name])


def reflected(n: Definer, mode: str, e: Expr, size: Expr) -> Expr:
    """The subscript that padding reads for position `e` of an axis: mode edge, wrap or reflect."""
    if mode == "edge":
        return E.maximum(E.minimum(e, size - 1), E.const(0))
    if mode == "wrap":
        return E.mod(e, size)
    if E.int_value(size) == 1:
        return E.const(0)
    period = size * 2 - 2
    inside = E.mod(e, period)
    return E.minimum(inside, period - inside)
