"""Building Programs: fresh names, constants, definitions, and the removal of what no result reads.

In: shapes and functions from indices to scalar expressions. Out: a `Program`. Invariants: names are
identifiers that the Program text can hold; no index variable has the name of a tensor or a dim, so
the text parses back to the same value; statements are in order of definition.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from tilewright.errors import InternalError
from tilewright.ir import expr as E
from tilewright.ir.dtypes import DTYPES, DType, dtype_of
from tilewright.ir.expr import Expr
from tilewright.ir.program import (
    MONOIDS,
    Attribute,
    Axis,
    Block,
    Carry,
    Definition,
    Dim,
    Extern,
    If,
    Program,
    Recurrence,
    Reduction,
    Scatter,
    Size,
    Statement,
    Tensor,
    While,
    array_key,
    defined_by,
    statement_dims,
    statement_reads,
)

__all__ = ["Builder", "identifier", "statement_reads"]

_KEYWORDS = frozenset(
    [
        "program",
        "format",
        "dim",
        "const",
        "return",
        "recur",
        "while",
        "carry",
        "next",
        "stack",
        "yield",
        "scatter",
        "extern",
        "scan",
        "last",
        "base",
        "at",
        "of",
        "else",
        "if",
        "not",
        "and",
        "or",
        "in",
        "inf",
        "multiple",
        "hint",
        "nan",
        "true",
        "false",
        "where",
        "select",
        "cast",
        "read",
    ]
)
_RESERVED = _KEYWORDS | E.UNARY | E.BINARY | E.COMPARE | frozenset(MONOIDS) | frozenset(DTYPES)
# Names kept for index variables; tensors other than inputs never take them.
_INDEX = re.compile(r"[a-z][0-9]{0,2}|k[dhw]|[sf][xy]")
_MAX_NAME = 48


def identifier(text: str, fallback: str = "v") -> str:
    """A readable identifier for any text: `/m/conv_1/Conv_output_0` gives `m_conv_1_Conv`."""
    text = re.sub(r"_output_0$|:0$", "", text)
    text = re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")
    if len(text) > _MAX_NAME:
        text = text[-_MAX_NAME:].lstrip("_")
    if not text or not text[0].isalpha():
        text = f"{fallback}{text}" if text else fallback
    return f"{text}_" if text in _RESERVED else text


class Builder:
    """Collects the parts of one Program.

    `origin` is attached to every statement that is added while it is set; `origins` maps defined
    names to it.
    """

    def __init__(self, name: str, taken: Iterable[str] = (), promised: Iterable[str] = ()) -> None:
        self.name = identifier(name, "model")
        self.tensors: dict[str, Tensor] = {}
        self.inputs: list[Tensor] = []
        self.statements: list[Statement] = []
        self.origin = ""
        self.origins: dict[str, str] = {}
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}
        self._names: set[str] = set(taken)  # dims, inputs: spelled as the user spells them
        # Outputs: no index variable takes these, the first tensor that asks for one gets it.
        self._promised = set(promised) - self._names
        self._counters: dict[str, int] = {}

    # ---- names
    def fresh(self, hint: str) -> str:
        """A new name like `hint`, never one that an index variable could have."""
        base = identifier(hint)
        if base in self._promised:
            self._promised.discard(base)
            self._names.add(base)
            return base
        if _INDEX.fullmatch(base):
            base += "_"
        if base not in self._names:
            self._names.add(base)
            return base
        count = self._counters.get(base, 1)
        while f"{base}_{count}" in self._names:
            count += 1
        self._counters[base] = count + 1
        self._names.add(f"{base}_{count}")
        return f"{base}_{count}"

    def axes(self, shape: Sequence[Expr | int], names: Sequence[str] = ()) -> tuple[Axis, ...]:
        """One axis per size, with the given names as far as they are free, else i, j, k, ..."""
        out: list[Axis] = []
        used: set[str] = set()
        for position, size in enumerate(shape):
            wanted = names[position] if position < len(names) else ""
            pool = chain((wanted,), _numbered(wanted)) if wanted else _generic(position)
            free = (x for x in pool if x not in self._names and x not in self._promised)
            name = next(x for x in free if x not in used)
            used.add(name)
            out.append(Axis(name, size if isinstance(size, Expr) else E.const(size)))
        return tuple(out)

    # ---- tensors
    def input(self, name: str, dtype: DType, shape: Sequence[Expr | int]) -> Tensor:
        """Declare an input; its name was reserved through `taken`."""
        return self._declare(Tensor(name, dtype, _sizes(shape)), self.inputs)

    def _declare(self, t: Tensor, into: list[Tensor] | None = None) -> Tensor:
        if t.name in self.tensors:
            raise InternalError("X001", f"{t.name!r} is defined twice")
        self.tensors[t.name] = t
        if into is not None:
            into.append(t)
        return t

    def constant(self, array: np.ndarray[Any, Any], hint: str) -> Tensor:
        """A constant tensor; the array is kept, not copied."""
        dtype = dtype_of(array.dtype)
        if dtype is None:
            raise InternalError("X001", f"no dtype for {array.dtype}")
        t = Tensor(self.fresh(hint), dtype, tuple(E.const(int(n)) for n in array.shape))
        self._arrays[t.name] = array
        return self._declare(t)

    def add(self, s: Statement) -> Statement:
        """Append a statement; its names were made by `fresh`."""
        for t in defined_by(s):
            self._declare(t)
            if self.origin:
                self.origins[t.name] = self.origin
        self.statements.append(s)
        return s

    def define(
        self,
        hint: str,
        axes: Sequence[Axis],
        body: Expr,
        *,
        reduction: Reduction | None = None,
        scan: tuple[str, str] | None = None,
        dtype: DType | None = None,
    ) -> Tensor:
        """Append `hint: dtype[axes] = reduction body`."""
        d = Definition(self.fresh(hint), dtype or body.dtype, tuple(axes), body, reduction, scan)
        self.add(d)
        return self.tensors[d.name]

    def extern(
        self,
        function: str,
        args: Sequence[str],
        results: Sequence[tuple[str, DType, Sequence[Expr | int]]],
        **attributes: Attribute,
    ) -> tuple[Tensor, ...]:
        """Append an extern call; `results` are (hint, dtype, shape)."""
        tensors = tuple(Tensor(self.fresh(h), t, _sizes(s)) for h, t, s in results)
        self.add(Extern(tensors, function, tuple(args), tuple(attributes.items())))
        return tensors

    def read(self, tensor: Tensor, subscripts: Iterable[Expr], orelse: Expr | None = None) -> Expr:
        """`tensor[subscripts]`."""
        return E.read(tensor.name, subscripts, tensor.dtype, orelse)

    # ---- blocks
    @contextmanager
    def inside(self, statements: list[Statement] | None = None) -> Iterator[list[Statement]]:
        """Statements go to another list meanwhile: to a new one, or to one that is still open."""
        outer = self.statements
        self.statements = [] if statements is None else statements
        try:
            yield self.statements
        finally:
            self.statements = outer

    def block(self, statements: Sequence[Statement], results: Sequence[str]) -> Block:
        """A block of the statements that the results need."""
        return Block(tuple(_live(statements, results)), tuple(results))

    # ---- result
    def program(self, results: Sequence[str], dims: Sequence[Dim]) -> Program:
        """The Program of what `results` need. Constants are hashed here, once."""
        kept = _live(self.statements, results)
        live = set(results).union(*map(statement_reads, kept))
        constants: list[tuple[Tensor, str]] = []
        values: dict[str, np.ndarray[Any, Any]] = {}
        first: dict[str, str] = {}
        renamed: dict[str, str] = {}
        for name, array in self._arrays.items():
            if name not in live:
                continue
            key = array_key(array)
            if key in first:
                renamed[name] = first[key]
            else:
                first[key] = name
                constants.append((self.tensors[name], key))
                values[key] = array
        if renamed:
            kept = [_rename_reads(s, renamed) for s in kept]
        return Program(
            self.name,
            tuple(self.inputs),
            tuple(kept),
            tuple(results),
            tuple(dims),
            tuple(constants),
            values,
        )


def _live(statements: Sequence[Statement], results: Iterable[str]) -> list[Statement]:
    """The statements that `results` need: what they read, and what their sizes are made of."""
    live, dims = set(results), set[str]()
    kept: list[Statement] = []
    for s in reversed(statements):
        if s.name in dims if isinstance(s, Size) else live & {t.name for t in defined_by(s)}:
            kept.append(s)
            live |= statement_reads(s)
            dims |= statement_dims(s)
    return kept[::-1]


def _sizes(shape: Iterable[Expr | int]) -> tuple[Expr, ...]:
    return tuple(s if isinstance(s, Expr) else E.const(s) for s in shape)


def _numbered(name: str) -> Iterator[str]:
    return (f"{name}{k}" for k in range(1, 1000))


def _generic(position: int) -> Iterator[str]:
    if position < 6:
        yield "ijklmn"[position]
    yield from _numbered("ijklmn"[min(position, 5)])


def _rename_reads(s: Statement, names: Mapping[str, str]) -> Statement:
    """The statement with reads of the keys of `names` going to the values (equal constants are kept
    once).
    """
    if statement_reads(s).isdisjoint(names):
        return s

    def go(e: Expr) -> Expr:
        mapping: dict[Expr, Expr] = {}
        for (
            r
        ) in e.reads():  # operands first, so an inner read is in the mapping before its outer one
            if r.attr[0] in names:
                args = [E.substitute(a, mapping) for a in r.args]
                orelse = args.pop() if r.attr[1] else None
                mapping[r] = E.read(names[r.attr[0]], args, r.dtype, orelse)
        return E.substitute(e, mapping)

    match s:
        case Definition():
            r = s.reduction
            if r is not None and r.guard is not None:
                r = Reduction(r.monoid, r.axes, go(r.guard))
            return replace(s, body=go(s.body), reduction=r)
        case Recurrence():
            return Recurrence(s.axis, tuple(_rename_reads(d, names) for d in s.definitions))  # type: ignore[misc]
        case Scatter():
            return replace(
                s, subscripts=tuple(map(go, s.subscripts)), body=go(s.body), base=go(s.base)
            )
        case Extern():
            return replace(s, args=tuple(names.get(a, a) for a in s.args))
        case Size():
            return replace(s, source=names[s.source])
        case If():
            condition = names.get(s.condition, s.condition)
            blocks = [_rename_block(b, names) for b in (s.then, s.orelse)]
            return If(s.results, condition, *blocks)
        case While():
            carries = [Carry(c.tensor, names.get(c.initial, c.initial)) for c in s.carries]
            return replace(
                s,
                condition=names.get(s.condition, s.condition),
                carries=tuple(carries),
                block=_rename_block(s.block, names),
                proceed=names.get(s.proceed, s.proceed),
            )


def _rename_block(b: Block, names: Mapping[str, str]) -> Block:
    body = tuple(_rename_reads(s, names) for s in b.body)
    return Block(body, tuple(names.get(n, n) for n in b.results))
