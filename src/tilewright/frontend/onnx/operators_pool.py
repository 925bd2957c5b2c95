"""Pooling rows: maximum, mean and norm of sliding windows, and over whole images.

In: a node. Out: reductions over kernel axes. Invariants: padding of a maximum is the type's lowest
value, so that it never wins; a mean divides by the number of elements that count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tilewright.frontend.onnx.operators_window import windows
from tilewright.frontend.onnx.table import row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.operations.indexing import scatter
from tilewright.frontend.operations.windows import (
    Window,
    kernel_names,
    power_of_abs,
    root,
    spatial_names,
)
from tilewright.frontend.values import Value
from tilewright.ir import expr as E
from tilewright.ir.dtypes import DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import identity_of

__all__: list[str] = []


def _pool(n: Node) -> tuple[Value, list[Window], tuple[str, ...], tuple[str, ...]]:
    x = n[0]
    kernel = [int(k) for k in n.required("kernel_shape")]
    if len(kernel) != x.rank - 2:
        raise n.contradiction(f"kernel_shape of {len(kernel)} axes for rank {x.rank}")
    geometry = windows(n, x.shape[2:], kernel, bool(n.attribute("ceil_mode", 0)))
    return x, geometry, ("n", "c", *spatial_names(len(kernel))), kernel_names(len(kernel))


def _may_leave(g: Window, n: Node) -> bool:
    """Can a window read outside the tensor?"""
    last = (g.count - 1) * g.stride + (g.reach - 1) - g.before
    return E.int_value(g.before) != 0 or n.sizes.decide("lt", last, g.size) is not True


@row("MaxPool", kind="window")
def max_pool(n: Node) -> list[Value | None]:
    """The largest element of each window, and optionally its position in the flattened input."""
    x, geometry, names, over = _pool(n)
    leaves = any(_may_leave(g, n) for g in geometry)
    lowest = identity_of("max", x.dtype) if leaves else None
    shape = [*x.shape[:2], *(g.count for g in geometry)]
    kernel = [g.kernel for g in geometry]

    def body(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        subs = [g.at(p, q) for g, p, q in zip(geometry, i[2:], r, strict=True)]
        return x.at(*i[:2], *subs, orelse=lowest)

    y = n.reduce("max", shape, kernel, body, names=names, over_names=over)
    if not n.has_output(1):
        return [y]
    best = n.reduce(
        "argmax", shape, kernel, body, names=names, over_names=over, suffix="best", keep_ones=True
    )

    def position(*i: Expr) -> Expr:
        rest = best.at(*i)
        at: list[Expr] = []
        for g, p in reversed(list(zip(geometry, i[2:], strict=True))):
            at.append(g.at(p, E.mod(rest, E.const(g.kernel))))
            rest = E.floordiv(rest, E.const(g.kernel))
        at.reverse()
        order = list(range(len(at)))
        if n.attribute("storage_order", 0):
            order.reverse()
        linear = E.const(0)
        for k in order:
            linear = linear * x.shape[2 + k] + at[k]
        plane = n.sizes.product(x.shape[2:])
        return (i[0] * x.shape[1] + i[1]) * plane + linear

    return [y, n.define(shape, position, names, suffix="indices")]


def _counts(n: Node, g: Window, include: bool, dtype: DType, k: int) -> Value | None:
    """How many elements of each window count, along one axis; None where all do."""
    if not _may_leave(g, n) and not n.attribute("ceil_mode", 0):
        return None
    low = -g.before if include else E.const(0)
    high = g.size + g.after if include else g.size
    if include and not n.attribute("ceil_mode", 0):
        return None
    geometry = [E.int_value(e) for e in (g.size, g.count, g.before, g.after)]
    size, count, before, after = (0 if e is None else e for e in geometry)
    if None not in geometry and count * g.kernel <= 1 << 16:
        taps = np.arange(g.kernel)[None, :] * g.dilation
        at = np.arange(count)[:, None] * g.stride + taps - before
        inside = (at >= (-before if include else 0)) & (at < size + (after if include else 0))
        return n.constant(np.maximum(inside.sum(1), 1).astype(dtype.np), f"count{k}")

    def guard(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        at = g.at(i[0], r[0])
        return E.logical("and", E.compare("le", low, at), E.compare("lt", at, high))

    return n.reduce(
        "sum",
        [g.count],
        [g.kernel],
        lambda i, r: E.const(1, dtype),
        guard=guard,
        suffix=f"count{k}",
        keep_ones=True,
    )


@row("AveragePool", kind="window", since=7)
def average_pool(n: Node) -> Value:
    """The mean of each window; padding counts only with count_include_pad."""
    x, geometry, names, over = _pool(n)
    include = bool(n.attribute("count_include_pad", 0))
    accumulate = x.dtype.accumulator
    leaves = any(_may_leave(g, n) for g in geometry)
    shape = [*x.shape[:2], *(g.count for g in geometry)]

    def body(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        subs = [g.at(p, q) for g, p, q in zip(geometry, i[2:], r, strict=True)]
        return E.cast(x.at(*i[:2], *subs, orelse=0 if leaves else None), accumulate)

    total = n.reduce(
        "sum", shape, [g.kernel for g in geometry], body, names=names, over_names=over, suffix="sum"
    )
    counts = [_counts(n, g, include, accumulate, k) for k, g in enumerate(geometry)]
    fixed = math.prod(g.kernel for g, c in zip(geometry, counts, strict=True) if c is None)

    def mean(*i: Expr) -> Expr:
        factors = [c.at(p) for c, p in zip(counts, i[2:], strict=True) if c is not None]
        divisor = factors.pop() if factors and fixed == 1 else E.const(fixed, accumulate)
        for f in factors:
            divisor = E.mul(divisor, f)
        return E.cast(E.binary("div", total.at(*i), divisor), x.dtype)

    return n.define(shape, mean, names)


@row("LpPool", kind="window", since=2)
def lp_pool(n: Node) -> Value:
    """The p-norm of each window."""
    x, geometry, names, over = _pool(n)
    leaves = any(_may_leave(g, n) for g in geometry)

    def element(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        subs = [g.at(p, q) for g, p, q in zip(geometry, i[2:], r, strict=True)]
        return x.at(*i[:2], *subs, orelse=0 if leaves else None)

    shape = [*x.shape[:2], *(g.count for g in geometry)]
    return _norm(n, x, shape, [g.kernel for g in geometry], element, names, over)


def _norm(
    n: Node,
    x: Value,
    shape: Sequence[Expr],
    over: Sequence[Expr | int],
    element: Callable[[Sequence[Expr], Sequence[Expr]], Expr],
    names: Sequence[str],
    over_names: Sequence[str],
) -> Value:
    p = float(n.attribute("p", 2))
    if p < 1:
        raise n.refuse(f"a norm of order {p}")
    accumulate = x.dtype.accumulator

    def body(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        e = E.cast(element(i, r), accumulate)
        return power_of_abs(e, p)

    total = n.reduce("sum", shape, over, body, names=names, over_names=over_names, suffix="sum")
    return n.define(shape, lambda *i: E.cast(root(total.at(*i), p), x.dtype), names)


def _global(n: Node) -> tuple[Value, list[Expr], tuple[str, ...], tuple[str, ...]]:
    x = n[0]
    count = x.rank - 2
    return (
        x,
        [*x.shape[:2], *[E.const(1)] * count],
        ("n", "c", *spatial_names(count)),
        tuple(f"{a}1" for a in spatial_names(count)),
    )


@row("GlobalAveragePool", kind="window")
def global_average_pool(n: Node) -> Value:
    """The mean over the spatial axes."""
    x, shape, names, over = _global(n)
    accumulate = x.dtype.accumulator
    total = n.reduce(
        "sum",
        shape,
        x.shape[2:],
        lambda i, r: E.cast(x.at(*i[:2], *r), accumulate),
        names=names,
        over_names=over,
        suffix="sum",
    )
    count = E.cast(n.sizes.product(x.shape[2:]), accumulate)
    return n.define(shape, lambda *i: E.cast(E.binary("div", total.at(*i), count), x.dtype), names)


@row("GlobalMaxPool", kind="window")
def global_max_pool(n: Node) -> Value:
    """The largest element over the spatial axes."""
    x, shape, names, over = _global(n)
    return n.reduce(
        "max", shape, x.shape[2:], lambda i, r: x.at(*i[:2], *r), names=names, over_names=over
    )


@row("GlobalLpPool", kind="window", since=2)
def global_lp_pool(n: Node) -> Value:
    """The p-norm over the spatial axes."""
    x, shape, names, over = _global(n)
    return _norm(n, x, shape, x.shape[2:], lambda i, r: x.at(*i[:2], *r), names, over)


@row("MaxUnpool", kind="window", since=9)
def max_unpool(n: Node) -> Value:
    """Values put back at the positions that MaxPool gave; zero elsewhere."""
    x, positions = n[0], n[1]
    spatial = x.rank - 2
    kernel = [int(k) for k in n.required("kernel_shape")]
    strides = n.counts("strides", spatial)
    pads = [int(p) for p in n.attribute("pads") or [0] * (2 * spatial)]
    natural = [
        (s - 1) * strides[k] + (kernel[k] - pads[k] - pads[k + spatial])
        for k, s in enumerate(x.shape[2:])
    ]
    shape = [*x.shape[:2], *natural]
    out = n.integers(2, "output_shape") if n.optional(2) is not None else shape

    def place(*i: Expr) -> list[Expr]:
        rest = positions.at(*i)
        at: list[Expr] = []
        for s in reversed(shape):
            at.append(E.mod(rest, s))
            rest = E.floordiv(rest, s)
        return list(reversed(at))

    return scatter(
        n, x.dtype, out, x.shape, None, place, lambda *i: x.at(*i), lambda *i: E.const(0, x.dtype)
    )
