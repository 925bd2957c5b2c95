"""NumPy meanings of `extern` functions: algorithms that are no sum over an index.

In: arrays and attributes of an `Extern`. Out: one array, or a tuple of arrays, per result.
Invariants: no effects; NaN sorts last, or first where that is asked; among equals the lowest index
comes first; sizes of results that depend on the data are bound to the dims that the results are
declared with.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from tilewright.errors import UserError
from tilewright.ir.dtypes import DTYPES

__all__ = ["EXTERNS", "INTO", "ORDERS", "SELECTIONS", "descending_order"]

Array = np.ndarray[Any, np.dtype[Any]]
_AT_ONCE = 1 << 15  # elements whose numbers stay in a cache while they are sorted
_MOST_AT_ONCE = 1 << 20  # elements of rows that are sorted without positions in one call


def descending_order(x: Array, axis: int) -> Array:
    """Positions that sort `x` downwards along an axis: stable, NaN last."""
    if x.dtype.kind in "biu":
        return np.argsort(~x, axis, kind="stable")
    return np.argsort(-x, axis, kind="stable")


def _ranked(x: Array, descending: bool, nan_first: bool) -> Array | None:
    """One unsigned number for each element along the last axis: in its upper half what orders the
    values (NaN last, or first), in its lower half the position. Numbers differ, so no sort must be
    stable; None where value and position are too wide for 64 bits.
    """
    if x.dtype.itemsize > 4 or x.shape[-1] >= 1 << 32:
        return None
    if x.dtype.kind in "bu":
        key = x.astype(np.uint32)
    elif x.dtype.kind == "i":
        key = x.astype(np.int32).view(np.uint32) ^ np.uint32(1 << 31)
    else:
        wide = x.astype(np.float32) + np.float32(0)  # -0 equals 0
        bits = wide.view(np.int32)
        # Positive numbers order as their bits do, negative ones the other way round.
        key = bits.view(np.uint32) ^ ((bits >> 31).view(np.uint32) | np.uint32(1 << 31))
    key = ~key if descending else key
    if x.dtype.kind not in "biu":
        key[wide != wide] = 0 if nan_first else 0xFFFFFFFF
    return (key.astype(np.uint64) << np.uint64(32)) | np.arange(x.shape[-1], dtype=np.uint64)


def _leading(
    x: Array, k: int, axis: int, descending: bool, nan_first: bool = False
) -> tuple[Array, Array]:
    """The first k values along an axis in order, and their positions (i64)."""
    x = np.ascontiguousarray(np.moveaxis(x, axis, -1))
    rows = x.reshape(-1, x.shape[-1]) if x.size else x.reshape(prod(x.shape[:-1]), x.shape[-1])
    order = np.empty((len(rows), k), np.int64)
    step = max(1, _AT_ONCE // max(1, x.shape[-1]))
    for at in range(0, len(rows), step):
        order[at : at + step] = _positions(rows[at : at + step], k, descending, nan_first)
    values = np.take_along_axis(rows, order, -1)
    shape = (*x.shape[:-1], k)
    return tuple(np.moveaxis(y.reshape(shape), -1, axis) for y in (values, order))  # type: ignore[return-value]


def _positions(x: Array, k: int, descending: bool, nan_first: bool) -> Array:
    ranked = _ranked(x, descending, nan_first)
    if ranked is None:
        if nan_first and x.dtype.kind == "f":
            order = np.lexsort((-x if descending else x, ~np.isnan(x)), -1)
        else:
            order = descending_order(x, -1) if descending else np.argsort(x, -1, kind="stable")
        return order[..., :k]
    if 0 < k < x.shape[-1]:
        ranked = np.partition(ranked, k - 1, -1)
    return np.sort(ranked[..., :k], -1) & np.uint64(0xFFFFFFFF)


def sort(x: Array, *, axis: int = -1, descending: bool = False) -> tuple[Array, Array]:
    """Sorted values and their positions (i64)."""
    return _leading(x, x.shape[axis], axis, descending)


def topk(
    x: Array,
    count: Array | None = None,
    *,
    axis: int = -1,
    k: int = -1,
    largest: bool = True,
    nan_first: bool = False,
) -> tuple[Array, Array]:
    """The k largest (or smallest) values along an axis, in order, and their positions (i64);
    `count` overrides k. nan_first: NaN comes before all numbers.
    """
    if count is not None:
        k = int(np.asarray(count).reshape(-1)[0])
    if not 0 <= k <= x.shape[axis]:
        raise UserError("R004", f"top-k of {k} of {x.shape[axis]} elements", where="extern topk")
    return _leading(x, k, axis, largest, nan_first)


def ordered(
    x: Array, *, axis: int = -1, k: int = -1, descending: bool = False, nan_first: bool = False
) -> Array:
    """The first k values along an axis in order (-1: all), without their positions."""
    shape = list(x.shape)
    shape[axis] = k if k >= 0 else shape[axis]
    out = np.empty(shape, x.dtype)
    ordered_into(x, out, axis=axis, k=k, descending=descending, nan_first=nan_first)
    return out


def ordered_into(
    x: Array,
    out: Array,
    *,
    axis: int = -1,
    k: int = -1,
    descending: bool = False,
    nan_first: bool = False,
) -> None:
    """`ordered`, written into `out`.

    Values alone may be sorted by any algorithm, in vectors, as long as equal ones have equal bits:
    in rows where -0 occurs, or NaN does not belong to the end of a rising order, positions count.
    """
    axis %= x.ndim
    if axis < x.ndim - 1 or not x.flags.c_contiguous or not out.flags.c_contiguous:
        source = np.ascontiguousarray(np.moveaxis(x, axis, -1))
        found = ordered(source, k=k, descending=descending, nan_first=nan_first)
        out[...] = np.moveaxis(found, -1, axis)
        return
    n = x.shape[-1]
    k = n if k < 0 else k
    if not out.size:
        return
    rows, found = x.reshape(-1, n), out.reshape(-1, k)
    step = max(1, _MOST_AT_ONCE // n)
    for at in range(0, len(rows), step):
        part, into = rows[at : at + step], found[at : at + step]
        into[...] = part if k == n else _chosen(_wide(part), k, descending)
        wide = _wide(into)
        wide.sort(-1)
        if wide is not into:
            into[...] = wide
        if descending:
            into[...] = into[:, ::-1].copy()
        slow = _with_twins(part, descending or nan_first)
        if slow.size:
            into[slow] = _leading(part[slow], k, -1, descending, nan_first)[0]


def _wide(x: Array) -> Array:
    """16-bit floats as f32, in which they are sorted faster."""
    return x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x


def _chosen(x: Array, k: int, largest: bool) -> Array:
    """The k values that come first, in any order."""
    n = x.shape[-1]
    return np.partition(x, n - k, -1)[:, n - k :] if largest else np.partition(x, k - 1, -1)[:, :k]


def _with_twins(x: Array, nan: bool) -> Array:
    """Rows that hold -0 (the smallest integer by its bits), or a NaN where that is asked."""
    rows = np.zeros(len(x), np.bool_)
    if x.dtype.kind not in "biu":
        least = np.iinfo(f"i{x.dtype.itemsize}").min
        bits = x.view(f"i{x.dtype.itemsize}")
        if bits.min() == least:
            rows |= (bits == least).any(-1)
        if nan and np.isnan(x.min()):
            rows |= np.isnan(x).any(-1)
    return np.flatnonzero(rows)


def unique(
    x: Array, *, axis: int = -1, flat: bool = True, ordered: bool = True
) -> tuple[Array, Array, Array, Array, Array]:
    """Distinct elements (or slices along `axis`), first positions, positions among the distinct
    ones, counts, and how many are distinct; what is behind those is 0.

    ordered: ascending; otherwise in the order of their first occurrence.
    """
    along = None if flat else axis
    y, first, inverse, counts = np.unique(x, True, True, True, along)
    inverse = inverse.reshape(-1)
    if not ordered:
        order = np.argsort(first, kind="stable")
        y = y[order] if flat else np.take(y, order, axis)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        first, inverse, counts = first[order], rank[inverse], counts[order]
    most, number = len(inverse), np.asarray(len(first), np.int64)
    y = _padded(y, 0 if flat else axis, most)
    first, counts = (_padded(v.astype(np.int64), 0, most) for v in (first, counts))
    return y, first, inverse.astype(np.int64), counts, number


def _padded(x: Array, axis: int, size: int) -> Array:
    """Zeros behind an axis up to `size`."""
    widths = [(0, size - n if k == axis % x.ndim else 0) for k, n in enumerate(x.shape)]
    return np.pad(x, widths)


def nms(
    boxes: Array,
    scores: Array,
    limit: Array,
    overlap: Array,
    threshold: Array | None = None,
    *,
    center: bool = False,
) -> tuple[Array, Array]:
    """Boxes kept by greedy non-maximum suppression, i64[most, 3] of (batch, class, box) with 0
    behind them, and how many they are. There is room for all of them.

    boxes [B, N, 4]: two opposite corners (y, x, y, x), or centre and size (x, y, w, h) with
    `center`; scores [B, C, N]. Per class, boxes with a score above `threshold` are taken by falling
    score, ties by rising index, unless they overlap a box already taken by more than `overlap`
    (intersection over union), at most `limit` of them.
    """
    corners = _corners(boxes, center)
    most = max(int(_first(limit)), 0)
    bound = _first(overlap)
    out = []
    for b in range(scores.shape[0]):
        for c in range(scores.shape[1]):
            s = scores[b, c]
            order = descending_order(s, 0)
            if threshold is not None:
                order = order[s[order] > _first(threshold)]
            out += [(b, c, i) for i in _suppress(corners[b], order, bound, most)]
    kept = np.array(out, np.int64).reshape(-1, 3)
    return _padded(kept, 0, scores.size), np.asarray(len(kept), np.int64)


def _first(x: Array) -> float:
    """The value of a scalar or one-element tensor; 0 where it is empty."""
    return float(x.reshape(-1)[0]) if x.size else 0.0


def _corners(boxes: Array, center: bool) -> Array:
    if center:
        x, y, w, h = (boxes[..., k] for k in range(4))
        return np.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], -1)
    low = np.minimum(boxes[..., :2], boxes[..., 2:])
    high = np.maximum(boxes[..., :2], boxes[..., 2:])
    return np.concatenate([low, high], -1)


def _suppress(boxes: Array, order: Array, bound: float, most: int) -> list[int]:
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    while len(order) and len(kept) < most:
        i = int(order[0])
        kept.append(i)
        rest = order[1:]
        low = np.maximum(boxes[rest, :2], boxes[i, :2])
        high = np.minimum(boxes[rest, 2:], boxes[i, 2:])
        side = np.maximum(high - low, 0)
        common = side[:, 0] * side[:, 1]
        union = area[rest] + area[i] - common
        fits = (common > 0) & (area[rest] > 0) & (area[i] > 0) & (union > 0)
        ratio = np.where(fits, common / np.where(fits, union, 1), 0)
        order = rest[ratio <= bound]
    return kept


def det(x: Array) -> Array:
    """Determinants of the matrices in the last two axes."""
    wide = x.astype(np.float64) if x.dtype.itemsize > 8 or x.dtype.itemsize < 4 else x
    return np.asarray(np.linalg.det(wide)).astype(x.dtype)


def bitcast(x: Array, *, source: str, target: str) -> Array:
    """The bits of `x`, held as dtype `source`, read as dtype `target` of the same width."""
    held = np.asarray(x.astype(DTYPES[source].np), order="C")
    return held.view(DTYPES[target].np)


def trimmed(
    *args: Array,
    function: str,
    count: int,
    shapes: tuple[int, ...],
    results: tuple[int, ...],
    **attributes: Any,
) -> tuple[Array, ...]:
    """Another extern on the true parts of tensors that are held in larger ones.

    The first `count` arguments are the tensors, the others sizes. shapes: of each tensor its rank
    and its sizes, -1 - k for the size number k. results: of each result its rank and the shape in
    which it is held, with zeros behind its true part.
    """
    sizes = [int(a.reshape(-1)[0]) for a in args[count:]]
    parts = [
        x[tuple(slice(n if n >= 0 else max(sizes[-1 - n], 0)) for n in shape)]
        for x, shape in zip(args, _split(shapes), strict=False)
    ]
    found = EXTERNS[function](*parts, **attributes)
    held = found if isinstance(found, tuple | list) else (found,)
    out = []
    for value, shape in zip(held, _split(results), strict=True):
        x = np.asarray(value)
        whole = np.zeros(shape, x.dtype)
        whole[tuple(slice(n) for n in x.shape)] = x
        out.append(whole)
    return tuple(out)


def _split(flat: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes from a list of rank, sizes, rank, sizes, ..."""
    out, at = [], 0
    while at < len(flat):
        out.append(flat[at + 1 : at + 1 + flat[at]])
        at += 1 + flat[at]
    return out


EXTERNS: dict[str, Callable[..., Any]] = {
    "sort": sort,
    "topk": topk,
    "ordered": ordered,
    "unique": unique,
    "nms": nms,
    "det": det,
    "bitcast": bitcast,
    "trimmed": trimmed,
}

# Externs that write their results into arrays that are given after their operands.
INTO: dict[str, Callable[..., None]] = {"ordered": ordered_into}

# Externs of values in order and their positions, and the attributes with which `ordered` gives the
# values alone.
ORDERS: dict[str, Callable[..., dict[str, Any]]] = {
    "sort": lambda axis=-1, descending=False: {"axis": axis, "descending": descending},
    "topk": lambda axis=-1, k=-1, largest=True, nan_first=False: {
        "axis": axis, "k": k, "descending": largest, "nan_first": nan_first,
    },
}  # fmt: skip

# Externs whose results are the first `k` elements of an `axis`, in order, and their positions;
# their attributes are those of `topk`.
SELECTIONS = frozenset({"topk"})
