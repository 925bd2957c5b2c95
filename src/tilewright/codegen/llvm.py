"""A LoopNest as textual LLVM IR.

In: a verified `LoopNest` and a `Target`. Out: a module with one function per phase, `void
NAME_p<K>(ptr args, i64 lo, i64 hi, ptr scratch)` (docs/architecture.md). Invariants: no alloca
(but for matrix registers, codegen/matrices.py), no
fast-math flag, no library call; loop-carried tiles are phis of native vectors; the text depends on
the nest and the target only. The text is meant for code generation without an optimization
pipeline: addresses are already numbered and hoisted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tilewright.codegen import dots
from tilewright.codegen.address import Addresses
from tilewright.codegen.matrices import Matrices, Product
from tilewright.codegen.memory import Memory
from tilewright.codegen.operations import Operations
from tilewright.codegen.shuffles import Shuffles
from tilewright.codegen.survey import Survey
from tilewright.codegen.tables import constant_tiles, in_rows
from tilewright.codegen.tiles import (
    LazyRows,
    Tile,
    row_axes,
    row_count,
    row_index,
    vector_widths,
    vectors,
)
from tilewright.codegen.writer import Induction, Module, Region, Writer
from tilewright.errors import InternalError
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, F32, F64, I32, DType
from tilewright.ir.expr import Expr
from tilewright.ir.nest import (
    Contract,
    Fill,
    For,
    Gather,
    If,
    Iota,
    Load,
    LoopNest,
    Map,
    Node,
    Phase,
    Position,
    Prefetch,
    Reduce,
    Relayout,
    Scan,
    Scatter,
    Store,
    TileType,
)
from tilewright.machine.target import Target

__all__ = ["chunk_count", "emit_llvm", "function_name", "scratch_bytes"]

_ALIGN = 64
_SHARED = 3  # pointers that move alike in one loop: beyond this many they share an offset


def function_name(nest: LoopNest, phase: int) -> str:
    """The symbol of one phase."""
    return f"{nest.name}_p{phase}"


def size_value(e: Expr, dims: Mapping[str, int]) -> int:
    """A size or loop bound for given dims. Errors: InternalError X001 where it depends on anything
    else.
    """
    bound = E.substitute(e, {E.dim(k): E.const(v) for k, v in dims.items()})
    value = E.int_value(bound)
    if value is None:
        raise InternalError("X001", f"{e} is not known from the dims {sorted(dims)}")
    return value


def chunk_count(nest: LoopNest, phase: int, dims: Mapping[str, int]) -> int:
    """How many chunks phase `phase` has; 1 without a parallel loop, 0 for a parallel loop without
    trips.
    """
    loop = nest.phases[phase].parallel
    if loop is None:
        return 1
    span = size_value(loop.hi, dims) - size_value(loop.lo, dims)
    return max(0, -(-span // (loop.step * loop.grain)))


def scratch_bytes(nest: LoopNest, dims: Mapping[str, int]) -> int:
    """Bytes of per-thread scratch memory: the scratch buffers one after another, each 64-byte
    aligned.
    """
    total = 0
    for b in nest.buffers:
        if b.place == "scratch":
            total += -(-size_value(b.size, dims) * b.dtype.bytes // _ALIGN) * _ALIGN
    return total


def emit_llvm(nest: LoopNest, target: Target) -> str:
    """LLVM IR text of the nest for the target, one exported function per phase."""
    module = Module()
    functions = [_Function(nest, k, p, target, module).text() for k, p in enumerate(nest.phases)]
    parts = [
        f'target triple = "{target.triple}"',
        module.text(),
        *functions,
        f"attributes #0 = {{ {target.function_attributes()} }}",
        "!0 = !{i32 1}",
    ]
    return "\n".join(p for p in parts if p) + "\n"


class _Function:
    """Emits one phase."""

    def __init__(
        self, nest: LoopNest, number: int, phase: Phase, target: Target, module: Module
    ) -> None:
        self.nest = nest
        self.phase = phase
        self.target = target
        self.name = function_name(nest, number)
        self.writer = Writer(module)
        self.operations = Operations(self.writer, target)
        self.addresses = Addresses(self.writer, self.operations)
        self.memory = Memory(self.writer, self.operations, self.addresses)
        self.shuffles = Shuffles(self.writer, self.operations)
        self.widths = vector_widths(phase, target.vector_bits)
        self.tiles: dict[str, Tile] = {}
        self.iotas: dict[str, str] = {}  # lane numbers, by the axis that they number
        self.places: dict[str, Expr] = {}  # positions: scalars of subscript arithmetic
        self.survey = Survey(phase.body)
        self.uses = self.survey.uses
        self.dots = dots.find(self.survey)
        self.constant_tiles = constant_tiles(self.survey)
        self.matrices = Matrices(
            self.writer, self.operations, self.addresses, self.dots, self.widths, self.uses,
            phase.body if self.dots.contracts else (),
        )  # fmt: skip

    def text(self) -> str:
        self._arguments()
        self._body(self.phase.body)
        w = self.writer
        self.matrices.finish()
        if self.memory.nontemporal:
            if self.target.triple.startswith("x86"):
                w.module.declare("void @llvm.x86.sse.sfence()")
                w.line("call void @llvm.x86.sse.sfence()")
            else:
                w.line("fence release")
        w.line("ret void")
        head = f"define void @{self.name}(ptr %args, i64 %lo, i64 %hi, ptr %scratch) #0 {{"
        return "\n".join([head, "entry:", *w.region.lines, "}"])

    def _arguments(self) -> None:
        """Pointers and dims from the slots of `args`; scratch buffers one after another."""
        w, a = self.writer, self.addresses
        placed = [b for b in self.nest.buffers if b.place != "scratch"]
        used = self.survey.buffers
        for slot, b in enumerate(placed):
            if b.name in used:
                a.buffers[b.name] = (self._slot(slot, "ptr"), b.dtype)
                if E.int_value(b.size) is None:
                    a.sizes[b.name] = b.size
        for slot, d in enumerate(self.nest.dims, len(placed)):
            a.variables[d] = (self._slot(slot, "i64"), 0)
        at, whole = 0, E.const(0)  # constant and symbolic parts of the scratch offset
        for b in self.nest.buffers:
            if b.place != "scratch":
                continue
            if b.name in used:
                base = "%scratch"
                if whole is not E.const(0):
                    base = w.op(f"getelementptr i8, ptr {base}, i64 {a.value(whole)}")
                if at:
                    base = w.op(f"getelementptr i8, ptr {base}, i64 {at}")
                a.buffers[b.name] = (base, b.dtype)
            known = E.int_value(b.size)
            if known is None:
                whole = whole + (b.size * b.dtype.bytes + (_ALIGN - 1)) // _ALIGN * _ALIGN
            else:
                at += -(-known * b.dtype.bytes // _ALIGN) * _ALIGN

    def _slot(self, slot: int, kind: str) -> str:
        w = self.writer
        at = w.op(f"getelementptr i8, ptr %args, i64 {8 * slot}") if slot else "%args"
        return w.op(f"load {kind}, ptr {at}, align 8")

    # ---- control ---------------------------------------------------------------------------------

    def _body(self, body: tuple[Node, ...]) -> None:
        for k, n in enumerate(body):
            match n:
                case For():
                    matrix = self.matrices.of(n)
                    if matrix is None:
                        self._loop(n)
                    else:
                        self._in_matrices(n, matrix, body[k + 1 :])
                case If():
                    self._branch(n)
                case Load() if self._feeds_contract(n.result, body[k + 1 :]):
                    self.tiles[n.result] = self._load(n, self.widths[n.result], lazy=True)
                case _:
                    self._node(n)

    def _feeds_contract(self, name: str, rest: tuple[Node, ...]) -> bool:
        """Whether its only use is as a factor of one contraction of this body, no store between.

        Such a load is emitted row by row between the multiply-adds: LLVM's scheduler does not move
        it there itself when its address was chosen by a predicate, and all rows at once would not
        fit the registers.
        """
        if self.uses.get(name, 0) != 1:
            return False
        for n in rest:
            match n:
                case Contract() if name in (n.a, n.b):
                    return True
                case For() | If() | Store() | Scatter():
                    return False
        return False

    def _bounds(self, n: For) -> tuple[str, str, bool]:
        """First value, end, and whether there surely is a trip. A parallel loop runs chunks lo..hi
        only.
        """
        a, w = self.addresses, self.writer
        first, end = a.value(n.lo), a.value(n.hi)
        if not n.parallel:
            return first, end, a.ranges.true("lt", n.lo, n.hi)
        width = n.step * n.grain
        start = w.op(f"mul i64 %lo, {width}") if width != 1 else "%lo"
        stop = w.op(f"mul i64 %hi, {width}") if width != 1 else "%hi"
        if first != "0":
            start, stop = w.op(f"add i64 {start}, {first}"), w.op(f"add i64 {stop}, {first}")
        w.module.declare("i64 @llvm.smin.i64(i64, i64)")
        return start, w.op(f"call i64 @llvm.smin.i64(i64 {stop}, i64 {end})"), False

    def _loop(self, n: For, emit: Callable[[], None] | None = None) -> None:
        """A loop around its body, or around what `emit` writes."""
        w, a = self.writer, self.addresses
        first, end, surely = self._bounds(n)
        lo, hi = E.int_value(n.lo), E.int_value(n.hi)
        once = not n.parallel and lo is not None and hi is not None and lo < hi <= lo + n.step
        inside, after = (w.region.label if once else w.label()), w.label()
        innermost = not once and self.survey.is_innermost(n)
        w.open(inside, innermost=innermost)
        var = first if once else w.fresh()
        hidden = a.bind(n.var, var, first, n.step)
        known = a.ranges.variables.get(n.var)
        a.ranges.loop(n.var, n.lo, n.hi, n.step)
        initial = [self.tiles[i] for _, i in n.carries]
        carried = [self._named(t) if not once else t for t in initial]
        for (name, _), t in zip(n.carries, carried, strict=True):
            self.tiles[name] = t
        if emit is None:
            self._body(n.body)
        else:
            emit()
        yields = [self.tiles[y] for y in n.yields]
        a.unbind(n.var, hidden)
        if known is not None:
            a.ranges.variables[n.var] = known
        region = w.close()
        if once:
            w.region.lines += region.lines
            w.region.label = region.label
            results = yields
        else:
            head = self._close_loop(
                region, inside, var, first, end, n.step, carried, initial, yields, after, surely
            )
            w.region.lines += head
            results = self._results(carried, initial, yields, region, after, surely)
        for name, t in zip(n.results, results, strict=True):
            self.tiles[name] = t

    def _in_matrices(self, n: For, matrix: Product, rest: tuple[Node, ...]) -> None:
        """A reduction whose accumulators are matrix registers while it runs."""
        m = self.matrices
        if m.holds is not None:  # the innermost loop of one whose registers are set up
            m.steps(matrix, self._loop)
            self.tiles[n.results[0]] = m.elsewhere(matrix)
            return
        initial = n.carries[0][1]
        start = self.tiles.get(initial)
        self.tiles[initial] = m.elsewhere(matrix)
        m.begin(matrix, start, initial)
        if matrix.loop is n:
            m.steps(matrix, self._loop)
        else:
            self._loop(n)
        if start is not None:
            self.tiles[initial] = start
        self.tiles[n.results[0]] = m.end(matrix, n.results[0], rest, self._loop, self.memory.store)

    def _close_loop(
        self, region: Region, inside: str, var: str, first: str, end: str, step: int,
        carried: list[Tile], initial: list[Tile], yields: list[Tile], after: str, surely: bool,
    ) -> list[str]:  # fmt: skip
        """Guard, phis, body, latch."""
        w = self.writer
        before, latch = w.region.label, region.label
        if surely:
            w.line(f"br label %{inside}")
        else:
            guard = w.op(f"icmp slt i64 {first}, {end}")
            w.line(f"br i1 {guard}, label %{inside}, label %{after}")
        follow, again = w.fresh(), w.fresh()
        out = [f"{inside}:", f"  {var} = phi i64 [ {first}, %{before} ], [ {follow}, %{latch} ]"]
        for t, i, y in zip(carried, initial, yields, strict=True):
            kind = self.operations.type(t.type.dtype, t.width)
            for rows_of_three in zip(t.values, i.values, y.values, strict=True):
                out += [
                    f"  {v} = phi {kind} [ {iv}, %{before} ], [ {yv}, %{latch} ]"
                    for v, iv, yv in zip(*rows_of_three, strict=True)
                ]
        starts, moved = self._move(region, before, latch, out)
        w.region.lines[-1:-1] = starts
        out += region.lines
        out += moved
        out.append(f"  {follow} = add nsw i64 {var}, {step}")
        out.append(f"  {again} = icmp slt i64 {follow}, {end}")
        out.append(f"  br i1 {again}, label %{inside}, label %{after}")
        out.append(f"{after}:")
        w.region.label = after
        self._before = before
        return out

    def _move(
        self, region: Region, before: str, latch: str, out: list[str]
    ) -> tuple[list[str], list[str]]:
        """Phis of the moving pointers; many that move alike share one offset. Gives lines before
        and after the body.
        """
        w = self.writer
        starts: list[str] = []
        moved: list[str] = []
        alike: dict[tuple[str, str], list[Induction]] = {}
        for ind in region.inductions:
            alike.setdefault((ind.start, ind.increment), []).append(ind)
        shared: list[str] = []
        for (start, increment), group in alike.items():
            if len(group) > _SHARED:
                offset, following = w.fresh(), w.fresh()
                out.append(
                    f"  {offset} = phi i64 [ {start}, %{before} ], [ {following}, %{latch} ]"
                )
                moved.append(f"  {following} = add i64 {offset}, {increment}")
                shared += [
                    f"  {i.name} = getelementptr i8, ptr {i.pointer}, i64 {offset}" for i in group
                ]
                continue
            for i in group:
                first, following = i.pointer, w.fresh()
                if start != "0":
                    first = w.fresh()
                    starts.append(f"  {first} = getelementptr i8, ptr {i.pointer}, i64 {start}")
                out.append(
                    f"  {i.name} = phi ptr [ {first}, %{before} ], [ {following}, %{latch} ]"
                )
                moved.append(f"  {following} = getelementptr i8, ptr {i.name}, i64 {increment}")
        out += shared
        return starts, moved

    def _results(
        self,
        carried: list[Tile],
        initial: list[Tile],
        yields: list[Tile],
        region: Region,
        after: str,
        surely: bool,
    ) -> list[Tile]:
        """What the loop leaves behind: the last yields, or the initial tiles without a trip."""
        if surely:
            return yields
        before, out = self._before, []
        for i, y in zip(initial, yields, strict=True):
            merged = [
                [
                    self._phi(y, iv, before, yv, region.label)
                    for iv, yv in zip(irow, yrow, strict=True)
                ]
                for irow, yrow in zip(i.values, y.values, strict=True)
            ]
            out.append(Tile(y.type, y.width, merged))
        return out

    def _phi(self, t: Tile, a: str, from_a: str, b: str, from_b: str) -> str:
        kind = self.operations.type(t.type.dtype, t.width)
        return self.writer.op(f"phi {kind} [ {a}, %{from_a} ], [ {b}, %{from_b} ]")

    def _named(self, t: Tile) -> Tile:
        """A tile of new names, for the phis of a loop."""
        chunks = vectors(t.type, t.width)
        names = self.writer.names(len(t.values) * chunks)
        return Tile(t.type, t.width, [names[k : k + chunks] for k in range(0, len(names), chunks)])

    def _branch(self, n: If) -> None:
        w = self.writer
        condition = self.addresses.value(n.condition)
        after = w.label()
        regions: list[Region] = []
        results: list[list[Tile]] = []
        labels: list[str] = []
        for body, yields in ((n.then, n.then_yields), (n.orelse, n.else_yields)):
            labels.append(w.label())
            w.open(labels[-1])
            self._body(body)
            results.append([self.tiles[y] for y in yields])
            regions.append(w.close())
        w.line(f"br i1 {condition}, label %{labels[0]}, label %{labels[1]}")
        for label, region in zip(labels, regions, strict=True):
            w.region.lines += [f"{label}:", *region.lines, f"  br label %{after}"]
        w.start_block(after)
        for name, a, b in zip(n.results, *results, strict=True):
            merged = [
                [
                    self._phi(a, x, regions[0].label, y, regions[1].label)
                    for x, y in zip(ra, rb, strict=True)
                ]
                for ra, rb in zip(a.values, b.values, strict=True)
            ]
            self.tiles[name] = Tile(a.type, a.width, merged)

    # ---- tiles -----------------------------------------------------------------------------------

    def _node(self, n: Node) -> None:
        match n:
            case Store():
                if self.matrices.stores.get(n.value) is not n:
                    self.memory.store(n, self.tiles[n.value])
            case Prefetch():
                self.memory.prefetch(n)
            case Scatter():
                mask = self.tiles[n.mask] if n.mask else None
                self.memory.scatter(n, self.tiles[n.offset], self.tiles[n.value], mask)
            case For() | If():
                raise InternalError("X001", "control nodes are emitted by their own methods")
            case _:
                if self.matrices.starts.get(n.result) is not n:
                    self.tiles[n.result] = self._define(n, self.widths[n.result])

    def _define(self, n: Node, width: int) -> Tile:
        match n:
            case Load():
                return self._load(n, width)
            case Map():
                return self._map(n, width)
            case Contract():
                return self._contract(n, width)
            case Fill():
                return self._constant(
                    n.type, width, self.operations.literal(n.value, n.type.dtype, width)
                )
            case Position():
                self.places[n.result] = n.value
                return Tile(n.type, 0, [[self.addresses.value(n.value)]])
            case Iota():
                if n.type.lane is not None:
                    self.iotas[n.result] = n.type.lane
                return self._iota(n.type, width)
            case Reduce():
                return self.shuffles.reduce(n, self.tiles[n.value], width)
            case Scan():
                return self.shuffles.scan(n, self.tiles[n.value])
            case Relayout():
                return self.shuffles.relayout(n, self.tiles[n.value], width)
            case Gather():
                mask = self.tiles[n.mask] if n.mask else None
                offset, known = self.tiles[n.offset], self.constant_tiles
                table = keep = None
                if width and n.offset in known and (mask is None or n.mask in known):
                    table = in_rows(known[n.offset], offset.type, n.type)
                    if mask is not None:
                        keep = in_rows(known[n.mask or ""], mask.type, n.type)
                return self.memory.gather(n, width, offset, mask, table, keep)
        raise InternalError("X001", f"no code for {type(n).__name__}")

    def _load(self, n: Load, width: int, lazy: bool = False) -> Tile:
        """A load; factors of dot products come in words."""
        along = self.dots.loads.get(n.result)
        if along is not None:
            word = dots.per_word(n.type.dtype)
            return self.memory.load(dots.in_words(n, along), width, lazy, word)
        apart = dots.interleaved(n, n.type) if width else None
        if apart is not None:
            word = dots.per_word(n.type.dtype)
            words = self.memory.load(dots.in_words(n, apart), width, False, word)
            return dots.parts_of(self.operations, words, n.type, apart)
        return self.memory.load(n, width, lazy)

    def _constant(self, t: TileType, width: int, value: str) -> Tile:
        row = [value] * vectors(t, width)
        return Tile(t, width, [row] * row_count(t))

    def _iota(self, t: TileType, width: int) -> Tile:
        tile = Tile(t, width, [])
        if not width:
            tile.values = [[str(i)] for i in range(t.axes[0][1])]
        else:
            v = self.operations.vector
            tile.values = [
                [v("i64", range(c * width, (c + 1) * width)) for c in range(tile.chunks)]
            ]
        return tile

    def _column(self, tile: Tile, t: TileType, width: int) -> list[list[str]]:
        """For each row of a result the chunks of an operand: broadcast by axis name, scalars
        splat.
        """
        values = list(tile.values)
        if tile.width != width:
            splat, dtype, chunks = self.operations.splat, tile.type.dtype, vectors(t, width)
            values = [[splat(row[0], dtype, width)] * chunks for row in values]
        if tile.type.axes == t.axes:
            return values
        return [values[r] for r in row_index(tile.type, row_axes(t))]

    def _map(self, n: Map, width: int) -> Tile:
        t, op = n.type, n.op
        numbered = op == "lt" and self.iotas.get(n.args[0], "") == t.lane
        if numbered and n.args[1] in self.places:
            return self._lanes_below(t, width, self.places[n.args[1]])
        args = [self.tiles[a] for a in n.args]
        columns = [self._column(a, t, width) for a in args]
        source = args[-1].type.dtype if op == "select" else args[0].type.dtype
        apply, dtype = self.operations.apply, t.dtype
        values = [
            [apply(op, parts, source, dtype, width) for parts in zip(*row, strict=True)]
            for row in zip(*columns, strict=True)
        ]
        return Tile(t, width, values)

    def _lanes_below(self, t: TileType, width: int, end: Expr) -> Tile:
        """Which lanes come before `end`: the mask of a load with this limit."""
        zero, addresses, row = E.const(0), self.addresses, list[str]()
        for c in range(vectors(t, width)):
            mask = addresses.lane_mask(zero, end, c * width, width, width)
            full = self.operations.literal(True, t.dtype, width)
            row.append(full if mask is None else addresses.use_mask(mask, width))
        return Tile(t, width, [row] * row_count(t))

    def _contract(self, n: Contract, width: int) -> Tile:
        """Outer products: for each contracted position all rows of the accumulator."""
        t = n.type
        acc, a, b = self.tiles[n.acc], self.tiles[n.a], self.tiles[n.b]
        over: dict[str, int] = {}
        for x in (a.type, b.type):
            over |= {axis: k for axis, k in x.axes if axis not in t.names}
        axes = row_axes(t)
        both = [*over.items(), *axes]
        ia, ib = row_index(a.type, both), row_index(b.type, both)
        out = Tile(t, width, [list(r) for r in acc.values])
        count = len(out.values)
        dtype, ops = t.dtype, self.operations
        kinds = self.dots.contracts.get(n.result)
        of = dtype if kinds is None else I32  # words
        if t.dtype is BOOL:
            raise InternalError("L001", "contract has no meaning for bool")
        chunks = range(vectors(t, width))
        again = self._again(a, b, ia, len(chunks), dtype), self._again(b, a, ib, len(chunks), dtype)
        product = ops.multiply_add(dtype, width)
        lefts: dict[int, list[str]] = {}
        rights: dict[int, list[str]] = {}
        for k, (i, j) in enumerate(zip(ia, ib, strict=True)):
            row = out.values[k % count]
            left = lefts.get(i) or lefts.setdefault(i, self._factor(a, i, of, width))
            right = rights.get(j) or rights.setdefault(j, self._factor(b, j, of, width))
            for c in chunks:
                p = left[c] if len(left) > 1 else left[0]
                q = right[c] if len(right) > 1 else right[0]
                if c:
                    p = p if again[0] is None else again[0](i, c, p)
                    q = q if again[1] is None else again[1](j, c, q)
                row[c] = (
                    product(p, q, row[c])
                    if kinds is None
                    else dots.dot(ops, p, q, row[c], kinds, width)
                )
        return out

    def _again(
        self, scalars: Tile, other: Tile, index: list[int], chunks: int, dtype: DType
    ) -> Callable[[int, int, str], str] | None:
        """How a scalar factor is read for the second and later vectors of a row; None where it is
        not read again.

        AVX-512 multiplies by a broadcast memory operand: a load of its own for every product costs
        no instruction. All rows so would ask more of the two load ports than of the two
        multipliers, and a machine whose other hardware thread is busy issues few instructions:
        the best is as many rows as keep the loads at nine tenths of the products.
        """
        values = scalars.values
        rows = len(values)
        fits = (
            chunks > 1
            and isinstance(values, LazyRows)
            and values.again is not None
            and scalars.type.dtype is dtype
            and dtype in (F32, F64)
            and other.width > 0
            and len(set(index)) == len(index)
        )
        if not fits:
            return None
        most = max(0, min(rows, int((0.9 * rows * chunks - rows - chunks) / (chunks - 1))))

        def read(row: int, chunk: int, first: str) -> str:
            if (row + 1) * most // rows == row * most // rows:
                return first
            assert isinstance(values, LazyRows) and values.again is not None
            one = values.again(row, chunk)
            return self.operations.splat(one, dtype, other.width)

        return read

    def _factor(self, tile: Tile, row: int, dtype: DType, width: int) -> list[str]:
        """One row of a factor in the accumulator's dtype, converted once."""
        values = tile.values[row]
        if tile.type.dtype is not dtype:
            key = ("widened", tile.type.dtype, dtype, *values)
            found = self.writer.known(key)
            if found is None:
                cast = self.operations.cast
                found = ",".join(cast(v, tile.type.dtype, dtype, tile.width) for v in values)
                self.writer.remember(key, found, self.writer.depth)
            values = found.split(",")
        if tile.width == width:
            return values
        return [self.operations.splat(values[0], dtype, width)]
