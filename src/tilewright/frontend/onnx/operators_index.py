"""Rows that index: gather, scatter, padding, one-hot, ranges, masks by position, blocks of pixels.

In: a node. Out: reads at computed subscripts, scatters. Invariants: indices counted from the end
are made positive in the subscript, unless they are known not to be negative; an arithmetic
progression of constant indices becomes affine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tilewright.frontend.onnx.folding import may_grow, tracked
from tilewright.frontend.onnx.table import folds, row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.operations.indexing import outside, position, reflected, scatter
from tilewright.frontend.sizes import Undecided
from tilewright.frontend.values import Array, Value, sizes_of
from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64
from tilewright.ir.expr import Expr

__all__: list[str] = []

_TABLE = 1 << 16  # elements of a range that becomes a constant


@row("Gather", kind="index")
def gather(n: Node) -> Value:
    """Slices along an axis, chosen by indices."""
    x, indices = n[0], n[1]
    axis = n.axis(x.rank, default=0)
    count = indices.rank
    orelse = outside(n, indices, [x.shape[axis]])

    def body(*i: Expr) -> Expr:
        at = i[axis : axis + count]
        chosen = position(indices, at, x.shape[axis])
        return x.at(*i[:axis], chosen, *i[axis + count :], orelse=orelse)

    return n.define([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]], body)


@folds("Gather")
def _fold_gather(n: Node, x: Array, indices: Array) -> Array:
    if indices.dtype == object:
        raise Undecided
    axis = n.axis(x.ndim, default=0)
    may_grow(x.size // max(x.shape[axis], 1) * indices.size, x.size + indices.size)
    try:
        return np.asarray(np.take(x, indices, axis))
    except IndexError as error:
        raise n.contradiction(str(error)) from error


@row("GatherElements", kind="index", since=11)
def gather_elements(n: Node) -> Value:
    """y[i, j] = x[indices[i, j], j] along an axis."""
    x, indices = n[0], n[1]
    axis = n.axis(x.rank, default=0)
    orelse = outside(n, indices, [x.shape[axis]])

    def body(*i: Expr) -> Expr:
        return x.at(
            *(position(indices, i, x.shape[axis]) if k == axis else e for k, e in enumerate(i)),
            orelse=orelse,
        )

    return n.define(indices.shape, body)


def _components(
    indices: Value, size: Sequence[Expr], lead: Sequence[Expr], count: int
) -> list[Expr]:
    return [position(indices, [*lead, E.const(k)], size[k]) for k in range(count)]


@row("GatherND", kind="index", since=11)
def gather_nd(n: Node) -> Value:
    """Slices at the positions that the last axis of indices holds."""
    x, indices = n[0], n[1]
    batch = int(n.attribute("batch_dims", 0))
    depth = n.fixed(indices.shape[-1], "the last axis of indices")
    lead = indices.shape[:-1]
    if batch < 0 or batch > len(lead) or batch + depth > x.rank:
        raise n.contradiction(f"{batch} batch axes and {depth} indexed axes of {x.rank}")
    orelse = outside(n, indices, x.shape[batch : batch + depth])

    def body(*i: Expr) -> Expr:
        chosen = _components(indices, x.shape[batch:], i[: len(lead)], depth)
        return x.at(*i[:batch], *chosen, *i[len(lead) :], orelse=orelse)

    return n.define([*lead, *x.shape[batch + depth :]], body)


# ---- scatter -------------------------------------------------------------------------------------


def _monoid(n: Node) -> str | None:
    name = n.attribute("reduction", "none")
    known = {"none": None, "add": "sum", "mul": "prod", "max": "max", "min": "min"}
    if name not in known:
        raise n.refuse(f"reduction {name!r}", f"reductions: {', '.join(known)}")
    return known[name]


@row("ScatterElements", kind="index", since=11)
@row("Scatter", kind="index", since=9)
def scatter_elements(n: Node) -> Value:
    """x with x[indices[i, j], j] combined with updates[i, j]; of several without a reduction the
    last wins.
    """
    x, indices, updates = n[0], n[1], n[2]
    axis = n.axis(x.rank, default=0)

    def place(*i: Expr) -> list[Expr]:
        return [position(indices, i, x.shape[axis]) if k == axis else e for k, e in enumerate(i)]

    return scatter(
        n,
        x.dtype,
        x.shape,
        indices.shape,
        _monoid(n),
        place,
        lambda *i: updates.at(*i),
        lambda *i: x.at(*i),
    )


@row("ScatterND", kind="index", since=11)
def scatter_nd(n: Node) -> Value:
    """x with slices combined with updates at the positions that the last axis of indices holds."""
    x, indices, updates = n[0], n[1], n[2]
    depth = n.fixed(indices.shape[-1], "the last axis of indices")
    lead = len(indices.shape) - 1

    def place(*i: Expr) -> list[Expr]:
        return [*_components(indices, x.shape, i[:lead], depth), *i[lead:]]

    source = [*indices.shape[:-1], *x.shape[depth:]]
    return scatter(
        n,
        x.dtype,
        x.shape,
        source,
        _monoid(n),
        place,
        lambda *i: updates.at(*i),
        lambda *i: x.at(*i),
    )


@row("TensorScatter", kind="index", since=24)
def tensor_scatter(n: Node) -> Value:
    """A cache with new entries written at per-batch positions along an axis."""
    x, updates, starts = n[0], n[1], n.optional(2)
    axis = n.axis(x.rank, default=-2)
    circular = n.attribute("mode", "linear") == "circular"

    def place(*i: Expr) -> list[Expr]:
        at = i[axis] if starts is None else i[axis] + E.cast(starts.at(i[0]), I64)
        return [
            (E.mod(at, x.shape[axis]) if circular else at) if k == axis else e
            for k, e in enumerate(i)
        ]

    return scatter(
        n,
        x.dtype,
        x.shape,
        updates.shape,
        None,
        place,
        lambda *i: updates.at(*i),
        lambda *i: x.at(*i),
    )


# ---- padding -------------------------------------------------------------------------------------


def _pads(n: Node, rank: int) -> tuple[list[Expr], list[Expr]]:
    if n.opset < 11:
        given = [E.const(int(p)) for p in n.attribute("pads") or n.attribute("paddings") or []]
        axes = list(range(rank))
    else:
        given = n.integers(1, "pads")
        axes = list(range(rank))
        if n.optional(3) is not None:
            axes = [n.normal_axis(n.fixed(e, "an axis"), rank) for e in n.integers(3, "axes")]
    if len(given) != 2 * len(axes):
        raise n.contradiction(f"{len(given)} pads for {len(axes)} axes")
    before, after = [E.const(0)] * rank, [E.const(0)] * rank
    for k, axis in enumerate(axes):
        before[axis], after[axis] = given[k], given[k + len(axes)]
    return before, after


@row("Pad", kind="index", since=2, notes="the amounts must follow from constants and sizes")
def pad(n: Node) -> Value:
    """Constant, reflected, edge or wrapped elements around a tensor; negative amounts cut."""
    x = n[0]
    mode = n.attribute("mode", "constant")
    before, after = _pads(n, x.rank)
    shape = [n.sizes.tidy(s + b + a) for s, b, a in zip(x.shape, before, after, strict=True)]
    if mode == "constant":
        fill: Expr = (
            E.const(n.attribute("value", 0.0), x.dtype) if n.opset < 11 else E.const(0, x.dtype)
        )
        value = n.optional(2) if n.opset >= 11 else None
        if value is not None:
            fill = value.at(*[0] * value.rank)
        grows = any(not _is_negative_or_zero(n, p) for p in (*before, *after))
        return n.define(
            shape,
            lambda *i: x.at(
                *(e - b for e, b in zip(i, before, strict=True)), orelse=fill if grows else None
            ),
        )
    if mode not in ("reflect", "edge", "wrap"):
        raise n.refuse(f"mode {mode!r}", "modes: constant, reflect, edge, wrap")

    def body(*i: Expr) -> Expr:
        subs = []
        for e, b, a, s in zip(i, before, after, x.shape, strict=True):
            inside = all(_is_negative_or_zero(n, p) for p in (b, a))
            subs.append(e - b if inside else reflected(n, mode, e - b, s))
        return x.at(*subs)

    return n.define(shape, body)


def _is_negative_or_zero(n: Node, p: Expr) -> bool:
    return n.sizes.bounds(p)[1] <= 0


@row(
    "CenterCropPad", kind="index", since=18, notes="the shape must follow from constants and sizes"
)
def center_crop_pad(n: Node) -> Value:
    """Axes cropped or zero-padded around their centre to given sizes."""
    x = n[0]
    wanted = n.integers(1, "shape")
    axes = [n.normal_axis(int(a), x.rank) for a in n.attribute("axes") or range(x.rank)]
    shape, offset = list(x.shape), [E.const(0)] * x.rank
    grows = False
    for axis, size in zip(axes, wanted, strict=True):
        old = x.shape[axis]
        shape[axis] = size
        if n.sizes.decide("le", size, old):
            offset[axis] = n.sizes.floordiv(old - size, 2)
        elif n.sizes.decide("le", old, size):
            offset[axis] = -n.sizes.floordiv(size - old, 2)
            grows = True
        else:
            raise n.refuse(f"whether {old} is cropped or padded to {size} depends on the sizes")
    return n.define(
        shape,
        lambda *i: x.at(
            *(e + o for e, o in zip(i, offset, strict=True)), orelse=0 if grows else None
        ),
    )


# ---- made from positions -------------------------------------------------------------------------


@row("OneHot", kind="index", since=9, notes="the depth must follow from constants and sizes")
def one_hot(n: Node) -> Value:
    """The on value where the new axis' position is the index, else the off value."""
    indices, values = n[0], n[2]
    depth = (
        n.integers(1, "depth")[0]
        if n[1].dtype.is_int
        else E.const(int(n.array(1, "depth").reshape(-1)[0]))
    )
    axis = n.axis(indices.rank + 1, default=-1)
    shape = [*indices.shape[:axis], depth, *indices.shape[axis:]]

    def body(*i: Expr) -> Expr:
        index = E.cast(indices.at(*i[:axis], *i[axis + 1 :]), I64)
        if indices.array is None or indices.array.min(initial=0) < 0:
            index = E.select(E.compare("lt", index, E.const(0)), index + depth, index)
        return E.select(
            E.compare("eq", index, i[axis]), values.at(E.const(1)), values.at(E.const(0))
        )

    return n.define(shape, body)


