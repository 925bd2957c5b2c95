"""Lanes that lie a few elements apart: whole vectors of what lies between the first of them and the
last, and the lanes picked from these.

In: an access with a lane stride of two or more, and a pointer to its first lane. Out: LLVM values.
Invariant: no element before the first lane or behind the last one is touched, nor outside the
limits of the lane axis, which become masks over the elements.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

from tilewright.codegen.address import Addresses, Pointer
from tilewright.codegen.operations import Operations
from tilewright.codegen.writer import Writer
from tilewright.ir.dtypes import BOOL, DType
from tilewright.ir.expr import Expr

__all__ = [
    "Spans",
    "load_lanes",
    "load_pieces",
    "loads_exactly",
    "masked_call",
    "masked_load",
    "pieces",
    "type_suffix",
]


def type_suffix(dtype: DType) -> str:
    """What the name of an intrinsic says of elements as they lie in memory."""
    if dtype is BOOL:
        return "i8"
    if dtype.is_float:
        return {16: "i16", 32: "f32", 64: "f64"}[dtype.bits]
    return f"i{dtype.bits}"


@lru_cache(maxsize=1 << 8)
def masked_call(kind: str, dtype: DType, width: int) -> tuple[str, str]:
    """How the call of a masked "load" or "store" begins, and its declaration."""
    t = Operations.memory_type(dtype, width)
    name, mask = f"llvm.masked.{kind}.v{width}{type_suffix(dtype)}.p0", f"<{width} x i1>"
    if kind == "load":
        return f"call {t} @{name}(", f"{t} @{name}(ptr, {mask}, {t})"
    return f"call void @{name}({t} ", f"void @{name}({t}, ptr, {mask})"


def masked_load(
    writer: Writer,
    operations: Operations,
    pointer: str,
    mask: str,
    dtype: DType,
    width: int,
    orelse: float | int | bool,
) -> str:
    """A vector as it lies in memory; `orelse` where the mask, a vector of i1, is false."""
    count = _first_lanes(mask, width)
    if count:  # a shorter vector: the load of a whole one may touch the next cache line
        part, t = operations.memory_type(dtype, count), operations.memory_type(dtype, width)
        raw = writer.op(f"load {part}, ptr {pointer}, align {dtype.bytes}")
        other = operations.memory_literal(orelse, dtype, count)
        lanes = ", ".join(f"i32 {min(i, count)}" for i in range(width))
        return writer.op(f"shufflevector {part} {raw}, {part} {other}, <{width} x i32> <{lanes}>")
    known = _run_of_lanes(mask, width) if loads_exactly(operations, dtype, width) else None
    if known is not None:
        return load_lanes(writer, operations, pointer, *known, dtype, width, orelse)
    head, declaration = masked_call("load", dtype, width)
    writer.module.declare(declaration)
    t, other = operations.memory_type(dtype, width), operations.memory_literal(orelse, dtype, width)
    return writer.op(
        f"{head}ptr align {dtype.bytes} {pointer}, <{width} x i1> {mask}, {t} {other})"
    )


@lru_cache(maxsize=1 << 8)
def _first_lanes(mask: str, width: int) -> int:
    """How many lanes a constant mask leaves, where they are the first ones and a power of two."""
    if mask[0] != "<":
        return 0
    bits = [int(x[-1]) for x in mask[1:-1].split(", ")]
    count = sum(bits)
    first = len(bits) == width and all(bits[:count]) and not any(bits[count:])
    return count if first and 1 < count < width and count & (count - 1) == 0 else 0


@lru_cache(maxsize=1 << 8)
def _run_of_lanes(mask: str, width: int) -> tuple[int, int] | None:
    """The first lane of a constant mask and the one behind the last, where no other is left out."""
    if mask[0] != "<":
        return None
    bits = [int(x[-1]) for x in mask[1:-1].split(", ")]
    first, count = (bits.index(1) if any(bits) else 0), sum(bits)
    is_run = len(bits) == width and all(bits[first : first + count])
    return (first, first + count) if is_run else None


def pieces(low: int, high: int, width: int) -> list[tuple[int, int]]:
    """Lanes from `low` up to `high` as (first, count) with counts falling powers of two."""
    out, first = [], low
    while first < high:
        size = width
        while size > high - first:
            size //= 2
        out.append((first, size))
        first += size
    return out


def loads_exactly(operations: Operations, dtype: DType, width: int) -> bool:
    """Whether `load_lanes` can load such vectors. It is for the masked loads of AVX and AVX2 under
    masks that LLVM knows. LLVM 20 reads past these where a selection takes some of the lanes that
    are left out (tests/regress/programs/masked_half.txt), as it is free to choose them in between.
    """
    target = operations.target
    wide = target.vector_bits == 256 and not target.has_masks and not operations.is_arm
    return wide and dtype.bytes in (4, 8) and dtype.bytes * width >= 16


def load_lanes(
    writer: Writer,
    operations: Operations,
    pointer: str,
    low: int,
    high: int,
    dtype: DType,
    width: int,
    orelse: float | int | bool,
) -> str:
    """A vector whose lanes from `low` up to `high` lie in memory; `orelse` in the others. The CPU's
    own operations are called, in whose place LLVM puts nothing else.
    """
    w, bits = writer, dtype.bits
    count = min(width, 32 // dtype.bytes)
    t, index = operations.memory_type(dtype, count), f"<{count} x i{bits}>"
    kind = ("avx.maskload.p" + ("s" if bits == 32 else "d")) if dtype.is_float else (
        "avx2.maskload." + ("d" if bits == 32 else "q")
    )
    name = f"llvm.x86.{kind}{'.256' if count * dtype.bytes == 32 else ''}"
    parts = []
    for first in range(0, width, count):
        lanes = range(max(low - first, 0), min(high - first, count))
        at = (
            w.once(f"getelementptr i8, ptr {pointer}, i64 {first * dtype.bytes}")
            if first
            else pointer
        )
        other = operations.memory_literal(orelse, dtype, count)
        if not lanes:
            parts.append(other)
        elif len(lanes) == count:
            parts.append(w.op(f"load {t}, ptr {at}, align {dtype.bytes}"))
        else:
            w.module.declare(f"{t} @{name}(ptr, {index})")
            mask = operations.vector(f"i{bits}", [-int(i in lanes) for i in range(count)])
            raw = w.op(f"call {t} @{name}(ptr {at}, {index} {mask})")
            if orelse:
                some = operations.vector("i1", [int(i in lanes) for i in range(count)])
                raw = w.op(f"select <{count} x i1> {some}, {t} {raw}, {t} {other}")
            parts.append(raw)
    while len(parts) > 1:
        pick = operations.vector("i32", range(2 * count))
        parts = [
            w.op(f"shufflevector {t} {a}, {t} {b}, <{2 * count} x i32> {pick}")
            for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]
        count, t = 2 * count, operations.memory_type(dtype, 2 * count)
    return parts[0]


def load_pieces(
    writer: Writer,
    operations: Operations,
    pointer: str,
    taken: list[tuple[int, int]],
    dtype: DType,
    width: int,
) -> str:
    """A vector of which these lanes lie in memory; the others are undefined."""
    w, t, e = writer, operations.memory_type(dtype, width), operations.memory_type(dtype, 0)
    out = "poison"
    for first, count in taken:
        at = (
            w.once(f"getelementptr i8, ptr {pointer}, i64 {first * dtype.bytes}")
            if first
            else pointer
        )
        if count == 1:
            one = w.op(f"load {e}, ptr {at}, align {dtype.bytes}")
            out = w.op(f"insertelement {t} {out}, {e} {one}, i64 {first}")
            continue
        piece = w.op(f"load <{count} x {e}>, ptr {at}, align {dtype.bytes}")
        grow = operations.vector("i32", [i if i < count else 0 for i in range(width)])
        wide = w.op(
            f"shufflevector <{count} x {e}> {piece}, <{count} x {e}> poison, <{width} x i32> {grow}"
        )
        if first == 0:
            out = wide
            continue
        pick = [width + i - first if first <= i < first + count else i for i in range(width)]
        out = w.op(
            f"shufflevector {t} {out}, {t} {wide}, <{width} x i32> {operations.vector('i32', pick)}"
        )
    return out


class Row(Protocol):
    """What is asked of the access whose lanes are loaded."""

    dtype: DType
    unit: int
    width: int
    extent: int
    lane_stride: int
    lane_limit: tuple[Expr, Expr] | None

    def valid(self, chunk: int) -> int:
        """Lanes of a chunk that hold positions of the tile."""

    def mask(self, chunk: int) -> str | None:
        """Mask of a chunk, or None where all its valid lanes are in."""


class Spans:
    """Emitters of the loads of one function."""

    def __init__(self, writer: Writer, operations: Operations, addresses: Addresses) -> None:
        self.writer = writer
        self.operations = operations
        self.addresses = addresses

    def elements(self, row: Row) -> int:
        """How many elements lie from the first lane of a row to the last one, both counted; 0 where
        single loads are no worse: a vector would bring fewer than two lanes, or lanes are words of
        several elements.
        """
        step = row.lane_stride
        if step < 2 or step * 2 > row.width or row.unit != row.dtype.bytes:
            return 0
        return (row.extent - 1) * step + 1

    def load(self, row: Row, first: Pointer, chunk: int, orelse: float | int | bool) -> str | None:
        """The lanes of one chunk. None where single loads are no worse: there are few lanes, or the
        target does not mask what it loads.

        first: lane 0 of the row.
        """
        step, width, valid = row.lane_stride, row.width, row.valid(chunk)
        span = (valid - 1) * step + 1
        limited = row.mask(chunk) is not None
        if span < width or (limited and not self._has_masked_loads(row.dtype)):
            return None
        ops, dtype = self.operations, row.dtype
        starts = list(range(0, span, width))
        if not limited:
            starts[-1] = span - width  # overlaps the one before instead of leaving the span
        begin = chunk * width * step
        parts = []
        for at in starts:
            mask = self._mask(row, begin + at, min(width, span - at)) if limited else ""
            if mask is None:
                parts.append(ops.memory_literal(orelse, dtype, width))
                continue
            place = first[0], first[1] + (begin + at) * row.unit
            parts.append(self._vector(place, row, mask, orelse))
        source = [min(i * step // width, len(starts) - 1) for i in range(valid)]
        place_of = [i * step - starts[k] for i, k in enumerate(source)]
        out, t = parts[0], ops.memory_type(dtype, width)
        for k, part in enumerate([*parts[1:]] or ["poison"], 1):
            # Lanes of earlier vectors stand where they belong after the first step.
            pick = [
                width + p if s == k else p if k == 1 else i
                for i, (s, p) in enumerate(zip(source, place_of, strict=True))
            ]
            pick = [p if s <= k else -1 for s, p in zip(source, pick, strict=True)]
            lanes = ", ".join(
                f"i32 {p}" if p >= 0 else "i32 poison" for p in pick + [-1] * (width - valid)
            )
            out = self.writer.op(f"shufflevector {t} {out}, {t} {part}, <{width} x i32> <{lanes}>")
        return ops.from_memory(out, dtype, width)

    def _has_masked_loads(self, dtype: DType) -> bool:
        target = self.operations.target
        return target.has_masks or (target.vector_bits == 256 and dtype.bytes >= 4)

    def _mask(self, row: Row, first: int, count: int) -> str | None:
        """Mask of the `count` elements that begin `first` elements behind lane 0: those of lanes
        within the limits, and between them. Empty where that is a whole vector, None where it is
        nothing.
        """
        assert row.lane_limit is not None
        step, ranges = row.lane_stride, self.addresses.ranges
        lo, hi = row.lane_limit[0] * step, row.lane_limit[1] * step - (step - 1)
        (least, _), (_, most) = ranges.of(lo), ranges.of(hi)
        if (least is not None and least >= first + count) or (most is not None and most <= first):
            return None
        mask = self.addresses.lane_mask(lo, hi, first, row.width, count)
        if mask is not None:
            return self.addresses.use_mask(mask, row.width)
        if count == row.width:
            return ""
        return self.operations.vector("i1", [int(i < count) for i in range(row.width)])

    def _vector(self, at: Pointer, row: Row, mask: str, orelse: float | int | bool) -> str:
        """The elements of one vector where `mask` is true."""
        w, ops, dtype, width = self.writer, self.operations, row.dtype, row.width
        key = ("span", at, dtype, width, mask, orelse if mask else 0)
        loads = w.regions[-1].loads
        found = loads.get(key)
        if found is None:
            pointer, t = self.addresses.at(at), ops.memory_type(dtype, width)
            found = loads[key] = (
                masked_load(w, ops, pointer, mask, dtype, width, orelse)
                if mask
                else w.op(f"load {t}, ptr {pointer}, align {row.unit}")
            )
        return found
