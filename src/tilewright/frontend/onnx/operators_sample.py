"""Sampling at computed positions, and Fourier transforms.

In: a node. Out: sums over the taps of an interpolation kernel, read at gathered positions;
transforms as sums with a table of cosines and sines. Invariant: positions are f32 (f64 for f64
inputs), computed once per sample in definitions of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tilewright.frontend.onnx.operators_window import kernel_shape, windows
from tilewright.frontend.onnx.table import row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.operations.windows import add_bias
from tilewright.frontend.values import Value, like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64, DType
from tilewright.ir.expr import Expr

__all__: list[str] = []


def _linear_weight(d: Expr) -> Expr:
    """max(0, 1 - |d|)."""
    return E.maximum(E.sub(like(d, 1), E.unary("abs", d)), like(d, 0))


def _cubic_weight(d: Expr, a: float = -0.75) -> Expr:
    """The cubic convolution kernel."""
    d = E.unary("abs", d)
    square = E.mul(d, d)
    cube = E.mul(square, d)
    near = E.add(E.sub(E.mul(like(d, a + 2), cube), E.mul(like(d, a + 3), square)), like(d, 1))
    far = E.sub(
        E.add(
            E.sub(E.mul(like(d, a), cube), E.mul(like(d, 5 * a), square)), E.mul(like(d, 8 * a), d)
        ),
        like(d, 4 * a),
    )
    outer = E.select(E.compare("lt", d, like(d, 2)), far, like(d, 0))
    return E.select(E.compare("le", d, like(d, 1)), near, outer)


def _reflected(e: Expr, size: Expr, corners: bool) -> Expr:
    """An integer position mirrored into an axis, at its end elements (`corners`) or borders."""
    if corners:
        if E.int_value(size) == 1:
            return E.const(0)
        period = size * 2 - 2
        inside = E.mod(e, period)
        return E.minimum(inside, period - inside)
    inside = E.mod(e, size * 2)
    return E.minimum(inside, size * 2 - 1 - inside)


@row("GridSample", kind="resize", since=16)
def grid_sample(n: Node) -> Value:
    """x sampled at the positions of a grid: nearest, linear or cubic; zeros, border or reflection
    outside.
    """
    x, grid = n[0], n[1]
    count = x.rank - 2
    mode = n.attribute("mode", "linear" if n.opset >= 20 else "bilinear")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    outside = n.attribute("padding_mode", "zeros")
    corners = bool(n.attribute("align_corners", 0))
    if mode not in ("nearest", "linear", "cubic") or outside not in (
        "zeros",
        "border",
        "reflection",
    ):
        raise n.refuse(f"mode {mode!r} with padding {outside!r}")
    wide = grid.dtype.accumulator
    spatial = grid.shape[1:-1]
    sources = [
        _grid_position(n, grid, count - 1 - k, x.shape[2 + k], mode, outside, corners, wide, k)
        for k in range(count)
    ]
    taps = {"nearest": 1, "linear": 2, "cubic": 4}[mode]
    first = {"nearest": 0, "linear": 0, "cubic": -1}[mode]
    weight = _cubic_weight if mode == "cubic" else _linear_weight

    def body(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        at = (i[0], *i[2:])
        subs: list[Expr] = []
        factor: Expr | None = None
        for k in range(count):
            p = sources[k].at(*at)
            whole = E.unary("floor", p)
            e = E.cast(whole, I64) + r[k] + first
            if mode != "nearest":
                w = weight(E.sub(E.cast(r[k] + first, wide), E.sub(p, whole)))
                factor = w if factor is None else E.mul(factor, w)
            size = x.shape[2 + k]
            if outside == "border":
                e = E.maximum(E.minimum(e, size - 1), E.const(0))
            elif outside == "reflection":
                e = _reflected(e, size, corners)
            subs.append(e)
        value = x.at(i[0], i[1], *subs, orelse=0 if outside == "zeros" else None)
        if factor is None:
            return value
        return E.mul(E.cast(value, wide), factor)

    plain = mode == "nearest" or wide is x.dtype
    y = n.reduce(
        "sum",
        [x.shape[0], x.shape[1], *spatial],
        [taps] * count,
        body,
        names=("n", "c"),
        suffix="" if plain else "acc",
    )
    return n.cast(y, x.dtype)


def _grid_position(
    n: Node,
    grid: Value,
    component: int,
    size: Expr,
    mode: str,
    outside: str,
    corners: bool,
    wide: DType,
    k: int,
) -> Value:
    """The source coordinate along one axis for every sample."""
    length = E.cast(size, wide)
    low = E.const(0.0 if corners else -0.5, wide)
    high = E.sub(length, E.const(1.0 if corners else 0.5, wide))

    def body(*i: Expr) -> Expr:
        g = E.add(E.cast(grid.at(*i, component), wide), E.const(1.0, wide))
        if corners:
            p = E.mul(E.mul(g, E.const(0.5, wide)), E.sub(length, E.const(1.0, wide)))
        else:
            p = E.mul(E.sub(E.mul(g, length), E.const(1.0, wide)), E.const(0.5, wide))
        if mode == "nearest":
            p = E.unary("round", p)
        if mode == "cubic":  # its taps are moved inside one by one
            return p
        inside = E.logical("and", E.compare("le", low, p), E.compare("le", p, high))
        if outside == "border":
            clamped = E.maximum(E.minimum(p, E.sub(length, E.const(1.0, wide))), E.const(0.0, wide))
            p = E.select(inside, p, clamped)
        elif outside == "reflection":
            span = E.mul(E.sub(high, low), E.const(2.0, wide))
            shifted = E.mod(E.sub(p, low), span)
            p = E.select(inside, p, E.add(low, E.minimum(shifted, E.sub(span, shifted))))
        return p

    return n.define(grid.shape[:-1], body, suffix=f"at{k}")


@row("AffineGrid", kind="resize", since=20, notes="the size must follow from constants and sizes")
def affine_grid(n: Node) -> Value:
    """Sampling positions of an affine map, for GridSample."""
    theta, sizes = n[0], n.integers(1, "size")
    corners = bool(n.attribute("align_corners", 0))
    spatial = sizes[2:]
    count = len(spatial)
    wide = theta.dtype.accumulator
    n.equal(theta.shape[0], sizes[0], "batch sizes")

    def position(e: Expr, size: Expr) -> Expr:
        """In [-1, 1]: the ends at the end elements (`corners`), or at the outer borders."""
        length, at = E.cast(size, wide), E.cast(e, wide)
        if corners:
            if E.int_value(size) == 1:
                return E.const(-1, wide)
            step = E.binary("div", E.const(2, wide), E.sub(length, E.const(1, wide)))
            return E.add(E.const(-1, wide), E.mul(at, step))
        step = E.binary("div", E.const(2, wide), length)
        start = E.add(E.const(-1, wide), E.binary("div", step, E.const(2, wide)))
        return E.add(start, E.mul(at, step))

    def body(b: Expr, *i: Expr) -> Expr:
        at, k = i[:-1], i[-1]
        total = E.cast(theta.at(b, k, count), wide)
        for c in range(count):  # x belongs to the last axis
            p = position(at[count - 1 - c], spatial[count - 1 - c])
            total = E.add(total, E.mul(E.cast(theta.at(b, k, c), wide), p))
        return E.cast(total, theta.dtype)

    return n.define([sizes[0], *spatial, count], body, ("n",))


@row("RoiAlign", kind="resize", since=10, notes="sampling_ratio must be given")
def roi_align(n: Node) -> Value:
    """The mean (or maximum) of bilinear samples in each bin of regions of interest."""
    x, rois, batches = n[0], n[1], n[2]
    ratio = int(n.attribute("sampling_ratio", 0))
    if ratio <= 0:
        raise n.refuse(
            "sampling_ratio 0, a number of samples that depends on the data",
            "a positive sampling_ratio",
        )
    height, width = n.count("output_height", 1), n.count("output_width", 1)
    scale = float(n.attribute("spatial_scale", 1.0))
    half = n.attribute(
        "coordinate_transformation_mode", "half_pixel" if n.opset >= 16 else "output_half_pixel"
    )
    shift = 0.5 if half == "half_pixel" else 0.0
    mode = n.attribute("mode", "avg")
    wide = x.dtype.accumulator

    def c(v: float) -> Expr:
        return E.const(v, wide)

    def position(start: int, bins: int, name: str) -> Value:
        def body(r: Expr, p: Expr, s: Expr) -> Expr:
            a = E.sub(E.mul(E.cast(rois.at(r, start), wide), c(scale)), c(shift))
            b = E.sub(E.mul(E.cast(rois.at(r, start + 2), wide), c(scale)), c(shift))
            length = E.sub(b, a)
            if half != "half_pixel":
                length = E.maximum(length, c(1.0))
            step = E.binary("div", length, c(bins))
            inner = E.binary("div", E.mul(E.add(E.cast(s, wide), c(0.5)), step), c(ratio))
            return E.add(E.add(a, E.mul(E.cast(p, wide), step)), inner)

        return n.define([rois.shape[0], bins, ratio], body, ("r", "p", "s"), name)

    ys, xs = position(1, height, "y"), position(0, width, "x")

    def corner(p: Expr, size: Expr, far: Expr) -> tuple[Expr, Expr]:
        """Subscript and weight of the lower (far = 0) or upper (far = 1) neighbour."""
        p = E.maximum(p, c(0.0))
        low = E.minimum(E.cast(E.unary("floor", p), I64), size - 1)
        part = E.select(E.compare("le", size - 1, low), c(0.0), E.sub(p, E.cast(low, wide)))
        near = E.compare("eq", far, E.const(0))
        return E.minimum(low + far, size - 1), E.select(near, E.sub(c(1.0), part), part)

    def tap(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        m, ch, p, q = i
        sy, sx, fy, fx = r
        y, z = ys.at(m, p, sy), xs.at(m, q, sx)
        inside = E.const(True)
        for e, size in ((y, x.shape[2]), (z, x.shape[3])):
            inside = E.logical("and", inside, E.compare("le", c(-1.0), e))
            inside = E.logical("and", inside, E.compare("le", e, E.cast(size, wide)))
        (at_y, wy), (at_x, wx) = corner(y, x.shape[2], fy), corner(z, x.shape[3], fx)
        picked = x.at(E.cast(batches.at(m), I64), ch, at_y, at_x, orelse=0)
        value = E.cast(picked, wide)
        return E.select(inside, E.mul(E.mul(wy, wx), value), c(0.0))

    shape: list[Expr | int] = [rois.shape[0], x.shape[1], height, width]
    names, over = ("r", "c", "h", "w"), ("sy", "sx", "fy", "fx")
    if mode == "max":
        y = n.reduce(
            "max", shape, [ratio, ratio, 2, 2], tap, names=names, over_names=over, suffix="max"
        )
        return n.cast(y, x.dtype)
    total = n.reduce(
        "sum", shape, [ratio, ratio, 2, 2], tap, names=names, over_names=over, suffix="sum"
    )
    return n.define(
        shape, lambda *i: E.cast(E.mul(total.at(*i), c(1 / (ratio * ratio))), x.dtype), names
    )


@row("MaxRoiPool", kind="resize")
def max_roi_pool(n: Node) -> Value:
    """The maximum of each bin of regions of interest; 0 where a bin is empty."""
    x, rois = n[0], n[1]
    height, width = (int(v) for v in n.required("pooled_shape"))
    scale = float(n.attribute("spatial_scale", 1.0))
    wide = x.dtype.accumulator

    def edge(r: Expr, k: int) -> Expr:
        """Coordinate k of region r on the grid: rounded, half away from zero."""
        e = E.mul(E.cast(rois.at(r, k), wide), E.const(scale, wide))
        return E.cast(E.unary("floor", E.add(e, E.const(0.5, wide))), I64)

    def inside(r: Expr, p: Expr, e: Expr, bins: int, start: int) -> Expr:
        low = edge(r, start)
        length = E.maximum(edge(r, start + 2) - low + 1, E.const(1))
        first = low + E.floordiv(p * length, E.const(bins))
        last = low - E.floordiv(-(p + 1) * length, E.const(bins))
        return E.logical("and", E.compare("le", first, e), E.compare("lt", e, last))

    def guard(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        down = inside(i[0], i[2], r[0], height, 2)
        return E.logical("and", down, inside(i[0], i[3], r[1], width, 1))

    def element(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        return x.at(E.cast(rois.at(i[0], 0), I64), i[1], r[0], r[1], orelse=float("-inf"))

    shape: list[Expr | int] = [rois.shape[0], x.shape[1], height, width]
    names = ("r", "c", "p", "q")
    top = n.reduce(
        "max",
        shape,
        x.shape[2:],
        element,
        names=names,
        over_names=("h", "w"),
        guard=guard,
        suffix="max",
        keep_ones=True,
    )
    empty = like(x, float("-inf"))
    return n.define(
        shape,
        lambda *i: E.select(E.compare("eq", top.at(*i), empty), like(x, 0), top.at(*i)),
        names,
    )


@row("DeformConv", kind="window", since=19)
def deform_conv(n: Node) -> Value:
    """2-D convolution whose taps are moved by offsets and scaled by a mask."""
    x, w, offset, bias, mask = n[0], n[1], n[2], n.optional(3), n.optional(4)
    if x.rank != 4:
        raise n.refuse(f"an input of rank {x.rank}", "2-D convolution")
    kernel = kernel_shape(n, w)
    geometry = windows(n, x.shape[2:], kernel)
    groups, moved = n.count("group", 1), n.count("offset_group", 1)
    channels = n.fixed(x.shape[1], "the input channels")
    features = n.fixed(w.shape[0], "the output channels")
    inner = channels // groups
    wide = x.dtype.accumulator
    taps = kernel[0] * kernel[1]

    def body(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        batch, o, *at = i
        c, kh, kw = r
        channel = E.floordiv(o, E.const(features // groups)) * inner + c
        group = E.floordiv(channel, E.const(channels // moved))
        tap = kh * kernel[1] + kw
        positions = []
        for axis, (g, p, k) in enumerate(zip(geometry, at, (kh, kw), strict=True)):
            shift = E.cast(offset.at(batch, (group * taps + tap) * 2 + axis, *at), wide)
            positions.append(E.add(E.cast(g.at(p, k), wide), shift))
        total: Expr | None = None
        floors = [E.unary("floor", p) for p in positions]
        for dy in (0, 1):
            for dx in (0, 1):
                weight: Expr | None = None
                subs = []
                for p, f, d in zip(positions, floors, (dy, dx), strict=True):
                    part = E.sub(p, f)
                    part = part if d else E.sub(like(part, 1), part)
                    weight = part if weight is None else E.mul(weight, part)
                    subs.append(E.cast(f, I64) + d)
                assert weight is not None  # for the type checker: there are two axes
                value = E.mul(weight, E.cast(x.at(batch, channel, *subs, orelse=0), wide))
                total = value if total is None else E.add(total, value)
        assert total is not None  # for the type checker: there are four corners
        if mask is not None:
            total = E.mul(total, E.cast(mask.at(batch, group * taps + tap, *at), wide))
        return E.mul(total, E.cast(w.at(o, c, kh, kw), wide))

    acc = n.reduce(
        "sum",
        [x.shape[0], features, *(g.count for g in geometry)],
        [inner, *kernel],
        body,
        names=("n", "o", "h", "w"),
        over_names=("c", "kh", "kw"),
        suffix="acc" if bias is not None else "",
    )
    return add_bias(n, acc, bias, x.dtype, 1, ("n", "o", "h", "w"))


# ---- Fourier -------------------------------------------------------------------------------------


def _table(n: Node, length: int, dtype: DType) -> tuple[Value, Value]:
    """cos and sin of 2 pi t / length."""
    angle = 2 * np.pi * np.arange(length) / length
    return n.constant(np.cos(angle).astype(dtype.np), "cos"), n.constant(
        np.sin(angle).astype(dtype.np), "sin"
    )


def _turn(
    n: Node, re: Expr, im: Expr | None, cos: Expr, sin: Expr, part: Expr, inverse: bool
) -> Expr:
    """The real (part 0) or imaginary (part 1) component of (re + i im) e^(-i angle), or e^(+i
    angle).
    """
    if inverse:
        sin = E.unary("neg", sin)
    real, imaginary = E.mul(re, cos), E.unary("neg", E.mul(re, sin))
    if im is not None:
        real, imaginary = E.add(real, E.mul(im, sin)), E.add(imaginary, E.mul(im, cos))
    return E.select(E.compare("eq", part, E.const(0)), real, imaginary)


@row("DFT", kind="signal", since=17, notes="fixed lengths")
def dft(n: Node) -> Value:
    """The discrete Fourier transform along an axis, as a sum."""
    x = n[0]
    inverse, onesided = bool(n.attribute("inverse", 0)), bool(n.attribute("onesided", 0))
    if n.opset >= 20:
        given = n.optional(2)
        axis = -2 if given is None else int(n.array(2, "axis").reshape(-1)[0])
    else:
        axis = int(n.attribute("axis", 1))
    axis = n.normal_axis(axis, x.rank)
    natural = (x.shape[axis] - 1) * 2 if inverse and onesided else x.shape[axis]
    asked = n.integers(1, "dft_length")[0] if n.optional(1) is not None else natural
    length = n.table(asked, "the length")
    complex_in = E.int_value(x.shape[-1]) == 2
    if inverse and onesided:
        return _real_inverse(n, x, axis, length)
    wide = x.dtype.accumulator
    cos, sin = _table(n, length, wide)
    bins = length // 2 + 1 if onesided else length
    shape = [*(E.const(bins) if k == axis else s for k, s in enumerate(x.shape[:-1])), E.const(2)]
    limited = not n.sizes.decide("le", E.const(length), x.shape[axis])

    def body(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        turn = E.mod(i[axis] * r[0], E.const(length))
        at = [r[0] if k == axis else e for k, e in enumerate(i[:-1])]
        re = E.cast(x.at(*at, 0, orelse=0 if limited else None), wide)
        im = E.cast(x.at(*at, 1, orelse=0 if limited else None), wide) if complex_in else None
        return _turn(n, re, im, cos.at(turn), sin.at(turn), i[-1], inverse)

    plain = not inverse and wide is x.dtype
    total = n.reduce("sum", shape, [length], body, over_names=("t",), suffix="" if plain else "sum")
    if plain:
        return total
    factor = 1 / length if inverse else 1.0
    return n.define(shape, lambda *i: E.cast(E.mul(total.at(*i), like(total, factor)), x.dtype))


def _real_inverse(n: Node, x: Value, axis: int, length: int) -> Value:
    """The real signal of a one-sided spectrum: the other side is its conjugate."""
    wide = x.dtype.accumulator
    cos, sin = _table(n, length, wide)
    limited = not n.sizes.decide("le", E.const(length // 2 + 1), x.shape[axis])
    shape = [*(E.const(length) if k == axis else s for k, s in enumerate(x.shape[:-1])), E.const(1)]

    def body(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        turn = E.mod(i[axis] * r[0], E.const(length))
        mirrored = E.compare("lt", E.const(length // 2), r[0])
        frequency = E.minimum(r[0], length - r[0])
        at = [frequency if k == axis else e for k, e in enumerate(i[:-1])]
        re = E.cast(x.at(*at, 0, orelse=0 if limited else None), wide)
        im = E.cast(x.at(*at, 1, orelse=0 if limited else None), wide)
        # The ends of the spectrum are real: their imaginary parts have no effect.
        end = E.logical(
            "or",
            E.compare("eq", frequency, E.const(0)),
            E.compare("eq", frequency * 2, E.const(length)),
        )
        im = E.select(end, like(im, 0), E.select(mirrored, E.unary("neg", im), im))
        return E.sub(E.mul(re, cos.at(turn)), E.mul(im, sin.at(turn)))

    total = n.reduce("sum", shape, [length], body, over_names=("f",), suffix="sum")
    return n.define(shape, lambda *i: E.cast(E.mul(total.at(*i), like(total, 1 / length)), x.dtype))


@row("STFT", kind="signal", since=17, notes="fixed step and frame length")
def stft(n: Node) -> Value:
    """The Fourier transforms of windowed frames of a signal."""
    x, window = n[0], n.optional(2)
    step = n.fixed(n.integers(1, "frame_step")[0], "frame_step")
    if n.optional(3) is not None:
        length = n.table(n.integers(3, "frame_length")[0], "frame_length")
    elif window is not None:
        length = n.table(window.shape[0], "the window")
    else:
        length = n.table(x.shape[1], "the signal")
    onesided = bool(n.attribute("onesided", 1))
    wide = x.dtype.accumulator
    cos, sin = _table(n, length, wide)
    bins = length // 2 + 1 if onesided else length
    frames = n.sizes.floordiv(x.shape[1] - length, step) + 1
    complex_in = x.rank == 3 and E.int_value(x.shape[2]) == 2

    def body(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        turn = E.mod(i[2] * r[0], E.const(length))
        at = i[1] * step + r[0]
        tail = [0] if x.rank == 3 else []
        re = E.cast(x.at(i[0], at, *tail), wide)
        im = E.cast(x.at(i[0], at, 1), wide) if complex_in else None
        if window is not None:
            factor = E.cast(window.at(r[0]), wide)
            re, im = E.mul(re, factor), None if im is None else E.mul(im, factor)
        return _turn(n, re, im, cos.at(turn), sin.at(turn), i[3], False)

    total = n.reduce(
        "sum",
        [x.shape[0], frames, bins, 2],
        [length],
        body,
        names=("b", "f", "k", "c"),
        over_names=("t",),
        suffix="" if wide is x.dtype else "sum",
    )
    return n.cast(total, x.dtype)


@row("MelWeightMatrix", kind="signal", since=17, notes="constant arguments")
def mel_weight_matrix(n: Node) -> Value:
    """Triangular filters on the mel scale; computed at import."""
    bins, length, rate = (int(n.array(k).reshape(-1)[0]) for k in range(3))
    low, high = (float(n.array(k).reshape(-1)[0]) for k in (3, 4))
    dtype = n.importer.element_type(int(n.attribute("output_datatype", 1)), n)
    low_mel, high_mel = (2595 * math.log10(1 + f / 700) for f in (low, high))
    mel = np.arange(bins + 2) * (high_mel - low_mel) / (bins + 2) + low_mel
    edges = ((length + 1) * (700 * (10 ** (mel / 2595) - 1)) // rate).astype(int)
    n.table(E.const((length // 2 + 1) * bins), "the matrix")
    out = np.zeros((length // 2 + 1, bins))
    for k in range(bins):
        left, centre, right = (int(e) for e in edges[k : k + 3])
        if centre == left:
            out[centre, k] = 1
        else:
            at = np.arange(left, centre + 1)
            out[at, k] = (at - left) / (centre - left)
        if right > centre:
            at = np.arange(centre, right)
            out[at, k] = (right - at) / (right - centre)
    return n.constant(out.astype(dtype.np), "")
