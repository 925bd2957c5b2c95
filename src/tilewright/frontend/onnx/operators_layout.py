"""Rows that move data: reshapes, transposes, slices, joins, padding.

In: a node. Out: definitions whose subscripts are quasi-affine. Invariant: axes that an operator
leaves alone are read with a plain index; only regrouped axes use // and %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.frontend.onnx.folding import as_objects, may_grow, tracked
from tilewright.frontend.onnx.table import folds, row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.operations.layouts import reshape_to
from tilewright.frontend.sizes import Undecided
from tilewright.frontend.values import Array, Value
from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64
from tilewright.ir.expr import Expr

__all__: list[str] = []


# ---- reshape -------------------------------------------------------------------------------------


def _target_shape(n: Node, x: Value, asked: Sequence[Expr]) -> list[Expr]:
    allow_zero = n.attribute("allowzero", 0)
    shape: list[Expr | None] = []
    for k, e in enumerate(asked):
        value = E.int_value(e)
        if value == 0 and not allow_zero:
            if k >= x.rank:
                raise n.contradiction(
                    f"size 0 at {k} copies an axis that rank {x.rank} does not have"
                )
            shape.append(x.shape[k])
        elif value == -1:
            shape.append(None)
        elif n.sizes.low(e) < 0 and n.sizes.bounds(e)[1] < 0:
            raise n.contradiction(f"size {e}")
        else:
            shape.append(e)
    total = n.sizes.product(x.shape)
    known = n.sizes.product(s for s in shape if s is not None)
    if None not in shape:
        if not n.sizes.require_equal(total, known):
            raise n.contradiction(f"{total} elements do not fit [{', '.join(map(str, shape))}]")
        return [s for s in shape if s is not None]
    if shape.count(None) > 1:
        raise n.contradiction("more than one size is -1")
    if E.int_value(known) == 0:
        missing: Expr | None = E.const(0)
    else:
        missing = n.sizes.quotient(total, known)
    if missing is None:  # take out equal factors one by one, then let a fact about the dims decide
        rest = list(x.shape)
        left = []
        for s in (s for s in shape if s is not None):
            match = next((r for r in rest if n.sizes.same(r, s)), None)
            if match is None:
                left.append(s)
            else:
                rest.remove(match)
        total, known = n.sizes.product(rest), n.sizes.product(left)
        missing = n.sizes.quotient(total, known)
        if missing is None and E.int_value(known) is None:
            raise n.refuse(
                f"the size -1 would be ({total}) / ({known})", "export the model with fixed sizes"
            )
        if missing is None:
            missing = n.divide(total, known, "elements for the size -1")
    return [missing if s is None else s for s in shape]


@row("Reshape", kind="layout", since=5, notes="the shape must follow from constants and sizes")
def reshape(n: Node) -> Value:
    """The elements in order, in another shape."""
    return reshape_to(n, n[0], _target_shape(n, n[0], n.integers(1, "shape")))


@folds("Reshape")
def _fold_reshape(n: Node, x: Array, shape: Array) -> Array:
    if shape.dtype == object:
        raise Undecided
    target = [int(s) for s in shape.reshape(-1)]
    if not n.attribute("allowzero", 0):
        target = [x.shape[k] if s == 0 else s for k, s in enumerate(target)]
    try:
        return x.reshape(target)
    except ValueError as error:
        raise n.contradiction(str(error)) from error


@row("Flatten", kind="layout")
def flatten(n: Node) -> Value:
    """Axes before `axis` as one, the others as another."""
    x = n[0]
    axis = int(n.attribute("axis", 1))
    axis = axis + x.rank if axis < 0 else axis
    return reshape_to(n, x, [n.sizes.product(x.shape[:axis]), n.sizes.product(x.shape[axis:])])


@folds("Flatten")
def _fold_flatten(n: Node, x: Array) -> Array:
    axis = int(n.attribute("axis", 1))
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _axes_of(n: Node, rank: int, k: int = 1) -> list[int] | None:
    """Axes from an attribute (older opsets) or from input k; None where they are not given."""
    if n.optional(k) is not None:
        given: Any = [n.fixed(e, "an axis") for e in n.integers(k, "axes")]
    else:
        given = n.attribute("axes")
    return None if given is None else [n.normal_axis(int(a), rank) for a in given]


@row("Squeeze", kind="layout")
def squeeze(n: Node) -> Value:
    """Without axes of size 1."""
    x = n[0]
    axes = _axes_of(n, x.rank)
    if axes is None:
        axes = [k for k, s in enumerate(x.shape) if E.int_value(s) == 1]
    for k in axes:
        n.equal(x.shape[k], E.const(1), f"squeezed axis {k}")
    kept = [k for k in range(x.rank) if k not in axes]

    def body(*i: Expr) -> Expr:
        at = dict(zip(kept, i, strict=True))
        return x.at(*(at.get(k, E.const(0)) for k in range(x.rank)))

    return n.define([x.shape[k] for k in kept], body)


@folds("Squeeze")
def _fold_squeeze(n: Node, x: Array, *_: Array) -> Array:
    axes = _axes_of(n, x.ndim)
    return np.asarray(np.squeeze(x, None if axes is None else tuple(axes)))


@row("Unsqueeze", kind="layout")
def unsqueeze(n: Node) -> Value:
    """With new axes of size 1."""
    x = n[0]
    given = len(n.attribute("axes") or n.integers(1, "axes"))
    axes = _axes_of(n, x.rank + given) or []
    if len(set(axes)) != len(axes):
        raise n.contradiction("an axis is inserted twice")
    old = iter(x.shape)
    shape = [E.const(1) if k in axes else next(old) for k in range(x.rank + len(axes))]
    return n.define(shape, lambda *i: x.at(*(e for k, e in enumerate(i) if k not in axes)))


@folds("Unsqueeze")
def _fold_unsqueeze(n: Node, x: Array, *_: Array) -> Array:
    given = len(n.attribute("axes") or n.integers(1, "axes"))
    return np.expand_dims(x, tuple(_axes_of(n, x.ndim + given) or ()))


@row("Transpose", kind="layout")
def transpose(n: Node) -> Value:
    """Axes in another order."""
    x = n[0]
    order = [int(p) for p in n.attribute("perm") or range(x.rank - 1, -1, -1)]
    if sorted(order) != list(range(x.rank)):
        raise n.contradiction(f"perm {order} is no order of {x.rank} axes")
    back = [order.index(k) for k in range(x.rank)]
    return n.define([x.shape[k] for k in order], lambda *i: x.at(*(i[b] for b in back)))


@folds("Transpose")
def _fold_transpose(n: Node, x: Array) -> Array:
    return np.asarray(np.transpose(x, n.attribute("perm")), order="C")


# ---- joins and parts -----------------------------------------------------------------------------


@row("Concat", kind="layout", since=4)
def concat(n: Node) -> Value:
    """Tensors one after the other along an axis."""
    parts = [v for v in n.inputs if v is not None]
    rank = parts[0].rank
    axis = n.axis(rank)
    if any(p.rank != rank for p in parts):
        raise n.contradiction("tensors of different ranks")
    shape = list(parts[0].shape)
    for p in parts[1:]:
        for k in range(rank):
            if k != axis:
                shape[k] = n.equal(shape[k], p.shape[k], f"axis {k}")
    parts = [p for p in parts if E.int_value(p.shape[axis]) != 0] or parts[:1]
    starts = [E.const(0)]
    for p in parts:
        starts.append(starts[-1] + p.shape[axis])
    shape[axis] = starts[-1]

    def body(*i: Expr) -> Expr:
        e: Expr | None = None
        for p, start, end in reversed(list(zip(parts, starts[:-1], starts[1:], strict=True))):
            part = p.at(*(s - start if k == axis else s for k, s in enumerate(i)))
            e = part if e is None else E.select(E.compare("lt", i[axis], end), part, e)
        assert e is not None  # for the type checker: there is at least one part
        return e

    return n.define(shape, body)


@folds("Concat")
def _fold_concat(n: Node, *parts: Array) -> Array:
    objects = any(p.dtype == object for p in parts)
    if objects:
        parts = tuple(as_objects(v, n.sizes) for v in n.inputs if v is not None)
    return np.concatenate(parts, n.axis(parts[0].ndim))


def _split_sizes(n: Node, size: Expr, outputs: int) -> list[Expr]:
    if n.optional(1) is not None:
        return n.integers(1, "split")
    if n.attribute("split") is not None:
        return [E.const(int(s)) for s in n.attribute("split")]
    count = int(n.attribute("num_outputs", outputs))
    if count != outputs:
        raise n.contradiction(f"{count} parts for {outputs} outputs")
    chunk = n.sizes.quotient(size, E.const(count))
    if chunk is not None:
        return [chunk] * count
    if E.int_value(size) is None or n.opset < 18:
        return [n.divide(size, E.const(count), "equal parts")] * count
    whole = n.fixed(size, "size")
    part_size = -(-whole // count)
    return [E.const(max(0, min(part_size, whole - k * part_size))) for k in range(count)]


@row("Split", kind="layout", since=2)
def split(n: Node) -> list[Value | None]:
    """Parts along an axis."""
    x = n[0]
    axis = n.axis(x.rank, default=0)
    parts = _split_sizes(n, x.shape[axis], len(n.outputs))
    total = E.const(0)
    for p in parts:
        total = total + p
    n.equal(total, x.shape[axis], "the parts' sizes add up")
    out: list[Value | None] = []
    start = E.const(0)
    for k, size in enumerate(parts):
        if n.has_output(k):
            shape = [size if d == axis else s for d, s in enumerate(x.shape)]
            out.append(_part(n, x, shape, axis, start, n.outputs[k]))
        else:
            out.append(None)
        start = start + size
    return out


def _part(n: Node, x: Value, shape: Sequence[Expr], axis: int, start: Expr, name: str) -> Value:
    axes = n.axes(shape)
    e = x.at(*(a.index + start if k == axis else a.index for k, a in enumerate(axes)))
    return n.value(n.builder.define(n.importer.display_name(name), axes, e))


@folds("Split")
def _fold_split(n: Node, x: Array, *_: Array) -> list[Array]:
    axis = n.axis(x.ndim, default=0)
    sizes = [n.fixed(e, "a part") for e in _split_sizes(n, E.const(x.shape[axis]), len(n.outputs))]
    return list(np.split(x, np.cumsum(sizes)[:-1], axis))


# A slice that starts this near to an end is taken to mean that so many elements are there; the
# range of the size is narrowed accordingly.
_SMALL = 16
_FAR = 10**9  # exporters write "to the end" as this or more


def _slice_bounds(n: Node, size: Expr, start: Expr, end: Expr, step: int) -> tuple[Expr, Expr]:
    """First subscript and number of elements of one sliced axis."""
    z = n.sizes
    zero = E.const(0)

    def clamp(e: Expr, low: Expr, high: Expr, starts: bool = False) -> Expr:
        value = E.int_value(e)
        if value is not None and value < 0:
            if value <= -_FAR:
                return low
            e = size + value
            if value >= -_SMALL:
                z.require_at_least(size, -value)
        elif value is not None:
            if value >= _FAR:
                return high
            if value <= 1 or (starts and value <= _SMALL):
                z.require_at_least(size, value)
        elif z.low(e) < 0:
            if z.bounds(e)[1] < 0:
                e = size + e
            elif z.decide("le", zero, e) is None and not z.same(e, size):
                raise n.refuse(f"a bound {e} that may be negative")
        return z.larger(z.smaller(e, high), low)

    if step > 0:
        first, last = clamp(start, zero, size, True), clamp(end, zero, size)
        length = last - first
    else:
        first, last = clamp(start, E.const(-1), size - 1), clamp(end, E.const(-1), size - 1)
        if (E.int_value(end) or 0) <= -_FAR:
            last = E.const(-1)
        length = first - last
    count = z.floordiv(length + (abs(step) - 1), abs(step))
    return first, z.tidy(z.larger(count, zero))


def _slice_by_values(n: Node) -> Value:
    """A slice whose bounds only the run gives: its sizes are those values'."""
    x, starts, ends = n[0], n[1], n[2]
    count = n.fixed(starts.shape[0], "the number of starts")
    axes = list(range(count))
    if n.optional(3) is not None:
        axes = [n.normal_axis(n.fixed(e, "an axis"), x.rank) for e in n.integers(3, "axes")]
    steps = [1] * count
    if n.optional(4) is not None:
        steps = [n.fixed(e, "a step") for e in n.integers(4, "steps")]
    if not len(axes) == len(steps) == count or 0 in steps or len(set(axes)) < count:
        raise n.contradiction("starts, ends, axes and steps do not fit each other")
    first: list[Expr] = [E.const(0)] * x.rank
    strides, shape = [1] * x.rank, list(x.shape)
    for k, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        size, back = x.shape[axis], step < 0
        low, high = (E.const(-1), size - 1) if back else (E.const(0), size)

        def bound(
            v: Value, k: int = k, size: Expr = size, low: Expr = low, high: Expr = high
        ) -> Expr:
            e = E.cast(v.at(k), I64)
            e = E.select(E.compare("lt", e, E.const(0)), e + size, e)
            return E.maximum(E.minimum(e, high), low)

        start = n.define((), lambda: bound(starts), suffix=f"start{k}")
        end = n.define((), lambda: bound(ends), suffix=f"end{k}")
        length = start.at() - end.at() if back else end.at() - start.at()
        length = E.maximum(E.floordiv(length + (abs(step) - 1), E.const(abs(step))), E.const(0))
        number = n.define((), lambda length=length: length, suffix=f"count{k}")
        most = E.floordiv(size + (abs(step) - 1), E.const(abs(step)))
        shape[axis] = n.importer.new_size(f"{n.hint}_d{axis}", number, most)
        first[axis], strides[axis] = start.at(), step
    return n.define(
        shape, lambda *i: x.at(*(f + e * s for f, e, s in zip(first, i, strides, strict=True)))
    )


