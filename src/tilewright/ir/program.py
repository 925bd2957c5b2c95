"""Program: a tensor program as definitions in index notation with monoids.

In: nothing. Out: the statement types, `Program`, its printer and parser, `verify`. Invariants:
every name is defined once and before its use (a recurrence may read its own names at earlier
steps); all reads give one subscript per axis; bodies are over the definition's axes, its
reduction's axes and dims only.

Meaning of a definition `y: t[i<I] = sum(k<K if p) body`: for every i, the fold of `body` by the
monoid over all k where `p` holds; the monoid's identity if there is none (empty argmax is an
error). `argmax`/`argmin` give the linear position of the first best element in the reduce axes
(i64). `scan sum(j) body` is the inclusive prefix along the output axis j. A `recur t<T:` group
computes its definitions for t = 0, 1, ...; their first axis is t, and they may read each other at
earlier steps, with `else` giving the value before the first step. `scatter` starts from `base` and
combines, in source order, `body` at the given subscripts (a contribution outside the shape is
dropped); without a monoid the last one wins.

`dim N <= bound = s` defines the size N as the value of the scalar s, which is 0 .. bound; tensors
of size N follow. `if c:` computes one of two blocks. `while t<T if go:` repeats its block for
t = 0, 1, ... as long as `go` (the initial one, then the one that the block names) holds; each
`carry` is what the block named at the step before, each `stack` collects one value per step (rows
of steps that did not run are zero), and after the loop t is the number of steps. Blocks read what
is defined before them; what they define is theirs. Every name is used once, blocks included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from tilewright.errors import UserError
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, DTYPES, I64, DType
from tilewright.ir.expr import Expr
from tilewright.ir.text import Parser, Scope, Token

__all__ = [
    "MONOIDS",
    "PROGRAM_FORMAT",
    "Axis",
    "Block",
    "Carry",
    "Definition",
    "Dim",
    "Extern",
    "If",
    "Program",
    "Recurrence",
    "Reduction",
    "Scatter",
    "Size",
    "Statement",
    "Tensor",
    "While",
    "array_key",
    "blocks_of",
    "defined_by",
    "identity_of",
    "map_program",
    "map_statement",
    "parse_dim",
    "parse_program",
    "statement_dims",
    "statement_reads",
    "verify_program",
]

PROGRAM_FORMAT = 1
# Monoid -> the binary operation of ir.scalar that combines two values (argmax and argmin combine
# pairs).
MONOIDS: dict[str, str] = {
    "sum": "add",
    "prod": "mul",
    "max": "max",
    "min": "min",
    "all": "and",
    "any": "or",
    "argmax": "max",
    "argmin": "min",
    "logsumexp": "logaddexp",
}


def identity_of(monoid: str, dtype: DType) -> float | int | bool:
    """The value of an empty reduction."""
    if monoid in ("sum", "prod"):
        one = monoid == "prod"
        return float(one) if dtype.is_float else int(one)
    if monoid in ("all", "any"):
        return monoid == "all"
    low = monoid in ("max", "argmax", "logsumexp")
    if dtype.is_float:
        return float("-inf") if low else float("inf")
    if dtype is BOOL:
        return not low
    info = np.iinfo(dtype.np.name)
    return int(info.min if low else info.max)


@dataclass(frozen=True)
class Dim:
    """A symbolic size: lo <= value <= hi (None: unbounded), divisible by `multiple`; `hint` is a
    typical value.
    """

    name: str
    lo: int = 0
    hi: int | None = None
    multiple: int = 1
    hint: int | None = None

    def __str__(self) -> str:
        text = f"dim {self.name} in {self.lo} .. {'inf' if self.hi is None else self.hi}"
        text += f" multiple {self.multiple}" if self.multiple != 1 else ""
        return text + (f" hint {self.hint}" if self.hint is not None else "")


@dataclass(frozen=True)
class Axis:
    """An iteration variable with its extent: `i<N`."""

    name: str
    extent: Expr

    def __str__(self) -> str:
        return f"{self.name}<{_bracketed(self.extent)}"

    @property
    def index(self) -> Expr:
        return E.index(self.name)


def _bracketed(e: Expr) -> str:
    text = str(e)
    return text if e.op in ("const", "dim") else f"({text})"


@dataclass(frozen=True)
class Tensor:
    """Name, element type and shape of an input, a constant or an extern's result."""

    name: str
    dtype: DType
    shape: tuple[Expr, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Reduction:
    """A fold over `axes` by `monoid` of the contributions for which `guard` holds."""

    monoid: str
    axes: tuple[Axis, ...]
    guard: Expr | None = None

    def __str__(self) -> str:
        guard = f" if {self.guard}" if self.guard is not None else ""
        return f"{self.monoid}({', '.join(map(str, self.axes))}{guard})"


@dataclass(frozen=True)
class Definition:
    """`name: dtype[axes] = reduction body`; `scan` is (monoid, axis name) for a prefix along that
    output axis.
    """

    name: str
    dtype: DType
    axes: tuple[Axis, ...]
    body: Expr
    reduction: Reduction | None = None
    scan: tuple[str, str] | None = None

    def __str__(self) -> str:
        head = f"{self.name}: {self.dtype}[{', '.join(map(str, self.axes))}] = "
        if self.reduction is not None:
            head += f"{self.reduction} "
        if self.scan is not None:
            head += f"scan {self.scan[0]}({self.scan[1]}) "
        return head + str(self.body)

    @property
    def shape(self) -> tuple[Expr, ...]:
        return tuple(a.extent for a in self.axes)

    @property
    def all_axes(self) -> tuple[Axis, ...]:
        """Output axes, then reduce axes."""
        return self.axes + (self.reduction.axes if self.reduction else ())

    def expressions(self) -> Iterator[Expr]:
        """Every expression that reads tensors: the body, then the guard."""
        yield self.body
        if self.reduction is not None and self.reduction.guard is not None:
            yield self.reduction.guard

    @cached_property
    def _reads(self) -> tuple[Expr, ...]:
        return tuple({r: None for e in self.expressions() for r in e.reads()})

    def reads(self) -> list[Expr]:
        """Every distinct read in it."""
        return list(self._reads)

    @cached_property
    def read_names(self) -> frozenset[str]:
        """Names of the tensors that it reads."""
        return frozenset(r.attr[0] for r in self._reads)


@dataclass(frozen=True)
class Recurrence:
    """Definitions computed step by step along `axis`, which is the first axis of each of them."""

    axis: Axis
    definitions: tuple[Definition, ...]

    def __str__(self) -> str:
        return f"recur {self.axis}:\n" + "\n".join(f"    {d}" for d in self.definitions)


@dataclass(frozen=True)
class Scatter:
    """`name[subscripts(source)] combine= body(source)` over a tensor of shape `shape` that starts
    as `base`.
    """

    name: str
    dtype: DType
    axes: tuple[Axis, ...]  # the output's axes; `base` is over them
    monoid: str | None
    source: tuple[Axis, ...]
    subscripts: tuple[Expr, ...]
    body: Expr
    base: Expr

    def __str__(self) -> str:
        head = f"{self.name}: {self.dtype}[{', '.join(map(str, self.axes))}] = "
        head += f"scatter {self.monoid or 'last'}({', '.join(map(str, self.source))})"
        subs = ", ".join(map(str, self.subscripts))
        return f"{head} at ({subs}) of {self.body} base {self.base}"

    @property
    def shape(self) -> tuple[Expr, ...]:
        return tuple(a.extent for a in self.axes)


Attribute = int | float | str | bool | tuple[int, ...]


@dataclass(frozen=True)
class Extern:
    """An algorithm by name: `results = extern function(args) {attributes}`; meanings in
    ir/externs.py.
    """

    results: tuple[Tensor, ...]
    function: str
    args: tuple[str, ...]
    attributes: tuple[tuple[str, Attribute], ...] = ()

    def __str__(self) -> str:
        left = ", ".join(map(str, self.results))
        attributes = ", ".join(f"{k} = {_attribute(v)}" for k, v in self.attributes)
        tail = f" {{{attributes}}}" if attributes else ""
        return f"{left} = extern {self.function}({', '.join(self.args)}){tail}"


def _attribute(v: Attribute) -> str:
    if isinstance(v, bool):
        return "true" if v else "false"
    if isinstance(v, tuple):
        return "(" + "".join(f"{x}, " for x in v).strip() + ")"
    return f'"{v}"' if isinstance(v, str) else repr(v)


@dataclass(frozen=True)
class Size:
    """`dim name <= bound = source`: a size that is the value of the scalar `source` (i64[])."""

    name: str
    bound: Expr
    source: str

    def __str__(self) -> str:
        return f"dim {self.name} <= {_bracketed(self.bound)} = {self.source}"


@dataclass(frozen=True)
class Block:
    """Statements of a branch or a loop's body, and which of the values it hands out, in order."""

    body: tuple[Statement, ...]
    results: tuple[str, ...]

    @property
    def lines(self) -> str:
        """Its statements as printed inside a top-level statement, each line ended."""
        return "".join("    " + str(s).replace("\n", "\n  ") + "\n" for s in self.body)


@dataclass(frozen=True)
class If:
    """`results = if condition: then, else: orelse`; the condition is a bool scalar."""

    results: tuple[Tensor, ...]
    condition: str
    then: Block
    orelse: Block

    def __str__(self) -> str:
        left = ", ".join(map(str, self.results))
        text = f"{left} = if {self.condition}:\n{self.then.lines}"
        text += f"    yield {', '.join(self.then.results)}\n  else:\n{self.orelse.lines}"
        return text + f"    yield {', '.join(self.orelse.results)}"


@dataclass(frozen=True)
class Carry:
    """A tensor that lives from step to step of a loop, and the tensor it starts as."""

    tensor: Tensor
    initial: str

    def __str__(self) -> str:
        return f"{self.tensor} = {self.initial}"


@dataclass(frozen=True)
class While:
    """`results = while axis if condition: block`.

    axis: the step's number (a scalar i64 that the block may read, afterwards the number of steps)
    and the most steps there can be. condition: a bool scalar, or "" where only the number of steps
    ends the loop; then `proceed`, the block's own condition for one more step, is "" too or alone.
    The block's results are the next values of `carries`, then what is stacked; `results` are the
    last values of the carries, then the stacks with one row for every possible step.
    """

    results: tuple[Tensor, ...]
    axis: Axis
    condition: str
    carries: tuple[Carry, ...]
    block: Block
    proceed: str = ""

    def __str__(self) -> str:
        left = ", ".join(map(str, self.results))
        text = f"{left} = " if left else ""
        text += f"while {self.axis}" + (f" if {self.condition}" if self.condition else "") + ":\n"
        if self.carries:
            text += f"    carry {', '.join(map(str, self.carries))}\n"
        text += self.block.lines
        n = len(self.carries)
        tail = f"    next {', '.join(self.block.results[:n])}".rstrip()
        stacked = ", ".join(self.block.results[n:])
        tail += f" stack {stacked}" if stacked else ""
        return text + tail + (f" if {self.proceed}" if self.proceed else "")

    @property
    def counter(self) -> Tensor:
        """The scalar that holds the step's number."""
        return Tensor(self.axis.name, I64, ())


Statement = Definition | Recurrence | Scatter | Extern | Size | If | While


def array_key(array: np.ndarray[Any, Any]) -> str:
    """Content hash of an array: dtype, shape and bytes."""
    h = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    h.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data if array.size else b"")
    return h.hexdigest()


