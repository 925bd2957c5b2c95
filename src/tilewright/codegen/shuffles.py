"""Operations across the lanes of vectors: reduce, scan, relayout.

In: tiles. Out: tiles. Invariant: the order of every reduction is fixed by the extent alone (halving
of the lanes padded to a power of two), so every target gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from tilewright.codegen.operations import Operations, identity
from tilewright.codegen.tiles import Tile, row_axes, row_index, rows
from tilewright.codegen.writer import Writer
from tilewright.ir.dtypes import F32, F64
from tilewright.ir.nest import Reduce, Relayout, Scan

__all__ = ["Shuffles"]


@lru_cache(maxsize=1 << 8)
def _mask(pick: tuple[int, ...]) -> str:
    """The mask of a shufflevector; -1 picks nothing in particular."""
    lanes = ", ".join(["i32 poison" if p < 0 else f"i32 {p}" for p in pick])
    return f"<{len(pick)} x i32> <{lanes}>"


@lru_cache(maxsize=1 << 8)
def _unpacks(n: int, group: int, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Picks that interleave runs of `size` lanes of the low and of the high halves of all groups of
    two vectors of n lanes.
    """
    low: list[int] = []
    high: list[int] = []
    for g in range(0, n, group):
        for block in range(group // size // 2):
            for half, pick in ((0, low), (group // 2, high)):
                at = g + half + block * size
                pick += [*range(at, at + size), *range(n + at, n + at + size)]
    return tuple(low), tuple(high)


class Shuffles:
    """Emitters of the cross-lane nodes of one function."""

    def __init__(self, writer: Writer, operations: Operations) -> None:
        self.writer = writer
        self.operations = operations

    def _shuffle(self, a: str, b: str, pick: Sequence[int], element: str, lanes: int) -> str:
        """shufflevector of two vectors of `lanes`; -1 picks nothing in particular."""
        t = f"<{lanes} x {element}>"
        return self.writer.op(f"shufflevector {t} {a}, {t} {b}, {_mask(tuple(pick))}")

    # ---- reduce ----------------------------------------------------------------------------------

    def reduce(self, n: Reduce, value: Tile, width: int) -> Tile:
        t = n.type
        out: list[list[str]] = []
        if n.axis == value.type.lane:
            for r in row_index(value.type, row_axes(t)):
                out.append([self._lanes(n.monoid, value, value.values[r])])
            return Tile(t, width, out)
        axes = [*row_axes(t), (n.axis, value.type.extent(n.axis))]
        index = row_index(value.type, axes)
        count = value.type.extent(n.axis)
        dtype = t.dtype
        for first in range(0, len(index), count):
            group = [value.values[r] for r in index[first : first + count]]
            total = group[0]
            for more in group[1:]:
                pairs = zip(total, more, strict=True)
                total = [
                    self.operations.apply(n.monoid, [a, b], dtype, dtype, width) for a, b in pairs
                ]
            out.append(total)
        return Tile(t, width, out)

    def _lanes(self, monoid: str, value: Tile, chunks: list[str]) -> str:
        """All lanes of one row folded into a scalar by halving."""
        ops, dtype, width = self.operations, value.type.dtype, value.width
        parts: list[str | None] = list(chunks)
        valid = value.extent - (len(parts) - 1) * width
        t, e = ops.type(dtype, width), ops.element(dtype)
        if valid < width:
            keep = ops.vector("i1", [int(i < valid) for i in range(width)])
            other = ops.literal(identity(monoid, dtype), dtype, width)
            parts[-1] = self.writer.op(
                f"select <{width} x i1> {keep}, {t} {parts[-1]}, {t} {other}"
            )
        total = 1 << (len(parts) - 1).bit_length()
        parts += [None] * (total - len(parts))  # identities, which change nothing
        while len(parts) > 1:
            half = len(parts) // 2
            low, high = parts[:half], parts[half:]
            parts = [
                a if b is None else ops.apply(monoid, [a or "", b], dtype, dtype, width)
                for a, b in zip(low, high, strict=True)
            ]
        v = parts[0] or ""
        lanes = width
        while lanes > 1:
            half = lanes // 2
            upper = self._shuffle(v, "poison", list(range(half, lanes)), e, lanes)
            lower = self._shuffle(v, "poison", list(range(half)), e, lanes)
            v = ops.apply(monoid, [lower, upper], dtype, dtype, half)
            lanes = half
        return self.writer.op(f"extractelement <1 x {e}> {v}, i64 0")

    # ---- scan ------------------------------------------------------------------------------------

    def scan(self, n: Scan, value: Tile) -> Tile:
        t, dtype, width = n.type, n.type.dtype, value.width
        out = [list(r) for r in value.values]
        if n.axis == t.lane:
            return Tile(
                t, width, [self._scan_lanes(n.monoid, value, chunks) for chunks in value.values]
            )
        others = [(a, k) for a, k in row_axes(t) if a != n.axis]
        count = t.extent(n.axis)
        index = row_index(t, [*others, (n.axis, count)])
        for first in range(0, len(index), count):
            for k in range(1, count):
                before, here = index[first + k - 1], index[first + k]
                out[here] = [
                    self.operations.apply(n.monoid, [a, b], dtype, dtype, width)
                    for a, b in zip(out[before], value.values[here], strict=True)
                ]
        return Tile(t, width, out)

    def _scan_lanes(self, monoid: str, value: Tile, chunks: list[str]) -> list[str]:
        """Prefix inside each vector in log2(width) steps, then the running total of the vectors
        before.
        """
        ops, dtype, width = self.operations, value.type.dtype, value.width
        e, t = ops.element(dtype), ops.type(dtype, width)
        neutral = ops.literal(identity(monoid, dtype), dtype, width)
        if monoid == "add" and dtype.is_float:  # zeros of this sign leave every sum as it is
            neutral = ops.literal(-0.0, dtype, width)
        out: list[str] = []
        carry = ""
        for v in chunks:
            distance = 1
            while distance < width:
                pick = [width + i if i < distance else i - distance for i in range(width)]
                v = ops.apply(
                    monoid, [self._shuffle(v, neutral, pick, e, width), v], dtype, dtype, width
                )
                distance *= 2
            if carry:
                v = ops.apply(monoid, [carry, v], dtype, dtype, width)
            out.append(v)
            last = self.writer.op(f"extractelement {t} {v}, i64 {width - 1}")
            carry = ops.splat(last, dtype, width)
        return out

    # ---- relayout --------------------------------------------------------------------------------

    def relayout(self, n: Relayout, value: Tile, width: int) -> Tile:
        t, source = n.type, value.type
        if t.lane == source.lane:
            return Tile(t, width, [value.values[r] for r in row_index(source, row_axes(t))])
        if source.lane is None:
            return self._gathered(n, value, width)
        if t.lane is None:
            return self._scattered(n, value)
        return self._transposed(n, value, width)

    def _gathered(self, n: Relayout, value: Tile, width: int) -> Tile:
        """Scalars into lanes."""
        ops, t = self.operations, n.type
        assert t.lane is not None
        out = Tile(t, width, [])
        values: list[list[str]] = []
        v, e = ops.type(t.dtype, width), ops.element(t.dtype)
        count = t.extent(t.lane)
        index = row_index(value.type, [*row_axes(t), (t.lane, count)])
        for first in range(0, len(index), count):
            chunks = ["poison"] * out.chunks
            for k in range(count):
                one = value.values[index[first + k]][0]
                c, i = divmod(k, width)
                chunks[c] = self.writer.op(f"insertelement {v} {chunks[c]}, {e} {one}, i64 {i}")
            values.append(chunks)
        return Tile(t, width, values)

    def _scattered(self, n: Relayout, value: Tile) -> Tile:
        """Lanes into scalars."""
        t, source = n.type, value.type
        lane = source.lane or ""
        v = self.operations.type(t.dtype, value.width)
        out: list[list[str]] = []
        others = [(a, 1 if a == lane else k) for a, k in t.axes]
        row = row_index(source, [(a, k) for a, k in t.axes if a != lane])
        at = {
            tuple(p.items()): r
            for p, r in zip(_positions([x for x in others if x[0] != lane]), row, strict=True)
        }
        for position in rows(t):
            k = position[lane]
            r = at[tuple((a, i) for a, i in position.items() if a != lane)]
            c, i = divmod(k, value.width)
            out.append([self.writer.op(f"extractelement {v} {value.values[r][c]}, i64 {i}")])
        return Tile(t, 0, out)

    def _transposed(self, n: Relayout, value: Tile, width: int) -> Tile:
        """One lane axis for another: blocks through an unpack network."""
        t, source = n.type, value.type
        old, new = source.lane or "", t.lane or ""
        others = [(a, k) for a, k in t.axes if a not in (old, new)]
        from_rows = row_index(source, [*others, (new, source.extent(new))])
        to_rows = row_index(t, [*others, (old, t.extent(old))])
        out = Tile(t, width, [])
        out.values = [[""] * out.chunks for _ in range(_count(row_axes(t)))]
        block = max(width, value.width)
        for o in range(_count(others)):
            for c in range(0, t.extent(new), block):
                height = min(block, t.extent(new) - c)
                for k in range(0, t.extent(old), block):
                    rows_in = [
                        self._wide(value, from_rows[o * source.extent(new) + c + i], k, block)
                        if i < height
                        else "poison"
                        for i in range(block)
                    ]
                    network = self._network(
                        rows_in, block, self.operations.element(t.dtype), t.dtype.bits
                    )
                    for i in range(min(block, t.extent(old) - k)):
                        row = to_rows[o * t.extent(old) + k + i]
                        self._narrow(out, row, c, network[i], block)
        return out

    def _wide(self, value: Tile, row: int, first: int, block: int) -> str:
        """Lanes first .. first+block of a row as one vector."""
        chunks, width = value.values[row], value.width
        if width == block:
            return chunks[first // width]
        e = self.operations.element(value.type.dtype)
        parts = chunks[first // width : (first + block) // width]
        while len(parts) * width < block:
            parts = [*parts, "poison"]
        size = width
        while len(parts) > 1:
            parts = [
                self._shuffle(a, b, list(range(2 * size)), e, size)
                for a, b in zip(parts[::2], parts[1::2], strict=True)
            ]
            size *= 2
        return parts[0]

    def _narrow(self, out: Tile, row: int, first: int, vector: str, block: int) -> None:
        """Put one vector of `block` lanes into the chunks of a row from lane `first` on."""
        width = out.width
        e = self.operations.element(out.type.dtype)
        for d in range(0, block, width):
            chunk = (first + d) // width
            if chunk < out.chunks:
                part = vector
                if width < block:
                    part = self._shuffle(vector, "poison", list(range(d, d + width)), e, block)
                out.values[row][chunk] = part

    def _network(self, v: list[str], n: int, element: str, bits: int) -> list[str]:
        """Transpose of n vectors of n lanes: unpacks inside 128-bit groups, then whole groups."""
        group = min(n, max(1, 128 // bits))
        groups = n // group
        # Inside groups: after the step with `size`, vector j of a set of 2*size holds
        # columns j mod 2*size.
        size = 1
        while size < group:
            v = self._stage(v, n, size, *_unpacks(n, group, size), element)
            size *= 2
            if size < group or groups > 1:
                v = self._fenced(v, element, n)
        if groups == 1:
            return v
        # Between groups: vector g*group + c holds, in its group q, rows of set g and
        # column q*group + c. Each step
        # keeps the even groups of two neighbours in one vector and the odd ones in another.
        even = [g * group + i for g in range(0, groups, 2) for i in range(group)]
        odd = [p + group for p in even]
        low, high = (_mask((*keep, *(n + p for p in keep))) for keep in (even, odd))
        out = [""] * n
        op, t = self.writer.op, f"<{n} x {element}>"
        for c in range(group):
            column = [v[g * group + c] for g in range(groups)]
            for step in range(groups.bit_length() - 1):
                if step:
                    column = self._fenced(column, element, n)
                lower: list[str] = []
                upper: list[str] = []
                for a, b in zip(column[::2], column[1::2], strict=True):
                    lower.append(op(f"shufflevector {t} {a}, {t} {b}, {low}"))
                    upper.append(op(f"shufflevector {t} {a}, {t} {b}, {high}"))
                column = lower + upper
            for q, vector in enumerate(column):
                out[q * group + c] = vector
        return out

    def _fenced(self, v: list[str], element: str, lanes: int) -> list[str]:
        """The same values, which LLVM does not look through.

        Without it instruction selection tries to combine the shuffles of all steps of a transpose
        with each other: a quarter of the time to build a matmul, for the same machine code. The
        intrinsic is of floating-point types and gives no instruction.
        """
        if element not in ("float", "double") or self.operations.is_arm:
            return v
        dtype = F32 if element == "float" else F64
        return self.operations.call_each("arithmetic.fence", v, dtype, lanes)

    def _stage(
        self,
        v: list[str],
        n: int,
        size: int,
        low: tuple[int, ...],
        high: tuple[int, ...],
        element: str,
    ) -> list[str]:
        out = list(v)
        op, t = self.writer.op, f"<{n} x {element}>"
        lows, highs = _mask(low), _mask(high)
        for base in range(0, len(v), 2 * size):
            for j in range(base, base + size):
                a, b = v[j], v[j + size]
                empty, to = a == b == "poison", base + 2 * (j - base)
                out[to] = a if empty else op(f"shufflevector {t} {a}, {t} {b}, {lows}")
                out[to + 1] = a if empty else op(f"shufflevector {t} {a}, {t} {b}, {highs}")
        return out


def _count(axes: list[tuple[str, int]]) -> int:
    total = 1
    for _, n in axes:
        total *= n
    return total


def _positions(axes: list[tuple[str, int]]) -> list[dict[str, int]]:
    out: list[dict[str, int]] = [{}]
    for a, n in axes:
        out = [{**p, a: i} for p in out for i in range(n)]
    return out