@row("Slice", kind="layout", notes="axes and steps must follow from constants")
def slice_(n: Node) -> Value:
    """Evenly spaced parts of axes."""
    x = n[0]
    if n.opset >= 10 and (n[1].known is None or n[2].known is None):
        return _slice_by_values(n)
    first, shape = [E.const(0)] * x.rank, list(x.shape)
    steps = [1] * x.rank
    for axis, start, end, step in _slice_plan(n, x.rank):
        steps[axis] = step
        first[axis], shape[axis] = _slice_bounds(n, x.shape[axis], start, end, step)
    return n.define(
        shape, lambda *i: x.at(*(f + e * s for f, e, s in zip(first, i, steps, strict=True)))
    )


def _slice_plan(n: Node, rank: int) -> list[tuple[int, Expr, Expr, int]]:
    if n.opset < 10:
        starts = [E.const(int(v)) for v in n.required("starts")]
        ends = [E.const(int(v)) for v in n.required("ends")]
        axes = n.attribute("axes")
        steps = None
    else:
        starts, ends = n.integers(1, "starts"), n.integers(2, "ends")
        axes = (
            [n.fixed(e, "an axis") for e in n.integers(3, "axes")]
            if n.optional(3) is not None
            else None
        )
        steps = (
            [n.fixed(e, "a step") for e in n.integers(4, "steps")]
            if n.optional(4) is not None
            else None
        )
    if axes is None:
        axes = list(range(len(starts)))
    if steps is None:
        steps = [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise n.contradiction("starts, ends, axes and steps of different lengths")
    if 0 in steps:
        raise n.contradiction("a step of 0")
    return [
        (n.normal_axis(int(a), rank), s, e, t)
        for a, s, e, t in zip(axes, starts, ends, steps, strict=True)
    ]


@folds("Slice")
def _fold_slice(n: Node, x: Array, *_: Array) -> Array:
    cut: list[Any] = [slice(None)] * x.ndim
    for axis, start, end, step in _slice_plan(n, x.ndim):
        a, b = E.int_value(start), E.int_value(end)
        if a is None or b is None:
            raise Undecided
        size = x.shape[axis]
        if step < 0 and b < -size:
            cut[axis] = slice(a, None, step)
        else:
            cut[axis] = slice(a, b, step)
    return np.asarray(x[tuple(cut)], order="C")


# ---- copies of parts -----------------------------------------------------------------------------


@row("Tile", kind="layout", since=6, notes="repeats must follow from constants and sizes")
def tile(n: Node) -> Value:
    """Repeated along axes."""
    x = n[0]
    repeats = n.integers(1, "repeats")
    if len(repeats) != x.rank:
        raise n.contradiction(f"{len(repeats)} repeats for rank {x.rank}")

    def body(*i: Expr) -> Expr:
        subs = []
        for e, r, s in zip(i, repeats, x.shape, strict=True):
            subs.append(
                e if E.int_value(r) == 1 else E.const(0) if E.int_value(s) == 1 else E.mod(e, s)
            )
        return x.at(*subs)

    return n.define([s * r for s, r in zip(x.shape, repeats, strict=True)], body)


@folds("Tile")
def _fold_tile(n: Node, x: Array, repeats: Array) -> Array:
    if repeats.dtype == object:
        raise Undecided
    may_grow(x.size * math.prod(map(int, repeats)), x.size)
    return np.tile(x, repeats.tolist())


@row("Expand", kind="layout", since=8, notes="the shape must follow from constants and sizes")
def expand(n: Node) -> Value:
    """Broadcast to a shape."""
    x = n[0]
    shape = n.broadcast(x.shape, n.integers(1, "shape"))
    return n.define(shape, lambda *i: x.aligned(i))


@folds("Expand")
def _fold_expand(n: Node, x: Array, shape: Array) -> Array:
    if shape.dtype == object:
        raise Undecided
    target = np.broadcast_shapes(x.shape, tuple(int(s) for s in shape))
    may_grow(math.prod(map(int, target)), x.size)
    return np.asarray(np.broadcast_to(x, target), order="C")


@row("Shape", kind="layout")
def shape_(n: Node) -> Value:
    """The sizes as a tensor."""
    rank = n[0].rank
    start, end = (
        min(max(v + rank if v < 0 else v, 0), rank)
        for v in (int(n.attribute("start", 0)), int(n.attribute("end", rank)))
    )
    return tracked(n, n[0].shape[start:end], I64)


@row("Size", kind="layout")
def size_(n: Node) -> Value:
    """The number of elements as a scalar."""
    value = tracked(n, [n.sizes.product(n[0].shape)], I64)
    assert value.known is not None  # for the type checker: `tracked` gives contents
    return Value(n.builder, I64, (), known=value.known.reshape(()), hint=n.hint)


@row("Constant", kind="layout", notes="no strings, no sparse tensors")
def constant(n: Node) -> Value:
    """The tensor of an attribute."""
    for key, dtype in (
        ("value_int", np.int64),
        ("value_ints", np.int64),
        ("value_float", np.float32),
        ("value_floats", np.float32),
    ):
        if key in n.attributes:
            return n.constant(np.asarray(n.attributes[key], dtype), "")
    if "value" not in n.attributes:
        raise n.refuse(f"a constant given as {', '.join(n.attributes) or 'nothing'}")
    array: Array = n.attributes["value"]
    return n.constant(array, "")


@row(
    "ConstantOfShape",
    kind="layout",
    since=9,
    notes="the shape must follow from constants and sizes",
)
def constant_of_shape(n: Node) -> Value:
    """A tensor of one value."""
    fill = np.asarray(n.attribute("value", np.zeros(1, np.float32))).reshape(-1)[0]
    shape = n.integers(0, "shape")
    fixed = [E.int_value(s) for s in shape]
    if all(f is not None for f in fixed) and math.prod(f or 0 for f in fixed) <= 1 << 16:
        return n.constant(np.full([f or 0 for f in fixed], fill))
    scalar = n.constant(fill)
    return n.define(shape, lambda *i: scalar.at())


@row("Identity", kind="layout")
def identity(n: Node) -> Value:
    """The input itself; nothing is copied."""
    return n[0]


@row("Dropout", kind="layout", since=7, notes="inference only; the mask is all true")
def dropout(n: Node) -> list[Value | None]:
    """The input (inference)."""
    training = n.optional(2)
    if training is not None and (training.array is None or bool(training.array.reshape(-1)[0])):
        ratio = n.optional(1)
        if ratio is None or ratio.array is None or float(ratio.array.reshape(-1)[0]) != 0.0:
            raise n.refuse("training mode")
    mask = None
    if n.has_output(1):
        true = n.constant(np.asarray(True), "true")
        mask = n.define(n[0].shape, lambda *i: true.at(), suffix="mask")
    return [n[0], mask]
