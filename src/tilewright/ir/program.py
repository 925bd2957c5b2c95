"""Program: a tensor program as definitions in index notation with monoids.

In: nothing. Out: the statement types, `Program` and its printer; program_parser.py reads what it
prints, program_verifier.py checks the invariants:
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

from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, I64, DType
from tilewright.ir.expr import Expr

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
    "attribute_text",
    "blocks_of",
    "defined_by",
    "identity_of",
    "map_program",
    "map_statement",
    "statement_dims",
    "statement_reads",
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
        attributes = ", ".join(f"{k} = {attribute_text(v)}" for k, v in self.attributes)
        tail = f" {{{attributes}}}" if attributes else ""
        return f"{left} = extern {self.function}({', '.join(self.args)}){tail}"


def attribute_text(v: Attribute) -> str:
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
