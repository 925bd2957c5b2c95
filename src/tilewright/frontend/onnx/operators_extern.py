"""Rows that are algorithms or whose sizes depend on the data: `extern` calls.

In: a node. Out: an extern, or a prefix sum and a scatter, and reads of the results. Invariant: a
size that only the data gives is a new dim, defined by a scalar and at most what memory is planned
for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tilewright.frontend.onnx.table import row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.values import Value
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, I64
from tilewright.ir.expr import Expr
from tilewright.ir.program import Scatter

__all__: list[str] = []


def _size(n: Node, count: Value, bound: Expr) -> Expr:
    """A new size, the value of a scalar."""
    return n.importer.new_size(f"{n.hint}_count", count, bound)


def _head(n: Node, v: Value, axis: int, count: Expr, suffix: str = "") -> Value:
    """The first `count` slices of a value along an axis."""
    shape = [count if k == axis else s for k, s in enumerate(v.shape)]
    return n.define(shape, lambda *i: v.at(*i), suffix=suffix)


@row("TopK", kind="extern", notes="the result is always sorted")
def topk(n: Node) -> list[Value | None]:
    """The k largest or smallest elements along an axis, and their positions."""
    x = n[0]
    axis, largest = n.axis(x.rank, default=-1), bool(n.attribute("largest", 1))
    if n.opset >= 10 and n[1].known is None:  # all are sorted, of which the first are taken
        results = [("sorted", x.dtype, x.shape), ("order", I64, x.shape)]
        whole = n.extern("sort", [x], results, axis=axis, descending=largest)
        k = n.define((), lambda: E.cast(n[1].at(*[0] * n[1].rank), I64), suffix="k")
        count = _size(n, k, x.shape[axis])
        return [_head(n, whole[0], axis, count), _head(n, whole[1], axis, count, "indices")]
    args = [x]
    if n.opset < 10:
        count = E.const(int(n.required("k")))
    else:
        count = n.integers(1, "k")[0]
    if n.sizes.decide("lt", x.shape[axis], count):
        raise n.contradiction(f"k = {count} of {x.shape[axis]} elements")
    fixed = E.int_value(count)
    if fixed is None:
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
        largest=largest,
    )
    return [values, indices]


def _chosen(n: Node, total: Expr, condition: Callable[[Expr], Expr]) -> tuple[Value, Expr]:
    """Where a condition on positions below `total` holds: the positions in order, i64[K], and the
    size K, which is their number.
    """
    holds = n.define([total], lambda i: E.cast(condition(i), I64), suffix="holds")
    rank = n.scan("sum", 0, [total], holds.at, "rank")
    number = n.reduce("sum", [], [total], lambda _, i: holds.at(*i), suffix="number")
    count = _size(n, number, total)
    b = n.builder
    source, target = b.axes([total]), b.axes([count])
    i = source[0].index
    place = E.select(E.compare("eq", holds.at(i), E.const(1)), rank.at(i) - 1, E.const(-1))
    name = b.fresh(f"{n.hint}_at")
    b.add(Scatter(name, I64, target, None, source, (place,), i, E.const(0)))
    return n.value(b.tensors[name]), count


def _place(flat: Expr, shape: Sequence[Expr]) -> list[Expr]:
    """Subscripts of the element at a position in row-major order."""
    at: list[Expr] = []
    for s in reversed(shape):
        at.append(E.mod(flat, s))
        flat = E.floordiv(flat, s)
    return at[::-1]


@row("NonZero", kind="index", since=9)
def nonzero(n: Node) -> Value:
    """Positions of the elements that are not zero."""
    x = n[0]
    zero = E.const(False, BOOL) if x.dtype is BOOL else E.const(0, x.dtype)
    at, count = _chosen(
        n, n.sizes.product(x.shape), lambda i: E.compare("ne", x.at(*_place(i, x.shape)), zero)
    )
    if not x.rank:
        return n.define([0, count], lambda *i: E.const(0), dtype=I64)

    def body(r: Expr, k: Expr) -> Expr:
        places = _place(at.at(k), x.shape)
        out = places[-1]
        for axis in range(x.rank - 2, -1, -1):
            out = E.select(E.compare("eq", r, E.const(axis)), places[axis], out)
        return out

    return n.define([x.rank, count], body)


@row("Compress", kind="index", since=9)
def compress(n: Node) -> Value:
    """Slices along an axis (or elements of the flattened tensor) where a condition holds."""
    x, condition = n[0], n[1]
    if condition.array is not None:
        chosen = np.flatnonzero(condition.array)
        at, count = n.constant(chosen.astype(np.int64), "at"), E.const(len(chosen))
        orelse = None
    else:
        whole = n.sizes.same(condition.shape[0], x.shape[n.axis(x.rank)])
        orelse = None if whole else 0
        at, count = _chosen(n, condition.shape[0], condition.at)
    if "axis" in n.attributes:
        axis = n.axis(x.rank)
        if n.sizes.decide("lt", x.shape[axis], condition.shape[0]):
            raise n.contradiction(f"a condition of {condition.shape[0]} for {x.shape[axis]}")
        shape = [count if k == axis else s for k, s in enumerate(x.shape)]
        return n.define(
            shape,
            lambda *i: x.at(
                *(at.at(e) if k == axis else e for k, e in enumerate(i)), orelse=orelse
            ),
        )
    return n.define([count], lambda i: x.at(*_place(at.at(i), x.shape)))


@row("Unique", kind="extern", since=11)
def unique(n: Node) -> list[Value | None]:
    """Distinct elements or slices, where they first occur, which of them each element is, and how
    often they occur.
    """
    x = n[0]
    flat = "axis" not in n.attributes
    axis = 0 if flat else n.axis(x.rank)
    most = n.sizes.product(x.shape) if flat else x.shape[axis]
    shape = [most] if flat else list(x.shape)
    y, first, inverse, counts, number = n.extern(
        "unique",
        [x],
        [
            ("distinct", x.dtype, shape),
            ("first", I64, [most]),
            ("inverse", I64, [most]),
            ("times", I64, [most]),
            ("number", I64, []),
        ],
        axis=axis,
        flat=flat,
        ordered=bool(n.attribute("sorted", 1)),
    )
    count = _size(n, number, most)
    return [
        _head(n, y, axis, count),
        _head(n, first, 0, count, "indices"),
        inverse,
        _head(n, counts, 0, count, "counts"),
    ]


@row("NonMaxSuppression", kind="extern", since=10)
def non_max_suppression(n: Node) -> Value:
    """The boxes that greedy suppression keeps."""
    limit = n.optional(2) or n.constant(np.zeros(1, np.int64), "limit")
    overlap = n.optional(3) or n.constant(np.zeros(1, np.float32), "overlap")
    args = [n[0], n[1], limit, overlap]
    threshold = n.optional(4)
    if threshold is not None:
        args.append(threshold)
    batch, classes, boxes = n[1].shape
    most = n.sizes.product([batch, classes, boxes])
    kept, number = n.extern(
        "nms",
        args,
        [("kept", I64, [most, E.const(3)]), ("number", I64, [])],
        center=bool(n.attribute("center_point_box", 0)),
    )
    return _head(n, kept, 0, _size(n, number, most))
