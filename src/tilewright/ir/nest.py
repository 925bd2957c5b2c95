"""LoopNest: structured loops outside, operations on immutable register tiles inside.

In: nothing. Out: the node types, `LoopNest`, its printer and parser. Invariants: every tile value
is defined once, before its use and in an enclosing body; a tile has a static shape with *named*
register axes, at most one of them the lane axis (split into native vectors); addresses are element
offsets into flat buffers.

Semantics in one place (the interpreter in nest_interpreter.py is the executable form):
* Operands of `Map`, `Contract` and `Store` broadcast by axis name. The lane axis of a result is the
  lane of its operands.
* `Load` reads `buffer[base + sum(stride[axis] * position[axis])]`; an axis without a stride entry
  has stride 0. `limits` (axis -> lo..hi, in tile positions) restrict the element positions that are
  touched; the others take `orelse`.
* `Store` writes likewise; positions outside the limits are not touched. A value without one of the
  store's strided axes is broadcast along it.
* `Gather` reads `buffer[base + offset]` where `offset` is an i64 tile; `Scatter` writes or
  combines, in position order.
* `Contract(acc, a, b)` is acc + sum of a * b over the axes of a and b that acc lacks, in axis
  order, fused multiply-add where the Target has it. Integer operands are widened to acc's dtype
  first.
* `Reduce` folds one axis by a monoid, in position order for non-lane axes and by halving for the
  lane axis.
* `Scan` is the inclusive prefix along one axis.
* `Relayout` changes which axis is the lane axis (None: no lane).
* `For` runs `lo, lo+step, ... < hi`; `carries` bind names in the body to tiles that each trip
  replaces by `yields`; `results` are the final values (the initial ones if there was no trip). A
  parallel loop has no carries, stands alone at the top of its phase, and hands out its trips as
  chunks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from tilewright.errors import UserError
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F32, I64, DType
from tilewright.ir.expr import Expr
from tilewright.ir.text import Parser, Scope, _literal

__all__ = [
    "Buffer",
    "Contract",
    "Fill",
    "For",
    "Gather",
    "If",
    "Iota",
    "Load",
    "LoopNest",
    "Map",
    "NEST_FORMAT",
    "Node",
    "Phase",
    "Position",
    "Prefetch",
    "Reduce",
    "Relayout",
    "Scan",
    "Scatter",
    "Store",
    "TileType",
    "operands",
    "parse_nest",
]

NEST_FORMAT = 1
PLACES = ("arg", "arena", "const", "scratch")

Strides = tuple[tuple[str, Expr], ...]
Limits = tuple[tuple[str, Expr, Expr], ...]


@dataclass(frozen=True)
class Buffer:
    """Flat memory of `size` elements. place: arg (user's or another kernel's), arena, const,
    scratch (per thread).
    """

    name: str
    dtype: DType
    size: Expr
    place: str
    align: int = 64

    def __str__(self) -> str:
        align = f" align {self.align}" if self.align != 64 else ""
        return f"{self.place} {self.name}: {self.dtype}[{self.size}]{align}"


@dataclass(frozen=True)
class TileType:
    """dtype and named register axes with static extents, outermost first; `lane` names the lane
    axis or is None.
    """

    dtype: DType
    axes: tuple[tuple[str, int], ...] = ()
    lane: str | None = None

    def __str__(self) -> str:
        inner = ", ".join(f"{a}:{n}{'*' if a == self.lane else ''}" for a, n in self.axes)
        return f"{self.dtype}[{inner}]"

    def extent(self, axis: str) -> int:
        for a, n in self.axes:
            if a == axis:
                return n
        return 1

    @property
    def names(self) -> tuple[str, ...]:
        return tuple([a for a, _ in self.axes])


@dataclass(frozen=True, slots=True)
class Fill:
    """A tile of one constant value."""

    result: str
    type: TileType
    value: float | int | bool


@dataclass(frozen=True, slots=True)
class Position:
    """A scalar (0-d) i64 tile: the value of an index expression over loop variables and dims."""

    result: str
    type: TileType
    value: Expr


@dataclass(frozen=True, slots=True)
class Iota:
    """i64 tile 0, 1, 2, ... along its only axis."""

    result: str
    type: TileType


@dataclass(frozen=True, slots=True)
class Load:
    result: str
    type: TileType
    buffer: str
    base: Expr
    strides: Strides = ()
    limits: Limits = ()
    orelse: float | int | bool = 0


@dataclass(frozen=True, slots=True)
class Store:
    buffer: str
    base: Expr
    strides: Strides
    value: str
    limits: Limits = ()
    nontemporal: bool = False


@dataclass(frozen=True, slots=True)
class Gather:
    """`mask` names a bool tile (or is None); where it is false the result is `orelse` and nothing
    is read.
    """

    result: str
    type: TileType
    buffer: str
    base: Expr
    offset: str
    mask: str | None = None
    orelse: float | int | bool = 0


@dataclass(frozen=True, slots=True)
class Scatter:
    """monoid: None overwrites; add, mul, min, max combine."""

    buffer: str
    base: Expr
    offset: str
    value: str
    mask: str | None = None
    monoid: str | None = None


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Ask for the cache lines of `bytes` from `buffer[base]`; level 1, 2 or 3."""

    buffer: str
    base: Expr
    bytes: int = 64
    level: int = 1


