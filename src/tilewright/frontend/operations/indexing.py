"""Reads and writes at computed positions.

In: values, indices. Out: subscripts, and scatters. Invariants: indices counted from the end are
made positive in the subscript, unless they are known not to be negative; an arithmetic progression
of constant indices becomes affine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tilewright.frontend.values import Definer, Value
from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64, DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import Scatter

__all__ = ["Subscripts", "outside", "position", "reflected", "scatter"]

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
