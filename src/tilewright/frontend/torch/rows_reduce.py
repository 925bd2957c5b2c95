"""Rows that reduce along axes: sums, means, extremes, positions, softmax, prefixes.

In: a call. Out: definitions under a monoid. Invariants: half-precision sums accumulate in f32; a
result that keeps its axes has extent 1 there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.frontend.operations.activations import convert
from tilewright.frontend.operations.reductions import arg_over, over_axes, softmax_over
from tilewright.frontend.torch.call import Call
from tilewright.frontend.torch.table import row
from tilewright.frontend.values import Value, like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, I64, U8, DType
from tilewright.ir.expr import Expr

__all__: list[str] = []


def _total(
    n: Call,
    x: Value,
    axes: Sequence[int],
    monoid: str,
    element: Callable[[Expr], Expr],
    keep: bool,
    suffix: str = "",
) -> Value:
    return over_axes(n, x, axes, monoid, lambda *i: element(x.at(*i)), keep, suffix)


def _axes(n: Call, x: Value) -> list[int]:
    """The axes of `dim`: a number, a list, or all of them."""
    return n.axes_of("dim", x.rank) if x.rank else []


def _fold(n: Call, monoid: str) -> Value:
    """Sum or product, in the result's type."""
    x, dtype = n["self"], n.dtype
    axes, keep = _axes(n, x), bool(n.get("keepdim", False))
    wide = dtype.accumulator
    acc = _total(
        n, x, axes, monoid, lambda e: convert(e, wide), keep, "" if wide is dtype else "acc"
    )
    return n.cast(acc, dtype)


@row("sum.dim_IntList", "sum.default", kind="reduction")
def sum_(n: Call) -> Value:
    """The sum over axes."""
    return _fold(n, "sum")


@row("prod.default", "prod.dim_int", kind="reduction")
def prod(n: Call) -> Value:
    """The product over axes."""
    return _fold(n, "prod")


def _mean(n: Call, x: Value, axes: Sequence[int], keep: bool, dtype: DType, suffix: str) -> Value:
    wide = dtype.accumulator
    total = _total(n, x, axes, "sum", lambda e: convert(e, wide), keep, f"{suffix}sum")
    count = E.cast(n.sizes.product(x.shape[k] for k in axes), wide)
    return n.define(
        total.shape, lambda *i: convert(E.binary("div", total.at(*i), count), dtype), suffix=suffix
    )


@row("mean.default", "mean.dim", kind="reduction")
def mean(n: Call) -> Value:
    """The mean over axes."""
    x = n["self"]
    return _mean(n, x, _axes(n, x), bool(n.get("keepdim", False)), n.dtype, "")


def _variance(n: Call, x: Value, axes: Sequence[int], keep: bool, root: bool) -> Value:
    wide, dtype = n.dtype.accumulator, n.dtype
    correction = n.get("correction", None)
    if correction is None:
        correction = 1 if n.get("unbiased", True) else 0
    centre = _mean(n, x, axes, True, wide, "mean")

    def square(*i: Expr) -> Expr:
        d = E.sub(E.cast(x.at(*i), wide), centre.aligned(i))
        return E.mul(d, d)

    total = over_axes(n, x, axes, "sum", square, keep, "squares")
    count = E.cast(n.sizes.product(x.shape[k] for k in axes), wide)
    count = E.maximum(E.sub(count, E.const(float(correction), wide)), like(total, 0))

    def body(*i: Expr) -> Expr:
        e = E.binary("div", total.at(*i), count)
        return E.cast(E.unary("sqrt", e) if root else e, dtype)

    return n.define(total.shape, body)


@row(
    "var.correction", "var.dim", "var.default", "std.correction", "std.dim", "std.default",
    kind="reduction",
)  # fmt: skip
def variance(n: Call) -> Value:
    """The variance or standard deviation over axes."""
    x = n["self"]
    axes, keep = _axes(n, x), bool(n.get("keepdim", False))
    return _variance(n, x, axes, keep, n.op.startswith("std"))


@row("var_mean.correction", "std_mean.correction", kind="reduction")
def variance_and_mean(n: Call) -> list[Value | None]:
    """The variance (or standard deviation) and the mean over axes."""
    x = n["self"]
    axes, keep = _axes(n, x), bool(n.get("keepdim", False))
    spread = _variance(n, x, axes, keep, n.op.startswith("std"))
    return [spread, _mean(n, x, axes, keep, n.dtype, "average")]


def _extreme(n: Call, monoid: str, axes: Sequence[int], keep: bool, suffix: str = "") -> Value:
    x = n["self"]
    if any(E.int_value(x.shape[k]) == 0 for k in axes):
        raise n.refuse("an empty axis")
    if x.dtype is BOOL:
        monoid = {"max": "any", "min": "all"}[monoid]
    return _total(n, x, axes, monoid, lambda e: e, keep, suffix)