@dataclass(frozen=True)
class Program:
    """Inputs, constants, statements in order, results by name.

    constants: tensors with the `array_key` of their value; `values` maps that key to the array (and
    is no part of the text or of equality).
    """

    name: str
    inputs: tuple[Tensor, ...]
    body: tuple[Statement, ...]
    results: tuple[str, ...]
    dims: tuple[Dim, ...] = ()
    constants: tuple[tuple[Tensor, str], ...] = ()
    values: Mapping[str, np.ndarray[Any, Any]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __str__(self) -> str:
        lines = [
            f"program {self.name} format {PROGRAM_FORMAT}({', '.join(map(str, self.inputs))}):"
        ]
        lines += [f"  {d}" for d in self.dims]
        lines += [f"  const {t} @{key}" for t, key in self.constants]
        lines += [f"  {s}" for s in self.body]
        lines.append(f"  return {', '.join(self.results)}")
        return "\n".join(lines) + "\n"

    @cached_property
    def key(self) -> str:
        """Content key; constants count by hash."""
        return hashlib.sha256(str(self).encode()).hexdigest()

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every named tensor: inputs, constants and everything the body defines."""
        out = {t.name: t for t in self.inputs}
        out.update((t.name, t) for t, _ in self.constants)
        for s in self.body:
            out.update((t.name, t) for t in defined_by(s))
        return out

    def constant(self, name: str) -> np.ndarray[Any, Any]:
        """The value of a constant. Errors: KeyError where the text came without its values."""
        return self.values[next(k for t, k in self.constants if t.name == name)]

    def bind(self, sizes: Mapping[str, int]) -> Program:
        """The Program for concrete sizes of some dims."""
        mapping = {E.dim(n): E.const(v) for n, v in sizes.items()}

        def go(e: Expr) -> Expr:
            return E.substitute(e, mapping)

        return replace(
            map_program(self, go), dims=tuple(d for d in self.dims if d.name not in sizes)
        )


def defined_by(s: Statement) -> tuple[Tensor, ...]:
    """The tensors that a statement defines."""
    match s:
        case Extern():
            return s.results
        case Recurrence():
            return tuple(Tensor(d.name, d.dtype, d.shape) for d in s.definitions)
        case Size():
            return ()
        case If():
            return s.results
        case While():
            return (*s.results, s.counter)
    return (Tensor(s.name, s.dtype, s.shape),)


def blocks_of(s: Statement) -> tuple[Block, ...]:
    """The blocks of a branch or a loop."""
    match s:
        case If():
            return s.then, s.orelse
        case While():
            return (s.block,)
    return ()


def statement_reads(s: Statement) -> set[str]:
    """Names of the tensors that a statement reads from outside; a recurrence's own and what a
    block defines are not among them.
    """
    match s:
        case Extern():
            return set(s.args)
        case Definition():
            return set(s.read_names)
        case Recurrence():
            own = {d.name for d in s.definitions}
            return set().union(*(d.read_names for d in s.definitions)) - own
        case Scatter():
            return {r.attr[0] for e in (s.body, s.base, *s.subscripts) for r in e.reads()}
        case Size():
            return {s.source}
        case If():
            return {s.condition} | _block_reads(s.then) | _block_reads(s.orelse)
        case While():
            inside = _block_reads(s.block, s.proceed) - {c.tensor.name for c in s.carries}
            outside = {c.initial for c in s.carries} | ({s.condition} if s.condition else set())
            return (inside - {s.axis.name}) | outside


def _block_reads(b: Block, *more: str) -> set[str]:
    names = {*b.results, *filter(None, more)}
    for s in reversed(b.body):
        names -= {t.name for t in defined_by(s)}
        names |= statement_reads(s)
    return names


def statement_dims(s: Statement) -> set[str]:
    """Names of the dims in a statement, those that its own blocks define included."""
    out: set[str] = set()

    def go(e: Expr) -> Expr:
        out.update(e.names("dim"))
        return e

    map_statement(s, go)
    return out


def map_statement(s: Statement, go: Any) -> Statement:
    """The statement with `go` applied to every expression, sizes included."""

    def axes(xs: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(Axis(a.name, go(a.extent)) for a in xs)

    match s:
        case Definition():
            r = s.reduction
            if r is not None:
                r = Reduction(r.monoid, axes(r.axes), None if r.guard is None else go(r.guard))
            return replace(s, axes=axes(s.axes), body=go(s.body), reduction=r)
        case Recurrence():
            definitions = tuple(map_statement(d, go) for d in s.definitions)
            return Recurrence(Axis(s.axis.name, go(s.axis.extent)), definitions)  # type: ignore[arg-type]
        case Scatter():
            return replace(
                s,
                axes=axes(s.axes),
                source=axes(s.source),
                subscripts=tuple(map(go, s.subscripts)),
                body=go(s.body),
                base=go(s.base),
            )
        case Size():
            return replace(s, bound=go(s.bound))
        case Extern():
            return replace(s, results=tuple(_map_tensor(t, go) for t in s.results))
        case If():
            results = tuple(_map_tensor(t, go) for t in s.results)
            return replace(
                s, results=results, then=_map_block(s.then, go), orelse=_map_block(s.orelse, go)
            )
        case While():
            return replace(
                s,
                results=tuple(_map_tensor(t, go) for t in s.results),
                axis=Axis(s.axis.name, go(s.axis.extent)),
                carries=tuple(Carry(_map_tensor(c.tensor, go), c.initial) for c in s.carries),
                block=_map_block(s.block, go),
            )


def _map_tensor(t: Tensor, go: Any) -> Tensor:
    return replace(t, shape=tuple(map(go, t.shape)))


def _map_block(b: Block, go: Any) -> Block:
    return replace(b, body=tuple(map_statement(s, go) for s in b.body))


def map_program(p: Program, go: Any) -> Program:
    """The Program with `go` applied to every expression."""
    return replace(
        p,
        inputs=tuple(_map_tensor(t, go) for t in p.inputs),
        body=tuple(map_statement(s, go) for s in p.body),
    )


# ---- parser --------------------------------------------------------------------------------------


class _ProgramParser(Parser):
    def __init__(self, source: str) -> None:
        super().__init__(source, newlines=True)
        self.dims: dict[str, Dim] = {}
        self.scope = Scope({}, {}, self.free_dim)

    def free_dim(self, token: Token) -> Expr:
        raise self.fail(f"unknown name {token.text!r}", token, code="F011")

    def size_dim(self, token: Token) -> Expr:
        """In an input's shape an unknown name is a new dim."""
        self.dims.setdefault(token.text, Dim(token.text))
        self.scope.leaves[token.text] = E.dim(token.text)
        return self.scope.leaves[token.text]

    def dtype(self) -> DType:
        token = self.token
        name = self.name()
        if name not in DTYPES:
            raise self.fail(f"unknown dtype {name!r}", token)
        return DTYPES[name]

    def tensor(self, scope: Scope) -> Tensor:
        token = self.token
        name = self.name()
        self.expect(":")
        dtype = self.dtype()
        self.expect("[")
        shape: list[Expr] = []
        while not self.accept("]"):
            shape.append(self.expression(scope))
            if self.token.text != "]":
                self.expect(",")
        self.define(token, name, dtype, len(shape))
        return Tensor(name, dtype, tuple(shape))

    def define(self, token: Token, name: str, dtype: DType, rank: int) -> None:
        if name in self.scope.tensors:
            raise self.fail(f"{name!r} is defined twice", token, code="F012")
        self.scope.tensors[name] = (dtype, rank)

    def program(self) -> Program:
        self.skip_newlines()
        self.expect("program")
        name = self.name()
        if self.accept("format"):
            token = self.token
            if self.integer() != PROGRAM_FORMAT:
                raise self.fail(
                    f"this is Program text of another format than {PROGRAM_FORMAT}",
                    token,
                    code="S002",
                )
        sizes = Scope({}, self.scope.leaves, self.size_dim)
        self.expect("(")
        inputs: list[Tensor] = []
        while not self.accept(")"):
            inputs.append(self.tensor(sizes))
            if self.token.text != ")":
                self.expect(",")
        self.expect(":")
        self.skip_newlines()
        order = list(self.dims)
        while self.token.text == "dim" and self.peek(2).text == "in":
            d = self.dim_line()
            if d.name not in order:
                order.append(d.name)
            self.dims[d.name] = d
            self.scope.leaves[d.name] = E.dim(d.name)
        constants: list[tuple[Tensor, str]] = []
        while self.token.text == "const":
            self.next()
            t = self.tensor(sizes)
            token = self.expect("@")
            end = self.source.find("\n", token.at)
            end = len(self.source) if end < 0 else end
            constants.append((t, self.source[token.at + 1 : end].strip()))
            while self.token.at < end and self.token.kind != "end":
                self.next()
            self.skip_newlines()
        body: list[Statement] = []
        while self.token.text != "return":
            if self.token.kind == "end":
                raise self.fail("the program has no return line")
            body.append(self.statement())
        self.next()
        results = [self.result()]
        while self.accept(","):
            results.append(self.result())
        self.skip_newlines()
        if self.token.kind != "end":
            raise self.fail(f"unexpected {self.token.text!r} after the return line")
        return Program(
            name,
            tuple(inputs),
            tuple(body),
            tuple(results),
            tuple(self.dims[d] for d in order),
            tuple(constants),
        )

    def result(self) -> str:
        token = self.token
        name = self.name()
        if name not in self.scope.tensors:
            raise self.fail(f"unknown result {name!r}", token, code="P004")
        return name

    def dim_line(self) -> Dim:
        self.expect("dim")
        name = self.name()
        self.expect("in")
        lo = self.integer()
        self.expect("..")
        hi = None if self.accept("inf") else self.integer()
        multiple = self.integer() if self.accept("multiple") else 1
        hint = self.integer() if self.accept("hint") else None
        self.skip_newlines()
        return Dim(name, lo, hi, multiple, hint)

    def end_line(self) -> None:
        if self.token.kind not in ("newline", "end"):
            raise self.fail(f"unexpected {self.token.text!r} at the end of a statement")
        self.skip_newlines()

    def axis(self, scope: Scope) -> Axis:
        name = self.name()
        self.expect("<")
        return Axis(name, self.expression(scope, 8))

    def axes(self, close: str) -> list[Axis]:
        out: list[Axis] = []
        while self.token.text not in (close, "if"):
            out.append(self.axis(self.scope))
            if self.token.text not in (close, "if"):
                self.expect(",")
        return out

    def inner(self, *groups: tuple[Axis, ...]) -> Scope:
        leaves = dict(self.scope.leaves)
        leaves.update((a.name, a.index) for g in groups for a in g)
        return Scope(self.scope.tensors, leaves, self.scope.fallback)

    def value(self, scope: Scope, dtype: DType) -> Expr:
        """An expression; a bare literal takes the definition's dtype."""
        e = self.expression(scope)
        return self.retype(e, dtype) if e.op == "const" and e.dtype is not dtype else e

    def statement(self) -> Statement:
        if self.accept("recur"):
            axis = self.axis(self.scope)
            self.expect(":")
            self.skip_newlines()
            return self.recurrence(axis)
        if self.token.text == "dim" and self.peek(2).text == "<=":
            return self.size_line()
        if self.token.text == "while" and self.peek().kind == "name":
            return self.loop([])
        token = self.token
        name = self.name()
        self.expect(":")
        dtype = self.dtype()
        self.expect("[")
        if self.token.text != "]" and not (self.token.kind == "name" and self.peek().text == "<"):
            return self.extern(token, name, dtype)
        axes = tuple(self.axes("]"))
        self.expect("]")
        if self.token.text == ",":
            return self.extern(token, name, dtype, ())
        self.expect("=")
        if not axes and self.token.text in ("extern", "if", "while"):
            return self.extern(token, name, dtype, ())
        if self.token.text == "scatter":
            s: Statement = self.scatter(name, dtype, axes)
        else:
            s = self.definition(name, dtype, axes)
        self.define(token, name, dtype, len(axes))
        self.end_line()
        return s

    def definition(self, name: str, dtype: DType, axes: tuple[Axis, ...]) -> Definition:
        reduction = scan = None
        if self.token.text in MONOIDS and self._starts_reduction():
            monoid = self.next().text
            self.expect("(")
            reduce_axes = tuple(self.axes(")"))
            guard = self.expression(self.inner(axes, reduce_axes)) if self.accept("if") else None
            self.expect(")")
            reduction = Reduction(monoid, reduce_axes, guard)
        elif self.token.text == "scan":
            self.next()
            monoid = self.name()
            self.expect("(")
            scan = (monoid, self.name())
            self.expect(")")
        scope = self.inner(axes, reduction.axes if reduction else ())
        if reduction is not None and reduction.monoid in ("argmax", "argmin"):
            body = self.expression(scope)
        else:
            body = self.value(scope, dtype)
        return Definition(name, dtype, axes, body, reduction, scan)

    def _starts_reduction(self) -> bool:
        """`max(k<K ...) body` is a reduction, `max(a, b)` an operation, `sum() body` a reduction
        over no axis.
        """
        if self.peek().text != "(":
            return False
        if self.peek(2).text == ")":
            return True
        return (
            self.peek(2).kind == "name"
            and self.peek(3).text == "<"
            and self._closes_before_expression()
        )

    def _closes_before_expression(self) -> bool:
        depth, k = 0, 1
        while True:
            t = self.peek(k)
            depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(t.text, 0) if t.kind == "op" else 0
            if depth == 0 or t.kind == "end":
                after = self.peek(k + 1)
                return after.kind in ("name", "number") or after.text in ("(", "-")
            k += 1

    def scatter(self, name: str, dtype: DType, axes: tuple[Axis, ...]) -> Scatter:
        self.expect("scatter")
        monoid: str | None = self.name()
        monoid = None if monoid == "last" else monoid
        self.expect("(")
        source = tuple(self.axes(")"))
        self.expect(")")
        scope = self.inner(source)
        self.expect("at")
        self.expect("(")
        subscripts: list[Expr] = []
        while not self.accept(")"):
            subscripts.append(E.cast(self.expression(scope), I64))
            if self.token.text != ")":
                self.expect(",")
        self.expect("of")
        body = self.value(scope, dtype)
        self.expect("base")
        return Scatter(
            name,
            dtype,
            axes,
            monoid,
            source,
            tuple(subscripts),
            body,
            self.value(self.inner(axes), dtype),
        )

    def recurrence(self, axis: Axis) -> Recurrence:
        # Names of the whole group are visible in it, so headers are read first.
        start, headers = self.position, []
        column = self.column()
        while self.token.kind != "end" and self.column() == column and self.token.text != "return":
            token = self.token
            name = self.name()
            self.expect(":")
            dtype = self.dtype()
            self.expect("[")
            rank = len(self.axes("]"))
            headers.append((token, name, dtype, rank))
            while self.token.kind not in ("newline", "end"):
                self.next()
            self.skip_newlines()
        self.position = start
        for token, name, dtype, rank in headers:
            self.define(token, name, dtype, rank)
        out: list[Definition] = []
        for _, name, dtype, _ in headers:
            for _ in range(3):  # name, colon, dtype
                self.next()
            self.expect("[")
            axes = tuple(self.axes("]"))
            self.expect("]")
            self.expect("=")
            out.append(self.definition(name, dtype, axes))
            self.end_line()
        return Recurrence(axis, tuple(out))

    def column(self) -> int:
        at = self.token.at
        return at - (self.source.rfind("\n", 0, at) + 1)

    def extern(
        self, token: Token, name: str, dtype: DType, shape: tuple[Expr, ...] | None = None
    ) -> Extern | If | While:
        results: list[Tensor] = []
        while True:
            if shape is None:
                sizes: list[Expr] = []
                while not self.accept("]"):
                    sizes.append(self.expression(self.scope))
                    if self.token.text != "]":
                        self.expect(",")
                shape = tuple(sizes)
            results.append(Tensor(name, dtype, shape))
            if not self.accept(","):
                break
            name, shape = self.name(), None
            self.expect(":")
            dtype = self.dtype()
            self.expect("[")
        if self.token.text == "=":
            self.next()
        if self.token.text == "if":
            return self.branch(results)
        if self.token.text == "while":
            return self.loop(results)
        self.expect("extern")
        function = self.name()
        self.expect("(")
        args: list[str] = []
        while not self.accept(")"):
            args.append(self.result())
            if self.token.text != ")":
                self.expect(",")
        attributes: list[tuple[str, Attribute]] = []
        if self.accept("{"):
            while not self.accept("}"):
                key = self.name()
                self.expect("=")
                attributes.append((key, self.attribute()))
                if self.token.text != "}":
                    self.expect(",")
        for t in results:
            self.define(token, t.name, t.dtype, len(t.shape))
        self.end_line()
        return Extern(tuple(results), function, tuple(args), tuple(attributes))

    # -- control
    def size_line(self) -> Size:
        self.expect("dim")
        token = self.token
        name = self.name()
        self.expect("<=")
        bound = self.expression(self.scope, 8)
        self.expect("=")
        source = self.result()
        if name in self.scope.leaves:
            raise self.fail(f"{name!r} is defined twice", token, code="F012")
        self.scope.leaves[name] = E.dim(name)
        self.end_line()
        return Size(name, bound, source)

    def names(self, *ends: str) -> tuple[str, ...]:
        """Names of known tensors up to the end of the line or one of `ends`."""
        out: list[str] = []
        while self.token.kind not in ("newline", "end") and self.token.text not in ends:
            out.append(self.result())
            if not self.accept(","):
                break
        return tuple(out)

    def statements(self, end: str) -> tuple[Statement, ...]:
        """Statements of a block up to the line that `end` starts."""
        out: list[Statement] = []
        while self.token.text != end:
            if self.token.kind == "end" or self.token.text == "return":
                raise self.fail(f"the block has no {end!r} line")
            out.append(self.statement())
        self.next()
        return tuple(out)

    def branch(self, results: list[Tensor]) -> If:
        token = self.expect("if")
        condition = self.result()
        outer = self.scope
        blocks: list[Block] = []
        for part in ("then", "else"):
            if part == "else":
                self.expect("else")
            self.expect(":")
            self.skip_newlines()
            self.scope = Scope(dict(outer.tensors), dict(outer.leaves), self.free_dim)
            body = self.statements("yield")
            blocks.append(Block(body, self.names()))
            self.end_line()
        self.scope = outer
        for t in results:
            self.define(token, t.name, t.dtype, len(t.shape))
        return If(tuple(results), condition, *blocks)

    def loop(self, results: list[Tensor]) -> While:
        token = self.expect("while")
        axis = self.axis(self.scope)
        condition = self.result() if self.accept("if") else ""
        self.expect(":")
        self.skip_newlines()
        outer = self.scope
        self.scope = Scope(dict(outer.tensors), dict(outer.leaves), self.free_dim)
        self.define(token, axis.name, I64, 0)
        carries: list[Carry] = []
        if self.token.text == "carry" and self.peek().kind == "name":
            self.next()
            while True:
                t = self.tensor(Scope({}, self.scope.leaves, self.free_dim))
                self.expect("=")
                carries.append(Carry(t, self.result()))
                if not self.accept(","):
                    break
            self.end_line()
        body = self.statements("next")
        handed = self.names("stack", "if")
        stacked = self.names("if") if self.accept("stack") else ()
        proceed = self.result() if self.accept("if") else ""
        self.end_line()
        self.scope = outer
        for t in results:
            self.define(token, t.name, t.dtype, len(t.shape))
        self.define(token, axis.name, I64, 0)
        block = Block(body, (*handed, *stacked))
        return While(tuple(results), axis, condition, tuple(carries), block, proceed)

    def attribute(self) -> Attribute:
        if self.token.kind == "string":
            return self.next().text[1:-1]
        if self.accept("("):
            items: list[int] = []
            while not self.accept(")"):
                items.append(self.integer())
                if self.token.text != ")":
                    self.expect(",")
            return tuple(items)
        e = self.expression(Scope({}, {}))
        value: Attribute = self.exact.get(e, e.attr)
        return value


def parse_dim(text: str) -> Dim:
    """The dim of its line. Errors: F010."""
    return _ProgramParser(text).dim_line()


def parse_program(text: str) -> Program:
    """The Program of its text, without constant values.

    Errors: F010, F011, F012, P003, P004, S002 with a caret.
    """
    p = _ProgramParser(text).program()
    verify_program(p)
    return p


# ---- verifier ------------------------------------------------------------------------------------


def verify_program(p: Program) -> None:
    """Check the invariants in the module's docstring.

    Errors: P001 to P005, F012, naming the statement.
    """
    known: dict[str, Tensor] = {}
    taken: set[str] = set()
    sizes = {d.name for d in p.dims}

    def define(t: Tensor) -> None:
        if t.name in taken:
            raise UserError("F012", f"{t.name!r} is defined twice", where=str(t))
        taken.add(t.name)
        known[t.name] = t

    def scalar(name: str, dtype: DType, what: str, where: Statement) -> None:
        t = known.get(name)
        if t is None:
            raise UserError("P004", f"{name!r} is read before it is defined", where=str(where))
        if t.dtype is not dtype or t.shape:
            raise UserError("P002", f"{what} must be {dtype}[], {name!r} is {t}", where=str(where))

    def check(e: Expr, bound: set[str], where: Statement | Definition) -> None:
        for node in e.walk():
            if node.op == "index" and node.attr not in bound:
                raise UserError("P001", f"index {node.attr!r} is not bound", where=str(where))
            if node.op == "read":
                t = known.get(node.attr[0])
                if t is None:
                    raise UserError(
                        "P004", f"{node.attr[0]!r} is read before it is defined", where=str(where)
                    )
                n = len(node.args) - node.attr[1]
                if n != len(t.shape):
                    raise UserError(
                        "P003",
                        f"{t.name!r} has {len(t.shape)} axes, {n} subscripts given",
                        where=str(where),
                    )
                if node.dtype is not t.dtype:
                    raise UserError(
                        "P002", f"{t.name!r} is {t.dtype}, read as {node.dtype}", where=str(where)
                    )
                if any(s.dtype is not I64 for s in node.args[:n]):
                    raise UserError(
                        "P002", f"subscripts of {t.name!r} must be i64", where=str(where)
                    )

    def definition(d: Definition) -> None:
        names = [a.name for a in d.all_axes]
        if len(set(names)) != len(names):
            raise UserError("P001", f"{d.name!r} binds an index twice", where=str(d))
        for e in d.expressions():
            check(e, set(names), d)
        r = d.reduction
        if r is not None and r.monoid not in MONOIDS:
            raise UserError("P001", f"unknown monoid {r.monoid!r}", where=str(d))
        if r is not None and r.guard is not None and r.guard.dtype is not BOOL:
            raise UserError("P002", "a guard must be bool", where=str(d))
        if r is not None and r.monoid in ("argmax", "argmin"):
            if d.dtype is not I64:
                raise UserError("P002", f"{r.monoid} gives i64, not {d.dtype}", where=str(d))
        elif d.body.dtype is not d.dtype:
            raise UserError(
                "P002", f"{d.name!r} is {d.dtype}, its body {d.body.dtype}", where=str(d)
            )
        if d.scan is not None and (
            d.scan[0] not in MONOIDS or d.scan[1] not in [a.name for a in d.axes]
        ):
            raise UserError(
                "P001", f"scan {d.scan[0]}({d.scan[1]}) names no monoid or no axis", where=str(d)
            )

    def block(b: Block, wanted: tuple[Tensor, ...], where: Statement, proceed: str = "") -> None:
        """A block's statements, and that it hands out tensors like `wanted`."""
        outer = dict(known)
        for x in b.body:
            statement(x)
        if proceed:
            scalar(proceed, BOOL, "a condition", where)
        if len(b.results) != len(wanted):
            message = f"a block hands out {len(b.results)} values instead of {len(wanted)}"
            raise UserError("P005", message, where=str(where))
        for name, t in zip(b.results, wanted, strict=True):
            found = known.get(name)
            if found is None:
                raise UserError("P004", f"{name!r} is read before it is defined", where=str(where))
            if not _is_like(found, t):
                message = f"{name!r} is {found}, where {t} is needed"
                raise UserError("P005", message, where=str(where))
        known.clear()
        known.update(outer)

    def loop(s: While) -> None:
        if s.condition:
            scalar(s.condition, BOOL, "a condition", s)
        for c in s.carries:
            start = known.get(c.initial)
            if start is None:
                raise UserError("P004", f"{c.initial!r} is read before it is defined", where=str(s))
            if not _is_like(start, c.tensor):
                message = f"{c.initial!r} is {start}, where {c.tensor} is needed"
                raise UserError("P005", message, where=str(s))
        n = len(s.carries)
        if len(s.results) < n:
            raise UserError("P005", f"a loop has {n} carried values", where=str(s))
        for c, t in zip(s.carries, s.results, strict=False):
            if not _is_like(c.tensor, t):
                message = f"{c.tensor.name!r} is {c.tensor}, the result is {t}"
                raise UserError("P005", message, where=str(s))
        for t in s.results[n:]:
            if not t.shape or t.shape[0] is not s.axis.extent:
                message = f"{t.name!r} must have {s.axis.extent} rows, one for every step"
                raise UserError("P005", message, where=str(s))
        outer = dict(known)
        define(s.counter)
        for c in s.carries:
            define(c.tensor)
        rows = tuple(replace(t, shape=t.shape[1:]) for t in s.results[n:])
        block(s.block, tuple(c.tensor for c in s.carries) + rows, s, s.proceed)
        known.clear()
        known.update(outer)
        for t in s.results:
            define(t)
        known[s.axis.name] = s.counter

    def statement(s: Statement) -> None:
        match s:
            case Definition():
                definition(s)
                define(Tensor(s.name, s.dtype, s.shape))
            case Recurrence():
                for t in defined_by(s):
                    define(t)
                for d in s.definitions:
                    if not d.axes or d.axes[0].name != s.axis.name:
                        raise UserError(
                            "P001",
                            f"the first axis of {d.name!r} must be {s.axis.name}",
                            where=str(d),
                        )
                    definition(d)
            case Scatter():
                check(s.body, {a.name for a in s.source}, s)
                for e in s.subscripts:
                    check(e, {a.name for a in s.source}, s)
                check(s.base, {a.name for a in s.axes}, s)
                if len(s.subscripts) != len(s.axes):
                    raise UserError(
                        "P003",
                        f"scatter into {s.name!r} needs {len(s.axes)} subscripts",
                        where=str(s),
                    )
                if s.body.dtype is not s.dtype or s.base.dtype is not s.dtype:
                    raise UserError("P002", f"scatter into {s.name!r} mixes dtypes", where=str(s))
                define(Tensor(s.name, s.dtype, s.shape))
            case Extern():
                for a in s.args:
                    if a not in known:
                        raise UserError("P004", f"{a!r} is read before it is defined", where=str(s))
                for t in s.results:
                    define(t)
            case Size():
                scalar(s.source, I64, f"the size {s.name!r}", s)
                if s.name in sizes:
                    raise UserError("F012", f"{s.name!r} is defined twice", where=str(s))
                sizes.add(s.name)
            case If():
                scalar(s.condition, BOOL, "a condition", s)
                for b in (s.then, s.orelse):
                    block(b, s.results, s)
                for t in s.results:
                    define(t)
            case While():
                loop(s)

    for t in p.inputs:
        define(t)
    for t, _ in p.constants:
        define(t)
    for s in p.body:
        statement(s)
    for name in p.results:
        if name not in known:
            raise UserError("P004", f"result {name!r} is not defined", where=f"program {p.name}")


def _is_like(a: Tensor, b: Tensor) -> bool:
    """Equal element types, and shapes that are not known to differ."""
    return (
        a.dtype is b.dtype
        and len(a.shape) == len(b.shape)
        and all(
            x is y or E.int_value(x) is None or E.int_value(y) is None
            for x, y in zip(a.shape, b.shape, strict=True)
        )
    )
