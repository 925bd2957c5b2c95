"""Rules that every LoopNest obeys.

In: a nest. Out: nothing, or UserError L001 that names the phase and the statement. Invariant: what
passes has a meaning in nest_interpreter.py and code in codegen/ for every target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tilewright.errors import UserError
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, F32, I64
from tilewright.ir.expr import Expr
from tilewright.ir.nest import (
    PLACES,
    Buffer,
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
    _node_lines,
)

__all__ = ["verify_nest"]

MONOIDS = ("add", "mul", "min", "max", "and", "or")
_FLOAT_ONLY = E.UNARY - {"neg", "abs", "sign", "not"}
_BITS = ("and", "or", "xor", "shl", "shr")


def verify_nest(nest: LoopNest) -> None:
    """Check definitions before use, tile types, lane rules, carries, parallel loops and limits.

    Errors: UserError L001; `where` shows the phase and the statement.
    """
    _Verifier(nest).run()


@dataclass
class _Scope:
    tiles: dict[str, TileType] = field(default_factory=dict)
    variables: frozenset[str] = frozenset()


class _Verifier:
    def __init__(self, nest: LoopNest) -> None:
        self.nest = nest
        self.buffers: dict[str, Buffer] = {}
        self.phase = 0
        self.node: Node | None = None
        self.defined: set[str] = set()

    def fail(self, message: str) -> UserError:
        where = f"nest {self.nest.name}, phase {self.phase}"
        if self.node is not None:
            where += f"\n    {next(iter(_node_lines(self.node, '')))}"
        return UserError("L001", message, where=where)

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            raise self.fail(message)

    def run(self) -> None:
        dims = frozenset(self.nest.dims)
        self.require(len(dims) == len(self.nest.dims), "a dim is declared twice")
        for b in self.nest.buffers:
            self.require(b.name not in self.buffers, f"buffer {b.name!r} is declared twice")
            self.require(b.name not in dims, f"{b.name!r} is both a buffer and a dim")
            self.require(b.place in PLACES, f"unknown place {b.place!r}")
            self.expression(b.size, dims, f"size of {b.name}", reads=False)
            self.buffers[b.name] = b
        for number, p in enumerate(self.nest.phases):
            self.phase = number
            self.defined = set()
            scope = _Scope({}, dims)
            loop = p.parallel
            for n in p.body:
                self.node = n
                if isinstance(n, For) and n.parallel:
                    self.require(
                        n is loop, "a parallel loop must be the last statement of its phase"
                    )
                elif loop is not None:
                    effect = isinstance(n, For | If | Store | Scatter)
                    self.require(
                        not effect, "only tile definitions may stand before a parallel loop"
                    )
            self.body(p.body, scope, top=True)

    # ---- expressions -----------------------------------------------------------------------------

    def expression(self, e: Expr, names: frozenset[str], what: str, reads: bool = True) -> None:
        for x in e.walk():
            if x.op == "index":
                self.require(x.attr in names, f"{what}: {x.attr!r} is no loop variable here")
            elif x.op == "dim":
                self.require(x.attr in self.nest.dims, f"{what}: {x.attr!r} is no dim of the nest")
            elif x.op == "read":
                ok = reads and x.attr[0] in self.buffers and not x.attr[1] and len(x.args) == 1
                self.require(ok, f"{what}: {x} does not read a declared buffer with one subscript")

    def integer(self, e: Expr, scope: _Scope, what: str) -> None:
        self.require(e.dtype is I64, f"{what} must be i64, found {e.dtype}")
        self.expression(e, scope.variables, what)

    # ---- control ---------------------------------------------------------------------------------

    def body(self, body: tuple[Node, ...], scope: _Scope, top: bool = False) -> None:
        for n in body:
            self.node = n
            match n:
                case For():
                    self.require(
                        top or not n.parallel, "a parallel loop stands at the top of its phase"
                    )
                    self.loop(n, scope)
                case If():
                    self.branch(n, scope)
                case Store():
                    self.store(n, scope)
                case Scatter():
                    self.scatter(n, scope)
                case Prefetch():
                    self.buffer(n.buffer)
                    self.integer(n.base, scope, "base")
                    self.require(n.level in (1, 2, 3), "prefetch level is 1, 2 or 3")
                case _:
                    self.tile_type(n.type)
                    self.define_node(n, scope)
                    self.define(n.result, n.type, scope)

    def define(self, name: str, t: TileType, scope: _Scope) -> None:
        self.require(name not in self.defined, f"tile {name!r} is defined twice in this phase")
        self.defined.add(name)
        scope.tiles[name] = t

    def use(self, name: str, scope: _Scope) -> TileType:
        if name not in scope.tiles:
            raise self.fail(f"tile {name!r} is not defined here")
        return scope.tiles[name]

    def same(self, a: TileType, b: TileType, what: str) -> None:
        self.require(a == b, f"{what}: {a} and {b} differ")

    def loop(self, n: For, scope: _Scope) -> None:
        self.integer(n.lo, scope, "lower bound")
        self.integer(n.hi, scope, "upper bound")
        self.require(n.step > 0 and n.grain > 0, "step and grain are positive")
        self.require(n.grain == 1 or n.parallel, "only a parallel loop has a grain")
        self.require(not (n.parallel and n.carries), "a parallel loop carries nothing")
        self.require(n.var not in scope.variables, f"{n.var!r} hides an outer loop variable or dim")
        reads = any(x.op == "read" for e in (n.lo, n.hi) for x in e.walk())
        self.require(not (n.parallel and reads), "bounds of a parallel loop depend on dims only")
        count = len(n.carries)
        self.require(
            len(n.yields) == len(n.results) == count, "carries, yields and results differ in number"
        )
        types = [self.use(b, scope) for _, b in n.carries]
        inner = _Scope(dict(scope.tiles), scope.variables | {n.var})
        for (name, _), t in zip(n.carries, types, strict=True):
            self.define(name, t, inner)
        self.body(n.body, inner)
        self.node = n
        for (name, _), end, t in zip(n.carries, n.yields, types, strict=True):
            self.same(self.use(end, inner), t, f"carry {name}")
        for name, t in zip(n.results, types, strict=True):
            self.define(name, t, scope)

    def branch(self, n: If, scope: _Scope) -> None:
        self.require(n.condition.dtype is BOOL, "a condition is a bool")
        self.expression(n.condition, scope.variables, "condition")
        count = len(n.results)
        self.require(
            len(n.then_yields) == len(n.else_yields) == count,
            "the branches yield different numbers",
        )
        types: list[list[TileType]] = []
        for body, yields in ((n.then, n.then_yields), (n.orelse, n.else_yields)):
            inner = _Scope(dict(scope.tiles), scope.variables)
            self.body(body, inner)
            self.node = n
            types.append([self.use(y, inner) for y in yields])
        for name, a, b in zip(n.results, *types, strict=True):
            self.same(a, b, f"result {name}")
            self.define(name, a, scope)

    # ---- tiles -----------------------------------------------------------------------------------

    def tile_type(self, t: TileType) -> None:
        self.require(len(set(t.names)) == len(t.axes), f"{t} names an axis twice")
        self.require(all(n > 0 for _, n in t.axes), f"{t} has an empty axis")
        self.require(t.lane is None or t.lane in t.names, f"{t} has no axis {t.lane!r}")

    def buffer(self, name: str) -> Buffer:
        if name not in self.buffers:
            raise self.fail(f"buffer {name!r} is not declared")
        return self.buffers[name]

    def broadcasts(
        self, operand: TileType, t: TileType, what: str, over: frozenset[str] = frozenset()
    ) -> None:
        """Axes of the operand are axes of the result with the same extents, and so is its lane
        axis.
        """
        for a, n in operand.axes:
            if a not in over:
                self.require(
                    a in t.names and t.extent(a) == n,
                    f"{what} has axis {a}:{n}, the result {t} has not",
                )
        lane = operand.lane
        self.require(
            lane is None or lane == t.lane,
            f"the lane axis of {what} is {lane}, that of the result {t.lane}",
        )
        ok = t.lane is None or t.lane not in operand.names or lane == t.lane
        self.require(ok, f"{what} has the result's lane axis {t.lane} in rows: relayout it first")

    def define_node(self, n: Node, scope: _Scope) -> None:
        rules: dict[type, Callable[[Node, _Scope], None]] = {
            Fill: self._fill, Position: self._position, Iota: self._iota, Load: self._load,
            Gather: self._gather, Map: self._map, Contract: self._contract, Reduce: self._reduce,
            Scan: self._scan, Relayout: self._relayout,
        }  # fmt: skip
        rules[type(n)](n, scope)

    def _fill(self, n: Node, scope: _Scope) -> None:
        del n, scope

    def _position(self, n: Node, scope: _Scope) -> None:
        assert isinstance(n, Position)
        self.require(n.type == TileType(I64), "position gives i64[]")
        self.integer(n.value, scope, "position")

    def _iota(self, n: Node, scope: _Scope) -> None:
        assert isinstance(n, Iota)
        del scope
        self.require(n.type.dtype is I64 and len(n.type.axes) == 1, "iota gives i64 along one axis")

    def _address(
        self, buffer: str, base: Expr, strides: Strides, limits: Limits, t: TileType, scope: _Scope
    ) -> None:
        b = self.buffer(buffer)
        self.require(b.dtype is t.dtype, f"buffer {buffer} holds {b.dtype}, the tile {t.dtype}")
        self.integer(base, scope, "base")
        for what, axes in (
            ("stride", [a for a, _ in strides]),
            ("limit", [a for a, _, _ in limits]),
        ):
            self.require(len(set(axes)) == len(axes), f"two {what}s for one axis")
            for a in axes:
                self.require(a in t.names, f"{what} for axis {a!r}, which {t} has not")
        for a, s in strides:
            self.integer(s, scope, f"stride of {a}")
        for a, lo, hi in limits:
            self.integer(lo, scope, f"limit of {a}")
            self.integer(hi, scope, f"limit of {a}")

    def _load(self, n: Node, scope: _Scope) -> None:
        assert isinstance(n, Load)
        self._address(n.buffer, n.base, n.strides, n.limits, n.type, scope)

    def store(self, n: Store, scope: _Scope) -> None:
        t = self.use(n.value, scope)
        self._address(n.buffer, n.base, n.strides, n.limits, t, scope)
        have = {a for a, s in n.strides if s is not E.const(0)}
        for a, k in t.axes:
            self.require(k == 1 or a in have, f"all positions of axis {a} are stored to one place")

    def _offsets(
        self, buffer: str, base: Expr, names: tuple[str | None, ...], t: TileType, scope: _Scope
    ) -> None:
        self.require(
            self.buffer(buffer).dtype is t.dtype, f"buffer {buffer} does not hold {t.dtype}"
        )
        self.integer(base, scope, "base")
        for name, dtype in zip(names, (I64, BOOL), strict=True):
            if name is not None:
                operand = self.use(name, scope)
                self.require(
                    operand.dtype is dtype, f"{name} must be {dtype}, found {operand.dtype}"
                )
                self.broadcasts(operand, t, name)

    def _gather(self, n: Node, scope: _Scope) -> None:
        assert isinstance(n, Gather)
        self._offsets(n.buffer, n.base, (n.offset, n.mask), n.type, scope)

    def scatter(self, n: Scatter, scope: _Scope) -> None:
        value = self.use(n.value, scope)
        axes, lane = dict(value.axes), value.lane
        for name in (n.offset, n.mask):
            if name is not None:
                operand = self.use(name, scope)
                lane = lane or operand.lane
                for a, k in operand.axes:
                    axes.setdefault(a, k)
        full = TileType(value.dtype, tuple(axes.items()), lane)
        self.broadcasts(value, full, n.value)
        self._offsets(n.buffer, n.base, (n.offset, n.mask), full, scope)
        self.require(n.monoid is None or n.monoid in MONOIDS, f"unknown monoid {n.monoid!r}")

    def _map(self, n: Node, scope: _Scope) -> None:
        assert isinstance(n, Map)
        args = [self.use(a, scope) for a in n.args]
        for name, t in zip(n.args, args, strict=True):
            self.broadcasts(t, n.type, name)
        counts = {"select": 3, "cast": 1}
        wanted = counts.get(
            n.op, 1 if n.op in E.UNARY else 2 if n.op in E.BINARY | E.COMPARE else 0
        )
        self.require(wanted > 0, f"unknown operation {n.op!r}")
        self.require(len(args) == wanted, f"{n.op} takes {wanted} operands, {len(args)} given")
        dtypes = [t.dtype for t in args]
        if n.op == "select":
            self.require(dtypes[0] is BOOL, "select takes a bool first")
            dtypes = dtypes[1:]
        self.require(all(d is dtypes[0] for d in dtypes), f"{n.op} of different dtypes {dtypes}")
        source = dtypes[0]
        if n.op != "cast":
            result = BOOL if n.op in E.COMPARE else E.unary_dtype(n.op, source)
            self.require(
                n.type.dtype is result, f"{n.op} of {source} gives {result}, not {n.type.dtype}"
            )
        fits = n.op not in ("bits", "upper_half") or source is F32
        fits &= not (n.op in _FLOAT_ONLY or n.op == "atan2") or source.is_float
        fits &= not (n.op in _BITS or n.op == "not") or not source.is_float
        fits &= source is not BOOL or n.op not in (
            "neg", "abs", "sign", "sub", "div", "floordiv", "mod", "fmod", "pow", "shl", "shr",
        )  # fmt: skip
        self.require(fits, f"{n.op} has no meaning for {source}")

    def _contract(self, n: Node, scope: _Scope) -> None:
        assert isinstance(n, Contract)
        acc, a, b = (self.use(x, scope) for x in (n.acc, n.a, n.b))
        self.same(acc, n.type, "accumulator and result")
        over = frozenset(x for t in (a, b) for x in t.names if x not in n.type.names)
        for name, t in ((n.a, a), (n.b, b)):
            self.broadcasts(t, n.type, name, over)
            self.require(
                t.dtype is not BOOL and n.type.dtype is not BOOL, "contract has no meaning for bool"
            )
        for x in over:
            extents = {t.extent(x) for t in (a, b) if x in t.names}
            self.require(len(extents) == 1, f"contracted axis {x} has two extents")

    def _monoid(self, monoid: str, t: TileType) -> None:
        self.require(monoid in MONOIDS, f"unknown monoid {monoid!r}")
        self.require(
            monoid not in ("and", "or") or not t.dtype.is_float,
            f"{monoid} has no meaning for {t.dtype}",
        )

    def _reduce(self, n: Node, scope: _Scope) -> None:
        assert isinstance(n, Reduce)
        t = self.use(n.value, scope)
        self._monoid(n.monoid, t)
        self.require(n.axis in t.names, f"{t} has no axis {n.axis!r}")
        rest = tuple((a, k) for a, k in t.axes if a != n.axis)
        lane = None if n.axis == t.lane else t.lane
        self.same(TileType(t.dtype, rest, lane), n.type, "reduce")

    def _scan(self, n: Node, scope: _Scope) -> None:
        assert isinstance(n, Scan)
        t = self.use(n.value, scope)
        self._monoid(n.monoid, t)
        self.require(n.axis in t.names, f"{t} has no axis {n.axis!r}")
        self.same(t, n.type, "scan")

    def _relayout(self, n: Node, scope: _Scope) -> None:
        assert isinstance(n, Relayout)
        t = self.use(n.value, scope)
        ok = t.dtype is n.type.dtype and set(t.axes) == set(n.type.axes)
        self.require(ok, f"relayout keeps dtype and axes: {t} and {n.type}")
