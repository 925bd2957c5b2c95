"""Append-only construction of nest bodies, with value numbering and hoisting.

In: requests for tile operations. Out: nest nodes. Invariants: equal pure operations in one region
get one name; an operation whose operands and address do not change in a loop is placed before that
loop, but never above the region's root (stores of earlier stages stand above it); loads of a buffer
are never moved or merged across a store to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

from tilewright.ir import expr as E
from tilewright.ir import nest as N
from tilewright.ir.dtypes import BOOL, I64
from tilewright.ir.expr import Expr
from tilewright.ir.extent import is_symbolic
from tilewright.ir.nest import Node, TileType

__all__ = ["Body", "Builder", "Tile"]


class Tile:
    """A named tile value, its type, and the body it is defined in."""

    __slots__ = ("body", "name", "type")

    def __init__(self, name: str, type: TileType, body: Body) -> None:
        self.name, self.type, self.body = name, type, body


class Body:
    """Nodes of one loop body under construction."""

    def __init__(self, parent: Body | None, var: str | None = None, is_root: bool = False) -> None:
        self.parent = parent
        self.var = var  # the loop counter that this body belongs to
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.is_root = is_root
        self.is_loop = var is not None and not is_root  # else the root, or a side of a branch
        self.is_open = True  # whether nodes may still be added
        self.nodes: list[Node] = []
        # Of the root and all bodies in it; a value can be used as long as its body is open.
        self.values: dict[object, Tile] = {} if parent is None or is_root else parent.values
        self.stored: set[str] = set()  # buffers written in this body so far


class Builder:
    """Emits into `self.body`; `names` are unique over the whole nest."""

    def __init__(self) -> None:
        self._names = count()
        self._vars = count()
        self.body = Body(None, is_root=True)
        self.written: set[str] = (
            set()
        )  # buffers that the current region writes: their loads stay where they are

    def fresh(self) -> str:
        return f"%v{next(self._names)}"

    def counter(self) -> str:
        return f"l{next(self._vars)}"

    # -- placement
    def _home(self, operands: tuple[Tile, ...], exprs: tuple[Expr, ...]) -> Body:
        """The outermost body in which everything is defined, not above the root or a branch.

        A load may be inside its buffer on one side of a branch alone.
        """
        used: set[str] = set()
        for e in exprs:
            if e.op != "const":
                used |= e.indices()
        depth = 0
        for t in operands:
            depth = t.body.depth if t.body.depth > depth else depth
        b = self.body
        while b.parent is not None and b.depth > depth and b.is_loop and b.var not in used:
            b = b.parent
        return b

    def pure(
        self,
        key: object,
        make: type,
        type: TileType,
        operands: tuple[Tile, ...],
        exprs: tuple[Expr, ...],
        *rest: object,
    ) -> Tile:
        """An operation without effects: found if it was emitted before, else placed as far out as
        it may stand.
        """
        # The parts of the type are hashed faster than it.
        full = make, key, type.dtype, type.axes, type.lane
        values = self.body.values
        hit = values.get(full)
        if hit is not None and hit.body.is_open:
            return hit
        home = self._home(operands, exprs)
        tile = values[full] = Tile(f"%v{next(self._names)}", type, home)
        home.nodes.append(make(tile.name, type, *rest))
        return tile

    # -- operations
    def fill(self, type: TileType, value: float | int | bool) -> Tile:
        return self.pure(repr(value), N.Fill, type, (), (), value)

    def position(self, type: TileType, value: Expr) -> Tile:
        return self.pure(value, N.Position, type, (), (value,), value)

    def number(self, value: int) -> Tile:
        """A scalar that is known now, or from the dims."""
        if is_symbolic(value):
            return self.position(TileType(I64), E.const(value))
        return self.fill(TileType(I64), value)

    def iota(self, type: TileType) -> Tile:
        return self.pure(None, N.Iota, type, (), ())

    def map(self, op: str, type: TileType, args: tuple[Tile, ...]) -> Tile:
        names = tuple([a.name for a in args])
        return self.pure((op, names), N.Map, type, args, (), op, names)

    def combine(self, op: str, type: TileType, a: Tile, b: Tile) -> Tile:
        """Two values combined by a monoid's operation."""
        if op != "logaddexp":
            return self.map(op, type, (a, b))
        # The larger one moved up by what the smaller adds; an infinite one is the result itself.
        high, low = self.map("max", type, (a, b)), self.map("min", type, (a, b))
        gap = self.map("exp", type, (self.map("sub", type, (low, high)),))
        total = self.map("add", type, (high, self.map("log1p", type, (gap,))))
        infinite = self.map("isinf", TileType(BOOL, type.axes, type.lane), (high,))
        return self.map("select", type, (infinite, high, total))

    def relayout(self, type: TileType, value: Tile) -> Tile:
        return self.pure(value.name, N.Relayout, type, (value,), (), value.name)

    def contract(self, type: TileType, acc: Tile, a: Tile, b: Tile) -> Tile:
        names = (acc.name, a.name, b.name)
        return self.pure(names, N.Contract, type, (acc, a, b), (), *names)

    def reduce(self, type: TileType, value: Tile, axis: str, op: str) -> Tile:
        return self.pure((value.name, axis, op), N.Reduce, type, (value,), (), value.name, axis, op)

    def scan(self, type: TileType, value: Tile, axis: str, op: str) -> Tile:
        return self.pure((value.name, axis, op), N.Scan, type, (value,), (), value.name, axis, op)

    def load(
        self,
        type: TileType,
        buffer: str,
        base: Expr,
        strides: N.Strides,
        limits: N.Limits,
        orelse: float | int | bool,
    ) -> Tile:
        exprs = (base, *[s for _, s in strides])
        for _, lo, hi in limits:
            exprs += (lo, hi)
        orelse = orelse if limits else 0
        key = (buffer, base, strides, limits, repr(orelse))
        if buffer not in self.written:
            return self.pure(key, N.Load, type, (), exprs, buffer, base, strides, limits, orelse)
        body = self.body
        full = N.Load, key, type.dtype, type.axes, type.lane, body
        hit = body.values.get(full)
        if hit is not None and buffer not in body.stored:
            return hit
        tile = Tile(self.fresh(), type, body)
        body.nodes.append(N.Load(tile.name, type, buffer, base, strides, limits, orelse))
        if buffer not in body.stored:
            body.values[full] = tile
        return tile

    def gather(
        self,
        type: TileType,
        buffer: str,
        base: Expr,
        offset: Tile,
        mask: Tile | None,
        orelse: float | int | bool,
    ) -> Tile:
        operands = (offset,) if mask is None else (offset, mask)
        name = None if mask is None else mask.name
        orelse = orelse if name else 0
        if buffer not in self.written:
            key = (buffer, base, offset.name, name, repr(orelse))
            return self.pure(
                key, N.Gather, type, operands, (base,), buffer, base, offset.name, name, orelse
            )
        tile = Tile(self.fresh(), type, self.body)
        self.body.nodes.append(N.Gather(tile.name, type, buffer, base, offset.name, name, orelse))
        return tile

    def store(
        self,
        buffer: str,
        base: Expr,
        strides: N.Strides,
        value: Tile,
        limits: N.Limits,
        nontemporal: bool = False,
    ) -> None:
        self.body.nodes.append(N.Store(buffer, base, strides, value.name, limits, nontemporal))
        b: Body | None = self.body
        while b is not None:
            b.stored.add(buffer)
            b = None if b.is_root else b.parent

    def effect(self, node: Node) -> None:
        self.body.nodes.append(node)

    # -- control
    def enter(self, var: str | None = None, is_root: bool = False) -> Body:
        self.body = Body(self.body, var, is_root)
        return self.body

    def leave(self) -> tuple[Node, ...]:
        body = self.body
        assert body.parent is not None
        body.is_open, self.body = False, body.parent
        return tuple(body.nodes)

    def loop(
        self,
        var: str,
        end: int | Expr,
        start: Sequence[Tile],
        body: Callable[[list[Tile]], Sequence[Tile]],
    ) -> list[Tile]:
        """`var` from 0 to below `end`; `body` is given the carried tiles, which begin as `start`,
        and gives their next values. Returns what they are after the loop.
        """
        self.enter(var)
        inside = [self.carried(t.type) for t in start]
        new = body(inside)
        nodes = self.leave()
        out = [self.result(t.type) for t in start]
        carries = tuple((i.name, s.name) for i, s in zip(inside, start, strict=True))
        stop = E.const(end) if isinstance(end, int) else end
        yields, results = tuple(t.name for t in new), tuple(t.name for t in out)
        self.effect(N.For(var, E.const(0), stop, 1, nodes, carries, yields, results))
        return out

    def carried(self, type: TileType) -> Tile:
        """A name bound by the loop whose body was just entered."""
        return Tile(self.fresh(), type, self.body)

    def result(self, type: TileType) -> Tile:
        """A name defined by the node that is about to be appended to the current body."""
        return Tile(self.fresh(), type, self.body)