@dataclass(frozen=True, slots=True)
class Map:
    """One scalar operation of ir.expr (UNARY, BINARY, COMPARE, select, cast) on tiles."""

    result: str
    type: TileType
    op: str
    args: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contract:
    result: str
    type: TileType
    acc: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Reduce:
    """monoid: add, mul, min, max, and, or."""

    result: str
    type: TileType
    value: str
    axis: str
    monoid: str


@dataclass(frozen=True, slots=True)
class Scan:
    """Inclusive prefix of `value` along `axis` by `monoid`; same type as the value."""

    result: str
    type: TileType
    value: str
    axis: str
    monoid: str


@dataclass(frozen=True, slots=True)
class Relayout:
    result: str
    type: TileType
    value: str


@dataclass(frozen=True, slots=True)
class For:
    """carries: (name in the body, initial tile); yields: tiles of the last statement; results:
    names after the loop.
    """

    var: str
    lo: Expr
    hi: Expr
    step: int
    body: tuple[Node, ...]
    carries: tuple[tuple[str, str], ...] = ()
    yields: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    parallel: bool = False
    grain: int = 1  # trips per chunk of a parallel loop


@dataclass(frozen=True, slots=True)
class If:
    """Scalar condition over loop variables and dims; without results, bodies only have effects."""

    condition: Expr
    then: tuple[Node, ...]
    orelse: tuple[Node, ...] = ()
    then_yields: tuple[str, ...] = ()
    else_yields: tuple[str, ...] = ()
    results: tuple[str, ...] = ()


Node = (
    Fill
    | Position
    | Iota
    | Load
    | Store
    | Gather
    | Scatter
    | Prefetch
    | Map
    | Contract
    | Reduce
    | Scan
    | Relayout
    | For
    | If
)


def operands(n: Node) -> tuple[str, ...]:
    """The tiles that a node names: its operands, and of control what is carried or yielded."""
    names: tuple[str | None, ...]
    match n:
        case Map():
            return n.args
        case Load() | Fill() | Position() | Iota() | Prefetch():
            return ()
        case Store() | Reduce() | Scan() | Relayout():
            return (n.value,)
        case Contract():
            return (n.acc, n.a, n.b)
        case For():
            return (*[i for _, i in n.carries], *n.yields)
        case If():
            return (*n.then_yields, *n.else_yields)
        case Gather():
            names = (n.offset, n.mask)
        case Scatter():
            names = (n.offset, n.value, n.mask)
    return tuple([x for x in names if x])


@dataclass(frozen=True)
class Phase:
    """Straight body; a barrier stands between phases.

    If its last node is a parallel `For`, that is its chunk grid.
    """

    body: tuple[Node, ...]

    @property
    def parallel(self) -> For | None:
        """The parallel loop of the phase, if it has one."""
        last = self.body[-1] if self.body else None
        return last if isinstance(last, For) and last.parallel else None


@dataclass(frozen=True)
class LoopNest:
    """One kernel: buffers in slot order, dims (slots after the pointers), phases in order."""

    name: str
    buffers: tuple[Buffer, ...]
    dims: tuple[str, ...]
    phases: tuple[Phase, ...]
    _text: list[str] = field(default_factory=list, compare=False, repr=False)

    def __str__(self) -> str:
        if not self._text:
            self._text.append("\n".join(_nest_lines(self)) + "\n")
        return self._text[0]

    @cached_property
    def key(self) -> str:
        """Content key: sha256 of the canonical text, name excluded."""
        text = str(self).split("\n", 1)[1]
        return hashlib.sha256(f"nest{NEST_FORMAT}\n{text}".encode()).hexdigest()

    def buffer(self, name: str) -> Buffer:
        return next(b for b in self.buffers if b.name == name)

    def walk(self) -> Iterator[Node]:
        """Every node, outer before inner, in order."""

        def go(body: tuple[Node, ...]) -> Iterator[Node]:
            for n in body:
                yield n
                if isinstance(n, For):
                    yield from go(n.body)
                elif isinstance(n, If):
                    yield from go(n.then)
                    yield from go(n.orelse)

        for p in self.phases:
            yield from go(p.body)


