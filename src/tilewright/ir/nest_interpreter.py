"""What a LoopNest means, in NumPy.

In: a nest, a flat array per buffer (except scratch), values of the dims. Out: the arrays, changed
in place. Invariants: scalar meaning comes from ir/scalar.py alone; an access outside a buffer is an
error, never a wrong value; reductions run in the order that ir/nest.py states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tilewright.errors import InternalError
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F32, F64, DType
from tilewright.ir.expr import Expr
from tilewright.ir.nest import (
    Contract,
    Fill,
    For,
    Gather,
    If,
    Iota,
    Limits,
    Load,
    LoopNest,
    Map,
    Node,
    Position,
    Prefetch,
    Reduce,
    Relayout,
    Scan,
    Scatter,
    Store,
    Strides,
    TileType,
)
from tilewright.ir.scalar import evaluate

__all__ = ["run_nest"]

Array = np.ndarray[Any, np.dtype[Any]]


def run_nest(nest: LoopNest, buffers: Mapping[str, Array], dims: Mapping[str, int]) -> None:
    """Run all phases. `buffers` maps arg, arena and const names to 1-d arrays, written in place.

    Errors: InternalError L001 naming the node that touches memory outside its buffer, or an
    undefined name.
    """
    _Run(nest, buffers, dims).run()


def _identity(monoid: str, dtype: DType) -> Any:
    if monoid in ("add", "or", "xor"):
        return dtype.np.type(0)
    if monoid == "mul":
        return dtype.np.type(1)
    if dtype.kind == "b":
        return np.bool_(monoid in ("min", "and"))
    if monoid == "and":
        return np.asarray(-1).astype(dtype.np)[()]
    if dtype.is_float:
        return np.asarray(np.inf if monoid == "min" else -np.inf).astype(dtype.np)[()]
    info = np.iinfo(dtype.np)  # type: ignore[type-var]
    return dtype.np.type(info.max if monoid == "min" else info.min)


class _Run:
    def __init__(
        self, nest: LoopNest, buffers: Mapping[str, Array], dims: Mapping[str, int]
    ) -> None:
        self.nest = nest
        self.names: dict[str, int] = {**dims}
        self.memory: dict[str, Array] = {}
        for b in nest.buffers:
            size = self.integer(b.size)
            if b.place == "scratch":
                self.memory[b.name] = np.zeros(size, b.dtype.np)
                continue
            array = buffers[b.name]
            if array.ndim != 1 or array.dtype != b.dtype.np or array.size < size:
                raise InternalError("L001", f"buffer {b.name} needs {size} elements of {b.dtype}")
            self.memory[b.name] = array
        self.tiles: dict[str, Array] = {}
        self.types: dict[str, TileType] = {}

    def run(self) -> None:
        with np.errstate(all="ignore"):
            for p in self.nest.phases:
                self.body(p.body)

    # ---- expressions -----------------------------------------------------------------------------

    def expression(self, e: Expr) -> Any:
        """Value of a subscript, bound or condition."""
        op = e.op
        if op == "const":
            return e.attr
        if op in ("index", "dim"):
            if e.attr not in self.names:
                raise InternalError("L001", f"{e.attr!r} has no value here", where=str(e))
            return self.names[e.attr]
        if op == "read":
            at = int(self.expression(e.args[0]))
            memory = self.memory[e.attr[0]]
            if not 0 <= at < memory.size:
                raise InternalError(
                    "L001", f"{e.attr[0]}[{at}] is outside the buffer", where=str(e)
                )
            return memory[at].item()
        if op == "select":
            return self.expression(e.args[1] if self.expression(e.args[0]) else e.args[2])
        source = [np.asarray(self.expression(a), a.dtype.np) for a in e.args]
        return evaluate(op, source, e.dtype).item()

    def integer(self, e: Expr) -> int:
        return int(self.expression(e))

    # ---- control ---------------------------------------------------------------------------------

    def body(self, body: tuple[Node, ...]) -> None:
        for n in body:
            if isinstance(n, For):
                self.loop(n)
            elif isinstance(n, If):
                self.branch(n)
            else:
                self.node(n)

    def bind(self, names: tuple[str, ...], source: tuple[str, ...]) -> None:
        values = [(self.tiles[s], self.types[s]) for s in source]
        for name, (value, t) in zip(names, values, strict=True):
            self.tiles[name], self.types[name] = value, t

    def loop(self, n: For) -> None:
        names = tuple(a for a, _ in n.carries)
        self.bind(names, tuple(b for _, b in n.carries))
        before = self.names.get(n.var)
        for i in range(self.integer(n.lo), self.integer(n.hi), n.step):
            self.names[n.var] = i
            self.body(n.body)
            self.bind(names, n.yields)
        self.names.pop(n.var, None)
        if before is not None:
            self.names[n.var] = before
        self.bind(n.results, names)

    def branch(self, n: If) -> None:
        chosen, yields = (
            (n.then, n.then_yields) if self.expression(n.condition) else (n.orelse, n.else_yields)
        )
        self.body(chosen)
        self.bind(n.results, yields)

    # ---- operands --------------------------------------------------------------------------------

    def operand(self, name: str, t: TileType) -> Array:
        """A tile with its axes in the order of `t`, absent ones of extent 1."""
        have = self.types[name].names
        value = self.tiles[name]
        order = [a for a in t.names if a in have]
        value = value.transpose([have.index(a) for a in order])
        return value.reshape([value.shape[order.index(a)] if a in order else 1 for a in t.names])

    def positions(
        self, t: TileType, base: Expr, strides: Strides, limits: Limits
    ) -> tuple[Array, Array]:
        """Element offsets of all positions of a tile, and which of them are within the limits."""
        shape = tuple(k for _, k in t.axes)
        at = np.full(shape, self.integer(base), np.int64)
        inside = np.ones(shape, bool)
        along = {a: i for i, a in enumerate(t.names)}
        for a, s in strides:
            if a in along:
                at = at + self.grid(shape, along[a]) * self.integer(s)
        for a, lo, hi in limits:
            if a in along:
                p = self.grid(shape, along[a])
                inside &= (p >= self.integer(lo)) & (p < self.integer(hi))
        return at, inside

    @staticmethod
    def grid(shape: tuple[int, ...], axis: int) -> Array:
        return np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])

    def check(self, n: Node, buffer: str, at: Array, inside: Array) -> None:
        used = at[inside]
        if used.size and (used.min() < 0 or used.max() >= self.memory[buffer].size):
            raise InternalError(
                "L001",
                f"{type(n).__name__} touches {buffer}[{used.min()} .. {used.max()}] "
                f"of {self.memory[buffer].size}",
                where=str({k: v for k, v in self.names.items()}),
            )

    # ---- nodes -----------------------------------------------------------------------------------

    def node(self, n: Node) -> None:
        match n:
            case Store():
                self.store(n)
            case Scatter():
                self.scatter(n)
            case Prefetch():
                self.integer(n.base)
            case For() | If():
                raise InternalError("X001", "control nodes are run by their own methods")
            case _:
                value = self.define(n)
                shape = tuple(k for _, k in n.type.axes)
                self.tiles[n.result] = np.broadcast_to(value, shape).astype(
                    n.type.dtype.np, copy=False
                )
                self.types[n.result] = n.type

    def define(self, n: Node) -> Array:
        match n:
            case Fill():
                return np.asarray(E.const(n.value, n.type.dtype).attr, n.type.dtype.np)
            case Position():
                return np.asarray(self.integer(n.value), np.int64)
            case Iota():
                return np.arange(n.type.axes[0][1], dtype=np.int64)
            case Load():
                at, inside = self.positions(n.type, n.base, n.strides, n.limits)
                self.check(n, n.buffer, at, inside)
                orelse = np.asarray(E.const(n.orelse, n.type.dtype).attr, n.type.dtype.np)
                return np.where(inside, self.memory[n.buffer][np.where(inside, at, 0)], orelse)
            case Gather():
                return self.gather(n)
            case Map():
                args = [self.operand(a, n.type) for a in n.args]
                return evaluate(n.op, args, n.type.dtype)
            case Contract():
                return self.contract(n)
            case Reduce():
                return self.reduce(n)
            case Scan():
                axis = n.type.names.index(n.axis)
                value = np.moveaxis(self.tiles[n.value], axis, 0)
                out = value.copy()
                for i in range(1, len(out)):
                    out[i] = evaluate(n.monoid, [out[i - 1], value[i]], n.type.dtype)
                return np.moveaxis(out, 0, axis)
            case Relayout():
                return self.operand(n.value, n.type)
        raise InternalError("X001", f"no meaning for {type(n).__name__}")

    def gather(self, n: Gather) -> Array:
        shape = tuple(k for _, k in n.type.axes)
        at = np.broadcast_to(self.operand(n.offset, n.type) + self.integer(n.base), shape)
        inside = np.broadcast_to(self.operand(n.mask, n.type) if n.mask else np.True_, shape)
        self.check(n, n.buffer, at, inside)
        orelse = np.asarray(E.const(n.orelse, n.type.dtype).attr, n.type.dtype.np)
        return np.where(inside, self.memory[n.buffer][np.where(inside, at, 0)], orelse)

    def contract(self, n: Contract) -> Array:
        """One fused step per contracted position: the product is exact (in float64, for f32)."""
        t = n.type
        over: dict[str, int] = {}
        for x in (n.a, n.b):
            over |= {a: k for a, k in self.types[x].axes if a not in t.names}
        full = TileType(t.dtype, (*over.items(), *t.axes))
        shape = tuple(k for _, k in full.axes)
        exact = (
            F64 if t.dtype is F32 else F32 if t.dtype.is_float and t.dtype.bits == 16 else t.dtype
        )
        a, b = (
            np.broadcast_to(
                self.operand(x, full).astype(t.dtype.np).astype(exact.np), shape
            ).reshape(-1, *(k for _, k in t.axes))
            for x in (n.a, n.b)
        )
        acc = self.operand(n.acc, t)
        for i in range(len(a)):
            acc = (acc.astype(exact.np) + a[i] * b[i]).astype(t.dtype.np)
        return acc

    def reduce(self, n: Reduce) -> Array:
        source = self.types[n.value]
        axis = source.names.index(n.axis)
        value = np.moveaxis(self.tiles[n.value], axis, 0)
        if n.axis == source.lane:
            size = 1 << (len(value) - 1).bit_length()
            fill = np.full(
                (size - len(value), *value.shape[1:]),
                _identity(n.monoid, source.dtype),
                value.dtype,
            )
            value = np.concatenate([value, fill])
            while len(value) > 1:
                half = len(value) // 2
                value = evaluate(n.monoid, [value[:half], value[half:]], source.dtype)
            out = value[0]
        else:
            out = value[0]
            for row in value[1:]:
                out = evaluate(n.monoid, [out, row], source.dtype)
        rest = [a for a in source.names if a != n.axis]
        moved: Array = out.transpose([rest.index(a) for a in n.type.names])
        return moved

    def store(self, n: Store) -> None:
        t = self.types[n.value]
        at, inside = self.positions(t, n.base, n.strides, n.limits)
        self.check(n, n.buffer, at, inside)
        self.memory[n.buffer][at[inside]] = self.tiles[n.value][inside]

    def scatter(self, n: Scatter) -> None:
        names = [x for x in (n.offset, n.value, n.mask) if x]
        lane = next((self.types[x].lane for x in names if self.types[x].lane), None)
        axes: dict[str, int] = {}
        for x in names:
            axes |= {a: k for a, k in self.types[x].axes if a != lane}
        if lane:
            axes[lane] = max(self.types[x].extent(lane) for x in names)
        full = TileType(self.types[n.value].dtype, tuple(axes.items()))
        shape = tuple(axes.values())
        parts = [np.broadcast_to(self.operand(x, full), shape).reshape(-1) for x in names]
        at = parts[0] + self.integer(n.base)
        keep = parts[2] if n.mask else np.ones(at.size, bool)
        self.check(n, n.buffer, at, keep)
        memory = self.memory[n.buffer]
        for i in np.flatnonzero(keep):
            new = parts[1][i]
            if n.monoid is not None:
                new = evaluate(n.monoid, [memory[at[i]], new], full.dtype)
            memory[at[i]] = new