@row("amax.default", "max.default", kind="reduction")
def amax(n: Call) -> Value:
    """The largest element over axes; NaN wins."""
    return _extreme(n, "max", _axes(n, n["self"]), bool(n.get("keepdim", False)))


@row("amin.default", "min.default", kind="reduction")
def amin(n: Call) -> Value:
    """The smallest element over axes; NaN wins."""
    return _extreme(n, "min", _axes(n, n["self"]), bool(n.get("keepdim", False)))


@row("aminmax.default", kind="reduction")
def aminmax(n: Call) -> list[Value | None]:
    """The smallest and the largest element over an axis."""
    axes, keep = _axes(n, n["self"]), bool(n.get("keepdim", False))
    return [_extreme(n, "min", axes, keep, "low"), _extreme(n, "max", axes, keep, "high")]


@row("any.default", "any.dim", "any.dims", kind="reduction")
def any_(n: Call) -> Value:
    """Is any element not zero?"""
    return _logical(n, "any")


@row("all.default", "all.dim", "all.dims", kind="reduction")
def all_(n: Call) -> Value:
    """Is no element zero?"""
    return _logical(n, "all")


def _logical(n: Call, monoid: str) -> Value:
    x = n["self"]
    axes, keep = _axes(n, x), bool(n.get("keepdim", False))
    found = _total(n, x, axes, monoid, lambda e: convert(e, BOOL), keep, "")
    return n.cast(found, n.dtype)


@row("count_nonzero.dim_IntList", "count_nonzero.default", kind="reduction")
def count_nonzero(n: Call) -> Value:
    """How many elements are not zero."""
    x = n["self"]
    return _total(n, x, _axes(n, x), "sum", lambda e: E.cast(convert(e, BOOL), I64), False, "")


# ---- positions -----------------------------------------------------------------------------------


def _position(n: Call, x: Value, monoid: str, axis: int | None, keep: bool, suffix: str) -> Value:
    if axis is not None:
        if E.int_value(x.shape[axis]) == 0:
            raise n.refuse("an empty axis")
        found = x if x.dtype is not BOOL else n.cast(x, U8, "bytes")
        return arg_over(n, found, axis, monoid, keep, lambda e: e, suffix)
    total = n.sizes.product(x.shape)
    if E.int_value(total) == 0:
        raise n.refuse("no elements")
    found = x if x.dtype is not BOOL else n.cast(x, U8, "bytes")
    shape = [E.const(1)] * x.rank if keep else []
    return n.reduce(
        monoid, shape, list(x.shape), lambda i, r: found.at(*r), suffix=suffix, keep_ones=True
    )


@row("argmax.default", "argmin.default", kind="reduction")
def arg(n: Call) -> Value:
    """The position of the first largest or smallest element; of the flattened tensor without
    `dim`.
    """
    x = n["self"]
    axis = None if n.arguments.get("dim") is None or not x.rank else n.axis("dim", x.rank)
    if not x.rank:
        return n.define((), lambda: E.const(0))
    return _position(n, x, n.op.split(".")[0], axis, bool(n.get("keepdim", False)), "")


@row("max.dim", "min.dim", kind="reduction")
def extreme_and_position(n: Call) -> list[Value | None]:
    """The largest or smallest element along an axis, and its first position."""
    x = n["self"]
    keep = bool(n.get("keepdim", False))
    name = n.op.split(".")[0]
    if not x.rank:
        return [x, n.define((), lambda: E.const(0), suffix="at")]
    axis = n.axis("dim", x.rank)
    best = _extreme(n, name, [axis], keep) if n.is_read(0) else None
    where = _position(n, x, f"arg{name}", axis, keep, "at") if n.is_read(1) else None
    return [best, where]


# ---- softmax -------------------------------------------------------------------------------------


@row("_softmax.default", "_log_softmax.default", "_safe_softmax.default", kind="reduction")
@row("softmax.int", "log_softmax.int", kind="reduction")
def softmax(n: Call) -> Value:
    """exp(x) / sum(exp(x)) along an axis, or its logarithm; the safe form gives 0 where every
    element is -inf.
    """
    x, dtype = n["self"], n.dtype
    if not x.rank:
        fill = 0 if "log" in n.op else 1
        return n.define((), lambda: E.const(fill, dtype))
    if x.dtype is not dtype:
        x = n.cast(x, dtype, "cast")
    axis = n.axis("dim", x.rank)
    if n.op.startswith("_safe"):
        plain = softmax_over(n, x, [axis], suffix="plain")
        top = over_axes(n, x, [axis], "max", lambda *i: x.at(*i), True, "top")
        lowest = like(x, float("-inf"))
        return n.define(
            n.shape,
            lambda *i: E.select(E.compare("eq", top.aligned(i), lowest), like(x, 0), plain.at(*i)),
        )
    return softmax_over(n, x, [axis], log="log" in n.op)


