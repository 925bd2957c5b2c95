"""Resize, Upsample and grid sampling.

In: a node. Out: per axis, either a quasi-affine subscript (nearest, where the scale is an integer
or its inverse) or a few weighted reads whose positions and weights are tables along that axis.
Invariants: positions follow the float32 formulas of the ONNX standard; axes that keep their size
are not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tilewright.frontend.onnx.table import row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.operations.indexing import position
from tilewright.frontend.sizes import Sym, Undecided
from tilewright.frontend.values import Array, Value
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F32, I64
from tilewright.ir.expr import Expr

__all__ = ["resize_axes"]


@dataclass(frozen=True)
class _Axis:
    """One resized axis: old and new size, the scale (exact where it is a ratio known at import),
    the region of interest.
    """

    axis: int
    old: Expr
    new: Expr
    scale: Fraction | None
    start: float = 0.0
    end: float = 1.0


@row("Upsample", kind="resize", since=7, notes="constant scales")
def upsample(n: Node) -> Value:
    """Resize by scales, asymmetric, nearest or linear."""
    x = n[0]
    given = n.attribute("scales") if n.opset < 9 else n.array(1, "scales").reshape(-1).tolist()
    axes = []
    for k, s in enumerate(given):
        scale = Fraction(float(s))
        axes.append(_Axis(k, x.shape[k], _scaled_size(n, x.shape[k], float(s)), scale))
    mode = n.attribute("mode", "nearest")
    return resize_axes(n, x, axes, "linear" if mode == "bilinear" else mode, "asymmetric", "floor")


def _scaled_size(n: Node, size: Expr, scale: float) -> Expr:
    fixed = E.int_value(size)
    if fixed is not None:
        return E.const(int(np.floor(np.float32(fixed) * np.float32(scale))))
    try:
        zero = Sym(size, 1, n.sizes)
        return (zero * zero.lift(float(scale))).floor().num
    except Undecided:
        raise n.refuse(
            f"scale {scale} of the symbolic size {size}",
            "use a scale like 2.0 or 0.5, or fixed sizes",
        ) from None


@row(
    "Resize",
    kind="resize",
    since=10,
    notes="sizes and scales must follow from constants and sizes; antialias needs fixed sizes",
)
def resize(n: Node) -> Value:
    """Resampled by nearest, linear or cubic interpolation, in every coordinate mode."""
    x = n[0]
    mode = n.attribute("mode", "nearest")
    if n.opset < 11:
        scales = n.array(1, "scales").reshape(-1)
        axes = [
            _Axis(k, x.shape[k], _scaled_size(n, x.shape[k], float(s)), Fraction(float(s)))
            for k, s in enumerate(scales)
        ]
        return resize_axes(n, x, axes, mode, "asymmetric", "floor")
    transform = n.attribute("coordinate_transformation_mode", "half_pixel")
    which = [n.normal_axis(int(a), x.rank) for a in n.attribute("axes") or range(x.rank)]
    region = n.optional(1)
    starts, ends = [0.0] * len(which), [1.0] * len(which)
    if transform == "tf_crop_and_resize" and region is not None:
        values = n.array(1, "roi").reshape(-1).tolist()
        starts, ends = values[: len(which)], values[len(which) :]
    sizes_given = n.optional(3)
    if sizes_given is not None and not _is_empty(sizes_given):
        axes = _by_sizes(n, x, which, starts, ends)
    else:
        scales = n.array(2, "scales").reshape(-1)
        axes = [
            _Axis(a, x.shape[a], _scaled_size(n, x.shape[a], float(s)), Fraction(float(s)), b, e)
            for a, s, b, e in zip(which, scales, starts, ends, strict=True)
        ]
    return resize_axes(
        n, x, axes, mode, transform, n.attribute("nearest_mode", "round_prefer_floor")
    )


def _is_empty(v: Value) -> bool:
    return any(E.int_value(s) == 0 for s in v.shape)


def _by_sizes(
    n: Node, x: Value, which: Sequence[int], starts: Sequence[float], ends: Sequence[float]
) -> list[_Axis]:
    sizes = n.integers(3, "sizes")
    policy = n.attribute("keep_aspect_ratio_policy", "stretch")
    common: Fraction | None = None
    if policy != "stretch":
        old = [n.fixed(x.shape[a], "a resized size") for a in which]
        ratios = [Fraction(n.fixed(s, "a new size"), o) for s, o in zip(sizes, old, strict=True)]
        common = min(ratios) if policy == "not_larger" else max(ratios)
        sizes = [E.const(int(np.floor(float(common * o) + 0.5))) for o in old]
    out = []
    for a, s, b, e in zip(which, sizes, starts, ends, strict=True):
        ratio = n.sizes.quotient(s, x.shape[a])
        scale: Fraction | None = None
        if ratio is not None and (r := E.int_value(ratio)) is not None:
            scale = Fraction(r)
        elif (inverse := n.sizes.quotient(x.shape[a], s)) is not None and (
            r := E.int_value(inverse)
        ) is not None:
            scale = Fraction(1, r)
        elif (old_size := E.int_value(x.shape[a])) is not None and (
            new_size := E.int_value(s)
        ) is not None:
            scale = Fraction(new_size, old_size)
        out.append(_Axis(a, x.shape[a], s, common if common is not None else scale, b, e))
    return out


def resize_axes(
    n: Node, x: Value, axes: Sequence[_Axis], mode: str, transform: str, nearest: str
) -> Value:
    """`x` resampled along the axes whose size or content changes."""
    active = [a for a in axes if not _is_identity(n, a, transform)]
    active = [
        a
        for a in active
        if not (n.sizes.same(a.old, E.const(1)) and transform != "tf_crop_and_resize")
    ] + [a for a in active if n.sizes.same(a.old, E.const(1)) and transform != "tf_crop_and_resize"]
    if not active:
        return x
    if mode == "nearest":
        return _nearest(n, x, active, transform, nearest)
    if mode not in ("linear", "cubic"):
        raise n.refuse(f"mode {mode!r}", "modes: nearest, linear, cubic")
    for k, a in enumerate(active):
        x = _weighted(n, x, a, mode, transform, "" if k == len(active) - 1 else f"axis{a.axis}")
    return x


def _is_identity(n: Node, a: _Axis, transform: str) -> bool:
    return (
        n.sizes.same(a.old, a.new)
        and (a.scale is None or a.scale == 1)
        and transform != "tf_crop_and_resize"
    )


# ---- nearest -------------------------------------------------------------------------------------


def _nearest(n: Node, x: Value, axes: Sequence[_Axis], transform: str, rounding: str) -> Value:
    shape = list(x.shape)
    tables: dict[int, Value] = {}
    for a in axes:
        shape[a.axis] = a.new
        if (
            E.int_value(a.old) is not None
            and E.int_value(a.new) is not None
            and _affine_nearest(n, a, transform, rounding, E.index("h")) is None
        ):
            tables[a.axis] = n.constant(_nearest_table(n, a, transform, rounding), f"at{a.axis}")
    fill: Expr | None = None
    outside: dict[int, Value] = {}
    if transform == "tf_crop_and_resize":
        fill = E.const(float(n.attribute("extrapolation_value", 0.0)), x.dtype)
        for a in axes:
            inside = _inside_table(n, a)
            if not inside.all():
                outside[a.axis] = n.constant(inside, f"inside{a.axis}")

    def body(*i: Expr) -> Expr:
        subs = list(i)
        for a in axes:
            if a.axis in tables:
                subs[a.axis] = position(tables[a.axis], [i[a.axis]], a.old)
            else:
                affine = _affine_nearest(n, a, transform, rounding, i[a.axis])
                subs[a.axis] = (
                    _symbolic_nearest(n, a, transform, rounding, i[a.axis])
                    if affine is None
                    else affine
                )
        e = x.at(*subs)
        for axis, inside in outside.items():
            assert fill is not None  # for the type checker: set together with `outside`
            e = E.select(inside.at(i[axis]), e, fill)
        return e

    names = "nchw" if x.rank == 4 else ""
    return n.define(shape, body, names)


def _affine_nearest(n: Node, a: _Axis, transform: str, rounding: str, h: Expr) -> Expr | None:
    """The source position of output `h` with // only, or None where there is no such form."""
    if a.scale is None or transform not in (
        "asymmetric",
        "half_pixel",
        "pytorch_half_pixel",
        "half_pixel_symmetric",
    ):
        return None
    p, q = a.scale.numerator, a.scale.denominator
    if p != 1 and q != 1:
        return None
    if transform != "asymmetric" and not n.sizes.same(a.old * p, a.new * q):
        return None
    if transform == "pytorch_half_pixel" and q > 1 and (E.int_value(a.new) or 1) == 1:
        return None  # the one element of a result is the first
    # position = top / bottom
    top, bottom = (h * q, p) if transform == "asymmetric" else (h * (2 * q) + (q - p), 2 * p)
    z = n.sizes
    match rounding:
        case "floor":
            e = z.floordiv(top, bottom)
        case "ceil":
            e = z.floordiv(top + (bottom - 1), bottom)
        case "round_prefer_floor":  # ceil(position - 1/2)
            e = z.floordiv(top * 2 + (bottom - 1), 2 * bottom)
        case "round_prefer_ceil":  # floor(position + 1/2)
            e = z.floordiv(top * 2 + bottom, 2 * bottom)
        case _:
            raise n.refuse(f"nearest_mode {rounding!r}")
    scale = float(a.scale)
    low = {"floor": 0.0, "ceil": 0.999, "round_prefer_floor": 0.499, "round_prefer_ceil": 0.5}[
        rounding
    ]
    shift = 0.0 if transform == "asymmetric" else 0.5
    first = shift / scale - shift + low  # position of the first output, rounded
    if np.floor(first) < 0:
        e = E.maximum(e, E.const(0))
    # The last position is old + (the first output's distance, mirrored); clamp unless it stays
    # inside.
    last = (1 - shift) / scale - (1 - shift)  # distance of the last sample from old - 1, downwards
    if -last + low >= 1 or not n.sizes.same(a.old * p, a.new * q):
        e = E.minimum(e, a.old - 1)
    return e