# ---- printer -------------------------------------------------------------------------------------


def _address(buffer: str, base: Expr, strides: Strides, limits: Limits) -> str:
    text = f"{buffer}[{base}]"
    if strides:
        text += " by (" + ", ".join(f"{a}={s}" for a, s in strides) + ")"
    if limits:
        text += " within (" + ", ".join(f"{a}: {lo} .. {hi}" for a, lo, hi in limits) + ")"
    return text


def _value(v: float | int | bool, dtype: DType) -> str:
    return _literal(
        E.const(v, dtype).attr, I64 if dtype.is_int else F32 if dtype.is_float else dtype
    )


def _node_lines(n: Node, pad: str) -> Iterator[str]:
    if isinstance(n, For):
        word = "parallel for" if n.parallel else "for"
        head = f"{pad}{word} {n.var} in {n.lo} .. {n.hi} step {n.step}"
        if n.grain != 1:
            head += f" grain {n.grain}"
        if n.carries:
            head += " carry (" + ", ".join(f"{a} = {b}" for a, b in n.carries) + ")"
            head += " -> (" + ", ".join(n.results) + ")"
        yield head + ":"
        for c in n.body:
            yield from _node_lines(c, pad + "  ")
        if n.carries:
            yield f"{pad}  yield {', '.join(n.yields)}"
        elif not n.body:
            yield f"{pad}  pass"
        return
    if isinstance(n, If):
        arrow = " -> (" + ", ".join(n.results) + ")" if n.results else ""
        for word, body, yields in (
            ("if", n.then, n.then_yields),
            ("else", n.orelse, n.else_yields),
        ):
            if word == "else" and not body and not yields:
                continue
            yield f"{pad}if {n.condition}{arrow}:" if word == "if" else f"{pad}else:"
            for c in body:
                yield from _node_lines(c, pad + "  ")
            if yields:
                yield f"{pad}  yield {', '.join(yields)}"
            elif not body:
                yield f"{pad}  pass"
        return
    if isinstance(n, Store):
        word = "store nt" if n.nontemporal else "store"
        yield f"{pad}{word} {_address(n.buffer, n.base, n.strides, n.limits)} = {n.value}"
    elif isinstance(n, Scatter):
        mask = f" if {n.mask}" if n.mask else ""
        monoid = f" {n.monoid}" if n.monoid else ""
        yield f"{pad}scatter{monoid} {n.buffer}[{n.base}] at {n.offset} = {n.value}{mask}"
    elif isinstance(n, Prefetch):
        yield f"{pad}prefetch {n.buffer}[{n.base}] bytes {n.bytes} level {n.level}"
    else:
        yield f"{pad}{n.result}: {n.type} = {_operation(n)}"


def _operation(n: Node) -> str:
    match n:
        case Fill():
            return f"fill {_value(n.value, n.type.dtype)}"
        case Position():
            return f"position {n.value}"
        case Iota():
            return "iota"
        case Load():
            orelse = f" else {_value(n.orelse, n.type.dtype)}" if n.limits else ""
            return f"load {_address(n.buffer, n.base, n.strides, n.limits)}{orelse}"
        case Gather():
            mask = f" if {n.mask} else {_value(n.orelse, n.type.dtype)}" if n.mask else ""
            return f"gather {n.buffer}[{n.base}] at {n.offset}{mask}"
        case Map():
            return f"{n.op} {', '.join(n.args)}"
        case Contract():
            return f"contract {n.acc}, {n.a}, {n.b}"
        case Reduce():
            return f"reduce {n.monoid} {n.axis} {n.value}"
        case Scan():
            return f"scan {n.monoid} {n.axis} {n.value}"
        case Relayout():
            return f"relayout {n.value}"
    raise UserError("L001", f"no text for {type(n).__name__}")


