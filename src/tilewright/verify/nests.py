"""Random valid nests over small windows of two-dimensional arrays, and mutations of them.

In: a seeded generator. Out: nest, buffers, dims. Invariants: every access is within its limits, and
every value is exact (small multiples of 1/4), so that any order of evaluation gives the same bits;
several chunks may write one element, so chunks run in order.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.errors import TilewrightError
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, DTYPES, F32, I64, DType
from tilewright.ir.nest import (
    Buffer,
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
    Reduce,
    Relayout,
    Scan,
    Scatter,
    Store,
    TileType,
    parse_nest,
)
from tilewright.ir.nest_verifier import verify_nest

__all__ = ["Generator", "mutated"]

Array = np.ndarray[Any, np.dtype[Any]]
_ANY = ("add", "mul", "min", "max")
_FLOAT = ("sub", "neg", "abs", "sign", "floor", "ceil", "round", "trunc", "isnan", "isinf")
_INT = (
    "sub",
    "neg",
    "abs",
    "sign",
    "and",
    "or",
    "xor",
    "shl",
    "shr",
    "div",
    "floordiv",
    "mod",
    "fmod",
    "not",
)
_COMPARE = ("lt", "le", "eq", "ne")


class Generator:
    """Builds one nest; `seed` fixes everything."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        r = self.random
        self.R, self.C = r.choice([1, 3, 8, 17, 40]), r.choice([1, 4, 15, 16, 33, 64, 131])
        self.symbolic = r.random() < 0.5
        self.rows = r.choice([1, 2, 3, 4, 7, 8, 16])
        self.cols = r.choice([1, 2, 3, 5, 8, 12, 16, 17, 24, 32, 48])
        self.lane = r.choice(["c", "c", "c", "r", None])
        self.buffers: dict[str, Buffer] = {}
        self.data: dict[str, Array] = {}
        self.count = 0
        self.tiles: list[tuple[str, TileType]] = []
        self.body: list[Node] = []
        self.depth = 0

    # -- pieces
    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    @property
    def size(self) -> tuple[E.Expr, E.Expr]:
        return (E.dim("R"), E.dim("C")) if self.symbolic else (E.const(self.R), E.const(self.C))

    def extent(self, axis: str) -> int:
        return {"r": self.rows, "c": self.cols}[axis]

    def full(self, dtype: DType) -> TileType:
        return TileType(dtype, (("r", self.rows), ("c", self.cols)), self.lane)

    def values(self, dtype: DType, size: int) -> Array:
        r = np.random.default_rng(self.random.randrange(1 << 30))
        if dtype is BOOL:
            return r.integers(0, 2, size).astype(bool)
        low = 0 if dtype.kind == "u" else -8
        x = r.integers(low, 9, size)
        return (x / 4 if dtype.is_float else x).astype(dtype.np)

    def buffer(self, dtype: DType) -> str:
        name = f"b{len(self.buffers)}"
        rows, cols = self.size
        self.buffers[name] = Buffer(name, dtype, rows * cols, "arg")
        self.data[name] = self.values(dtype, self.R * self.C)
        return name

    def origin(self) -> tuple[E.Expr, E.Expr]:
        r = self.random
        i = E.index("i") + r.choice([0, 0, 0, -1, 2])
        j = E.index("j") + r.choice([0, 0, 0, -2, 1])
        return i, j

    def address(self, t: TileType, step: int = 1) -> tuple[E.Expr, Any, Any]:
        """step: elements from one position of axis c to the next."""
        rows, cols = self.size
        i, j = self.origin()
        strides = {"r": cols, "c": E.const(1)}
        start, size = {"r": i, "c": j}, {"r": rows, "c": cols}
        base, limits, guard = E.const(0), [], []
        for a in ("r", "c"):
            base = base + start[a] * strides[a]
            if a in t.names:
                limits.append((a, -start[a], size[a] - start[a]))
            else:
                guard.append(a)
        for a in guard:  # an axis that the tile lacks sits at a place that is always inside
            base = base - start[a] * strides[a]
        kept = tuple((a, strides[a]) for a in t.names)
        if step == 1:
            return base, kept, tuple(limits)
        apart = tuple((a, s * (step if a == "c" else 1)) for a, s in kept)
        fewer = tuple(
            (a, (lo + step - 1) // step, (hi + step - 1) // step) if a == "c" else (a, lo, hi)
            for a, lo, hi in limits
        )
        return base, apart, fewer

    def emit(self, node: Any) -> tuple[str, TileType]:
        self.body.append(node)
        pair = (node.result, node.type)
        self.tiles.append(pair)
        return pair

    def pick(self, dtype: DType | None = None) -> tuple[str, TileType] | None:
        fit = [x for x in self.tiles if dtype is None or x[1].dtype is dtype]
        return self.random.choice(fit) if fit else None

    # -- statements
    def load(self) -> None:
        r = self.random
        dtype = DTYPES[
            r.choice(
                ["f32", "f32", "f32", "f64", "i32", "i8", "u8", "i64", "bool", "f16", "bf16", "u16"]
            )
        ]
        axes = r.choice([("r", "c"), ("r", "c"), ("c",), ("r",), ()])
        lane = self.lane if self.lane in axes else None
        t = TileType(dtype, tuple((a, self.extent(a)) for a in axes), lane)
        base, strides, limits = self.address(t, r.choice([1, 1, 1, 2, 2, 3, 4, 7]))
        if limits and r.random() < 0.2:  # a condition of all positions
            a, lo, hi = limits[-1]
            fits = E.compare("lt", E.index("i") % 3, E.const(r.choice([0, 1, 2])))
            limits = (*limits[:-1], (a, lo, E.select(fits, hi, E.const(0))))
        other = {"f": 0.5, "i": 3, "b": True}.get(dtype.kind, 2)
        self.emit(
            Load(self.name(), t, self.buffer(dtype), base, strides, limits, other if limits else 0)
        )

    def result_type(self, dtype: DType, args: list[TileType]) -> TileType:
        names = [a for a in ("r", "c") if any(a in t.names for t in args)]
        lane = self.lane if self.lane in names else None
        return TileType(dtype, tuple((a, self.extent(a)) for a in names), lane)

    def map(self) -> None:
        r = self.random
        first = self.pick()
        if first is None:
            return
        name, t = first
        second = self.pick(t.dtype) or first
        d = t.dtype
        kind = r.choice(["cast", "compare", "select", "any", "own", "own"])
        if kind == "cast":
            to = DTYPES[r.choice([x for x in DTYPES])]
            if to.is_float and to.bits == 16 and d.is_int and d.bits > 8:
                return  # would round or overflow
            self.emit(Map(self.name(), TileType(to, t.axes, t.lane), "cast", (name,)))
            return
        pair = [t, second[1]]
        if kind == "compare":
            self.emit(
                Map(
                    self.name(), self.result_type(BOOL, pair), r.choice(_COMPARE), (name, second[0])
                )
            )
            return
        if kind == "select":
            condition = self.pick(BOOL)
            if condition is not None:
                args = (condition[0], name, second[0])
                self.emit(
                    Map(self.name(), self.result_type(d, [condition[1], *pair]), "select", args)
                )
            return
        ops = (
            _ANY
            if kind == "any"
            else _FLOAT
            if d.is_float
            else _INT
            if d.is_int
            else ("and", "or", "xor", "not")
        )
        op = r.choice(ops)
        if d is F32 and r.random() < 0.05:
            op = r.choice(("bits", "upper_half"))
        if op == "mul" and d.is_float:
            op = "add"
        out = E.unary_dtype(op, d)
        if op in E.UNARY:
            self.emit(Map(self.name(), TileType(out, t.axes, t.lane), op, (name,)))
        else:
            self.emit(Map(self.name(), self.result_type(out, pair), op, (name, second[0])))

    def contract(self) -> None:
        dtype = DTYPES[self.random.choice(["f32", "f64", "i32"])]
        acc = Fill(self.name(), self.full(dtype), 1)
        self.emit(acc)
        narrow = {"f32": ["f32", "f16", "bf16"], "f64": ["f64", "f32"], "i32": ["i8", "u8", "i32"]}[
            dtype.name
        ]
        k = self.random.choice([1, 2, 3])
        names = []
        for axis in ("r", "c"):
            d = DTYPES[self.random.choice(narrow)]
            lane = axis if self.lane == axis else None
            t = TileType(d, (("k", k), (axis, self.extent(axis))), lane)
            b = f"b{len(self.buffers)}"
            self.buffers[b] = Buffer(b, d, E.const(k * self.extent(axis)), "arg")
            self.data[b] = self.values(d, k * self.extent(axis))
            strides = (("k", E.const(self.extent(axis))), (axis, E.const(1)))
            node = Load(self.name(), t, b, E.const(0), strides)
            self.body.append(node)
            names.append(node.result)
        self.emit(Contract(self.name(), acc.type, acc.result, names[0], names[1]))

    def fold(self) -> None:
        """Reduce or scan; sums only of what cannot overflow exactness."""
        fit = [
            x
            for x in self.tiles
            if x[1].axes and not (x[1].dtype.is_float and x[1].dtype.bits == 16)
        ]
        if not fit:
            return
        name, t = self.random.choice(fit)
        axis = self.random.choice(t.names)
        monoid = self.random.choice(
            ["add", "min", "max"] + ([] if t.dtype.is_float else ["and", "or"])
        )
        if self.random.random() < 0.4:
            self.emit(Scan(self.name(), t, name, axis, monoid))
            return
        rest = tuple((a, n) for a, n in t.axes if a != axis)
        self.emit(
            Reduce(
                self.name(),
                TileType(t.dtype, rest, None if axis == t.lane else t.lane),
                name,
                axis,
                monoid,
            )
        )

    def relayout(self) -> None:
        fit = [x for x in self.tiles if len(x[1].axes) == 2]
        if fit and self.lane is not None:
            name, t = self.random.choice(fit)
            lane = self.random.choice(["r", "c", None])
            there = Relayout(self.name(), TileType(t.dtype, t.axes, lane), name)
            self.body.append(there)
            self.emit(Relayout(self.name(), t, there.result))

    def iota(self) -> None:
        axis = self.random.choice(["r", "c"])
        lane = axis if self.lane == axis else None
        t = TileType(I64, ((axis, self.extent(axis)),), lane)
        one = self.emit(Iota(self.name(), t))
        where = self.emit(Position(self.name(), TileType(I64), E.index("i") * 3 - E.index("j")))
        self.emit(Map(self.name(), t, "add", (one[0], where[0])))

    def gather(self) -> None:
        fit = [x for x in self.tiles if x[1].dtype is I64]
        if not fit:
            return
        name, t = self.random.choice(fit)
        size = self.emit(Position(self.name(), TileType(I64), self.size[0] * self.size[1]))
        safe = self.emit(Map(self.name(), t, "mod", (name, size[0])))
        dtype = DTYPES[self.random.choice(["f32", "f64", "i32", "u8", "f16"])]
        mask = self.pick(BOOL)
        fits = mask is not None and set(mask[1].names) <= set(t.names)
        named = mask[0] if mask is not None and fits else None
        node = Gather(
            self.name(),
            TileType(dtype, t.axes, t.lane),
            self.buffer(dtype),
            E.const(0),
            safe[0],
            named,
            1 if named else 0,
        )
        self.emit(node)

    def scatter(self) -> None:
        fit = [x for x in self.tiles if x[1].dtype is I64]
        if not fit:
            return
        name, t = self.random.choice(fit)
        size = self.emit(Position(self.name(), TileType(I64), self.size[0] * self.size[1]))
        safe = self.emit(Map(self.name(), t, "mod", (name, size[0])))
        values = [x for x in self.tiles if set(x[1].names) <= set(t.names)]
        value, vt = self.random.choice(values)
        if vt.dtype is BOOL or (vt.dtype.is_float and vt.dtype.bits == 16):
            return
        mask = self.pick(BOOL)
        named = mask[0] if mask is not None and set(mask[1].names) <= set(t.names) else None
        monoid = self.random.choice(["add", "min", "max", None])
        self.body.append(Scatter(self.buffer(vt.dtype), E.const(0), safe[0], value, named, monoid))

    def store(self) -> None:
        pair = self.pick()
        if pair is None:
            return
        name, t = pair
        base, strides, limits = self.address(t)
        nontemporal = self.random.random() < 0.2
        self.body.append(Store(self.buffer(t.dtype), base, strides, name, limits, nontemporal))

    def branch(self) -> None:
        pair = self.pick()
        if pair is None:
            return
        name, t = pair
        condition = E.compare("lt", E.index("i") % 3, E.const(1))
        copy = self.name()
        node = Map(copy, t, "max", (name, name))
        result = self.name()
        self.body.append(If(condition, (node,), (), (copy,), (name,), (result,)))
        self.tiles.append((result, t))

    def accumulate(self) -> None:
        """A sequential loop that carries a tile."""
        if self.depth:
            return
        dtype = DTYPES[self.random.choice(["f32", "i32", "f64"])]
        start = Fill(self.name(), self.full(dtype), 0)
        self.body.append(start)
        outer, tiles, self.body = self.body, list(self.tiles), []
        self.depth += 1
        carried = self.name()
        self.tiles.append((carried, start.type))
        for _ in range(self.random.randrange(1, 4)):
            self.statement()
        base, strides, limits = self.address(self.full(dtype))
        rows, _ = self.size
        t = E.index("t")
        b = self.buffer(dtype)
        kept = tuple(
            (a, lo - (t if a == "c" else 0), hi - (t if a == "c" else 0)) for a, lo, hi in limits
        )
        x = Load(self.name(), self.full(dtype), b, base + t, strides, kept, 0)
        total = Map(self.name(), start.type, "add", (carried, x.result))
        inner = (*self.body, x, total)
        self.body, self.tiles = outer, tiles
        self.depth -= 1
        hi = self.random.choice([E.const(3), E.const(0), E.const(1), rows, E.index("i") % 4])
        result = self.name()
        carry = ((carried, start.result),)
        step = self.random.choice([1, 2])
        loop = For("t", E.const(0), hi, step, inner, carry, (total.result,), (result,))
        self.body.append(loop)
        self.tiles.append((result, start.type))

    def statement(self) -> None:
        choices = [self.load] * 2 + [self.map] * 4
        choices += [self.contract, self.fold, self.relayout, self.iota, self.gather]
        choices += [self.scatter, self.store, self.branch, self.accumulate]
        self.random.choice(choices)()

    def nest(self) -> tuple[LoopNest, dict[str, Array], dict[str, int]]:
        self.load()
        for _ in range(self.random.randrange(4, 16)):
            self.statement()
        for _ in range(3):
            self.store()
        rows, cols = self.size
        grain = self.random.choice([1, 1, 2])
        j = For("j", E.const(0), cols, self.cols, tuple(self.body))
        i = For("i", E.const(0), rows, self.rows, (j,), parallel=True, grain=grain)
        dims = ("R", "C") if self.symbolic else ()
        nest = LoopNest("random", tuple(self.buffers.values()), dims, (Phase((i,)),))
        return nest, self.data, {"R": self.R, "C": self.C} if self.symbolic else {}


# Words of a printed nest, each with what may take its place: another operation, monoid or bound.
_SWAPS: tuple[tuple[str, ...], ...] = (
    ("add", "max", "min", "sub"),
    ("lt", "le", "eq", "ne"),
    ("floor", "ceil", "round", "trunc", "neg", "abs", "sign"),
    ("and", "or", "xor"),
    ("store nt", "store"),
    ("step 1", "step 2", "step 3"),
    ("0 .. 3", "0 .. 0", "0 .. 1", "0 .. 2"),
    ("else 0.5", "else 0", "else 1"),
    ("else 3", "else 0"),
    ("fill 0", "fill 1", "fill 2"),
)


def mutated(nest: LoopNest, edits: Sequence[tuple[int, int]]) -> LoopNest | None:
    """The nest with words of its text replaced: (place among those that can be, which of its
    substitutes), both counted around. None where the result is no valid nest.
    """
    text = str(nest)
    for place, choice in edits:
        spots = [
            (m.start(), word, swap)
            for swap in _SWAPS
            for word in swap
            for m in re.finditer(rf"(?<![\w.]){re.escape(word)}(?![\w.])", text)
        ]
        if not spots:
            return None
        at, word, swap = sorted(spots)[place % len(spots)]
        line = text[text.rfind("\n", 0, at) + 1 : at]
        inexact = ("add", "sub") if ": f16[" in line or ": bf16[" in line else ()
        others = [w for w in swap if w != word and w not in inexact]
        text = text[:at] + others[choice % len(others)] + text[at + len(word) :]
    try:
        found = parse_nest(text)
        verify_nest(found)
    except TilewrightError:
        return None
    return found
