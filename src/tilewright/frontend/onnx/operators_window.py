"""Rows over sliding windows: convolution, transposed convolution, pooling.

In: a node. Out: `sum(c, kh, kw) x[n, c, h*s + kh*d - p, ...] * w[...]`. Invariants: a read has `else` exactly where it may
leave the tensor; axes of extent 1 are not there; sums of half-precision values accumulate in f32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.frontend.onnx.table import row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.onnx.value import Value
from tilewright.frontend.onnx.value import like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F32
from tilewright.ir.dtypes import DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import identity_of

__all__ = ["Window", "convolution", "spatial_names", "windows"]

_SPATIAL = {1: ("w",), 2: ("h", "w"), 3: ("d", "h", "w")}
_KERNEL = {1: ("kw",), 2: ("kh", "kw"), 3: ("kd", "kh", "kw")}


def spatial_names(count: int) -> tuple[str, ...]:
    """Index names of the spatial axes: (h, w) for images."""
    return _SPATIAL.get(count, tuple(f"x{k}" for k in range(count)))


def _kernel_names(count: int) -> tuple[str, ...]:
    return _KERNEL.get(count, tuple(f"k{k}" for k in range(count)))


@dataclass(frozen=True)
class Window:
    """One spatial axis: size, kernel extent, stride, dilation, padding before and after, number of windows."""

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


def windows(n: Node, sizes: Sequence[Expr], kernel: Sequence[int], ceil: bool = False) -> list[Window]:
    """The window geometry from strides, dilations, pads and auto_pad. Errors: F006 for lists of wrong lengths."""
    count = len(sizes)
    strides = [int(s) for s in n.attribute("strides") or [1] * count]
    dilations = [int(d) for d in n.attribute("dilations") or [1] * count]
    pads = [int(p) for p in n.attribute("pads") or [0] * (2 * count)]
    auto = n.attribute("auto_pad", "NOTSET")
    if not len(strides) == len(dilations) == len(kernel) == count or len(pads) != 2 * count:
        raise n.contradiction(f"strides, dilations, pads or kernel do not fit {count} spatial axes")
    if min([*strides, *dilations, *kernel], default=1) < 1:
        raise n.contradiction("a stride, dilation or kernel size below 1")
    out = []
    z = n.sizes
    for k, size in enumerate(sizes):
        s, d, f = strides[k], dilations[k], int(kernel[k])
        reach = (f - 1) * d + 1
        before, after = E.const(pads[k]), E.const(pads[k + count])
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            windows_ = z.floordiv(size + (s - 1), s)
            total = z.larger((windows_ - 1) * s + reach - size, E.const(0))
            half = z.floordiv(total, 2)
            before, after = (half, total - half) if auto == "SAME_UPPER" else (total - half, half)
        elif auto == "VALID":
            before = after = E.const(0)
        span = size + before + after - reach
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            windows_ = z.floordiv(size + (s - 1), s)
        elif ceil:
            windows_ = z.floordiv(span + (s - 1), s) + 1
            # The last window must start inside the input or the padding before it.
            inside = z.floordiv(size + before + (s - 1), s)
            windows_ = z.smaller(windows_, inside)
        else:
            windows_ = z.floordiv(span, s) + 1
        if z.bounds(windows_)[1] < 0:
            raise n.contradiction(f"a kernel reaching over {reach} does not fit size {size}")
        z.require_extent(windows_)
        out.append(Window(size, f, s, d, before, after, z.tidy(windows_)))
    return out


# ---- convolution -----------------------------------------------------------------------------------------------------


def convolution(
    n: Node, x: Value, w: Value, geometry: Sequence[Window], groups: int, accumulate: DType, suffix: str = "",
    zero_x: Expr | None = None, zero_w: Value | None = None,
) -> Value:  # fmt: skip
    """The sum of products, in `accumulate`; x [N, C, spatial], w [M, C/groups, kernel].

    zero_x, zero_w: zero points of quantized operands, subtracted before the product (padding counts as the zero point).
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
        if zero_x is not None:
            a = E.sub(a, E.cast(zero_x, accumulate))
        if zero_w is not None:
            b = E.sub(b, E.cast(zero_w.at(*([o] if zero_w.rank and E.int_value(zero_w.shape[0]) != 1 else [0] * zero_w.rank)), accumulate))
        return E.mul(a, b)

    return n.reduce(
        "sum", [x.shape[0], outputs, *(g.count for g in geometry)], [inner, *(g.kernel for g in geometry)], body,
        names=("n", "o", *spatial_names(spatial)), over_names=("c", *_kernel_names(spatial)), suffix=suffix,
    )  # fmt: skip


def kernel_shape(n: Node, w: Value) -> list[int]:
    """The kernel's spatial extents; the attribute must agree where it is given."""
    kernel = [n.fixed(s, "the kernel's size") for s in w.shape[2:]]
    if n.attribute("kernel_shape") and [int(k) for k in n.attribute("kernel_shape")] != kernel:
        raise n.contradiction(f"kernel_shape {n.attribute('kernel_shape')} is not {kernel}")
    return kernel


