"""Sliding windows: their geometry, convolution, the reads of a transposed convolution.

In: values, a `Window` per spatial axis. Out: `sum(c, kh, kw) x[n, c, h*s + kh*d - p, ...] * w`.
Invariants: a read has `else` exactly where it may leave the tensor; axes of extent 1 are not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.frontend.values import Definer, Value, like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import DType
from tilewright.ir.expr import Expr

__all__ = [
    "Window",
    "add_bias",
    "convolution",
    "kernel_names",
    "power_of_abs",
    "root",
    "spatial_names",
    "transposed_convolution",
    "transposed_reads",
]

_SPATIAL = {1: ("w",), 2: ("h", "w"), 3: ("d", "h", "w")}


_KERNEL = {1: ("kw",), 2: ("kh", "kw"), 3: ("kd", "kh", "kw")}


def spatial_names(count: int) -> tuple[str, ...]:
    """Index names of the spatial axes: (h, w) for images."""
    return _SPATIAL.get(count, tuple(f"x{k}" for k in range(count)))


def kernel_names(count: int) -> tuple[str, ...]:
    return _KERNEL.get(count, tuple(f"k{k}" for k in range(count)))


@dataclass(frozen=True)
class Window:
    """One spatial axis: size, kernel extent, stride, dilation, padding before and after, number of
    windows.
    """

    size: Expr
    kernel: int
    stride: int
    dilation: int
    before: Expr
    after: Expr
    count: Expr

    def at(self, out: Expr, k: Expr) -> Expr:
        """The subscript that window `out` reads with kernel element `k`."""
        return out * self.stride + k * self.dilation - self.before

    @property
    def padded(self) -> bool:
        return any(E.int_value(p) != 0 for p in (self.before, self.after))

    @property
    def reach(self) -> int:
        """Elements from the first to the last of a window, inclusive."""
        return (self.kernel - 1) * self.dilation + 1


def convolution(
    n: Definer,
    x: Value,
    w: Value,
    geometry: Sequence[Window],
    groups: int,
    accumulate: DType,
    suffix: str = "",
    zero_x: Expr | None = None,
    zero_w: Value | None = None,
    centred: bool = True,
) -> Value:
    """The sum of products, in `accumulate`; x [N, C, spatial], w [M, C/groups, kernel].

    zero_x, zero_w: zero points of quantized operands, subtracted before the product (padding counts
    as the zero point). centred: False leaves the subtraction of zero_x to the caller.
    """
    channels, outputs = x.shape[1], w.shape[0]
    inner = n.fixed(w.shape[1], "the kernel's input channels")
    n.equal(channels, E.const(inner * groups), "input channels")
    features = n.fixed(outputs, "the kernel's output channels")
    if features % groups:
        raise n.contradiction(f"{features} output channels in {groups} groups")
    per_group = features // groups
    padded = any(g.padded for g in geometry)
    spatial = len(geometry)

    def channel(o: Expr, c: Expr) -> Expr:
        if groups == 1:
            return c
        return E.floordiv(o, E.const(per_group)) * inner + c

    def body(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        batch, o, *at = i
        c, *k = r
        subs = [g.at(p, q) for g, p, q in zip(geometry, at, k, strict=True)]
        orelse: Expr | None = None
        if padded:
            orelse = E.const(0, x.dtype) if zero_x is None else zero_x
        a = E.cast(x.at(batch, channel(o, c), *subs, orelse=orelse), accumulate)
        b = E.cast(w.at(o, c, *k), accumulate)
        if zero_x is not None and centred:
            a = E.sub(a, E.cast(zero_x, accumulate))
        if zero_w is not None:
            b = E.sub(
                b,
                E.cast(
                    zero_w.at(
                        *(
                            [o]
                            if zero_w.rank and E.int_value(zero_w.shape[0]) != 1
                            else [0] * zero_w.rank
                        )
                    ),
                    accumulate,
                ),
            )
        return E.mul(a, b)

    return n.reduce(
        "sum",
        [x.shape[0], outputs, *(g.count for g in geometry)],
        [inner, *(g.kernel for g in geometry)],
        body,
        names=("n", "o", *spatial_names(spatial)),
        over_names=("c", *kernel_names(spatial)),
        suffix=suffix,
    )


def add_bias(
    n: Definer, acc: Value, bias: Value | None, dtype: DType, axis: int, names: Sequence[str] = ()
) -> Value:
    """acc + bias along an axis, rounded to `dtype`."""
    if bias is None:
        return (
            acc
            if acc.dtype is dtype
            else n.define(acc.shape, lambda *i: E.cast(acc.at(*i), dtype), names, "r")
        )
    n.equal(bias.shape[0], acc.shape[axis], "bias")
    return n.define(
        acc.shape,
        lambda *i: E.cast(E.add(acc.at(*i), E.cast(bias.at(i[axis]), acc.dtype)), dtype),
        names,
    )


def transposed_convolution(
    n: Definer,
    x: Value,
    w: Value,
    begin: Sequence[Expr],
    counts: Sequence[Expr],
    strides: Sequence[int],
    dilations: Sequence[int],
    groups: int,
    suffix: str = "",
) -> Value:
    """The gradient of a convolution with respect to its input; w is [C, M/groups, kernel].

    begin: padding before, counts: sizes of the result, per spatial axis.
    """
    kernel = [n.fixed(s, "the kernel's size") for s in w.shape[2:]]
    spatial = len(kernel)
    channels = n.fixed(w.shape[0], "the kernel's input channels")
    n.equal(x.shape[1], w.shape[0], "input channels")
    per_group = n.fixed(w.shape[1], "the kernel's output channels")
    inner = channels // groups
    accumulate = x.dtype.accumulator

    def body(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        batch, o, *at = i
        c, *k = r
        group = E.floordiv(o, E.const(per_group)) if groups > 1 else E.const(0)
        c = c + group * inner
        subs, fits = transposed_reads(at, k, begin, strides, dilations)
        a = E.cast(x.at(batch, c, *subs, orelse=0), accumulate)
        product = E.mul(a, E.cast(w.at(c, o - group * per_group, *k), accumulate))
        return product if fits is None else E.select(fits, product, like(product, 0))

    names = ("n", "o", *spatial_names(spatial))
    # With stride = kernel and no padding one kernel element reaches each output: no sum over the
    # kernel is needed.
    single = [
        s == k and d == 1 and E.int_value(p) == 0
        for s, k, d, p in zip(strides, kernel, dilations, begin, strict=True)
    ]

    def direct(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        batch, o, *at = i
        c = r[0]
        group = E.floordiv(o, E.const(per_group)) if groups > 1 else E.const(0)
        c = c + group * inner
        subs = [E.floordiv(p, E.const(s)) for p, s in zip(at, strides, strict=True)]
        k = [E.mod(p, E.const(s)) for p, s in zip(at, strides, strict=True)]
        return E.mul(
            E.cast(x.at(batch, c, *subs), accumulate),
            E.cast(w.at(c, o - group * per_group, *k), accumulate),
        )

    shape: list[Expr | int] = [x.shape[0], per_group * groups, *counts]
    exact = all(
        n.sizes.same(c, s * k) for c, s, k in zip(counts, x.shape[2:], strides, strict=True)
    )
    if all(single) and exact:
        return n.reduce(
            "sum",
            shape,
            [inner],
            direct,
            names=names,
            over_names=("c",),
            suffix=suffix,
        )
    return n.reduce(
        "sum",
        shape,
        [inner, *kernel],
        body,
        names=names,
        over_names=("c", *kernel_names(spatial)),
        suffix=suffix,
    )


def transposed_reads(
    at: Sequence[Expr],
    k: Sequence[Expr],
    begin: Sequence[Expr],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[Expr], Expr | None]:
    """Subscripts (out + pad - k*d) / stride, and the condition that the division is exact."""
    subs: list[Expr] = []
    fits: Expr | None = None
    for p, q, b, s, d in zip(at, k, begin, strides, dilations, strict=True):
        position = p + b - q * d
        subs.append(E.floordiv(position, E.const(s)))
        if s > 1:
            exact = E.compare("eq", E.mod(position, E.const(s)), E.const(0))
            fits = exact if fits is None else E.logical("and", fits, exact)
    return subs, fits


def power_of_abs(e: Expr, p: float) -> Expr:
    """|e|^p."""
    if p == 1:
        return E.unary("abs", e)
    return E.mul(e, e) if p == 2 else E.binary("pow", E.unary("abs", e), like(e, p))


def root(e: Expr, p: float) -> Expr:
    """e^(1/p)."""
    if p == 1:
        return e
    return E.unary("sqrt", e) if p == 2 else E.binary("pow", e, like(e, 1 / p))