@row("Range", kind="index", since=11, notes="the bounds must follow from constants and sizes")
def range_(n: Node) -> Value:
    """start, start + delta, ... before limit."""
    dtype = n[0].dtype
    arrays = [n[k].array for k in range(3)]
    if all(a is not None for a in arrays):
        start, limit, delta = (np.asarray(a).reshape(-1)[0] for a in arrays)
        if not delta:
            raise n.contradiction("a step of 0")
        count = int(np.ceil((np.float64(limit) - np.float64(start)) / np.float64(delta)))
        count = max(count, 0)
        if count <= _TABLE:
            return n.constant((start + np.arange(count).astype(dtype.np) * delta).astype(dtype.np))
        first, by = E.const(start, dtype), E.const(delta, dtype)
        return n.define([count], lambda i: E.add(E.mul(E.cast(i, dtype), by), first))
    if not dtype.is_int:
        raise n.needed(next(k for k in range(3) if arrays[k] is None), "a floating bound")
    low, last, step = (n.integers(k, "a bound")[0] for k in range(3))
    stride = n.fixed(step, "delta")
    span = last - low if stride > 0 else low - last
    length = n.sizes.larger(n.sizes.floordiv(span + (abs(stride) - 1), abs(stride)), E.const(0))
    fixed = E.int_value(length)
    if fixed is not None and fixed <= 64:
        return tracked(n, [low + k * stride for k in range(fixed)], dtype)
    return n.define([length], lambda i: E.cast(i * stride + low, dtype))


