"""Rows over sliding windows: convolution and transposed convolution.

In: a node. Out: `sum(c, kh, kw) x[n, c, h*s + kh*d - p, ...] * w[...]`. Invariants: a read has
`else` exactly where it may leave the tensor; axes of extent 1 are not there; sums of half-precision
values accumulate in f32.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.frontend.onnx.table import row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.operations.windows import (
    Window,
    add_bias,
    convolution,
    spatial_names,
    transposed_convolution,
)
from tilewright.frontend.values import Value
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F32
from tilewright.ir.expr import Expr

__all__ = ["kernel_shape", "windows"]


def windows(
    n: Node, sizes: Sequence[Expr], kernel: Sequence[int], ceil: bool = False
) -> list[Window]:
    """The window geometry from strides, dilations, pads and auto_pad. Errors: F006 for lists of
    wrong lengths.
    """
    count = len(sizes)
    strides = n.counts("strides", count)
    dilations = [int(d) for d in n.attribute("dilations") or [1] * count]
    pads = [int(p) for p in n.attribute("pads") or [0] * (2 * count)]
    auto = n.attribute("auto_pad", "NOTSET")
    if not len(strides) == len(dilations) == len(kernel) == count or len(pads) != 2 * count:
        raise n.contradiction(f"strides, dilations, pads or kernel do not fit {count} spatial axes")
    if min([*strides, *dilations, *kernel], default=1) < 1:
        raise n.contradiction("a stride, dilation or kernel size below 1")
    out = []
    z = n.sizes
    for f, size in zip(kernel, sizes, strict=True):
        # Same-padding fits any window; one far larger than its input would mostly read padding.
        most = z.bounds(size)[1]
        if auto.startswith("SAME") and f > max(1 << 16, 4 * most):
            raise n.contradiction(f"a kernel of {f} elements for an axis of size {size}")
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


# ---- convolution ---------------------------------------------------------------------------------


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
    groups = n.count("group", 1)

    def make(m: Node, weights: Value, bias: Value | None) -> Value:
        acc = convolution(
            m, x, weights, geometry, groups, x.dtype.accumulator, "acc" if bias is not None else ""
        )
        return add_bias(m, acc, bias, x.dtype, 1, ("n", "o", *spatial_names(len(geometry))))

    y = make(n, w, b)
    if w.array is not None and (b is None or b.array is not None) and x.dtype is F32:
        n.importer.recipes[y.name] = (
            w.array,
            None if b is None else b.array,
            0,
            n.outputs[0],
            make,
        )
    return y


@row("ConvTranspose", kind="window", notes="the kernel's shape is fixed")
def conv_transpose(n: Node) -> Value:
    """The gradient of a convolution with respect to its input, plus a bias; w is [C, M/groups,
    kernel].
    """
    x, w, b = n[0], n[1], n.optional(2)
    kernel = kernel_shape(n, w)
    spatial = len(kernel)
    groups = n.count("group", 1)
    strides = n.counts("strides", spatial)
    dilations = n.counts("dilations", spatial)
    extra = [int(s) for s in n.attribute("output_padding") or [0] * spatial]
    begin, counts = _transposed_geometry(n, x, kernel, strides, dilations, extra)
    acc = transposed_convolution(
        n, x, w, begin, counts, strides, dilations, groups, "acc" if b is not None else ""
    )
    return add_bias(n, acc, b, x.dtype, 1, ("n", "o", *spatial_names(spatial)))


def _transposed_geometry(
    n: Node,
    x: Value,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    extra: Sequence[int],
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
