"""Loads, stores, gathers, scatters and prefetches of tiles.

In: memory nodes. Out: `Tile`s, instructions. Invariants: no byte outside the limits is touched
(masks, narrower pieces, or a pointer that is replaced by one to a constant); equal loads of one
straight stretch are emitted once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from tilewright.codegen import dots
from tilewright.codegen.access import Access
from tilewright.codegen.address import Addresses, Pointer
from tilewright.codegen.operations import Operations
from tilewright.codegen.spans import (
    Spans,
    load_lanes,
    load_pieces,
    loads_exactly,
    masked_call,
    masked_load,
    pieces,
    type_suffix,
)
from tilewright.codegen.tables import Array, gather_table
from tilewright.codegen.tiles import LazyRows, Tile, row_axes, row_count, row_index
from tilewright.codegen.writer import Writer
from tilewright.errors import InternalError
from tilewright.ir.dtypes import BOOL, DType
from tilewright.ir.expr import Expr, polynomial
from tilewright.ir.nest import Gather, Load, Prefetch, Scatter, Store

__all__ = ["Memory"]

_LINE = 64
_SPREAD = 4  # elements between lanes that are still stored by masked vectors


class Memory:
    """Emitters of the memory nodes of one function."""

    def __init__(self, writer: Writer, operations: Operations, addresses: Addresses) -> None:
        self.writer = writer
        self.operations = operations
        self.addresses = addresses
        self.spans = Spans(writer, operations, addresses)
        self.nontemporal = False  # whether a fence is due at the end of the function

    @contextmanager
    def when(self, predicate: str) -> Iterator[None]:
        """What is emitted inside runs only where the i1 is true; it defines nothing for later."""
        if predicate == "true":
            yield
            return
        w = self.writer
        then, after = w.label(), w.label()
        w.open(then)
        yield
        region = w.close()
        w.line(f"br i1 {predicate}, label %{then}, label %{after}")
        w.region.lines += [f"{then}:", *region.lines, f"  br label %{after}"]
        w.start_block(after)

    def line_when(self, predicate: str, text: str) -> None:
        """An instruction without a result, where the i1 is true."""
        w = self.writer
        if predicate == "true":
            w.line(text)
            return
        then, after = w.label(), w.label()
        w.line(f"br i1 {predicate}, label %{then}, label %{after}")
        w.region.lines += (f"{then}:", f"  {text}", f"  br label %{after}")
        w.start_block(after)

    # ---- load ------------------------------------------------------------------------------------

    def load(self, n: Load, width: int, lazy: bool = False, word: int = 1) -> Tile:
        """The tile of a load; with `lazy`, each row is emitted where it is first used.

        word: how many elements one position of the (i32) tile holds.
        """
        t = n.type
        access = Access(self.addresses, n.buffer, n.base, n.strides, n.limits, t, width, word)
        tile = Tile(t, width, [])
        chunks = tile.chunks
        count = row_count(t)
        if not lazy:
            tile.values = [self._load_row(n, access, r, chunks) for r in range(count)]
            return tile
        folded = access.is_plain and self.operations.target.has_masks

        twins: dict[int, Pointer] = {}
        steps = access.steps

        def again(r: int, copy: int) -> str:
            twin = twins.get(copy)
            if twin is None:
                name = self.addresses.twin(n.buffer, copy + 1)
                twin = twins[copy] = self.addresses.pointer(name, polynomial(n.base))
            return self._scalar((twin[0], twin[1] + steps[r]), t.dtype, "true", 0, access.unit)

        def row(r: int) -> list[str]:
            return self._load_row(n, access, r, chunks)

        tile.values = LazyRows(count, row, again if folded else None)
        return tile

    def _load_row(self, n: Load, access: Access, r: int, chunks: int) -> list[str]:
        dtype, width = n.type.dtype, access.width
        inside = access.inside(r)
        if inside == "false":
            return [self.operations.literal(n.orelse, dtype, width)] * chunks
        simple = not width or (access.lane_stride == 1 and access.lane_limit is None)
        span = self.spans.elements(access)
        if inside != "true" and (simple or span) and n.orelse == 0:
            size = (span or access.extent) * dtype.bytes
            found = self.addresses.guarded(
                n.buffer, access.offset(r), inside, access.guard_depth, size
            )
            if found is not None:
                if not width:
                    return [self._scalar(found, dtype, "true", 0, access.unit)]
                if span:
                    return [self._strided(access, r, found, c, "true", 0) for c in range(chunks)]
                return [self._vector(access, found, c, "true", 0) for c in range(chunks)]
        row = access.row(r)
        if not width:
            return [self._scalar(row, dtype, inside, n.orelse, access.unit)]
        if access.lane_stride == 1:
            return [self._vector(access, row, c, inside, n.orelse) for c in range(chunks)]
        if access.lane_stride == 0:
            return self._broadcast(access, row, chunks, inside, n.orelse)
        return [self._strided(access, r, row, c, inside, n.orelse) for c in range(chunks)]

    def _choose(
        self, pointer: str, predicate: str, dtype: DType, orelse: float | int | bool, lanes: int
    ) -> str:
        """The pointer, or one to a constant of else values where the predicate is false."""
        ops = self.operations
        body = f"{ops.memory_type(dtype, lanes)} {ops.memory_literal(orelse, dtype, lanes)}"
        other = self.writer.module.constant(body)
        return self.writer.once(f"select i1 {predicate}, ptr {pointer}, ptr {other}")

    def _scalar(
        self,
        at: Pointer,
        dtype: DType,
        predicate: str,
        orelse: float | int | bool,
        align: int = 0,
    ) -> str:
        w, ops = self.writer, self.operations
        if predicate == "false":
            return ops.literal(orelse, dtype)
        key = (at, dtype, predicate, orelse)
        loads = w.region.loads
        found = loads.get(key)
        if found is None:
            base, d = at
            pointer = w.once(f"getelementptr i8, ptr {base}, i64 {d}") if d else base
            if predicate != "true":
                pointer = self._choose(pointer, predicate, dtype, orelse, 0)
            align = align or dtype.bytes
            raw = w.op(f"load {ops.memory_type(dtype, 0)}, ptr {pointer}, align {align}")
            found = loads[key] = raw if dtype is not BOOL else ops.from_memory(raw, dtype, 0)
        return found

    def _vector(
        self, access: Access, row: Pointer, chunk: int, predicate: str, orelse: float | int | bool
    ) -> str:
        """Lanes with stride 1."""
        w, ops, dtype, width = self.writer, self.operations, access.dtype, access.width
        mask, valid = access.part(chunk)
        at = (row[0], row[1] + chunk * width * dtype.bytes)
        key = (at, dtype, width, valid, mask, predicate, orelse)
        loads = w.region.loads
        found = loads.get(key)
        if found is not None:
            return found
        t = ops.memory_type(dtype, width)
        pointer = self.addresses.at(at)
        if predicate != "true":
            pointer = self._choose(pointer, predicate, dtype, orelse, width)
        taken = [] if valid == width else pieces(0, valid, width)
        if mask is None and len(taken) > 2 and ops.target.has_masks:
            mask = ops.vector("i1", [int(i < valid) for i in range(width)])
        exact = mask is not None and loads_exactly(ops, dtype, width)
        lanes = access.known_lanes(chunk) if exact else None
        if lanes is not None:
            raw = load_lanes(w, ops, pointer, *lanes, dtype, width, orelse)
        elif mask is not None:
            used = mask if mask.startswith("<") else self.addresses.use_mask(mask, width)
            raw = masked_load(w, ops, pointer, used, dtype, width, orelse)
        elif valid == width:
            raw = w.op(f"load {t}, ptr {pointer}, align {access.unit}")
        else:
            raw = load_pieces(w, ops, pointer, taken, dtype, width)
        found = loads[key] = raw if dtype is not BOOL else ops.from_memory(raw, dtype, width)
        return found

    def _broadcast(
        self, access: Access, row: Pointer, chunks: int, predicate: str, orelse: float | int | bool
    ) -> list[str]:
        """Lane stride 0: one element in all lanes."""
        ops, dtype, width = self.operations, access.dtype, access.width
        if access.lane_limit is not None:  # read only if some lane is in
            lo, hi = access.lane_limit
            p = self.addresses
            some = "true"
            for a, b in ((lo + 1, hi), (lo + 1, _const(access.extent)), (_const(1), hi)):
                if not p.ranges.true("le", a, b):
                    depth = max(p.depth(a), p.depth(b))
                    some = p.both(
                        some, self.writer.op_at(depth, f"icmp sle i64 {p.value(a)}, {p.value(b)}")
                    )
            predicate = p.both(predicate, some)
        value = ops.splat(self._scalar(row, dtype, predicate, orelse), dtype, width)
        out = []
        for c in range(chunks):
            mask = access.part(c)[0]
            if mask is None:
                out.append(value)
                continue
            t = ops.type(dtype, width)
            used = self.addresses.use_mask(mask, width)
            other = ops.literal(orelse, dtype, width)
            out.append(self.writer.op(f"select <{width} x i1> {used}, {t} {value}, {t} {other}"))
        return out

    def _strided(
        self, access: Access, r: int, row: Pointer, chunk: int, inside: str,
        orelse: float | int | bool,
    ) -> str:  # fmt: skip
        """Lanes with another stride: picked from whole vectors, or one scalar load each."""
        ops, dtype, width = self.operations, access.dtype, access.width
        span = self.spans.elements(access)
        if span:
            first = row
            if inside != "true":
                first = self._choose(self.addresses.at(row), inside, dtype, orelse, span), 0
            found = self.spans.load(access, first, chunk, orelse)
            if found is not None:
                return found
        t, e = ops.type(dtype, width), ops.element(dtype)
        out = ops.literal(orelse, dtype, width)
        for i in range(access.valid(chunk)):
            lane = chunk * width + i
            predicate = self.addresses.both(inside, access.inside_lane(lane))
            if predicate != "false":
                one = self._scalar(access.lane(r, row, lane), dtype, predicate, orelse)
                out = self.writer.op(f"insertelement {t} {out}, {e} {one}, i64 {i}")
        return out

    # ---- store -----------------------------------------------------------------------------------

    def store(self, n: Store, value: Tile) -> None:
        word = 1
        along = dots.interleaved(n, value.type) if value.width else None
        if along is not None:
            word = value.type.extent(along)
            value = dots.words(self.operations, value, along)
        t, width, dtype = value.type, value.width, value.type.dtype
        access = Access(self.addresses, n.buffer, n.base, n.strides, n.limits, t, width, word)
        plain: list[tuple[Pointer, str]] = []  # whole vectors that no condition guards
        size, ops = width * dtype.bytes, self.operations
        guarded, free = access.is_guarded, access.is_free
        ways: dict[int, Callable[[Pointer, str, str], None]] = {}  # of the chunks of every row
        for r, chunks in enumerate(value.values):
            inside = access.inside(r) if guarded else "true"
            if inside == "false":
                continue
            row = access.row(r)
            if width and access.lane_stride != 1:
                self._store_strided(access, r, row, chunks, inside)
                continue
            pointer, first = row
            if free:
                if dtype is BOOL:
                    chunks = [ops.to_memory(v, dtype, width) for v in chunks]
                plain += [((pointer, first + c * size), v) for c, v in enumerate(chunks)]
                continue
            for c, v in enumerate(chunks):
                way = ways.get(c)
                if way is None:
                    way = ways[c] = self._way(access, c, plain)
                stored = v if dtype is not BOOL else ops.to_memory(v, dtype, width)
                way((pointer, first + c * size), stored, inside)
        self._store_plain(plain, dtype, width, n.nontemporal, self.addresses.sizes.get(n.buffer))
        self.writer.wrote()

    def _way(
        self, access: Access, chunk: int, plain: list[tuple[Pointer, str]]
    ) -> Callable[[Pointer, str, str], None]:
        """How a chunk of any row is stored: given where, the value in memory, and whether the row
        is inside. Whole vectors that no condition guards are left to the caller, in `plain`.
        """
        ops, dtype, width = self.operations, access.dtype, access.width
        mask, valid = access.part(chunk)
        if not width or (mask is None and valid == width):

            def whole(at: Pointer, raw: str, inside: str) -> None:
                if inside == "true":
                    plain.append((at, raw))
                    return
                self._store_line(self.addresses.at(at), raw, dtype, width, inside)

            return whole
        lane = access.only_lane(chunk)
        if lane is not None:
            return partial(self._store_one, dtype, width, lane)
        lanes = None if mask is None or ops.target.has_masks else access.known_lanes(chunk)
        if lanes is not None:
            return partial(self._store_pieces, dtype, width, pieces(*lanes, width))
        taken = [] if mask is not None else pieces(0, valid, width)
        if len(taken) > 2 and ops.target.has_masks:
            mask = ops.vector("i1", [int(i < valid) for i in range(width)])
        if mask is None:
            return partial(self._store_pieces, dtype, width, taken)
        return partial(self._store_masked, dtype, width, mask)

    def _store_line(
        self, pointer: str, value: str, dtype: DType, width: int, inside: str = "true"
    ) -> None:
        t = self.operations.memory_type(dtype, width)
        self.line_when(inside, f"store {t} {value}, ptr {pointer}, align {dtype.bytes}")

    def _store_plain(
        self,
        plain: list[tuple[Pointer, str]],
        dtype: DType,
        width: int,
        nontemporal: bool,
        elements: Expr | None = None,
    ) -> None:
        """elements: of the buffer, where only the call knows how many: past the caches goes what
        does not fit into them.
        """
        w, t = self.writer, self.operations.memory_type(dtype, width)
        size = width * dtype.bytes
        if (
            not nontemporal
            or size not in (16, 32, 64)
            or any(d % size for (_, d), _ in plain)
            or not plain
        ):
            self._store_lines(plain, t, f"align {dtype.bytes}")
            return
        self.nontemporal = True
        bits = ""
        origins, numbers = self.addresses.origins, dict[str, None]()
        for base in dict.fromkeys(at[0] for at, _ in plain):
            first, *steps = origins.get(base, (base,))
            numbers[w.once(f"ptrtoint ptr {first} to i64")] = None
            numbers.update(dict.fromkeys(steps))
        for number in numbers:
            bits = w.once(f"or i64 {bits}, {number}") if bits else number
        if elements is not None:
            most = self.operations.target.kept_bytes // dtype.bytes
            small = w.once(f"icmp sle i64 {self.addresses.value(elements)}, {most}")
            bits = w.once(f"or i64 {bits}, {w.once(f'zext i1 {small} to i64')}")
        low = w.once(f"and i64 {bits}, {size - 1}")
        aligned = w.once(f"icmp eq i64 {low}, 0")
        bodies = []
        for suffix in (f"align {size}, !nontemporal !0", f"align {dtype.bytes}"):
            w.open(w.label())
            self._store_lines(plain, t, suffix)
            bodies.append(w.close())
        after = w.label()
        w.line(f"br i1 {aligned}, label %{bodies[0].label}, label %{bodies[1].label}")
        for body in bodies:
            w.region.lines += [f"{body.label}:", *body.lines, f"  br label %{after}"]
        w.start_block(after)

    def _store_lines(self, plain: list[tuple[Pointer, str]], t: str, suffix: str) -> None:
        once, lines = self.writer.once, self.writer.region.lines
        for (base, d), v in plain:
            pointer = once(f"getelementptr i8, ptr {base}, i64 {d}") if d else base
            lines.append(f"  store {t} {v}, ptr {pointer}, {suffix}")

    def _store_one(
        self, dtype: DType, width: int, lane: int, at: Pointer, raw: str, inside: str
    ) -> None:
        """One lane of a vector. LLVM makes a scalar store of a masked one with a constant mask,
        too, but of as many bytes as the value had before it was narrowed.
        """
        ops = self.operations
        t, e = ops.memory_type(dtype, width), ops.memory_type(dtype, 0)
        pointer = self.addresses.at((at[0], at[1] + lane * dtype.bytes))
        with self.when(inside):
            one = self.writer.op(f"extractelement {t} {raw}, i64 {lane}")
            self.writer.line(f"store {e} {one}, ptr {pointer}, align {dtype.bytes}")

    def _store_pieces(
        self,
        dtype: DType,
        width: int,
        taken: list[tuple[int, int]],
        at: Pointer,
        raw: str,
        inside: str,
    ) -> None:
        """Some lanes of a vector, in shorter ones."""
        w, ops = self.writer, self.operations
        pointer = self.addresses.at(at)
        t, e = ops.memory_type(dtype, width), ops.memory_type(dtype, 0)
        with self.when(inside):
            for first, count in taken:
                to = (
                    w.once(f"getelementptr i8, ptr {pointer}, i64 {first * dtype.bytes}")
                    if first
                    else pointer
                )
                if count == 1:
                    one = w.op(f"extractelement {t} {raw}, i64 {first}")
                    w.line(f"store {e} {one}, ptr {to}, align {dtype.bytes}")
                    continue
                pick = ops.vector("i32", range(first, first + count))
                piece = w.op(f"shufflevector {t} {raw}, {t} poison, <{count} x i32> {pick}")
                w.line(f"store <{count} x {e}> {piece}, ptr {to}, align {dtype.bytes}")

    def _store_masked(
        self, dtype: DType, width: int, mask: str, at: Pointer, raw: str, inside: str
    ) -> None:
        """Some lanes of a vector."""
        pointer = self.addresses.at(at)
        head, declaration = masked_call("store", dtype, width)
        self.writer.module.declarations[declaration] = None
        head = f"{head}{raw}, ptr align {dtype.bytes} {pointer}, <{width} x i1> "
        if mask[0] == "<" or self.operations.target.has_masks:
            self.line_when(inside, f"{head}{mask})")
            return
        with self.when(inside):
            self.writer.line(f"{head}{self.addresses.use_mask(mask, width)})")

    def _store_strided(
        self,
        access: Access,
        r: int,
        row: Pointer,
        chunks: list[str],
        inside: str,
    ) -> None:
        w, ops, dtype, width = self.writer, self.operations, access.dtype, access.width
        t = ops.memory_type(dtype, width)
        spread = ops.target.has_masks and dtype.bytes >= 4 and access.lane_limit is None
        for c, v in enumerate(chunks):
            raw = ops.to_memory(v, dtype, width)
            valid = access.valid(c)
            if spread and 2 <= access.lane_stride <= _SPREAD and valid > 2:
                at = access.lane(r, row, c * width)
                self._store_spread(at, raw, dtype, access, valid, inside)
                continue
            for i in range(valid):
                lane = c * width + i
                predicate = self.addresses.both(inside, access.inside_lane(lane))
                if predicate == "false":
                    continue
                pointer = self.addresses.at(access.lane(r, row, lane))
                one = w.op(f"extractelement {t} {raw}, i64 {i}")
                self._store_line(pointer, one, dtype, 0, predicate)

    def _store_spread(
        self, at: Pointer, raw: str, dtype: DType, access: Access, valid: int, inside: str
    ) -> None:
        """Lanes a few elements apart: spread over whole vectors, of which the rest is masked."""
        w, ops, width, step = self.writer, self.operations, access.width, access.lane_stride
        t = ops.memory_type(dtype, width)
        for first in range(0, (valid - 1) * step + 1, width):
            places = range(first, first + width)
            used = [int(e % step == 0 and e // step < valid) for e in places]
            pick = ops.vector(
                "i32", [e // step if u else 0 for e, u in zip(places, used, strict=True)]
            )
            mask = ops.vector("i1", used)
            pointer = self.addresses.at((at[0], at[1] + first * dtype.bytes))
            wide = w.op(f"shufflevector {t} {raw}, {t} poison, <{width} x i32> {pick}")
            self._store_masked(dtype, width, mask, (pointer, 0), wide, inside)

    # ---- computed offsets ------------------------------------------------------------------------

    def _base(self, buffer: str, base: Expr) -> str:
        return self.addresses.at(self.addresses.pointer(buffer, polynomial(base)))

    def gather(
        self,
        n: Gather,
        width: int,
        offset: Tile,
        mask: Tile | None,
        table: Array | None = None,
        reads: Array | None = None,
    ) -> Tile:
        """table, reads: the values of `offset` and `mask`, by row, where they are known."""
        w, ops, t = self.writer, self.operations, n.type
        e = ops.memory_type(t.dtype, 0)
        base = self._base(n.buffer, n.base)
        tile = Tile(t, width, [])
        if table is not None:
            known = gather_table(w, ops, base, tile, table, reads, n.orelse)
            if known is not None:
                tile.values = known
                return tile
        values: list[list[str]] = []
        axes = row_axes(t)
        masks = row_index(mask.type, axes) if mask else []
        for r, o in enumerate(row_index(offset.type, axes)):
            out: list[str] = []
            for c in range(tile.chunks):
                at = _operand(ops, offset, o, c, width)
                keep = _operand(ops, mask, masks[r], c, width) if mask else None
                if not width:
                    pointer = w.op(f"getelementptr {e}, ptr {base}, i64 {at}")
                    if keep is not None and keep != "true":
                        pointer = self._choose(pointer, keep, t.dtype, n.orelse, 0)
                    raw = w.op(f"load {e}, ptr {pointer}, align {t.dtype.bytes}")
                else:
                    raw = self._gather_vector(tile, c, base, at, keep, n.orelse)
                out.append(ops.from_memory(raw, t.dtype, width))
            values.append(out)
        tile.values = values
        return tile

    def _gather_vector(
        self,
        tile: Tile,
        chunk: int,
        base: str,
        at: str,
        keep: str | None,
        orelse: float | int | bool,
    ) -> str:
        w, ops, dtype, width = self.writer, self.operations, tile.type.dtype, tile.width
        e, v = ops.memory_type(dtype, 0), ops.memory_type(dtype, width)
        valid = min(width, tile.extent - chunk * width)
        if keep is None:
            keep = ops.vector("i1", [int(i < valid) for i in range(width)])
        elif valid < width:
            tail = ops.vector("i1", [int(i < valid) for i in range(width)])
            keep = w.op(f"and <{width} x i1> {keep}, {tail}")
        pointers = w.op(f"getelementptr {e}, ptr {base}, <{width} x i64> {at}")
        name = f"llvm.masked.gather.v{width}{type_suffix(dtype)}.v{width}p0"
        w.module.declare(f"{v} @{name}(<{width} x ptr>, <{width} x i1>, {v})")
        other = ops.memory_literal(orelse, dtype, width)
        return w.op(
            f"call {v} @{name}(<{width} x ptr> align {dtype.bytes} {pointers}, "
            f"<{width} x i1> {keep}, {v} {other})"
        )

    def scatter(self, n: Scatter, offset: Tile, value: Tile, mask: Tile | None) -> None:
        """One element after another: duplicates combine in order, lanes innermost."""
        w, ops, dtype = self.writer, self.operations, value.type.dtype
        e = ops.memory_type(dtype, 0)
        base = self._base(n.buffer, n.base)
        operands = [x for x in (offset, value, mask) if x is not None]
        lane = next((x.type.lane for x in operands if x.type.lane is not None), None)
        axes: dict[str, int] = {}
        for x in operands:
            axes |= {a: k for a, k in x.type.axes if a != lane}
        over = list(axes.items())
        width = max(x.width for x in operands)
        extent = max(x.extent for x in operands)
        index = [row_index(x.type, over) for x in operands]
        for r in range(len(index[0])):
            for i in range(extent):
                parts = [_element(ops, x, index[k][r], i) for k, x in enumerate(operands)]
                pointer = w.op(f"getelementptr {e}, ptr {base}, i64 {parts[0]}")
                with self.when(parts[2] if mask is not None else "true"):
                    new = parts[1]
                    if n.monoid is not None:
                        raw = w.op(f"load {e}, ptr {pointer}, align {dtype.bytes}")
                        old = ops.from_memory(raw, dtype, 0)
                        new = ops.apply(n.monoid, [old, new], dtype, dtype, 0)
                    self._store_line(pointer, ops.to_memory(new, dtype, 0), dtype, 0)
        if width or extent:
            w.wrote()

    def prefetch(self, n: Prefetch) -> None:
        w = self.writer
        at = self.addresses.pointer(n.buffer, polynomial(n.base))
        w.module.declare("void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        for d in range(0, max(1, n.bytes), _LINE):
            pointer = self.addresses.at(at, d)
            w.line(f"call void @llvm.prefetch.p0(ptr {pointer}, i32 0, i32 {4 - n.level}, i32 1)")


def _const(value: int) -> Expr:
    from tilewright.ir.expr import const

    return const(value)


def _operand(ops: Operations, tile: Tile, row: int, chunk: int, width: int) -> str:
    """The value of a tile for one chunk of a result; scalars are splat."""
    if tile.width or not width:
        return tile.values[row][chunk if tile.width else 0]
    return ops.splat(tile.values[row][0], tile.type.dtype, width)


def _element(ops: Operations, tile: Tile, row: int, lane: int) -> str:
    """One element of a tile as a scalar."""
    if not tile.width:
        return tile.values[row][0]
    chunk, i = divmod(lane, tile.width)
    if chunk >= len(tile.values[row]):
        raise InternalError("X001", f"lane {lane} of {tile.type}")
    return ops.op(
        f"extractelement {ops.type(tile.type.dtype, tile.width)} {tile.values[row][chunk]}, i64 {i}"
    )
