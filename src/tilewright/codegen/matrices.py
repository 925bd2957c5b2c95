"""Sums of products of words in matrix registers (AMX tiles).

In: loops of a phase whose every trip is one contraction of words. Out: LLVM instructions that take
up to sixteen trips at once. Invariants: the loops of the nest stay what they are, this is another
way to run them; no element is touched that a load of the loop does not touch; accumulators that
fit the vector registers are none of this module's business.

A matrix register holds up to 16 rows of 16 words. Four hold accumulators of up to 32x32, two the
rows of one factor as they lie in memory, two the words of the other factor, which lie in panels.
Accumulators stay there for the whole reduction, whatever its loops. They begin with and end in
memory where whole rows of a tile lie there; otherwise vectors are brought to them, and come back,
through memory of the stack. Setting the shapes up costs as much as four steps, so a phase with one
set of shapes does it once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

from tilewright.codegen.address import Addresses, Pointer
from tilewright.codegen.dots import Dots, per_word
from tilewright.codegen.operations import Operations
from tilewright.codegen.tiles import LazyRows, Tile, row_axes, rows
from tilewright.codegen.writer import Writer
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BF16, I8, DType
from tilewright.ir.expr import CONSTANT, Expr, Polynomial, polynomial
from tilewright.ir.nest import (
    Contract,
    Fill,
    For,
    If,
    Load,
    Node,
    Prefetch,
    Store,
    TileType,
    operands,
)
from tilewright.ir.ranges import coefficient

__all__ = ["Matrices", "Product"]

_ROWS = 16  # of a matrix register, and words of a row
_REGISTERS = 8
_ROW_BYTES = 64
_AHEAD = 2  # steps that the words of B are asked for before their use
_FEW = 3  # more steps than the least, if all have one depth
_INNER = 4  # least words of a step inside outer loops

Loop = Callable[[For, Callable[[], None]], None]
Put = Callable[[Store, Tile], None]


@dataclass(frozen=True)
class Product:
    """The innermost loop of a sum of products, their factors, and how it is cut.

    factors: of each product of a trip; all first ones lie in one way, and all second ones. rows:
    (first row of the accumulator tile, how many) of each row of matrix registers; columns: words of
    each column of them. spans: (first word, steps, words of a step).
    """

    loop: For
    factors: tuple[tuple[Load, Load], ...]
    type: TileType
    signs: tuple[DType, DType]
    rows: tuple[tuple[int, int], ...]
    columns: tuple[int, ...]
    spans: tuple[tuple[int, int, int], ...]

    @property
    def a(self) -> Load:
        """A first factor: rows of words side by side."""
        return self.factors[0][0]

    @property
    def b(self) -> Load:
        """A second factor: panels of words."""
        return self.factors[0][1]

    def shapes(self, words: int) -> str:
        """The constant that sets the registers up: accumulators, rows of A, columns of B."""
        shape: list[tuple[int, int]] = [(n, 4 * w) for _, n in self.rows for w in self.columns]
        shape += [(n, 4 * words) for _, n in self.rows]
        shape += [(words, 4 * w) for w in self.columns]
        shape += [(0, 0)] * (_REGISTERS - len(shape))
        data = bytearray(64)
        data[0] = 1
        for k, (n, size) in enumerate(shape):
            data[16 + 2 * k] = size
            data[48 + k] = n
        return f"[64 x i8] [{', '.join(f'i8 {x}' for x in data)}]"


class Matrices:
    """Which loops of a phase run in matrix registers, and their instructions."""

    def __init__(
        self, writer: Writer, operations: Operations, addresses: Addresses, dots: Dots,
        widths: dict[str, int], uses: dict[str, int], body: tuple[Node, ...],
    ) -> None:  # fmt: skip
        self.writer, self.operations, self.addresses = writer, operations, addresses
        self.dots, self.widths, self.uses = dots, widths, uses
        self.holds: Product | None = None  # what the registers hold now
        self.starts: dict[str, Load] = {}  # tiles that registers load where they lie
        self.stores: dict[str, Store] = {}  # results that registers store themselves
        self._found: dict[int, Product] = {}
        self._zeros: set[str] = set()
        self._marks: list[tuple[str, str]] = []  # where shapes are set up, and which
        self._bases: dict[int, Pointer] = {}  # of what is loaded and stored
        if operations.target.has_feature("amx-tile"):
            self._look(body)

    def of(self, n: For) -> Product | None:
        """How the loop runs in matrix registers; None where it does not."""
        return self._found.get(id(n))

    # ---- finding ---------------------------------------------------------------------------------

    def _look(self, body: tuple[Node, ...]) -> None:
        for i, n in enumerate(body):
            match n:
                case Fill() if n.value == 0:
                    self._zeros.add(n.result)
                case If():
                    self._look(n.then)
                    self._look(n.orelse)
                case For() if not self._outer(n):
                    self._look(n.body)
                case For() if id(n) in self._found:
                    self._beside(n, self._found[id(n)], body[max(0, i - 1) : i + 2])

    def _beside(self, n: For, p: Product, nodes: tuple[Node, ...]) -> None:
        """Note the load before a sum and the store after it: whole rows of its type are loaded and
        stored by registers, parts of them are stored in a loop over rows.
        """
        kind, first, last = p.type, n.carries[0][1], n.results[0]
        for x in nodes:
            if not isinstance(x, Load | Store):
                continue
            if dict(x.strides).get(kind.lane or "") != E.const(1):
                continue
            whole = not x.limits and len(p.spans) == 1 and set(p.columns) == {_ROWS}
            if isinstance(x, Store):
                if x.value != last or self.uses.get(last, 0) != 1 or x.nontemporal:
                    continue
                from_zero = all(E.int_value(lo) == 0 for _, lo, _ in x.limits)
                if whole or (len(row_axes(kind)) == 1 and from_zero):
                    self.stores[last] = x
            elif whole and x.result == first and self.uses.get(first, 0) == 1 and x.type == kind:
                self.starts[first] = x

    def _outer(self, n: For) -> bool:
        """Note a loop, and those inside it, if all that it carries is one sum of products."""
        chain = [n]
        while len(chain[-1].body) == 1 and isinstance(chain[-1].body[0], For):
            inner, outer = chain[-1].body[0], chain[-1]
            if len(outer.carries) != 1 or len(inner.carries) != 1 or outer.parallel:
                break
            name = outer.carries[0][0]
            if inner.carries[0][1] != name or outer.yields != inner.results:
                break
            if self.uses.get(name, 0) != 1 or self.uses.get(inner.results[0], 0) != 1:
                break
            chain.append(inner)
        found = self._innermost(chain[-1])
        if found is None:
            return False
        if len(chain) == 1:
            self._found[id(n)] = found
            return True
        steps = found.spans[0]
        if len(found.spans) > 1 or steps[2] < min(_INNER, E.int_value(found.loop.hi) or 0):
            self._found[id(chain[-1])] = found  # set up anew in every trip of the outer loops
            return True
        self._found[id(n)] = self._found[id(chain[-1])] = found
        return True

    def _innermost(self, n: For) -> Product | None:
        """The products of a loop whose trips take one word each, or None."""
        count = E.int_value(n.hi)
        if n.parallel or n.step != 1 or E.int_value(n.lo) != 0 or not count or len(n.carries) != 1:
            return None
        loads: dict[str, Load] = {}
        contracts: list[Contract] = []
        for x in n.body:
            match x:
                case Load():
                    loads[x.result] = x
                case Contract():
                    contracts.append(x)
                case Prefetch():
                    pass
                case _:
                    return None
        if not contracts:
            return None
        acc, found = n.carries[0][0], None
        for c in contracts:  # each adds to what the one before gave
            signs = self.dots.contracts.get(c.result)
            if signs is None or c.acc != acc or self.uses.get(acc, 0) != 1:
                return None
            if c.a not in loads or c.b not in loads or c.a == c.b:
                return None
            a, b = loads[c.a], loads[c.b]
            if a.type.lane is not None:
                a, b, signs = b, a, signs[::-1]
            if found is None:
                found = self._product(n, c.type, a, b, signs, count)
            elif signs == found.signs and _lie_alike(a, found.a) and _lie_alike(b, found.b):
                found = replace(found, factors=(*found.factors, (a, b)))
            else:
                return None
            if found is None:
                return None
            acc = c.result
        if n.yields != (acc,) or self.uses.get(acc, 0) != 1:
            return None
        used = {x.result for pair in (found.factors if found else ()) for x in pair}
        return found if used == set(loads) else None

    def _product(
        self, n: For, t: TileType, a: Load, b: Load, signs: tuple[DType, DType], count: int
    ) -> Product | None:
        """The product of two factors."""
        if not self.operations.target.multiplies_matrices(8 * a.type.dtype.bytes):
            return None
        lane, along, word = t.lane, self.dots.loads[a.result], per_word(a.type.dtype)
        if lane is None or self.widths[n.carries[0][0]] != _ROWS or t.extent(lane) % _ROWS:
            return None
        over = row_axes(t)
        if a.type.lane is not None or a.limits or a.type.extent(along) != word or not over:
            return None
        if set(a.type.names) != {x for x, _ in over} | {along}:
            return None
        if b.type.lane != lane or set(b.type.names) != {lane, along}:
            return None
        if coefficient(a.base, E.index(n.var)) != word:
            return None
        if not coefficient(b.base, E.index(n.var)):
            return None
        vectors, total = t.extent(lane) // _ROWS, prod(k for _, k in over)
        if not self.operations.target.exceeds_vectors(total, vectors):
            return None
        columns = _columns(b, lane, vectors)
        last = over[-1][1]
        cut = [(i, min(_ROWS, last - i)) for i in range(0, last, _ROWS)]
        high = tuple((first + i, k) for first in range(0, total, last) for i, k in cut)
        if columns is None or len(high) * vectors + len(high) + vectors > _REGISTERS:
            return None
        return Product(n, ((a, b),), t, signs, high, columns, _spans(count))

    # ---- instructions ----------------------------------------------------------------------------

    def _call(self, name: str, kinds: str, arguments: str) -> None:
        w = self.writer
        w.module.declarations[f"void @llvm.x86.{name}({kinds})"] = None
        w.line(f"call void @llvm.x86.{name}({arguments})")

    def elsewhere(self, p: Product) -> Tile:
        """The accumulator tile while matrix registers hold it: no vectors."""
        return Tile(p.type, _ROWS, [])

    def _set_up(self, p: Product, words: int) -> None:
        """The shapes of registers, as a line that `finish` may move to the function's beginning."""
        w = self.writer
        name = w.module.constant(p.shapes(words))
        w.module.declare("void @llvm.x86.ldtilecfg(ptr)")
        mark = f"; shapes {len(self._marks)}"
        w.line(mark)
        self._marks.append((mark, name))

    def begin(self, p: Product, start: Tile | None, name: str) -> None:
        """Accumulators into registers: zeros, what lies in memory, or what the tile holds."""
        self.holds = p
        w = self.writer
        self._memory = ""
        if start is not None and name not in self._zeros:
            kind = self.operations.type(p.type.dtype, _ROWS)
            size = len(p.columns) * _ROW_BYTES
            for r, row in enumerate(start.values):
                for c, v in enumerate(row):
                    at = self._place(p, r * size + c * _ROW_BYTES)
                    w.line(f"store {kind} {v}, ptr {at}, align 64")
        self._set_up(p, p.spans[0][2])
        if name in self.starts:
            self._rows_of(p, self.starts[name], "tileloadd64")
        else:
            self._accumulators(p, "tilezero" if name in self._zeros else "tileloadd64")

    def _place(self, p: Product, offset: int) -> str:
        """Where an accumulator lies in memory of the stack."""
        if not self._memory:
            self._memory = self.writer.fresh()
            size = sum(n for _, n in p.rows) * len(p.columns) * _ROW_BYTES
            self.writer.regions[0].lines.insert(
                0, f"  {self._memory} = alloca [{size} x i8], align 64"
            )
        if not offset:
            return self._memory
        return self.writer.once(f"getelementptr i8, ptr {self._memory}, i64 {offset}")

    def _accumulators(self, p: Product, name: str) -> None:
        """One instruction for each accumulator: zero, load or store."""
        size = len(p.columns) * _ROW_BYTES
        for i, (first, _) in enumerate(p.rows):
            for j in range(len(p.columns)):
                register = i * len(p.columns) + j
                if name == "tilezero":
                    self._call(name, "i8", f"i8 {register}")
                    continue
                at = self._place(p, first * size + j * _ROW_BYTES)
                self._call(name, "i8, ptr, i64", f"i8 {register}, ptr {at}, i64 {size}")

    def _rows_of(self, p: Product, n: Load | Store, name: str) -> None:
        """Load the accumulators from where a tile lies, or store them there."""
        strides, positions = dict(n.strides), list(rows(p.type))
        between = strides.get(row_axes(p.type)[-1][0], E.const(0))
        self._bases = {}
        for i, (first, _) in enumerate(p.rows):
            at = [(strides[x], k) for x, k in positions[first].items() if x in strides]
            for j in range(len(p.columns)):
                place = [*at, (E.const(1), j * _ROWS)]
                self._access(name, n, p.type.dtype, place, between, i * len(p.columns) + j)

    def steps(self, p: Product, loop: Loop) -> None:
        """The trips of the innermost loop, up to sixteen at once."""
        for k, (first, count, words) in enumerate(p.spans):
            if k:  # shapes change: what the accumulators hold goes through memory
                self._accumulators(p, "tilestored64")
                self._set_up(p, words)
                self._accumulators(p, "tileloadd64")
            lo, hi = E.const(first), E.const(first + count * words)
            n = replace(p.loop, lo=lo, hi=hi, step=words, carries=(), yields=(), results=())
            # Several products of a step hide each other's loads.
            ahead = _AHEAD * words if count > _AHEAD and len(p.factors) == 1 else 0

            def step(words: int = words, ahead: int = ahead) -> None:
                self._step(p)
                if ahead:
                    self._fetch(p, words, ahead)

            loop(n, step)

    def _step(self, p: Product) -> None:
        """Load the factors that the product before did not have, then multiply."""
        width, high = len(p.columns), len(p.rows)
        a0 = high * width
        b0 = a0 + high
        left, right = p.signs
        kind = "bf16ps" if left is BF16 else "b" + "us"[left is I8] + "us"[right is I8] + "d"
        across = dict(p.b.strides).get(p.type.lane or "", E.const(0))
        step = E.const(coefficient(p.b.base, E.index(p.loop.var)) or 0)
        last = row_axes(p.type)[-1]
        positions = list(rows(p.type))
        held: tuple[Load, ...] = ()
        self._bases = {}
        for a, b in p.factors:
            if b not in held:
                for j in range(width):
                    self._factor(b, [(across, j * _ROWS)], step, b0 + j)
            if a not in held:
                strides = dict(a.strides)
                for i, (first, _) in enumerate(p.rows):
                    at = [(strides[x], k) for x, k in positions[first].items() if x in strides]
                    self._factor(a, at, strides.get(last[0], E.const(0)), a0 + i)
            held = a, b
            for i in range(high):
                for j in range(width):
                    registers = f"i8 {i * width + j}, i8 {a0 + i}, i8 {b0 + j}"
                    self._call(f"tdp{kind}", "i8, i8, i8", registers)

    def _fetch(self, p: Product, words: int, ahead: int) -> None:
        """Ask for the words of B that come so many trips later: a panel is read once for all rows,
        and its registers are loaded too soon before they are multiplied to wait for a cache.
        """
        a, w = self.addresses, self.writer
        w.module.declare("void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        step = (coefficient(p.b.base, E.index(p.loop.var)) or 0) * p.b.type.dtype.bytes
        pointer = a.pointer(p.b.buffer, polynomial(p.b.base))
        for k in range(ahead, ahead + words):
            for j in range(len(p.columns)):
                at = a.at(pointer, k * step + j * _ROW_BYTES)
                w.line(f"call void @llvm.prefetch.p0(ptr {at}, i32 0, i32 3, i32 1)")

    def _factor(self, n: Load, at: list[tuple[Expr, int]], stride: Expr, register: int) -> None:
        """Load one matrix register of a factor, its rows `stride` apart. at: (stride, position) of
        where it begins.
        """
        self._access("tileloadd64", n, n.type.dtype, at, stride, register)

    def _access(
        self, name: str, n: Load | Store, dtype: DType, at: list[tuple[Expr, int]], stride: Expr,
        register: int,
    ) -> None:  # fmt: skip
        """Load or store one matrix register."""
        a, size = self.addresses, dtype.bytes
        first: Polynomial = {}
        for step, k in at:
            for atoms, c in polynomial(step).items() if k else ():
                first[atoms] = first.get(atoms, 0) + c * k
        if first.keys() <= CONSTANT:
            if id(n) not in self._bases:
                self._bases[id(n)] = a.pointer(n.buffer, polynomial(n.base))
            pointer = a.at(self._bases[id(n)], size * first.get((), 0))
        else:
            for atoms, c in polynomial(n.base).items():
                first[atoms] = first.get(atoms, 0) + c
            pointer = a.at(a.pointer(n.buffer, {k: v for k, v in first.items() if v}))
        apart = E.int_value(stride)
        between = a.value(stride * size) if apart is None else apart * size
        self._call(name, "i8, ptr, i64", f"i8 {register}, ptr {pointer}, i64 {between}")

    def end(self, p: Product, name: str, rest: tuple[Node, ...], loop: Loop, put: Put) -> Tile:
        """Accumulators as vectors, each loaded before its first use if all uses are in `rest`; or
        stored where the next node wants them.
        """
        self.holds = None
        wanted = self.stores.get(name)
        if wanted is not None and not wanted.limits:
            self._rows_of(p, wanted, "tilestored64")
            return self.elsewhere(p)
        self._accumulators(p, "tilestored64")
        if wanted is not None:
            self._store_rows(p, wanted, loop, put)
            return self.elsewhere(p)
        w = self.writer
        kind = self.operations.type(p.type.dtype, _ROWS)
        size, op = len(p.columns) * _ROW_BYTES, w.op
        place = f"getelementptr i8, ptr {self._memory}, i64 "

        def row(r: int) -> list[str]:
            starts = range(r * size, (r + 1) * size, _ROW_BYTES)
            return [op(f"load {kind}, ptr {op(f'{place}{at}')}, align 64") for at in starts]

        count = sum(n for _, n in p.rows)
        found = LazyRows(count, row)
        near = sum([operands(x).count(name) for x in rest if not isinstance(x, For | If)])
        if near == self.uses.get(name, 0):
            return Tile(p.type, _ROWS, found)
        return Tile(p.type, _ROWS, [found[r] for r in range(count)])

    def _store_rows(self, p: Product, n: Store, loop: Loop, put: Put) -> None:
        """Store the rows within the limits one after the other, from memory of the stack."""
        w, lane, ((axis, count),) = self.writer, p.type.lane or "", row_axes(p.type)
        limits, strides = {a: hi for a, _, hi in n.limits}, dict(n.strides)
        last = E.minimum(E.const(count), limits.get(axis, E.const(count)))
        position = E.index(p.loop.var)
        base = n.base + strides.get(axis, E.const(0)) * position
        part = tuple(x for x in n.limits if x[0] == lane)
        size = len(p.columns) * _ROW_BYTES
        kind = self.operations.type(p.type.dtype, _ROWS)
        t = TileType(p.type.dtype, ((lane, p.type.extent(lane)),), lane)

        def row() -> None:
            first = self.addresses.value(position * size)
            at = w.op(f"getelementptr i8, ptr {self._memory}, i64 {first}")
            values = []
            for c in range(len(p.columns)):
                place = w.op(f"getelementptr i8, ptr {at}, i64 {c * _ROW_BYTES}") if c else at
                values.append(w.op(f"load {kind}, ptr {place}, align 64"))
            store = Store(n.buffer, base, ((lane, E.const(1)),), n.value, part)
            put(store, Tile(t, _ROWS, [values]))

        loop(For(p.loop.var, E.const(0), last, 1, ()), row)

    def finish(self) -> None:
        """Set shapes up once where the function has one set of them, else where they are used; give
        the registers back.
        """
        w = self.writer
        names = {name for _, name in self._marks}
        if not names:
            return
        once = len(names) == 1
        lines = w.region.lines
        for mark, name in self._marks:
            k = lines.index(f"  {mark}")
            lines[k] = "  ; shapes as they are" if once else _shaping(name)
        if once:
            lines.insert(0, _shaping(next(iter(names))))
        self._call_release()

    def _call_release(self) -> None:
        w = self.writer
        w.module.declare("void @llvm.x86.tilerelease()")
        w.line("call void @llvm.x86.tilerelease()")


def _shaping(name: str) -> str:
    return f"  call void @llvm.x86.ldtilecfg(ptr {name})"


def _lie_alike(x: Load, y: Load) -> bool:
    """Whether two factors are the same positions of two buffers."""
    return (x.type, x.base, x.strides, x.limits) == (y.type, y.base, y.strides, y.limits)


def _columns(b: Load, lane: str, vectors: int) -> tuple[int, ...] | None:
    """Words of each column of registers: all, or as many as constant limits of the lanes leave."""
    valid = vectors * _ROWS
    for axis, lo, hi in b.limits:
        if axis != lane or E.int_value(lo) != 0 or E.int_value(hi) is None:
            return None
        valid = min(valid, E.int_value(hi) or 0)
    columns = tuple(min(_ROWS, valid - _ROWS * j) for j in range(vectors))
    return columns if min(columns) > 0 else None


def _spans(count: int) -> tuple[tuple[int, int, int], ...]:
    """How so many words are cut into steps: of one depth if that takes few more of them, else whole
    ones and a rest.
    """
    most = min(count, _ROWS)
    depth = next(d for d in range(most, 0, -1) if count % d == 0)
    if count // depth <= -(-count // _ROWS) + _FEW:
        return ((0, count // depth, depth),)
    whole = count // _ROWS
    return ((0, whole, _ROWS), (whole * _ROWS, 1, count % _ROWS))
