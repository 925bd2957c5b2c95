"""Quantized rows: linear quantization, and integer convolution and matmul.

In: a node. Out: explicit conversions around exact integer sums. Invariants: rounding is half to
even; results saturate; integer products accumulate in i32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tilewright.frontend.onnx.operators_window import kernel_shape, windows
from tilewright.frontend.onnx.table import row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.operations.contractions import contract
from tilewright.frontend.operations.windows import convolution, spatial_names
from tilewright.frontend.values import Array, Value, like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F32, I32, U8, DType
from tilewright.ir.expr import Expr

__all__: list[str] = []

Read = Callable[[Sequence[Expr]], Expr]


def saturate(e: Expr, dtype: DType) -> Expr:
    """A float rounded half to even and clipped into an integer type."""
    info = np.iinfo(str(dtype.np))
    e = E.unary("round", e)
    return E.cast(
        E.maximum(E.minimum(e, like(e, float(info.max))), like(e, float(info.min))), dtype
    )


def _requantize(e: Expr, zero: Expr | None, dtype: DType) -> Expr:
    """round(e) + zero, clipped."""
    if zero is None:
        return saturate(e, dtype)
    info = np.iinfo(str(dtype.np))
    e = E.add(E.unary("round", e), E.cast(zero, e.dtype))
    return E.cast(
        E.maximum(E.minimum(e, like(e, float(info.max))), like(e, float(info.min))), dtype
    )


def _parameter(n: Node, x: Value, p: Value, axis: int) -> Read:
    """How a scale or zero point is read at an element of x: one, one per slice along an axis, or
    one per block.
    """
    if p.rank == 0 or (p.rank == 1 and E.int_value(p.shape[0]) == 1):
        return lambda i: p.at(*[0] * p.rank)
    if p.rank == 1:
        n.equal(p.shape[0], x.shape[axis], "the scale's size")
        return lambda i: p.at(i[axis])
    block = int(n.attribute("block_size", 0))
    if p.rank != x.rank or block <= 0:
        raise n.refuse(f"a scale of rank {p.rank} for rank {x.rank} without block_size")
    return lambda i: p.at(
        *(E.floordiv(e, E.const(block)) if k == axis else e for k, e in enumerate(i))
    )


@row(
    "QuantizeLinear",
    kind="quantized",
    since=10,
    notes="8- and 16-bit integers; no 8-bit float, no 2- or 4-bit",
)
def quantize_linear(n: Node) -> Value:
    """round(x / scale) + zero point, clipped."""
    x, scale, zero = n[0], n[1], n.optional(2)
    axis = n.axis(x.rank, default=1) if x.rank > 1 else 0
    dtype = zero.dtype if zero is not None else U8
    if zero is None and n.attribute("output_dtype"):
        dtype = n.importer.element_type(int(n.attribute("output_dtype")), n)
    if not dtype.is_int:
        raise n.refuse(f"quantization to {dtype}")
    read_scale = _parameter(n, x, scale, axis)
    read_zero = _parameter(n, x, zero, axis) if zero is not None else None

    def body(*i: Expr) -> Expr:
        e = E.binary("div", E.cast(x.at(*i), F32), E.cast(read_scale(i), F32))
        return _requantize(e, read_zero(i) if read_zero is not None else None, dtype)

    return n.define(x.shape, body)


@row(
    "DequantizeLinear",
    kind="quantized",
    since=10,
    notes="8-, 16- and 32-bit integers; no 8-bit float, no 2- or 4-bit",
)
def dequantize_linear(n: Node) -> Value:
    """(x - zero point) * scale."""
    x, scale, zero = n[0], n[1], n.optional(2)
    axis = n.axis(x.rank, default=1) if x.rank > 1 else 0
    read_scale = _parameter(n, x, scale, axis)
    read_zero = _parameter(n, x, zero, axis) if zero is not None else None
    to = scale.dtype
    if n.attribute("output_dtype"):
        to = n.importer.element_type(int(n.attribute("output_dtype")), n)

    def body(*i: Expr) -> Expr:
        e = E.cast(x.at(*i), I32)
        if read_zero is not None:
            e = E.sub(e, E.cast(read_zero(i), I32))
        return E.cast(E.mul(E.cast(e, F32), E.cast(read_scale(i), F32)), to)

    return n.define(x.shape, body)


@row("DynamicQuantizeLinear", kind="quantized", since=11)
def dynamic_quantize_linear(n: Node) -> list[Value | None]:
    """x to u8 with the scale and zero point of its own range."""
    x = n[0]
    low = n.reduce("min", [], x.shape, lambda i, r: x.at(*r), suffix="min")
    high = n.reduce("max", [], x.shape, lambda i, r: x.at(*r), suffix="max")

    def bounds() -> tuple[Expr, Expr]:
        return E.minimum(low.at(), like(x, 0)), E.maximum(high.at(), like(x, 0))

    def scale_body() -> Expr:
        a, b = bounds()
        span = E.sub(b, a)
        return E.binary("div", span, like(x, 255.0))

    scale = n.define([], scale_body, suffix="scale")

    def zero_body() -> Expr:
        a, _ = bounds()
        return saturate(E.unary("neg", E.binary("div", a, scale.at())), U8)

    zero = n.define([], zero_body, suffix="zero")
    y = n.define(
        x.shape, lambda *i: _requantize(E.binary("div", x.at(*i), scale.at()), zero.at(), U8)
    )
    return [y, scale, zero]


def _centred(v: Value, zero: Value | None, row_axis: int | None) -> Read:
    """v - zero point as i32; a vector of zero points goes along `row_axis`."""

    def read(i: Sequence[Expr]) -> Expr:
        e = E.cast(v.at(*i), I32)
        if zero is None:
            return e
        if zero.rank == 0 or (
            zero.rank == 1 and (E.int_value(zero.shape[0]) == 1 or row_axis is None)
        ):
            z = zero.at(*[0] * zero.rank)
        elif zero.rank == 1:
            z = zero.at(i[row_axis if row_axis is not None else 0])
        else:
            z = zero.at(
                *(
                    E.const(0) if E.int_value(s) == 1 else e
                    for s, e in zip(zero.shape, i, strict=True)
                )
            )
        return E.sub(e, E.cast(z, I32))

    return read


def _is_zero(zero: Value | None) -> bool:
    """Whether a zero point is surely 0."""
    return zero is None or (zero.array is not None and not np.any(zero.array))


def _single(zero: Value) -> bool:
    return zero.rank == 0 or (zero.rank == 1 and E.int_value(zero.shape[0]) == 1)


def _less(n: Node, acc: Value, zero: Expr, sums: Array, axis: int, suffix: str) -> Value:
    """acc - zero * the sum of the weights that meet it: i32, wrapping, as the sum itself."""
    known = n.constant(sums.astype(np.int32), "sums")
    return n.define(
        acc.shape,
        lambda *i: E.sub(acc.at(*i), E.mul(E.cast(zero, I32), known.at(i[axis]))),
        suffix=suffix,
    )


def _product(n: Node, a: Value, b: Value, za: Value | None, zb: Value | None, suffix: str) -> Value:
    """sum (a - za) * (b - zb) in i32.

    Where b is known and its zero point 0, the sum is one of 8-bit products, which the CPU has an
    instruction for, and za times the sums of b's columns is taken away afterwards.
    """
    za, zb = (None if _is_zero(z) else z for z in (za, zb))
    if za is None or zb is not None or b.array is None or b.rank != 2 or not _single(za):
        return contract(n, a, b, I32, suffix, _centred(a, za, -2), _centred(b, zb, -1))
    acc = contract(n, a, b, I32, "dot")
    sums = b.array.astype(np.int64).sum(axis=0)
    return _less(n, acc, za.at(*[0] * za.rank), sums, -1, suffix)


def _convolved(
    n: Node, x: Value, w: Value, zx: Value | None, zw: Value | None, suffix: str
) -> Value:
    """The same for a convolution; padding counts as the zero point."""
    geometry = windows(n, x.shape[2:], kernel_shape(n, w))
    zx, zw = (None if _is_zero(z) else z for z in (zx, zw))
    groups = n.count("group", 1)
    zero = zx.at(*[0] * zx.rank) if zx is not None else None
    if zero is None or zx is None or zw is not None or w.array is None or zx.array is None:
        return convolution(n, x, w, geometry, groups, I32, suffix, zero, zw)
    known = E.const(int(zx.array.reshape(-1)[0]), x.dtype)
    acc = convolution(n, x, w, geometry, groups, I32, "dot", known, None, centred=False)
    sums = w.array.astype(np.int64).sum(axis=tuple(range(1, w.rank)))
    return _less(n, acc, known, sums, 1, suffix)


@row("MatMulInteger", kind="quantized", since=10)
def matmul_integer(n: Node) -> Value:
    """(a - a_zero) @ (b - b_zero) in i32; zero points per row of a and column of b."""
    return _product(n, n[0], n[1], n.optional(2), n.optional(3), "")


@row("QLinearMatMul", kind="quantized", since=10)
def qlinear_matmul(n: Node) -> Value:
    """Quantized matmul: i32 sums, scaled, rounded, shifted, clipped."""
    a, sa, za, b, sb, zb, sy, zy = (n[k] for k in range(8))
    acc = _product(n, a, b, za, zb, "acc")

    def along(v: Value, i: Sequence[Expr], axis: int) -> Expr:
        if v.rank == 0 or (v.rank == 1 and E.int_value(v.shape[0]) == 1):
            return v.at(*[0] * v.rank)
        if v.rank == 1:
            return v.at(i[axis])
        return v.aligned(i)

    def body(*i: Expr) -> Expr:
        scale = E.mul(E.cast(along(sa, i, -2), F32), E.cast(along(sb, i, -1), F32))
        scale = E.binary("div", scale, E.cast(along(sy, i, -2), F32))
        return _requantize(E.mul(E.cast(acc.at(*i), F32), scale), along(zy, i, -2), zy.dtype)

    return n.define(acc.shape, body)


@row("ConvInteger", kind="quantized", since=10)
def conv_integer(n: Node) -> Value:
    """Convolution of (x - x_zero) and (w - w_zero) in i32."""
    return _convolved(n, n[0], n[1], n.optional(2), n.optional(3), "")


@row("QLinearConv", kind="quantized", since=10)
def qlinear_conv(n: Node) -> Value:
    """Quantized convolution: i32 sums and bias, scaled, rounded, shifted, clipped."""
    x, sx, zx, w, sw, zw, sy, zy = (n[k] for k in range(8))
    bias = n.optional(8)
    acc = _convolved(n, x, w, zx, zw, "acc")

    def one(v: Value, o: Expr) -> Expr:
        return v.at(o) if v.rank == 1 and E.int_value(v.shape[0]) != 1 else v.at(*[0] * v.rank)

    def body(*i: Expr) -> Expr:
        e = acc.at(*i)
        if bias is not None:
            e = E.add(e, E.cast(bias.at(i[1]), I32))
        scale = E.binary("div", E.mul(one(sx, i[1]), one(sw, i[1])), one(sy, i[1]))
        return _requantize(E.mul(E.cast(e, F32), scale), one(zy, i[1]), zy.dtype)

    return n.define(acc.shape, body, ("n", "o", *spatial_names(x.rank - 2)))
