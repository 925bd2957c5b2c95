"""Pooling rows: maximum and mean of windows, fixed or adapted to the size of the result.

In: a call. Out: reductions over the axes of a window. Invariants: padding of a maximum is the
type's lowest value, so that it never wins; a mean divides by the number of elements that count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tilewright.frontend.operations.indexing import scatter
from tilewright.frontend.operations.layouts import regroup
from tilewright.frontend.operations.windows import Window, kernel_names, spatial_names
from tilewright.frontend.torch.call import Call
from tilewright.frontend.torch.table import row
from tilewright.frontend.values import Value
from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64, DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import identity_of

__all__: list[str] = []


def _geometry(n: Call, spatial: int) -> list[Window]:
    """One window per pooled axis: the last ones of the tensor."""
    x = n["self"]
    kernel = n.numbers("kernel_size", spatial, 1)
    strides = n.numbers("stride", spatial, 0)
    strides = [k if s == 0 else s for k, s in zip(kernel, strides, strict=True)]
    padding = n.numbers("padding", spatial, 0)
    dilations = n.numbers("dilation", spatial, 1)
    lead = x.rank - spatial
    return [
        Window(
            x.shape[lead + k], kernel[k], strides[k], dilations[k],
            E.const(padding[k]), E.const(padding[k]), n.shape[lead + k],
        )
        for k in range(spatial)
    ]  # fmt: skip


def _leaves(n: Call, geometry: Sequence[Window]) -> bool:
    """Can a window read outside the tensor?"""
    for g in geometry:
        last = (g.count - 1) * g.stride + (g.reach - 1) - g.before
        if E.int_value(g.before) != 0 or n.sizes.decide("lt", last, g.size) is not True:
            return True
    return False


def _elements(
    n: Call, spatial: int, orelse: float | int | bool
) -> tuple[list[Window], Callable[[Sequence[Expr], Sequence[Expr]], Expr]]:
    """The windows of a pooling, and what one reads at an output and a position in it; `orelse`
    outside the tensor.
    """
    x = n["self"]
    geometry = _geometry(n, spatial)
    lead = x.rank - spatial
    outside = orelse if _leaves(n, geometry) else None

    def element(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        subs = [g.at(p, q) for g, p, q in zip(geometry, i[lead:], r, strict=True)]
        return x.at(*i[:lead], *subs, orelse=outside)

    return geometry, element


def _spatial_of(n: Call) -> int:
    return next(k for k in (1, 2, 3) if f"{k}d" in n.op)


@row("max_pool2d_with_indices.default", "max_pool3d_with_indices.default", kind="window")
@row("max_pool1d_with_indices.default", kind="window")
def max_pool(n: Call) -> list[Value | None]:
    """The largest element of each window, and its position in the flattened plane."""
    x, spatial = n["self"], _spatial_of(n)
    geometry, element = _elements(n, spatial, identity_of("max", x.dtype))
    lead = x.rank - spatial
    kernel = [g.kernel for g in geometry]
    names = ("n", "c", *spatial_names(spatial)) if lead == 2 else ()
    over = kernel_names(spatial)
    y = n.reduce("max", n.shape, kernel, element, names=names, over_names=over)
    if not n.is_read(1):
        return [y, None]
    best = n.reduce(
        "argmax", n.shape, kernel, element, names=names, over_names=over,
        suffix="best", keep_ones=True,
    )  # fmt: skip

    def place(*i: Expr) -> Expr:
        rest = best.at(*i)
        at: list[Expr] = []
        for g, p in reversed(list(zip(geometry, i[lead:], strict=True))):
            at.append(g.at(p, E.mod(rest, E.const(g.kernel))))
            rest = E.floordiv(rest, E.const(g.kernel))
        linear = E.const(0)
        for e, s in zip(reversed(at), x.shape[lead:], strict=True):
            linear = linear * s + e
        return linear

    return [y, n.define(n.shape, place, names, suffix="indices")]


@row("max_pool1d.default", "max_pool2d.default", "max_pool3d.default", kind="window")
def max_pool_alone(n: Call) -> Value:
    """The largest element of each window."""
    x, spatial = n["self"], _spatial_of(n)
    geometry, element = _elements(n, spatial, identity_of("max", x.dtype))
    return n.reduce("max", n.shape, [g.kernel for g in geometry], element)


@row("avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default", kind="window")
def average_pool(n: Call) -> Value:
    """The mean of each window; padding counts only where that is asked for."""
    x = n["self"]
    spatial = _spatial_of(n)
    geometry = _geometry(n, spatial)
    lead = x.rank - spatial
    dtype = x.dtype.accumulator
    include = bool(n.get("count_include_pad", True))
    override = n.get("divisor_override")
    ceil = bool(n.get("ceil_mode", False))
    leaves = _leaves(n, geometry)

    def element(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        subs = [g.at(p, q) for g, p, q in zip(geometry, i[lead:], r, strict=True)]
        return E.cast(x.at(*i[:lead], *subs, orelse=0 if leaves else None), dtype)

    total = n.reduce(
        "sum", n.shape, [g.kernel for g in geometry], element,
        names=("n", "c", *spatial_names(spatial)) if lead == 2 else (),
        over_names=kernel_names(spatial), suffix="sum",
    )  # fmt: skip
    every = math.prod(g.kernel for g in geometry)
    varies = override is None and ((leaves and not include) or (ceil and include))

    def counted(g: Window, p: Expr) -> Expr:
        """Elements of window `p` that count, along one axis."""
        first = p * g.stride - g.before
        low, high = (E.const(0), g.size) if not include else (-g.before, g.size + g.after)
        end = E.minimum(first + g.kernel, high)
        return end - E.maximum(first, low)

    def mean(*i: Expr) -> Expr:
        if varies:
            count = E.const(1)
            for g, p in zip(geometry, i[lead:], strict=True):
                count = count * counted(g, p)
            divisor = E.cast(count, dtype)
        else:
            divisor = E.const(every if override is None else int(override), dtype)
        return E.cast(E.binary("div", total.at(*i), divisor), x.dtype)

    return n.define(n.shape, mean)


# ---- adaptive ------------------------------------------------------------------------------------


def _adaptive(
    n: Call, x: Value, spatial: int, monoid: str, dtype: DType, suffix: str
) -> tuple[Value, Callable[[Sequence[Expr]], list[tuple[Expr, Expr]]]]:
    """A fold over windows from floor(i * size / count) to ceil((i + 1) * size / count)."""
    lead = x.rank - spatial
    sizes, counts = x.shape[lead:], n.shape[lead:]
    longest: list[Expr | int] = []
    for s, c in zip(sizes, counts, strict=True):
        whole = n.sizes.quotient(s, c)
        longest.append(whole if whole is not None else E.floordiv(s + c - 1, c) + 1)

    def limits(i: Sequence[Expr]) -> list[tuple[Expr, Expr]]:
        out = []
        for p, s, c in zip(i[lead:], sizes, counts, strict=True):
            whole = n.sizes.quotient(s, c)
            if whole is not None:
                out.append((p * whole, p * whole + whole))
            else:
                out.append((E.floordiv(p * s, c), E.floordiv((p + 1) * s + c - 1, c)))
        return out

    def element(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        subs = [a + q for (a, _), q in zip(limits(i), r, strict=True)]
        inside = all(n.sizes.quotient(s, c) is not None for s, c in zip(sizes, counts, strict=True))
        fill = None if inside else (0 if monoid == "sum" else identity_of("max", x.dtype))
        return E.cast(x.at(*i[:lead], *subs, orelse=fill), dtype)

    def guard(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        held: Expr = E.const(True)
        for (a, b), q, s, c in zip(limits(i), r, sizes, counts, strict=True):
            if n.sizes.quotient(s, c) is None:
                held = E.logical("and", held, E.compare("lt", a + q, b))
        return held

    y = n.reduce(
        monoid, n.shape, longest, element, guard=guard,
        over_names=kernel_names(spatial), suffix=suffix, keep_ones=monoid == "argmax",
    )  # fmt: skip
    return y, limits


@row(
    "_adaptive_avg_pool2d.default", "_adaptive_avg_pool3d.default", "adaptive_avg_pool1d.default",
    "adaptive_avg_pool2d.default", "adaptive_avg_pool3d.default",
    kind="window",
)  # fmt: skip
def adaptive_average_pool(n: Call) -> Value:
    """The mean of windows that share the axis out evenly."""
    x = n["self"]
    if any(E.int_value(s) == 0 for s in (*x.shape, *n.shape)):
        return n.define(n.shape, lambda *i: E.const(0, x.dtype))
    spatial = _spatial_of(n)
    total, limits = _adaptive(n, x, spatial, "sum", x.dtype.accumulator, "sum")

    def mean(*i: Expr) -> Expr:
        count = E.const(1)
        for a, b in limits(i):
            count = count * (b - a)
        return E.cast(E.binary("div", total.at(*i), E.cast(count, total.dtype)), x.dtype)

    return n.define(n.shape, mean)


@row("adaptive_max_pool1d.default", "adaptive_max_pool2d.default", kind="window")
@row("adaptive_max_pool3d.default", kind="window")
def adaptive_max_pool(n: Call) -> list[Value | None]:
    """The largest element of windows that share the axis out evenly, and its position in the
    flattened plane.
    """
    x = n["self"]
    spatial = _spatial_of(n)
    lead = x.rank - spatial
    if any(E.int_value(s) == 0 for s in (*x.shape, *n.shape)):
        raise n.refuse("no elements")
    y, limits = _adaptive(n, x, spatial, "max", x.dtype, "")
    if not n.is_read(1):
        return [y, None]
    best, _ = _adaptive(n, x, spatial, "argmax", x.dtype, "best")
    extents = []
    for s, c in zip(x.shape[lead:], n.shape[lead:], strict=True):
        whole = n.sizes.quotient(s, c)
        extents.append(whole if whole is not None else E.floordiv(s + c - 1, c) + 1)

    def place(*i: Expr) -> Expr:
        rest = best.at(*i)
        at: list[Expr] = []
        for (a, _), extent in reversed(list(zip(limits(i), extents, strict=True))):
            at.append(a + E.mod(rest, extent))
            rest = E.floordiv(rest, extent)
        linear = E.const(0)
        for e, s in zip(reversed(at), x.shape[lead:], strict=True):
            linear = linear * s + e
        return linear

    return [y, n.define(n.shape, place, suffix="indices")]


@row("max_unpool2d.default", "max_unpool3d.default", kind="window")
def max_unpool(n: Call) -> Value:
    """Values put back at the positions that a maximum pooling gave; zero elsewhere."""
    x, indices = n["self"], n["indices"]
    spatial = _spatial_of(n)
    lead = x.rank - spatial
    plane = n.shape[lead:]

    def place(*i: Expr) -> list[Expr]:
        whole = n.sizes.product(plane)
        return [*i[:lead], *regroup(n, plane, [whole], [E.cast(indices.at(*i), I64)])]

    zero = E.const(0, x.dtype)
    return scatter(n, x.dtype, n.shape, x.shape, None, place, lambda *i: x.at(*i), lambda *i: zero)


# ---- windows as columns --------------------------------------------------------------------------


def _columns(n: Call) -> tuple[list[int], list[int], list[int], list[int]]:
    return (
        n.numbers("kernel_size", 2, 1),
        n.numbers("dilation", 2, 1),
        n.numbers("padding", 2, 0),
        n.numbers("stride", 2, 1),
    )


@row("im2col.default", kind="window")
def im2col(n: Call) -> Value:
    """Every window of an image as a column."""
    x = n["self"]
    kernel, dilation, padding, stride = _columns(n)
    width = x.shape[-1] + 2 * padding[1] - dilation[1] * (kernel[1] - 1) - 1
    across = E.floordiv(width, E.const(stride[1])) + 1
    area = kernel[0] * kernel[1]

    def body(*i: Expr) -> Expr:
        *lead, row_, column = i
        c, k = E.floordiv(row_, E.const(area)), E.mod(row_, E.const(area))
        kh, kw = E.floordiv(k, E.const(kernel[1])), E.mod(k, E.const(kernel[1]))
        h, w = E.floordiv(column, across), E.mod(column, across)
        at_h = h * stride[0] + kh * dilation[0] - padding[0]
        at_w = w * stride[1] + kw * dilation[1] - padding[1]
        return x.at(*lead, c, at_h, at_w, orelse=0)

    return n.define(n.shape, body)


@row("col2im.default", kind="window")
def col2im(n: Call) -> Value:
    """The sum of columns put back where `im2col` took them from."""
    x, dtype = n["self"], n.dtype
    kernel, dilation, padding, stride = _columns(n)
    height, width = n.wholes("output_size")
    down = (
        E.floordiv(height + 2 * padding[0] - dilation[0] * (kernel[0] - 1) - 1, E.const(stride[0]))
        + 1
    )
    across = (
        E.floordiv(width + 2 * padding[1] - dilation[1] * (kernel[1] - 1) - 1, E.const(stride[1]))
        + 1
    )
    area = kernel[0] * kernel[1]
    wide = dtype.accumulator

    def element(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        *lead, c, h, w = i
        kh, kw = r
        from_h = h + padding[0] - kh * dilation[0]
        from_w = w + padding[1] - kw * dilation[1]
        a, b = E.floordiv(from_h, E.const(stride[0])), E.floordiv(from_w, E.const(stride[1]))
        fits = E.logical(
            "and",
            E.compare("eq", E.mod(from_h, E.const(stride[0])), E.const(0)),
            E.compare("eq", E.mod(from_w, E.const(stride[1])), E.const(0)),
        )
        for e, limit in ((a, down), (b, across)):
            fits = E.logical("and", fits, E.compare("le", E.const(0), e))
            fits = E.logical("and", fits, E.compare("lt", e, limit))
        place = E.select(fits, a * across + b, E.const(-1))
        return E.cast(x.at(*lead, c * area + kh * kernel[1] + kw, place, orelse=0), wide)

    acc = n.reduce(
        "sum", n.shape, kernel, element,
        over_names=("kh", "kw"), suffix="" if wide is dtype else "acc",
    )  # fmt: skip
    return n.cast(acc, dtype)