@row("EyeLike", kind="index", since=9)
def eye_like(n: Node) -> Value:
    """1 on a diagonal, else 0."""
    dtype = (
        n.importer.element_type(int(n.attributes["dtype"]), n)
        if "dtype" in n.attributes
        else n[0].dtype
    )
    offset = int(n.attribute("k", 0))
    return n.define(
        n[0].shape,
        lambda i, j: E.select(E.compare("eq", j, i + offset), E.const(1, dtype), E.const(0, dtype)),
    )


@row("Trilu", kind="index", since=14)
def trilu(n: Node) -> Value:
    """The upper or lower triangle, zero elsewhere."""
    x, k = n[0], n.optional(1)
    upper = bool(n.attribute("upper", 1))

    def body(*i: Expr) -> Expr:
        offset = E.const(0) if k is None else E.cast(k.at(*[0] * k.rank), I64)
        diagonal = i[-2] + offset
        kept = E.compare("le", diagonal, i[-1]) if upper else E.compare("le", i[-1], diagonal)
        return E.select(kept, x.at(*i), E.const(0, x.dtype))

    return n.define(x.shape, body)


@row("ReverseSequence", kind="index", since=10)
def reverse_sequence(n: Node) -> Value:
    """The first lengths[b] elements of each sequence in reverse."""
    x, lengths = n[0], n[1]
    time, batch = n.axis(x.rank, "time_axis", 0), n.axis(x.rank, "batch_axis", 1)
    if time == batch:
        raise n.contradiction(f"time_axis and batch_axis are both {time}")

    def body(*i: Expr) -> Expr:
        length = E.minimum(E.cast(lengths.at(i[batch]), I64), x.shape[time])
        turned = E.select(E.compare("lt", i[time], length), length - 1 - i[time], i[time])
        return x.at(*(turned if k == time else e for k, e in enumerate(i)))

    return n.define(x.shape, body)