def _nest_lines(nest: LoopNest) -> Iterator[str]:
    yield f"nest {nest.name} format {NEST_FORMAT}:"
    for d in nest.dims:
        yield f"  dim {d}"
    for b in nest.buffers:
        yield f"  {b}"
    for p in nest.phases:
        yield "  phase:"
        for n in p.body:
            yield from _node_lines(n, "    ")
        if not p.body:
            yield "    pass"


# ---- parser --------------------------------------------------------------------------------------

_WORDS = ("fill", "position", "iota", "load", "gather", "contract", "reduce", "scan", "relayout")


class _NestParser(Parser):
    """One statement a line; bodies by indentation of the statement's first token."""

    def __init__(self, source: str) -> None:
        super().__init__(source, newlines=True)
        self.buffers: list[Buffer] = []
        self.scope = Scope({}, {}, None)

    def nest(self) -> LoopNest:
        self.skip_newlines()
        self.expect("nest")
        name = self.name()
        self.expect("format")
        token = self.token
        if self.integer() != NEST_FORMAT:
            raise self.fail(
                f"this is nest text of another format than {NEST_FORMAT}", token, code="S002"
            )
        self.expect(":")
        self.end_line()
        dims: list[str] = []
        phases: list[Phase] = []
        while self.token.text == "dim":
            self.next()
            dims.append(self.name())
            self.scope.leaves[dims[-1]] = E.dim(dims[-1])
            self.end_line()
        while self.token.text in PLACES:
            place = self.next().text
            buffer = self.name()
            self.expect(":")
            dtype = self.dtype()
            self.expect("[")
            size = self.expression(self.scope)
            self.expect("]")
            align = self.integer() if self.accept("align") else 64
            self.buffers.append(Buffer(buffer, dtype, size, place, align))
            self.scope.tensors[buffer] = (dtype, 1)
            self.end_line()
        while self.token.text == "phase":
            column = self.column()
            self.next()
            self.expect(":")
            self.end_line()
            phases.append(Phase(self.body(column)[0]))
        if self.token.kind != "end":
            raise self.fail(f"expected 'phase' or the end, found {self.token.text!r}")
        return LoopNest(name, tuple(self.buffers), tuple(dims), tuple(phases))

    def body(self, above: int) -> tuple[tuple[Node, ...], tuple[str, ...]]:
        """Statements indented deeper than `above`, and what their `yield` names."""
        column = self.column()
        if column <= above or self.token.kind == "end":
            raise self.fail("expected an indented body")
        nodes: list[Node] = []
        yields: tuple[str, ...] = ()
        while self.token.kind != "end" and self.column() == column:
            if self.accept("pass"):
                pass
            elif self.accept("yield"):
                yields = self.names()
            else:
                nodes.append(self.statement(column))
                continue
            self.end_line()
        if self.token.kind != "end" and self.column() > column:
            raise self.fail("unexpected indentation")
        return tuple(nodes), yields

    def names(self) -> tuple[str, ...]:
        out = [self.name()]
        while self.accept(","):
            out.append(self.name())
        return tuple(out)

    def results(self) -> tuple[str, ...]:
        if self.token.text != "->":
            return ()
        self.next()
        self.expect("(")
        out = self.names()
        self.expect(")")
        return out

    def statement(self, column: int) -> Node:
        word = self.token.text
        if word in ("for", "parallel"):
            return self.loop(column)
        if word == "if":
            return self.conditional(column)
        node = self.effect(word) if word in ("store", "scatter", "prefetch") else self.definition()
        self.end_line()
        return node

    def loop(self, column: int) -> For:
        parallel = self.accept("parallel")
        self.expect("for")
        var = self.name()
        self.expect("in")
        lo = self.expression(self.scope)
        self.expect("..")
        hi = self.expression(self.scope)
        self.expect("step")
        step = self.integer()
        grain = self.integer() if self.accept("grain") else 1
        carries: list[tuple[str, str]] = []
        if self.accept("carry"):
            self.expect("(")
            while not self.accept(")"):
                name = self.name()
                self.expect("=")
                carries.append((name, self.name()))
                if self.token.text != ")":
                    self.expect(",")
        results = self.results()
        self.expect(":")
        self.end_line()
        before = self.scope.leaves.get(var)
        self.scope.leaves[var] = E.index(var)
        body, yields = self.body(column)
        self.scope.leaves.pop(var)
        if before is not None:
            self.scope.leaves[var] = before
        return For(var, lo, hi, step, body, tuple(carries), yields, results, parallel, grain)

    def conditional(self, column: int) -> If:
        self.expect("if")
        condition = self.expression(self.scope)
        results = self.results()
        self.expect(":")
        self.end_line()
        then, then_yields = self.body(column)
        orelse: tuple[Node, ...] = ()
        else_yields: tuple[str, ...] = ()
        if self.token.text == "else" and self.column() == column:
            self.next()
            self.expect(":")
            self.end_line()
            orelse, else_yields = self.body(column)
        return If(condition, then, orelse, then_yields, else_yields, results)

    def address(self) -> tuple[str, Expr, Strides, Limits]:
        buffer = self.name()
        self.expect("[")
        base = self.expression(self.scope)
        self.expect("]")
        strides: list[tuple[str, Expr]] = []
        limits: list[tuple[str, Expr, Expr]] = []
        if self.accept("by"):
            self.expect("(")
            while not self.accept(")"):
                axis = self.name()
                self.expect("=")
                strides.append((axis, self.expression(self.scope)))
                if self.token.text != ")":
                    self.expect(",")
        if self.accept("within"):
            self.expect("(")
            while not self.accept(")"):
                axis = self.name()
                self.expect(":")
                lo = self.expression(self.scope)
                self.expect("..")
                limits.append((axis, lo, self.expression(self.scope)))
                if self.token.text != ")":
                    self.expect(",")
        return buffer, base, tuple(strides), tuple(limits)

    def constant(self, dtype: DType) -> float | int | bool:
        token = self.token
        e = self.expression(Scope({}, {}))
        if e.op != "const":
            raise self.fail("expected a constant", token)
        value: float | int | bool = self.retype(e, dtype).attr
        return value

    def indexed(self) -> tuple[str, Expr]:
        buffer = self.name()
        self.expect("[")
        base = self.expression(self.scope)
        self.expect("]")
        self.expect("at")
        return buffer, base

    def effect(self, word: str) -> Node:
        self.next()
        if word == "store":
            nontemporal = self.accept("nt")
            buffer, base, strides, limits = self.address()
            self.expect("=")
            return Store(buffer, base, strides, self.name(), limits, nontemporal)
        if word == "scatter":
            monoid = self.name() if self.peek().text != "[" else None
            buffer, base = self.indexed()
            offset = self.name()
            self.expect("=")
            value = self.name()
            return Scatter(
                buffer, base, offset, value, self.name() if self.accept("if") else None, monoid
            )
        buffer = self.name()
        self.expect("[")
        base = self.expression(self.scope)
        self.expect("]")
        self.expect("bytes")
        count = self.integer()
        self.expect("level")
        return Prefetch(buffer, base, count, self.integer())

    def tile_type(self) -> TileType:
        dtype = self.dtype()
        axes: list[tuple[str, int]] = []
        lane = None
        self.expect("[")
        while not self.accept("]"):
            axis = self.name()
            self.expect(":")
            axes.append((axis, self.integer()))
            if self.accept("*"):
                lane = axis
            if self.token.text != "]":
                self.expect(",")
        return TileType(dtype, tuple(axes), lane)

    def definition(self) -> Node:
        result = self.name()
        self.expect(":")
        t = self.tile_type()
        self.expect("=")
        word = self.name()
        match word:
            case "fill":
                return Fill(result, t, self.constant(t.dtype))
            case "position":
                return Position(result, t, self.expression(self.scope))
            case "iota":
                return Iota(result, t)
            case "load":
                buffer, base, strides, limits = self.address()
                orelse = self.constant(t.dtype) if self.accept("else") else 0
                return Load(result, t, buffer, base, strides, limits, orelse)
            case "gather":
                buffer, base = self.indexed()
                offset = self.name()
                mask = self.name() if self.accept("if") else None
                orelse = self.constant(t.dtype) if self.accept("else") else 0
                return Gather(result, t, buffer, base, offset, mask, orelse)
            case "contract":
                acc, a, b = self.names()
                return Contract(result, t, acc, a, b)
            case "reduce" | "scan":
                monoid = self.name()
                axis = self.name()
                make = Reduce if word == "reduce" else Scan
                return make(result, t, self.name(), axis, monoid)
            case "relayout":
                return Relayout(result, t, self.name())
        return Map(result, t, word, self.names())


def parse_nest(text: str) -> LoopNest:
    """The LoopNest of its text. Errors: F010 with a caret; S002 for another format number."""
    return _NestParser(text).nest()