@row("logsumexp.default", kind="reduction")
def logsumexp(n: Call) -> Value:
    """log(sum(exp(x))) over axes, shifted by the largest element."""
    x, dtype = n["self"], n.dtype
    axes, keep = _axes(n, x), bool(n.get("keepdim", False))
    wide = dtype.accumulator
    if any(E.int_value(x.shape[k]) == 0 for k in axes):
        raise n.refuse("an empty axis")
    top = over_axes(n, x, axes, "max", lambda *i: convert(x.at(*i), wide), True, "max")

    def shift(i: Sequence[Expr]) -> Expr:
        m = top.aligned(i)
        return E.select(E.unary("isinf", m), like(m, 0), m)

    total = over_axes(
        n, x, axes, "sum",
        lambda *i: E.unary("exp", E.sub(convert(x.at(*i), wide), shift(i))),
        True, "sum",
    )  # fmt: skip
    kept = [k for k in range(x.rank) if keep or k not in axes]

    def body(*i: Expr) -> Expr:
        at = [E.const(0)] * x.rank
        for k, e in zip(kept, i, strict=True):
            at[k] = E.const(0) if k in axes else e
        return convert(E.add(E.unary("log", total.aligned(at)), shift(at)), dtype)

    return n.define(n.shape, body)


# ---- norms ---------------------------------------------------------------------------------------


@row("linalg_vector_norm.default", "norm.ScalarOpt_dim", "norm.Scalar", kind="reduction")
@row("norm.ScalarOpt_dim_dtype", kind="reduction")
def vector_norm(n: Call) -> Value:
    """The norm of order `ord` over axes."""
    x, dtype = n["self"], n.dtype
    given = n.get("ord", n.get("p", 2))
    order = float(given)
    axes, keep = _axes(n, x), bool(n.get("keepdim", False))
    wide = dtype.accumulator

    def size(e: Expr) -> Expr:
        return E.unary("abs", convert(e, wide))

    if order in (float("inf"), float("-inf")):
        if any(E.int_value(x.shape[k]) == 0 for k in axes):
            raise n.refuse("an empty axis")
        best = _total(n, x, axes, "max" if order > 0 else "min", size, keep, "best")
        return n.cast(best, dtype)

    def term(e: Expr) -> Expr:
        a = size(e)
        if order == 0:
            return E.select(E.compare("eq", a, like(a, 0)), like(a, 0), like(a, 1))
        if order == 1:
            return a
        return E.mul(a, a) if order == 2 else E.binary("pow", a, like(a, order))

    total = _total(n, x, axes, "sum", term, keep, "sum")
    if order in (0.0, 1.0):
        return n.cast(total, dtype)

    def body(*i: Expr) -> Expr:
        e = total.at(*i)
        root = E.unary("sqrt", e) if order == 2 else E.binary("pow", e, like(e, 1 / order))
        return convert(root, dtype)

    return n.define(total.shape, body)


# ---- prefixes ------------------------------------------------------------------------------------


@row("cumsum.default", "cumprod.default", "logcumsumexp.default", kind="reduction")
def prefix(n: Call) -> Value:
    """Sums, products, or logarithms of sums of exponentials, up to each element."""
    x, dtype = n["self"], n.dtype
    if not x.rank:
        return n.define((), lambda: convert(x.at(), dtype))
    axis = n.axis("dim", x.rank)
    wide = dtype.accumulator
    monoid = {"cumsum": "sum", "cumprod": "prod", "logcumsumexp": "logsumexp"}[n.op.split(".")[0]]
    acc = n.scan(
        monoid, axis, x.shape, lambda *i: convert(x.at(*i), wide), "" if wide is dtype else "acc"
    )
    return n.cast(acc, dtype)


@row("cummax.default", "cummin.default", kind="reduction")
def best_so_far(n: Call) -> list[Value | None]:
    """The largest or smallest element so far, and the last position where it stands."""
    x = n["self"]
    monoid = n.op[3:6]
    if not x.rank:
        return [x, n.define((), lambda: E.const(0), suffix="at")]
    axis = n.axis("dim", x.rank)
    if x.dtype is BOOL:
        raise n.refuse("bool")
    best = n.scan(monoid, axis, x.shape, lambda *i: x.at(*i), "")
    if not n.is_read(1):
        return [best, None]

    def fresh(*i: Expr) -> Expr:
        e = x.at(*i)
        same = E.compare("eq", e, best.at(*i))
        if e.dtype.is_float:
            same = E.logical("or", same, E.unary("isnan", e))
        return E.select(same, i[axis], E.const(-1))

    at = n.scan("max", axis, x.shape, fresh, "at")
    return [best, at]