# ---- blocks of pixels ----------------------------------------------------------------------------


@row("DepthToSpace", kind="index")
def depth_to_space(n: Node) -> Value:
    """Channels into b x b blocks of pixels, in DCR or CRD order."""
    x = n[0]
    b = n.count("blocksize")
    depth = n.divide(x.shape[1], E.const(b * b), "channels in blocks")
    crd = n.attribute("mode", "DCR") == "CRD"

    def body(m: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
        block = E.mod(h, E.const(b)) * b + E.mod(w, E.const(b))
        channel = c * (b * b) + block if crd else block * depth + c
        return x.at(m, channel, E.floordiv(h, E.const(b)), E.floordiv(w, E.const(b)))

    return n.define([x.shape[0], depth, x.shape[2] * b, x.shape[3] * b], body, "nchw")


@row("SpaceToDepth", kind="index")
def space_to_depth(n: Node) -> Value:
    """b x b blocks of pixels into channels, in DCR or CRD order."""
    x = n[0]
    b = n.count("blocksize")
    crd = n.attribute("mode", "DCR") == "CRD"
    height, width = (n.divide(x.shape[k], E.const(b), "pixels in blocks") for k in (2, 3))

    def body(m: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
        block = E.mod(c, E.const(b * b)) if crd else E.floordiv(c, x.shape[1])
        channel = E.floordiv(c, E.const(b * b)) if crd else E.mod(c, x.shape[1])
        across = E.mod(block, E.const(b))
        down = E.floordiv(block, E.const(b))
        return x.at(m, channel, h * b + down, w * b + across)

    return n.define([x.shape[0], x.shape[1] * (b * b), height, width], body, "nchw")


@row("Col2Im", kind="index", since=18, notes="image and block shapes are constant")
def col2im(n: Node) -> Value:
    """Overlapping blocks added up into an image."""
    x = n[0]
    image = [n.fixed(e, "the image's shape") for e in n.integers(1, "image_shape")]
    block = [n.fixed(e, "the block's shape") for e in n.integers(2, "block_shape")]
    count = len(image)
    strides = n.counts("strides", count)
    dilations = n.counts("dilations", count)
    pads = [int(s) for s in n.attribute("pads") or [0] * (2 * count)]
    steps = [
        (image[k] + pads[k] + pads[k + count] - ((block[k] - 1) * dilations[k] + 1)) // strides[k]
        + 1
        for k in range(count)
    ]
    volume = math.prod(map(int, block))
    channels = n.divide(x.shape[1], E.const(volume), "columns in blocks")
    n.equal(x.shape[2], E.const(math.prod(map(int, steps))), "the number of blocks")
    source = [x.shape[0], channels, *sizes_of(block), *sizes_of(steps)]

    def place(*i: Expr) -> list[Expr]:
        k, at = i[2 : 2 + count], i[2 + count :]
        return [
            *i[:2],
            *(
                p * s + q * d - b
                for p, q, s, d, b in zip(at, k, strides, dilations, pads, strict=False)
            ),
        ]

    def body(*i: Expr) -> Expr:
        row_, column = E.const(0), E.const(0)
        for e, b in zip(i[2 : 2 + count], block, strict=True):
            row_ = row_ * b + e
        for e, s in zip(i[2 + count :], steps, strict=True):
            column = column * s + e
        return E.cast(x.at(i[0], i[1] * volume + row_, column), wide)

    wide = x.dtype.accumulator
    y = scatter(
        n,
        wide,
        [x.shape[0], channels, *sizes_of(image)],
        source,
        "sum",
        place,
        body,
        lambda *i: E.const(0, wide),
        "" if wide is x.dtype else "acc",
    )
    return n.cast(y, x.dtype)
