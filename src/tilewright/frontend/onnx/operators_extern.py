"""Rows that are algorithms or whose sizes depend on the data: `extern` calls.

In: a node. Out: an extern, and reads of its results. Invariant: a size that only the data gives is
a new dim, defined by the extern's result.
"""

from __future__ import annotations

import numpy as np

from tilewright.frontend.onnx.table import row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.values import Value
from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64
from tilewright.ir.expr import Expr

__all__: list[str] = []


@row("TopK", kind="extern", notes="the result is always sorted")
def topk(n: Node) -> list[Value | None]:
    """The k largest or smallest elements along an axis, and their positions."""
    x = n[0]
    axis = n.axis(x.rank, default=-1)
    args = [x]
    if n.opset < 10:
        count: Expr = E.const(int(n.required("k")))
    elif n[1].known is not None:
        count = n.integers(1, "k")[0]
    else:
        count = n.importer.new_dim(f"{n.hint}_k")
        args.append(n[1])
    if n.sizes.decide("lt", x.shape[axis], count):
        raise n.contradiction(f"k = {count} of {x.shape[axis]} elements")
    fixed = E.int_value(count)
    if fixed is None and len(args) == 1:
        args.append(n[1])
    shape = [count if k == axis else s for k, s in enumerate(x.shape)]
    attributes: dict[str, int | bool] = {"axis": axis}
    if fixed is not None:
        attributes["k"] = fixed
    values, indices = n.extern(
        "topk",
        args,
        [("", x.dtype, shape), ("indices", I64, shape)],
        **attributes,
        largest=bool(n.attribute("largest", 1)),
    )
    return [values, indices]


@row("NonZero", kind="extern", since=9)
def nonzero(n: Node) -> Value:
    """Positions of the elements that are not zero."""
    count = n.importer.new_dim(f"{n.hint}_count")
    return n.extern("nonzero", [n[0]], [("", I64, [E.const(n[0].rank), count])])[0]


@row("Compress", kind="extern", since=9)
def compress(n: Node) -> Value:
    """Slices along an axis (or elements of the flattened tensor) where a condition holds."""
    x, condition = n[0], n[1]
    if condition.array is not None:
        chosen = np.flatnonzero(condition.array)
        at = n.constant(chosen.astype(np.int64), "at")

        def position(i: Expr) -> Expr:
            return at.at(i)

        count: Expr = E.const(len(chosen))
        orelse = None
    else:
        whole = n.sizes.same(condition.shape[0], x.shape[n.axis(x.rank)])
        orelse = None if whole else 0
        count = n.importer.new_dim(f"{n.hint}_count")
        where = n.extern("nonzero", [condition], [("at", I64, [E.const(1), count])])[0]

        def position(i: Expr) -> Expr:
            return where.at(0, i)

    if "axis" in n.attributes:
        axis = n.axis(x.rank)
        if n.sizes.decide("lt", x.shape[axis], condition.shape[0]):
            raise n.contradiction(f"a condition of {condition.shape[0]} for {x.shape[axis]}")
        shape = [count if k == axis else s for k, s in enumerate(x.shape)]
        return n.define(
            shape,
            lambda *i: x.at(
                *(position(e) if k == axis else e for k, e in enumerate(i)), orelse=orelse
            ),
        )

    def body(i: Expr) -> Expr:
        rest = position(i)
        at: list[Expr] = []
        for s in reversed(x.shape):
            at.append(E.mod(rest, s))
            rest = E.floordiv(rest, s)
        return x.at(*reversed(at))

    return n.define([count], body)


@row("Unique", kind="extern", since=11)
def unique(n: Node) -> list[Value | None]:
    """Distinct elements or slices, where they first occur, which of them each element is, and how
    often they occur.
    """
    x = n[0]
    count = n.importer.new_dim(f"{n.hint}_count")
    flat = "axis" not in n.attributes
    axis = 0 if flat else n.axis(x.rank)
    shape = [count] if flat else [count if k == axis else s for k, s in enumerate(x.shape)]
    whole = n.sizes.product(x.shape) if flat else x.shape[axis]
    results = n.extern(
        "unique",
        [x],
        [
            ("", x.dtype, shape),
            ("indices", I64, [count]),
            ("inverse", I64, [whole]),
            ("counts", I64, [count]),
        ],
        axis=axis,
        flat=flat,
        ordered=bool(n.attribute("sorted", 1)),
    )
    return list(results)


@row("NonMaxSuppression", kind="extern", since=10)
def non_max_suppression(n: Node) -> Value:
    """The boxes that greedy suppression keeps."""
    count = n.importer.new_dim(f"{n.hint}_count")
    limit = n.optional(2) or n.constant(np.zeros(1, np.int64), "limit")
    overlap = n.optional(3) or n.constant(np.zeros(1, np.float32), "overlap")
    args = [n[0], n[1], limit, overlap]
    threshold = n.optional(4)
    if threshold is not None:
        args.append(threshold)
    return n.extern(
        "nms",
        args,
        [("", I64, [count, E.const(3)])],
        center=bool(n.attribute("center_point_box", 0)),
    )[0]