def _symbolic_nearest(n: Node, a: _Axis, transform: str, rounding: str, h: Expr) -> Expr:
    """The source position of output `h` between symbolic sizes, in exact arithmetic."""
    top, bottom = _ratio(n, a, transform, h)
    match rounding:
        case "floor":
            e = E.floordiv(top, bottom)
        case "ceil":
            e = E.floordiv(top + bottom - 1, bottom)
        case "round_prefer_floor":
            e = E.floordiv(top * 2 + bottom - 1, bottom * 2)
        case "round_prefer_ceil":
            e = E.floordiv(top * 2 + bottom, bottom * 2)
        case _:
            raise n.refuse(f"nearest_mode {rounding!r}")
    return E.maximum(E.minimum(e, a.old - 1), E.const(0))


def _ratio(n: Node, a: _Axis, transform: str, h: Expr) -> tuple[Expr, Expr]:
    """The source coordinate of output `h` as a quotient of integers; the divisor is positive."""
    old, new = (
        (a.old, a.new)
        if a.scale is None
        else (E.const(a.scale.denominator), E.const(a.scale.numerator))
    )
    match transform:
        case "asymmetric":
            return h * old, new
        case "half_pixel":
            return (h * 2 + 1) * old - new, new * 2
        case "pytorch_half_pixel":
            return E.select(
                E.compare("lt", E.const(1), a.new), (h * 2 + 1) * old - new, E.const(0)
            ), new * 2
        case "align_corners":
            return h * (a.old - 1), n.sizes.larger(a.new - 1, E.const(1))
    raise n.refuse(
        f"{transform} from the symbolic size {a.old} to {a.new}",
        "half_pixel, pytorch_half_pixel, asymmetric or align_corners, or fixed sizes",
    )