@row("Conv", kind="window", notes="the kernel's shape is fixed")
def conv(n: Node) -> Value:
    """y = conv(x, w) + b."""
    x, w, b = n[0], n[1], n.optional(2)
    if x.rank != w.rank or x.rank < 3:
        raise n.contradiction("input and kernel of different ranks")
    geometry = windows(n, x.shape[2:], kernel_shape(n, w))
    groups = int(n.attribute("group", 1))

    def make(m: Node, weights: Value, bias: Value | None) -> Value:
        acc = convolution(m, x, weights, geometry, groups, x.dtype.accumulator, "acc" if bias is not None else "")
        return add_bias(m, acc, bias, x.dtype, 1, ("n", "o", *spatial_names(len(geometry))))

    y = make(n, w, b)
    if w.array is not None and (b is None or b.array is not None) and x.dtype is F32:
        n.importer.recipes[y.name] = (w.array, None if b is None else b.array, 0, n.outputs[0], make)
    return y


def add_bias(n: Node, acc: Value, bias: Value | None, dtype: DType, axis: int, names: Sequence[str] = ()) -> Value:
    """acc + bias along an axis, rounded to `dtype`."""
    if bias is None:
        return acc if acc.dtype is dtype else n.define(acc.shape, lambda *i: E.cast(acc.at(*i), dtype), names, "r")
    n.equal(bias.shape[0], acc.shape[axis], "bias")
    return n.define(
        acc.shape, lambda *i: E.cast(E.add(acc.at(*i), E.cast(bias.at(i[axis]), acc.dtype)), dtype), names
    )


@row("ConvTranspose", kind="window", notes="the kernel's shape is fixed")
def conv_transpose(n: Node) -> Value:
    """The gradient of a convolution with respect to its input, plus a bias; w is [C, M/groups, kernel]."""
    x, w, b = n[0], n[1], n.optional(2)
    kernel = kernel_shape(n, w)
    spatial = len(kernel)
    groups = int(n.attribute("group", 1))
    strides = [int(s) for s in n.attribute("strides") or [1] * spatial]
    dilations = [int(s) for s in n.attribute("dilations") or [1] * spatial]
    extra = [int(s) for s in n.attribute("output_padding") or [0] * spatial]
    begin, counts = _transposed_geometry(n, x, kernel, strides, dilations, extra)
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
        subs, fits = _transposed_reads(at, k, begin, strides, dilations)
        a = E.cast(x.at(batch, c, *subs, orelse=0), accumulate)
        product = E.mul(a, E.cast(w.at(c, o - group * per_group, *k), accumulate))
        return product if fits is None else E.select(fits, product, like(product, 0))

    names = ("n", "o", *spatial_names(spatial))
    # With stride = kernel and no padding one kernel element reaches each output: no sum over the kernel is needed.
    single = [s == k and d == 1 and E.int_value(p) == 0 and e == 0 for s, k, d, p, e in zip(strides, kernel, dilations, begin, extra, strict=True)]  # fmt: skip

    def direct(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        batch, o, *at = i
        c = r[0]
        group = E.floordiv(o, E.const(per_group)) if groups > 1 else E.const(0)
        c = c + group * inner
        subs = [E.floordiv(p, E.const(s)) for p, s in zip(at, strides, strict=True)]
        k = [E.mod(p, E.const(s)) for p, s in zip(at, strides, strict=True)]
        return E.mul(E.cast(x.at(batch, c, *subs), accumulate), E.cast(w.at(c, o - group * per_group, *k), accumulate))

    shape = [x.shape[0], per_group * groups, *counts]
    exact = all(n.sizes.same(c, s * k) for c, s, k in zip(counts, x.shape[2:], strides, strict=True))
    if all(single) and exact:
        acc = n.reduce("sum", shape, [inner], direct, names=names, over_names=("c",), suffix="acc" if b is not None else "")
    else:
        acc = n.reduce(
            "sum", shape, [inner, *kernel], body, names=names, over_names=("c", *_kernel_names(spatial)),
            suffix="acc" if b is not None else "",
        )  # fmt: skip
    return add_bias(n, acc, b, x.dtype, 1, names)


def _transposed_geometry(
    n: Node, x: Value, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], extra: Sequence[int]
) -> tuple[list[Expr], list[Expr]]:
    """Padding before, and output size, per spatial axis."""
    spatial = len(kernel)
    begin: list[Expr] = []
    counts: list[Expr] = []
    asked = n.attribute("output_shape")
    pads = [int(p) for p in n.attribute("pads") or [0] * (2 * spatial)]
    auto = n.attribute("auto_pad", "NOTSET")
    for k in range(spatial):
        size = x.shape[2 + k]
        full = (size - 1) * strides[k] + ((kernel[k] - 1) * dilations[k] + 1 + extra[k])
        if asked:
            count = E.const(int(asked[len(asked) - spatial + k]))
        elif auto in ("SAME_UPPER", "SAME_LOWER"):
            count = size * strides[k]
        else:
            counts.append(full - (pads[k] + pads[k + spatial]))
            begin.append(E.const(pads[k]))
            continue
        total = full - count
        half = E.floordiv(total, E.const(2))
        # SAME_UPPER puts the odd element after, anything else before.
        begin.append(half if auto == "SAME_UPPER" else total - half)
        counts.append(count)
    for c in counts:
        n.sizes.require_extent(c)
    return begin, counts


