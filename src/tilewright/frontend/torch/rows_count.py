"""Rows that count: histograms, positions of what is not zero.

In: a call. Out: the place of every element among the edges of bins as a sum of comparisons, then a
scatter. Invariants: a bin holds its left edge and not its right one, but for the last, which holds
both; what lies outside of all, and NaN, is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.frontend.operations.indexing import scatter
from tilewright.frontend.operations.layouts import regroup
from tilewright.frontend.torch.call import Call
from tilewright.frontend.torch.table import row
from tilewright.frontend.values import Value, like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64
from tilewright.ir.expr import Expr

__all__: list[str] = []


def _flat(n: Call, x: Value) -> tuple[Expr, Callable[[Expr], Expr]]:
    """How many elements there are, and how to read the k-th."""
    count = n.sizes.product(x.shape)
    return count, lambda k: x.at(*regroup(n, x.shape, [count], [k]))


def _limits(
    n: Call, count: Expr, read: Callable[[Expr], Expr], given: Sequence[float] | None, x: Value,
    widen: float,
) -> tuple[Value, Value]:
    """The outermost edges: given ones, or those of the data; moved apart where they are one."""
    if given is None and E.int_value(count) == 0:
        given = (0.0, 1.0)
    if given is not None:
        low, high = (n.scalar(float(v), x.dtype) for v in given)
        ends = n.define((), lambda: low, suffix="low"), n.define((), lambda: high, suffix="high")
    else:
        ends = (
            n.reduce("min", (), [count], lambda i, r: read(r[0]), suffix="low"),
            n.reduce("max", (), [count], lambda i, r: read(r[0]), suffix="high"),
        )
    first, last = ends

    def moved(end: Value, by: float) -> Value:
        return n.define(
            (),
            lambda: E.select(
                E.compare("eq", first.at(), last.at()), E.add(end.at(), like(end, by)), end.at()
            ),
            suffix="edge",
        )

    return moved(first, -widen), moved(last, widen)


def _edges(n: Call, low: Value, high: Value, bins: int) -> Value:
    """bins + 1 edges, evenly spaced, computed from the nearer end."""
    step = n.define(
        (), lambda: E.binary("div", E.sub(high.at(), low.at()), like(low, bins)), suffix="step"
    )

    def edge(i: Expr) -> Expr:
        near = E.add(low.at(), E.mul(step.at(), E.cast(i, low.dtype)))
        far = E.sub(high.at(), E.mul(step.at(), E.cast(bins - i, low.dtype)))
        return E.select(E.compare("lt", i * 2, E.const(bins + 1)), near, far)

    return n.define((bins + 1,), edge, suffix="edges")


def _place(n: Call, count: Expr, read: Callable[[Expr], Expr], edges: Value) -> Value:
    """The bin of every element, -1 for none."""
    last = edges.shape[0] - 1
    below = n.reduce(
        "sum", [count], [edges.shape[0]],
        lambda i, r: E.cast(E.compare("le", edges.at(r[0]), read(i[0])), I64), suffix="below",
    )  # fmt: skip

    def place(k: Expr) -> Expr:
        inside = E.compare("le", read(k), edges.at(last))
        return E.select(inside, E.minimum(below.at(k), last) - 1, E.const(-1))

    return n.define([count], place, suffix="place")


def _counted(
    n: Call, count: Expr, places: Sequence[Value], edges: Sequence[Value], weight: Value | None,
    dense: bool,
) -> Value:
    """The histogram over the bins of every axis."""
    dtype = edges[0].dtype
    shape = [e.shape[0] - 1 for e in edges]
    zero, one = E.const(0, dtype), E.const(1, dtype)
    read = None if weight is None else _flat(n, weight)[1]

    def at(k: Expr) -> list[Expr]:
        found = [p.at(k) for p in places]
        outside = E.compare("lt", found[0], E.const(0))
        for e in found[1:]:
            outside = E.logical("or", outside, E.compare("lt", e, E.const(0)))
        return [E.select(outside, E.const(-1), found[0]), *found[1:]]

    total = scatter(
        n, dtype, shape, [count], "sum", at, (lambda k: one) if read is None else read,
        lambda *i: zero, "counts" if dense else "",
    )  # fmt: skip
    if not dense:
        return total
    whole = n.reduce("sum", (), shape, lambda i, r: total.at(*r), suffix="whole")

    def density(*i: Expr) -> Expr:
        volume = whole.at()
        for e, k in zip(edges, i, strict=True):
            volume = E.mul(volume, E.sub(e.at(k + 1), e.at(k)))
        return E.binary("div", total.at(*i), volume)

    return n.define(shape, density)


@row("histc.default", kind="index")
def histc(n: Call) -> Value:
    """How many elements fall into each of equal bins."""
    x = n["self"]
    if not x.dtype.is_float:
        raise n.refuse(f"a histogram of {x.dtype}")
    low, high = float(n.get("min", 0)), float(n.get("max", 0))
    count, read = _flat(n, x)
    bins = int(n.get("bins", 100))
    first, last = _limits(n, count, read, None if low == high == 0 else (low, high), x, 1.0)
    scale, zero, one = E.const(bins, x.dtype), E.const(0, x.dtype), E.const(1, x.dtype)

    def place(k: Expr) -> list[Expr]:
        e = read(k)
        inside = E.logical("and", E.compare("le", first.at(), e), E.compare("le", e, last.at()))
        scaled = E.binary(
            "div", E.mul(E.sub(e, first.at()), scale), E.sub(last.at(), first.at())
        )
        bin_ = E.minimum(E.cast(E.unary("floor", scaled), I64), E.const(bins - 1))
        return [E.select(inside, bin_, E.const(-1))]

    return scatter(
        n, x.dtype, n.shape, [count], "sum", place, lambda k: one, lambda k: zero
    )


@row("histogram.bin_ct", "histogram.bins_tensor", kind="index")
def histogram(n: Call) -> list[Value | None]:
    """Counts, or sums of weights, and the edges of the bins."""
    x, weight = n["self"], n.optional("weight")
    count, read = _flat(n, x)
    if n.op.endswith("bins_tensor"):
        edges = n["bins"]
    else:
        low, high = _limits(n, count, read, n.get("range"), x, 0.5)
        edges = _edges(n, low, high, int(n.get("bins", 100)))
    place = _place(n, count, read, edges)
    return [_counted(n, count, [place], [edges], weight, bool(n.get("density", False))), edges]


def _columns(n: Call) -> tuple[Expr, list[Callable[[Expr], Expr]]]:
    """How many points there are, and how to read a coordinate of the k-th."""
    x = n["self"]
    axes = n.fixed(x.shape[-1], "the number of coordinates")
    count = n.sizes.product(x.shape[:-1])

    def column(axis: int) -> Callable[[Expr], Expr]:
        return lambda k: x.at(*regroup(n, x.shape[:-1], [count], [k]), E.const(axis))

    return count, [column(k) for k in range(axes)]


def _all_edges(n: Call) -> list[Value]:
    """Edges per coordinate, from counts of bins."""
    x = n["self"]
    count, columns = _columns(n)
    given = n.get("range")
    out = []
    for k, read in enumerate(columns):
        own = None if given is None else given[2 * k : 2 * k + 2]
        low, high = _limits(n, count, read, own, x, 0.5)
        out.append(_edges(n, low, high, int(n.get("bins")[k])))
    return out


@row("_histogramdd_bin_edges.default", kind="index")
def histogram_edges(n: Call) -> list[Value | None]:
    """The edges of the bins, per coordinate."""
    return [*_all_edges(n)]


@row("_histogramdd_from_bin_cts.default", "_histogramdd_from_bin_tensors.default", kind="index")
def histogram_of_points(n: Call) -> Value:
    """Counts, or sums of weights, over a grid of bins."""
    count, columns = _columns(n)
    if n.op.startswith("_histogramdd_from_bin_cts"):
        edges = _all_edges(n)
    else:
        edges = [e for e in n.tensors("bins") if e is not None]
    places = [_place(n, count, read, e) for read, e in zip(columns, edges, strict=True)]
    return _counted(
        n, count, places, edges, n.optional("weight"), bool(n.get("density", False))
    )


@row("nonzero_static.default", kind="index")
def nonzero_static(n: Call) -> Value:
    """The positions of the first elements that are not zero, then a filling."""
    x = n["self"]
    size, fill = n.whole("size"), E.const(int(n.get("fill_value", -1)), I64)
    count, read = _flat(n, x)

    def counts(k: Expr) -> Expr:
        e = read(k)
        if e.dtype.name != "bool":
            e = E.unary("not", E.compare("eq", e, like(e, 0)))
        return E.cast(e, I64)

    ones = n.define([count], counts, suffix="ones")
    before = n.scan("sum", 0, [count], lambda k: ones.at(k), "before")
    none = E.const(-1, I64)
    place = scatter(
        n, I64, [size], [count], "sum",
        lambda k: [E.select(E.compare("eq", ones.at(k), E.const(1)), before.at(k) - 1, none)],
        lambda k: k + 1, lambda k: none, "place",
    )  # fmt: skip

    def position(k: Expr, axis: Expr) -> Expr:
        at = place.at(k)
        found = fill
        for d in range(x.rank - 1, -1, -1):
            inner = n.sizes.product(x.shape[d + 1 :])
            own = E.mod(E.floordiv(at, inner), x.shape[d])
            found = own if d == x.rank - 1 else E.select(
                E.compare("eq", axis, E.const(d)), own, found
            )  # fmt: skip
        return E.select(E.compare("lt", at, E.const(0)), fill, found)

    return n.define(n.shape, position)