def _positions(n: Node, a: _Axis, transform: str) -> Array:
    """Source coordinates of every output position, in float32 steps as the standard writes them."""
    old, new = n.table(a.old, "a resized size"), n.table(a.new, "a new size")
    scale = float(a.scale) if a.scale is not None else new / old
    h = np.arange(new, dtype=np.float64)
    wide = scale * old  # the exact resized width
    match transform:
        case "asymmetric":
            return h / scale
        case "align_corners":
            return np.zeros(new) if wide == 1 or new == 1 else h * (old - 1) / (wide - 1)
        case "half_pixel":
            return (h + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (h + 0.5) / scale - 0.5 if wide > 1 else np.full(new, -0.5)
        case "half_pixel_symmetric":
            adjustment = new / wide
            centre = old / 2
            return centre * (1 - adjustment) + (h + 0.5) / scale - 0.5
        case "tf_half_pixel_for_nn":
            return (h + 0.5) / scale
        case "tf_crop_and_resize":
            if new == 1:
                return np.full(new, 0.5 * (a.start + a.end) * (old - 1))
            return a.start * (old - 1) + h * (a.end - a.start) * (old - 1) / (wide - 1)
    raise n.refuse(f"coordinate_transformation_mode {transform!r}")


def _nearest_table(n: Node, a: _Axis, transform: str, rounding: str) -> Array:
    at = _positions(n, a, transform)
    match rounding:
        case "floor":
            chosen = np.floor(at)
        case "ceil":
            chosen = np.ceil(at)
        case "round_prefer_floor":
            chosen = np.ceil(at - 0.5)
        case "round_prefer_ceil":
            chosen = np.floor(at + 0.5)
        case _:
            raise n.refuse(f"nearest_mode {rounding!r}")
    return np.clip(chosen, 0, n.fixed(a.old, "a resized size") - 1).astype(np.int64)


def _inside_table(n: Node, a: _Axis) -> Array:
    at = _positions(n, a, "tf_crop_and_resize")
    return (at >= 0) & (at <= n.fixed(a.old, "a resized size") - 1)


# ---- weighted ------------------------------------------------------------------------------------


def _weighted(n: Node, x: Value, a: _Axis, mode: str, transform: str, suffix: str) -> Value:
    shape = list(x.shape)
    shape[a.axis] = a.new
    wide = x.dtype.accumulator if x.dtype.is_float else F32
    names = "nchw" if x.rank == 4 else ""
    if E.int_value(a.old) is None or E.int_value(a.new) is None:
        if mode == "linear" and not n.attribute("antialias", 0):
            return _linear_symbolic(n, x, a, transform, shape, suffix)
        raise n.refuse(
            f"{mode} from the symbolic size {a.old}",
            "mode linear without antialias, or fixed sizes",
        )
    first, weights = _taps(n, a, mode, transform)
    count = weights.shape[1]
    old = n.fixed(a.old, "a resized size")
    at = np.clip(first[:, None] + np.arange(count)[None, :], 0, old - 1)
    inside = np.ones(len(first), bool)
    if transform == "tf_crop_and_resize":
        inside = _inside_table(n, a)
    rounded = weights.astype(wide.np)
    keep = n.constant(inside, f"inside{a.axis}") if not inside.all() else None
    fill = E.const(float(n.attribute("extrapolation_value", 0.0)), x.dtype)
    whole = not x.dtype.is_float

    def finish(e: Expr, i: Sequence[Expr]) -> Expr:
        if whole:
            info = np.iinfo(str(x.dtype.np))
            e = E.maximum(
                E.minimum(E.unary("trunc", e), E.const(float(info.max), wide)),
                E.const(float(info.min), wide),
            )
        e = E.cast(e, x.dtype)
        return e if keep is None else E.select(keep.at(i[a.axis]), e, fill)

    if count <= 2:
        tables = [n.constant(at[:, k].astype(np.int64), f"at{a.axis}") for k in range(count)]
        parts = [
            n.constant(np.ascontiguousarray(rounded[:, k]), f"weight{a.axis}") for k in range(count)
        ]

        def body(*i: Expr) -> Expr:
            total: Expr | None = None
            for table, part in zip(tables, parts, strict=True):
                subs = [position(table, [e], a.old) if k == a.axis else e for k, e in enumerate(i)]
                term = E.mul(E.cast(x.at(*subs), wide), part.at(i[a.axis]))
                total = term if total is None else E.add(total, term)
            assert total is not None  # for the type checker: there is a tap
            return finish(total, i)

        return n.define(shape, body, names, suffix)
    table, part = (
        n.constant(at.astype(np.int64), f"at{a.axis}"),
        n.constant(rounded, f"weight{a.axis}"),
    )

    def tap(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        subs = [table.at(e, r[0]) if k == a.axis else e for k, e in enumerate(i)]
        return E.mul(E.cast(x.at(*subs), wide), part.at(i[a.axis], r[0]))

    plain = wide is x.dtype and keep is None
    total = n.reduce(
        "sum",
        shape,
        [count],
        tap,
        names=names,
        over_names=("k",),
        suffix=suffix if plain else f"{suffix}_acc".strip("_"),
    )
    if plain:
        return total
    return n.define(shape, lambda *i: finish(total.at(*i), i), names, suffix)


def _taps(n: Node, a: _Axis, mode: str, transform: str) -> tuple[Array, Array]:
    """Per output position: the first source position, and the weights of it and its followers."""
    at = _positions(n, a, transform)
    old = n.fixed(a.old, "a resized size")
    scale = (
        min(float(a.scale) if a.scale is not None else len(at) / old, 1.0)
        if n.attribute("antialias", 0)
        else 1.0
    )
    coefficient = float(n.attribute("cubic_coeff_a", -0.75))
    radius = 1 if mode == "linear" else 2
    base = np.floor(at)
    if scale < 1.0:
        low = int(np.floor(-radius / scale)) + 1
        reach = 2 - 2 * low
        offsets = np.arange(low, low + reach)
    else:
        offsets = np.arange(1 - radius, 1 + radius)
    distance = (base[:, None] + offsets[None, :]) - at[:, None]
    weights = (
        _linear_kernel(distance * scale)
        if mode == "linear"
        else _cubic_kernel(distance * scale, coefficient)
    )
    first = base + offsets[0]
    if n.attribute("exclude_outside", 0) or scale < 1.0:
        outside = (first[:, None] + np.arange(len(offsets)) < 0) | (
            first[:, None] + np.arange(len(offsets)) >= old
        )
        if n.attribute("exclude_outside", 0):
            weights = np.where(outside, 0.0, weights)
    if scale < 1.0 or n.attribute("exclude_outside", 0):
        weights = weights / weights.sum(1, keepdims=True)
    return first.astype(np.int64), weights


def _linear_kernel(d: Array) -> Array:
    return np.asarray(np.maximum(1 - np.abs(d), 0))


def _cubic_kernel(d: Array, c: float) -> Array:
    d = np.abs(d)
    near = (c + 2) * d**3 - (c + 3) * d**2 + 1
    far = c * d**3 - 5 * c * d**2 + 8 * c * d - 4 * c
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _linear_symbolic(
    n: Node, x: Value, a: _Axis, transform: str, shape: Sequence[Expr], suffix: str
) -> Value:
    """Linear interpolation along a symbolic axis: position and weight come from the index."""
    wide = x.dtype.accumulator

    def f(e: Expr) -> Expr:
        return E.cast(e, wide)

    def c(v: float) -> Expr:
        return E.const(v, wide)

    def where(h: Expr) -> Expr:
        top, bottom = _ratio(n, a, transform, h)
        return E.binary("div", f(top), f(bottom))

    source = n.define([a.new], lambda h: E.maximum(where(h), c(0.0)), ("h",), f"source{a.axis}")
    lower = n.define(
        [a.new],
        lambda h: E.minimum(E.cast(E.unary("floor", source.at(h)), I64), a.old - 1),
        ("h",),
        f"lower{a.axis}",
    )
    part = n.define(
        [a.new],
        lambda h: E.sub(E.minimum(source.at(h), f(a.old - 1)), f(lower.at(h))),
        ("h",),
        f"part{a.axis}",
    )

    def body(*i: Expr) -> Expr:
        h = i[a.axis]
        low = lower.at(h)
        high = E.minimum(low + 1, a.old - 1)
        left = E.cast(x.at(*(low if k == a.axis else e for k, e in enumerate(i))), wide)
        right = E.cast(x.at(*(high if k == a.axis else e for k, e in enumerate(i))), wide)
        t = part.at(h)
        return E.cast(E.add(E.mul(left, E.sub(c(1.0), t)), E.mul(right, t)), x.dtype)

    return n.define(shape, body, "nchw" if x.rank == 4 else "", suffix)
