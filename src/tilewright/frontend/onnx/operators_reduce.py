"""Rows that reduce along axes: sums and the like, softmax, argmax, prefix sums.

In: a node. Out: definitions under a monoid. Invariants: half-precision sums accumulate in f32; kept
axes have extent 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tilewright.frontend.onnx.table import folds, row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.operations.reductions import (
    Body,
    arg_over,
    count_of,
    over_axes,
    softmax_over,
)
from tilewright.frontend.values import Array, Value, like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, F64
from tilewright.ir.expr import Expr

__all__: list[str] = []


def _reduce_axes(n: Node) -> list[int] | None:
    """Axes of a Reduce operator; None: it is the identity (noop_with_empty_axes)."""
    rank = n[0].rank
    given: list[int] | None
    if n.optional(1) is not None:
        given = [n.fixed(e, "an axis") for e in n.integers(1, "axes")]
    else:
        given = n.attribute("axes")
    if not given:
        if n.attribute("noop_with_empty_axes", 0):
            return None
        return list(range(rank))
    return sorted({n.normal_axis(int(a), rank) for a in given})


def _reduction(
    name: str, monoid: str, before: Body | None, after: Callable[[Expr, Expr], Expr] | None
) -> None:
    """Enter Reduce<name>: monoid over before(x), then after(total, count)."""

    @row(name, kind="reduction")
    def expand(n: Node) -> Value:
        x = n[0]
        axes = _reduce_axes(n)
        keep = bool(n.attribute("keepdims", 1))
        if axes is None:
            if (before is None and after is None) or name == "ReduceMean":
                return x
            axes = []
        wide = x.dtype.accumulator if monoid in ("sum", "prod") else x.dtype
        if x.dtype.is_int and name in ("ReduceL2", "ReduceLogSum"):
            wide = F64
        op = {"max": "any", "min": "all"}[monoid] if x.dtype is BOOL else monoid

        def element(*i: Expr) -> Expr:
            e = E.cast(x.at(*i), wide)
            return before(e) if before is not None else e

        simple = after is None and wide is x.dtype
        total = over_axes(n, x, axes, op, element, keep, "" if simple else monoid)
        if simple:
            return total
        finish = after or (lambda t, c: t)
        count = count_of(n, x, axes, wide)
        return n.define(total.shape, lambda *i: E.cast(finish(total.at(*i), count), x.dtype))


def _square(e: Expr) -> Expr:
    return E.mul(e, e)


def _magnitude(e: Expr) -> Expr:
    return e if e.dtype.kind == "u" else E.unary("abs", e)


_reduction("ReduceSum", "sum", None, None)
_reduction("ReduceMean", "sum", None, lambda t, c: E.binary("div", t, c))
_reduction("ReduceMax", "max", None, None)
_reduction("ReduceMin", "min", None, None)
_reduction("ReduceProd", "prod", None, None)
_reduction("ReduceL1", "sum", _magnitude, None)
_reduction("ReduceL2", "sum", _square, lambda t, c: E.unary("sqrt", t))
_reduction("ReduceSumSquare", "sum", _square, None)
_reduction("ReduceLogSum", "sum", None, lambda t, c: E.unary("log", t))


@folds("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")
def _fold_reduce(n: Node, x: Array, *_: Any) -> Array:
    from tilewright.frontend.onnx.folding import fold_reduction

    axes = _reduce_axes(n)
    return x if axes is None else fold_reduction(n, x, axes, bool(n.attribute("keepdims", 1)))


@row("ReduceLogSumExp", kind="reduction")
def reduce_log_sum_exp(n: Node) -> Value:
    """log(sum(exp(x))), shifted by the maximum."""
    x = n[0]
    axes = _reduce_axes(n) or []
    keep = bool(n.attribute("keepdims", 1))
    wide = F64 if x.dtype.is_int else x.dtype.accumulator
    top = over_axes(n, x, axes, "max", lambda *i: E.cast(x.at(*i), wide), True, "max")

    def shift(i: Sequence[Expr]) -> Expr:
        m = top.aligned(i)
        return E.select(E.unary("isinf", m), like(m, 0), m)

    total = over_axes(
        n,
        x,
        axes,
        "sum",
        lambda *i: E.unary("exp", E.sub(E.cast(x.at(*i), wide), shift(i))),
        True,
        "sum",
    )
    kept = [k for k in range(x.rank) if k not in axes]

    def body(*i: Expr) -> Expr:
        at = list(i)
        if not keep:
            at = [E.const(0)] * x.rank
            for k, e in zip(kept, i, strict=True):
                at[k] = e
        return E.cast(E.add(E.unary("log", total.aligned(at)), shift(at)), x.dtype)

    return n.define(total.shape if keep else [x.shape[k] for k in kept], body)


# ---- softmax -------------------------------------------------------------------------------------


def _softmax_axes(n: Node) -> list[int]:
    rank = n[0].rank
    if n.opset >= 13:
        return [n.axis(rank, default=-1)]
    return list(range(n.axis(rank, default=1), rank))


@row("Softmax", kind="reduction")
def softmax(n: Node) -> Value:
    """exp(x) / sum(exp(x)) over an axis (before opset 13: over all axes from `axis` on)."""
    return softmax_over(n, n[0], _softmax_axes(n))


@row("LogSoftmax", kind="reduction")
def log_softmax(n: Node) -> Value:
    """The logarithm of Softmax."""
    return softmax_over(n, n[0], _softmax_axes(n), log=True)


@row("Hardmax", kind="reduction")
def hardmax(n: Node) -> Value:
    """1 at the first maximum, else 0."""
    x = n[0]
    axes = _softmax_axes(n)
    best = over_axes(n, x, axes, "argmax", lambda *i: x.at(*i), True, "best")

    def body(*i: Expr) -> Expr:
        position = E.const(0)
        for k in axes:
            position = position * x.shape[k] + i[k]
        chosen = E.compare("eq", best.aligned(i), position)
        return E.select(chosen, E.const(1, x.dtype), E.const(0, x.dtype))

    return n.define(x.shape, body)


def _arg(name: str, monoid: str) -> None:
    @row(name, kind="reduction")
    def expand(n: Node) -> Value:
        x = n[0]
        axis = n.axis(x.rank, default=0)
        keep = bool(n.attribute("keepdims", 1))
        last = x.shape[axis] - 1
        if not n.attribute("select_last_index", 0):
            return arg_over(n, x, axis, monoid, keep, lambda e: e, "")
        reverse = arg_over(n, x, axis, monoid, keep, lambda e: last - e, "from_end")
        return n.define(reverse.shape, lambda *i: last - reverse.at(*i))


_arg("ArgMax", "argmax")
_arg("ArgMin", "argmin")


# ---- prefixes ------------------------------------------------------------------------------------


def _prefix(name: str, monoid: str, neutral: int, since: int) -> None:
    @row(name, kind="reduction", since=since, notes="the axis is constant")
    def expand(n: Node) -> Value:
        x = n[0]
        axis = n.normal_axis(int(n.array(1, "axis").reshape(-1)[0]), x.rank)
        wide = x.dtype.accumulator
        last = x.shape[axis] - 1
        reverse, exclusive = bool(n.attribute("reverse", 0)), bool(n.attribute("exclusive", 0))

        def turned(i: Sequence[Expr]) -> list[Expr]:
            return [last - e if reverse and k == axis else e for k, e in enumerate(i)]

        plain = not reverse and not exclusive and wide is x.dtype
        total = n.scan(
            monoid,
            axis,
            x.shape,
            lambda *i: E.cast(x.at(*turned(i)), wide),
            "" if plain else "prefix",
        )
        if plain:
            return total

        def body(*i: Expr) -> Expr:
            at = turned(i)
            if exclusive:
                at[axis] = at[axis] - 1
            return E.cast(total.at(*at, orelse=neutral if exclusive else None), x.dtype)

        return n.define(x.shape, body)


_prefix("CumSum", "sum", 0, 11)
_prefix("CumProd", "prod", 1, 26)