def _transposed_reads(
    at: Sequence[Expr], k: Sequence[Expr], begin: Sequence[Expr], strides: Sequence[int], dilations: Sequence[int]
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


# ---- pooling ---------------------------------------------------------------------------------------------------------


def _pool(n: Node) -> tuple[Value, list[Window], tuple[str, ...], tuple[str, ...]]:
    x = n[0]
    kernel = [int(k) for k in n.required("kernel_shape")]
    if len(kernel) != x.rank - 2:
        raise n.contradiction(f"kernel_shape of {len(kernel)} axes for rank {x.rank}")
    geometry = windows(n, x.shape[2:], kernel, bool(n.attribute("ceil_mode", 0)))
    return x, geometry, ("n", "c", *spatial_names(len(kernel))), _kernel_names(len(kernel))


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
    best = n.reduce("argmax", shape, kernel, body, names=names, over_names=over, suffix="best", keep_ones=True)

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
    size, count = E.int_value(g.size), E.int_value(g.count)
    before, after = E.int_value(g.before), E.int_value(g.after)
    if size is not None and count is not None and before is not None and after is not None:
        at = np.arange(count)[:, None] * g.stride + np.arange(g.kernel)[None, :] * g.dilation - before
        inside = (at >= (-before if include else 0)) & (at < size + (after if include else 0))
        return n.constant(np.maximum(inside.sum(1), 1).astype(dtype.np), f"count{k}")

    def guard(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        at = g.at(i[0], r[0])
        return E.logical("and", E.compare("le", low, at), E.compare("lt", at, high))

    return n.reduce(
        "sum", [g.count], [g.kernel], lambda i, r: E.const(1, dtype), guard=guard, suffix=f"count{k}", keep_ones=True
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

    total = n.reduce("sum", shape, [g.kernel for g in geometry], body, names=names, over_names=over, suffix="sum")
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


def _norm(n: Node, x: Value, shape: Sequence[Expr], over: Sequence[Expr | int], element: object, names: Sequence[str], over_names: Sequence[str]) -> Value:  # fmt: skip
    p = float(n.attribute("p", 2))
    accumulate = x.dtype.accumulator

    def body(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        e = E.cast(element(i, r), accumulate)  # type: ignore[operator]
        return power_of_abs(e, p)

    total = n.reduce("sum", shape, over, body, names=names, over_names=over_names, suffix="sum")
    return n.define(shape, lambda *i: E.cast(root(total.at(*i), p), x.dtype), names)


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


def _global(n: Node) -> tuple[Value, list[Expr], tuple[str, ...], tuple[str, ...]]:
    x = n[0]
    count = x.rank - 2
    return x, [*x.shape[:2], *[E.const(1)] * count], ("n", "c", *spatial_names(count)), tuple(f"{a}1" for a in spatial_names(count))  # fmt: skip


@row("GlobalAveragePool", kind="window")
def global_average_pool(n: Node) -> Value:
    """The mean over the spatial axes."""
    x, shape, names, over = _global(n)
    accumulate = x.dtype.accumulator
    total = n.reduce(
        "sum", shape, x.shape[2:], lambda i, r: E.cast(x.at(*i[:2], *r), accumulate), names=names, over_names=over,
        suffix="sum",
    )  # fmt: skip
    count = E.cast(n.sizes.product(x.shape[2:]), accumulate)
    return n.define(shape, lambda *i: E.cast(E.binary("div", total.at(*i), count), x.dtype), names)


@row("GlobalMaxPool", kind="window")
def global_max_pool(n: Node) -> Value:
    """The largest element over the spatial axes."""
    x, shape, names, over = _global(n)
    return n.reduce("max", shape, x.shape[2:], lambda i, r: x.at(*i[:2], *r), names=names, over_names=over)


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
    strides = [int(s) for s in n.attribute("strides") or [1] * spatial]
    pads = [int(p) for p in n.attribute("pads") or [0] * (2 * spatial)]
    natural = [
        (s - 1) * strides[k] + (kernel[k] - pads[k] - pads[k + spatial]) for k, s in enumerate(x.shape[2:])
    ]
    shape = [*x.shape[:2], *natural]
    out = n.integers(2, "output_shape") if n.optional(2) is not None else shape
    from tilewright.frontend.onnx.operators_index import scatter

    def place(*i: Expr) -> list[Expr]:
        rest = positions.at(*i)
        at: list[Expr] = []
        for s in reversed(shape):
            at.append(E.mod(rest, s))
            rest = E.floordiv(rest, s)
        return list(reversed(at))

    return scatter(n, x.dtype, out, x.shape, None, place, lambda *i: x.at(*i), lambda *i: E.const(0, x.dtype))

