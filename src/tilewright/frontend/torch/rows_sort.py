"""Rows that order: sort, top-k.

In: a call. Out: an extern and reads of its results. Invariants: among equals the lowest index comes
first, as the stable form asks; NaN counts as the largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.frontend.operations.layouts import reshape_to
from tilewright.frontend.operations.reductions import over_axes
from tilewright.frontend.torch.call import Call
from tilewright.frontend.torch.table import row
from tilewright.frontend.values import Value
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, I64, U8
from tilewright.ir.expr import Expr
from tilewright.ir.program import identity_of

__all__: list[str] = []


def _sorted(
    n: Call, x: Value, axis: int, descending: bool, count: Expr | None
) -> list[Value | None]:
    """The first `count` elements in order (all: None) and their positions.

    The extern sorts upwards with NaN last. Downwards, the axis is read from its end, sorted and
    turned around: that keeps equal elements in order, and NaN comes first.
    """
    last = x.shape[axis] - 1

    def turned(i: Sequence[Expr]) -> list[Expr]:
        return [last - e if descending and k == axis else e for k, e in enumerate(i)]

    given = x
    if x.dtype is BOOL:
        given = n.cast(x, U8, "bytes")
    if descending:
        held = given
        given = n.define(x.shape, lambda *i: held.at(*turned(i)), suffix="turned")
    ordered, at = n.extern(
        "sort",
        [given],
        [("sorted", given.dtype, x.shape), ("order", I64, x.shape)],
        axis=axis,
        descending=False,
    )
    plain = not descending and count is None and given is x
    if plain:
        return [ordered, at]
    shape = [count if k == axis and count is not None else s for k, s in enumerate(x.shape)]
    values = n.define(shape, lambda *i: E.cast(ordered.at(*turned(i)), x.dtype))

    def place(*i: Expr) -> Expr:
        e = at.at(*turned(i))
        return last - e if descending else e

    return [values, n.define(shape, place, suffix="at")]


@row("sort.default", "sort.stable", kind="extern")
def sort(n: Call) -> list[Value | None]:
    """Sorted along an axis, and the positions."""
    x = n["self"]
    if not x.rank:
        return [x, n.define((), lambda: E.const(0), suffix="at")]
    given = n.arguments.get("dim")
    axis = n.normal_axis(-1 if given is None else int(given), x.rank)
    return _sorted(n, x, axis, bool(n.get("descending", False)), None)


@row("topk.default", kind="extern", notes="the result is always sorted")
def topk(n: Call) -> list[Value | None]:
    """The k largest or smallest elements along an axis, and their positions."""
    x = n["self"]
    if not x.rank:
        return [x, n.define((), lambda: E.const(0), suffix="at")]
    axis = n.normal_axis(int(n.get("dim", -1)), x.rank)
    count, largest = n.whole("k"), bool(n.get("largest", True))
    k = E.int_value(count)
    if k is None or x.dtype is BOOL:
        return _sorted(n, x, axis, largest, count)
    shape = [count if j == axis else s for j, s in enumerate(x.shape)]
    results = [("", x.dtype, shape), ("at", I64, shape)]
    return list(n.extern("topk", [x], results, axis=axis, k=k, largest=largest, nan_first=largest))


def _ranked(
    n: Call, x: Value, axis: int, keep: bool
) -> tuple[Value, Value, list[Expr], Callable[[Sequence[Expr], Expr], list[Expr]]]:
    """`x` sorted along an axis, where its elements stood, the shape of one element of every row,
    and the subscripts of the element of a rank.
    """
    ordered, order = _sorted(n, x, axis, False, None)
    assert ordered is not None and order is not None  # `_sorted` gives both
    shape = [E.const(1) if k == axis else s for k, s in enumerate(x.shape) if keep or k != axis]

    def subscripts(i: Sequence[Expr], at: Expr) -> list[Expr]:
        out = list(i)
        if keep:
            out[axis] = at
        else:
            out.insert(axis, at)
        return out

    return ordered, order, shape, subscripts


def _chosen(n: Call, axis: int, at: Expr, keep: bool) -> list[Value | None]:
    """The element at rank `at` along an axis, and its position."""
    x = n["self"]
    ordered, order, shape, subscripts = _ranked(n, x, axis, keep)
    return [
        n.define(shape, lambda *i: ordered.at(*subscripts(i, at))),
        n.define(shape, lambda *i: order.at(*subscripts(i, at)), suffix="at"),
    ]


@row("kthvalue.default", kind="extern")
def kthvalue(n: Call) -> list[Value | None]:
    """The k-th smallest element along an axis, and a position of it."""
    x = n["self"]
    if not x.rank:
        return [x, n.define((), lambda: E.const(0), suffix="at")]
    axis = n.normal_axis(int(n.get("dim", -1)), x.rank)
    return _chosen(n, axis, n.whole("k") - 1, bool(n.get("keepdim", False)))


def _median(n: Call, x: Value, axis: int, keep: bool) -> list[Value | None]:
    count = x.shape[axis]
    if E.int_value(count) == 0:
        raise n.refuse("an empty axis")
    ordered, order, shape, subscripts = _ranked(n, x, axis, keep)
    ignore = n.op.startswith("nan")
    number = None
    if x.dtype.is_float:
        number = n.reduce(
            "sum", shape, [count],
            lambda i, r: E.cast(
                E.unary("not", E.unary("isnan", x.at(*subscripts(i, r[0])))), I64
            ),
            suffix="numbers", keep_ones=True,
        )  # fmt: skip

    def rank(i: Sequence[Expr]) -> Expr:
        if number is None:
            return E.floordiv(count - 1, E.const(2))
        there = number.at(*i)
        middle = E.floordiv(E.maximum(there, E.const(1)) - 1, E.const(2))
        if ignore:
            return middle
        whole = E.floordiv(count - 1, E.const(2))
        return E.select(E.compare("lt", there, count), there, whole)  # NaN sorts behind them

    return [
        n.define(shape, lambda *i: ordered.at(*subscripts(i, rank(i)), orelse=0)),
        n.define(shape, lambda *i: order.at(*subscripts(i, rank(i)), orelse=0), suffix="at"),
    ]


@row("median.dim", "nanmedian.dim", kind="extern")
def median(n: Call) -> list[Value | None]:
    """The lower median along an axis, and a position of it; NaN wins, or is left out."""
    x = n["self"]
    if not x.rank:
        return [x, n.define((), lambda: E.const(0), suffix="at")]
    return _median(n, x, n.axis("dim", x.rank), bool(n.get("keepdim", False)))


@row("msort.default", kind="extern")
def msort(n: Call) -> Value:
    """Sorted along the first axis."""
    x = n["self"]
    if not x.rank:
        return x
    found = _sorted(n, x, 0, False, None)[0]
    assert found is not None  # `_sorted` gives both
    return found


@row("median.default", "nanmedian.default", kind="extern")
def median_of_all(n: Call) -> Value:
    """The lower median of all elements; NaN wins, or is left out."""
    x = n["self"]
    if not x.rank:
        return x
    flat = reshape_to(n, x, [n.sizes.product(x.shape)], "flat")
    if E.int_value(flat.shape[0]) == 0:
        raise n.refuse("no elements")
    found = _median(n, flat, 0, False)[0]
    assert found is not None  # `_median` gives both
    return found


@row("mode.default", kind="reduction")
def mode(n: Call) -> list[Value | None]:
    """The most frequent element along an axis (the smallest of several), and its last position."""
    x = n["self"]
    if not x.rank:
        return [x, n.define((), lambda: E.const(0), suffix="at")]
    if x.dtype is BOOL:
        raise n.refuse("bool")
    axis, keep = n.normal_axis(int(n.get("dim", -1)), x.rank), bool(n.get("keepdim", False))
    size = x.shape[axis]
    if E.int_value(size) == 0:
        raise n.refuse("an empty axis")

    def along(i: Sequence[Expr], e: Expr) -> list[Expr]:
        return [e if k == axis else s for k, s in enumerate(i)]

    often = n.reduce(
        "sum", x.shape, [size],
        lambda i, r: E.cast(E.compare("eq", x.at(*along(i, r[0])), x.at(*i)), I64),
        suffix="often", keep_ones=True,
    )  # fmt: skip
    most = over_axes(n, often, [axis], "max", lambda *i: often.at(*i), True, "most")

    def candidate(*i: Expr) -> Expr:
        top = E.const(identity_of("min", x.dtype), x.dtype)
        return E.select(E.compare("eq", often.at(*i), most.aligned(i)), x.at(*i), top)

    value = over_axes(n, x, [axis], "min", candidate, True, "value")
    place = over_axes(
        n, x, [axis], "max",
        lambda *i: E.select(E.compare("eq", x.at(*i), value.aligned(i)), i[axis], E.const(-1)),
        True, "place",
    )  # fmt: skip
    if keep:
        return [value, place]
    shape = [s for k, s in enumerate(x.shape) if k != axis]

    def dropped(v: Value, suffix: str) -> Value:
        return n.define(shape, lambda *i: v.at(*i[:axis], E.const(0), *i[axis:]), suffix=suffix)

    return [dropped(value, ""), dropped(place, "at")]
