"""Folds over axes, and what is made of them: softmax, means, normalization.

In: a value and its axes. Out: definitions under a monoid. Invariants: half-precision sums
accumulate in f32; kept axes have extent 1; statistics are taken in two passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.frontend.operations.layouts import reshape_to
from tilewright.frontend.values import Definer, Value, like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import DType
from tilewright.ir.expr import Expr

__all__ = [
    "Body",
    "arg_over",
    "central_squares",
    "count_of",
    "inverse_deviation",
    "mean_of",
    "normalized",
    "normalized_groups",
    "over_axes",
    "reduced",
    "scale_and_shift",
    "softmax_over",
]

Body = Callable[[Expr], Expr]


def over_axes(
    n: Definer,
    x: Value,
    axes: Sequence[int],
    monoid: str,
    element: Callable[..., Expr],
    keep: bool,
    suffix: str,
) -> Value:
    """`monoid` over `axes` of `element(*subscripts of x)`; kept axes have extent 1."""
    shape = [E.const(1) if k in axes else s for k, s in enumerate(x.shape) if keep or k not in axes]

    def body(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        inner = iter(r)
        outer = iter(i)
        subs = []
        for k in range(x.rank):
            if k in axes:
                subs.append(next(inner))
                if keep:
                    next(outer)
            else:
                subs.append(next(outer))
        return element(*subs)

    return n.reduce(monoid, shape, [x.shape[k] for k in axes], body, suffix=suffix)


def reduced(
    n: Definer, x: Value, axes: Sequence[int], before: Body, suffix: str, keep: bool = True
) -> Value:
    """The sum of `before(element)` over axes, in the accumulator type."""
    accumulate = x.dtype.accumulator
    return over_axes(
        n, x, axes, "sum", lambda *i: before(E.cast(x.at(*i), accumulate)), keep, suffix
    )


def count_of(n: Definer, x: Value, axes: Sequence[int], dtype: DType) -> Expr:
    """The number of elements over axes, as a scalar of `dtype`."""
    return E.cast(n.sizes.product(x.shape[k] for k in axes), dtype)


def softmax_over(
    n: Definer, x: Value, axes: Sequence[int], log: bool = False, suffix: str = ""
) -> Value:
    """Softmax (or its logarithm) over axes: maximum, exponential, sum, quotient."""
    dtype = x.dtype
    wide = x.dtype.accumulator
    top = over_axes(n, x, axes, "max", lambda *i: x.at(*i), True, "max")

    def shifted(i: Sequence[Expr]) -> Expr:
        return E.cast(E.sub(E.cast(x.at(*i), wide), E.cast(top.aligned(i), wide)), wide)

    if log:
        total = over_axes(n, x, axes, "sum", lambda *i: E.unary("exp", shifted(i)), True, "sum")
        return n.define(
            x.shape,
            lambda *i: E.cast(E.sub(shifted(i), E.unary("log", total.aligned(i))), dtype),
            suffix=suffix,
        )
    power = n.define(x.shape, lambda *i: E.unary("exp", shifted(i)), suffix="exp")
    total = over_axes(n, power, axes, "sum", lambda *i: power.at(*i), True, "sum")
    return n.define(
        x.shape,
        lambda *i: E.cast(E.binary("div", power.at(*i), total.aligned(i)), dtype),
        suffix=suffix,
    )


def mean_of(
    n: Definer, x: Value, axes: Sequence[int], suffix: str, before: Body = lambda e: e
) -> Value:
    """The mean over axes, kept with extent 1, in the accumulator type."""
    total = reduced(n, x, axes, before, f"{suffix}_sum")
    count = count_of(n, x, axes, total.dtype)
    return n.define(total.shape, lambda *i: E.binary("div", total.at(*i), count), suffix=suffix)


def arg_over(
    n: Definer, x: Value, axis: int, monoid: str, keep: bool, turn: Body, suffix: str
) -> Value:
    shape = [E.const(1) if k == axis else s for k, s in enumerate(x.shape) if keep or k != axis]

    def body(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        at = list(i)
        if keep:
            at[axis] = turn(r[0])
        else:
            at.insert(axis, turn(r[0]))
        return x.at(*at)

    return n.reduce(monoid, shape, [x.shape[axis]], body, suffix=suffix, keep_ones=True)


def central_squares(n: Definer, x: Value, axes: Sequence[int], mean: Value) -> Value:
    """The variance over axes, kept with extent 1."""
    dtype = mean.dtype

    def element(*i: Expr) -> Expr:
        d = E.sub(E.cast(x.at(*i), dtype), mean.aligned(i))
        return E.mul(d, d)

    total = over_axes(n, x, axes, "sum", element, True, "squares")
    count = count_of(n, x, axes, dtype)
    return n.define(total.shape, lambda *i: E.binary("div", total.at(*i), count), suffix="variance")


def inverse_deviation(n: Definer, variance: Value, epsilon: float) -> Value:
    return n.define(
        variance.shape,
        lambda *i: E.unary("rsqrt", E.add(variance.at(*i), like(variance, epsilon))),
        suffix="inverse",
    )


def normalized_groups(
    n: Definer, x: Value, groups: int, epsilon: float
) -> tuple[Value, Value, Callable[[Sequence[Expr]], tuple[Expr, Expr]]]:
    """Mean and inverse deviation over groups of channels, both [batch, groups, 1, ...]; and what
    gives, for a position of x, its group and (x - mean) * inverse in their type.
    """
    each = n.divide(x.shape[1], E.const(groups), "channels in groups")
    grouped = reshape_to(n, x, [x.shape[0], E.const(groups), each, *x.shape[2:]], "groups")
    axes = list(range(2, grouped.rank))
    mean = mean_of(n, grouped, axes, "mean")
    inverse = inverse_deviation(n, central_squares(n, grouped, axes, mean), epsilon)

    def element(i: Sequence[Expr]) -> tuple[Expr, Expr]:
        g = E.floordiv(i[1], each)
        at = [i[0], g, *[E.const(0)] * len(axes)]
        centred = E.sub(E.cast(x.at(*i), inverse.dtype), mean.at(*at))
        return g, E.mul(centred, inverse.at(*at))

    return mean, inverse, element


def normalized(
    n: Definer,
    x: Value,
    mean: Value | None,
    inverse: Value,
    finish: Callable[[Expr, Sequence[Expr]], Expr],
) -> Value:
    """(x - mean) * inverse, then `finish`, rounded to the type of x."""

    def body(*i: Expr) -> Expr:
        e = E.cast(x.at(*i), inverse.dtype)
        if mean is not None:
            e = E.sub(e, mean.aligned(i))
        return E.cast(finish(E.mul(e, inverse.aligned(i)), i), x.dtype)

    return n.define(x.shape, body)


def scale_and_shift(
    scale: Value | None, shift: Value | None
) -> Callable[[Expr, Sequence[Expr]], Expr]:
    def finish(e: Expr, i: Sequence[Expr]) -> Expr:
        if scale is not None:
            e = E.mul(e, E.cast(scale.aligned(i), e.dtype))
        return e if shift is None else E.add(e, E.cast(shift.aligned(i), e.dtype))

    return finish
