"""Terms of index notation: indexes, reads, functions, and reductions anywhere in an expression.

In: tokens. Out: expressions over unique index names and placeholder sizes, and the intermediate
definitions that reductions became. Invariant: an index is in scope exactly between the bracket that
binds it and the end of what it is bound over.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from tilewright.frontend.extents import Extents, Use
from tilewright.ir import expr as E
from tilewright.ir.dtypes import DTYPES, F32, I64, DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import MONOIDS, Axis, Definition, Dim, Reduction, Statement
from tilewright.ir.program_parser import StatementParser
from tilewright.ir.text import Scope, Token

__all__ = ["FUNCTIONS", "RESERVED", "Known", "Terms"]

_WORDS = {
    "program", "format", "dim", "const", "return", "recur", "scatter", "extern", "scan", "last",
    "base", "at", "of", "else", "if", "not", "and", "or", "in", "inf", "nan", "true", "false",
    "where",
}  # fmt: skip
RESERVED = frozenset(_WORDS) | E.UNARY | E.BINARY | frozenset(MONOIDS) | frozenset(DTYPES)
_ONLY_FOLDS = frozenset(MONOIDS) - {"max", "min"} | {"mean"}


def _number(x: Expr, value: float) -> Expr:
    return E.const(value, x.dtype)


def _relu(x: Expr) -> Expr:
    return E.maximum(x, _number(x, 0))


def _gelu(x: Expr) -> Expr:
    half = E.mul(x, _number(x, 0.5))
    erf = E.unary("erf", E.mul(x, _number(x, 0.7071067811865476)))
    return E.mul(half, E.add(erf, _number(x, 1)))


def _silu(x: Expr) -> Expr:
    return E.mul(x, E.unary("sigmoid", x))


def _softplus(x: Expr) -> Expr:
    """log(1 + exp(x)) without overflow."""
    tail = E.unary("log1p", E.unary("exp", E.neg(E.unary("abs", x))))
    return E.add(E.maximum(x, _number(x, 0)), tail)


def _square(x: Expr) -> Expr:
    return E.mul(x, x)


# Functions of one float that are written out: name -> expansion. docs/notation.md lists them.
FUNCTIONS: dict[str, Callable[[Expr], Expr]] = {
    "relu": _relu, "gelu": _gelu, "silu": _silu, "softplus": _softplus, "square": _square,
}  # fmt: skip


@dataclass
class Known:
    """A tensor while parsing: `declared` by a line of its own, `defined` by a statement."""

    dtype: DType
    token: Token
    declared: bool = False
    defined: bool = False
    has_dtype: bool = False


class Terms(StatementParser):
    def __init__(self, source: str) -> None:
        super().__init__(source, newlines=True)
        self.extents = Extents(self.fail)
        self.known: dict[str, Known] = {}
        self.dims: dict[str, Dim | None] = {}  # None: no dim line
        self.dim_tokens: dict[str, Token] = {}
        self.body: list[Statement] = []
        self.frames: list[dict[str, Expr]] = [{}]  # names of indexes in scope, inner last
        self.defining = ""
        self.hoisted: list[Definition] = []
        self.in_subscript = False
        self.scope = Scope({}, {}, self.unbound)
        self.order: list[Expr] = []  # indexes in scope, outer first

    # ---- names ----

    def unbound(self, token: Token) -> Expr:
        name = token.text
        near = [*self.scope.leaves, *self.scope.tensors]
        close = difflib.get_close_matches(name, near, 1, 0.4)
        bound = [n for frame in self.frames for n in frame]
        hint = f"did you mean {close[0]!r}? " if close else ""
        hint += f"bound here: {', '.join(bound)}" if bound else "no index is bound here"
        raise self.fail(
            f"index {name!r} is used but never bound",
            token,
            code="F011",
            hint=f"{hint}; put it on the left side or reduce over it",
        )

    def new_dim(self, token: Token) -> Expr:
        """An unknown name in a bound or a declared shape is a size."""
        if token.text in RESERVED or token.text in self.known:
            raise self.fail(f"{token.text!r} cannot be a size", token)
        self.dims.setdefault(token.text, None)
        self.dim_tokens.setdefault(token.text, token)
        self.scope.leaves[token.text] = E.dim(token.text)
        return E.dim(token.text)

    def size(self) -> Expr:
        """A size: an expression of dims, whose names may be new."""
        token = self.token
        if any(token.text in frame for frame in self.frames):
            hint = "write a range that depends on an index as a guard: sum(j if j < i)"
            raise self.fail(f"a bound is a size, {token.text!r} is an index", token, hint=hint)
        e = self.expression(Scope({}, self.dim_leaves(), self.new_dim), 5)
        if e.dtype is not I64:
            raise self.fail(f"a size must be an integer, found {e.dtype}", token)
        return e

    def dim_leaves(self) -> dict[str, Expr]:
        return {n: E.dim(n) for n in self.dims}

    def fresh(self, base: str) -> str:
        """A name for an intermediate tensor."""
        k = 1
        while f"{base}_{k}" in self.known or f"{base}_{k}" in self.dims:
            k += 1
        return f"{base}_{k}"

    def bind(self, token: Token, extent: Expr | None) -> Expr:
        """A new index variable under its own unique name."""
        name = token.text
        if name in RESERVED:
            raise self.fail(f"{name!r} cannot be an index", token)
        if any(name in frame for frame in self.frames):
            raise self.fail(f"index {name!r} is bound twice", token, code="F012")
        if name in self.dims:
            raise self.fail(f"{name!r} is a size and cannot be an index", token, code="F012")
        number = self.extents.variable(name, True, extent, token)
        unique = f"{name}#{number}"
        self.extents.indexes[unique] = number
        self.frames[-1][name] = self.scope.leaves[name] = E.index(unique)
        self.order.append(E.index(unique))
        return E.index(unique)

    def unbind(self, count: int) -> None:
        """Leave the innermost frame; `count` indexes were in scope before it."""
        for name in self.frames.pop():
            del self.scope.leaves[name]
        del self.order[count:]

    def axes_of(self, close: str) -> list[Axis]:
        """`i, j<3, k<N` up to `close` or `if`; the extents may be placeholders."""
        out = []
        while self.token.text not in (close, "if"):
            token = self.token
            self.name()
            extent = self.size() if self.accept("<") else None
            index = self.bind(token, extent)
            number = self.extents.indexes[index.attr]
            out.append(Axis(index.attr, self.extents.placeholder(number)))
            if self.token.text not in (close, "if"):
                self.expect(",")
        return out

    # ---- reads ----

    def _named(self, token: Token, scope: Scope) -> Expr:
        name = token.text
        if scope.fallback is not None and scope.fallback != self.unbound:  # a size
            return super()._named(token, scope)
        if self.token.text == "[" and name not in RESERVED:
            return self.read(token)
        if self.token.text == "(" and (name in MONOIDS or name == "mean"):
            if self.starts_fold(name):
                return self.fold(token, scope)
        if name == "scan":
            return self.scan(token)
        return super()._named(token, scope)

    def read(self, token: Token) -> Expr:
        name = token.text
        self.expect("[")
        outer, self.in_subscript = self.in_subscript, True
        subscripts: list[Expr] = []
        while not self.accept("]"):
            subscripts.append(self._subscript(self.scope))
            if self.token.text != "]":
                self.expect(",")
        self.in_subscript = outer
        if name not in self.known:
            if name in self.scope.leaves:
                raise self.fail(f"{name!r} is no tensor here", token)
            self.known[name] = Known(I64 if self.in_subscript else F32, token)
        self.touch(token, len(subscripts))
        dtype = self.known[name].dtype
        for axis, s in enumerate(subscripts):
            self.extents.uses.append(Use(name, axis, s, tuple(subscripts), token))
        return E.read(name, subscripts, dtype)

    def touch(self, token: Token, rank: int, defining: bool = False) -> None:
        """First contact with a tensor fixes its rank and makes variables of its axes."""
        name = token.text
        known = self.known[name]
        axes = self.extents.axes.get(name)
        if axes is None:
            axes = [
                self.extents.variable(f"axis {k} of {name!r}", False, None, token)
                for k in range(rank)
            ]
            self.extents.axes[name] = axes
            if not defining and not known.defined:
                self.extents.inputs.append(name)
        self.scope.tensors[name] = (known.dtype, len(axes))
        if len(axes) != rank:
            count = f"{len(axes)} {'axis' if len(axes) == 1 else 'axes'}"
            given = f"{rank} subscript{'' if rank == 1 else 's'}"
            raise self.fail(f"{name!r} has {count}, {given} given", token, code="P003")

    def _atom(self, scope: Scope) -> Expr:
        start = len(self.extents.uses)
        value = super()._atom(scope)
        if value.op == "read" and value.attr[1]:
            for u in self.extents.uses[start:]:
                if u.tensor == value.attr[0] and u.subscripts == value.args[:-1]:
                    u.padded = True
        return value

    def _call(self, token: Token, scope: Scope) -> Expr:
        if token.text in FUNCTIONS:
            args = self.arguments(scope)
            self._arity(token, args, 1)
            if not args[0].dtype.is_float:
                raise self.fail(f"{token.text} takes a float, found {args[0].dtype}", token)
            return FUNCTIONS[token.text](args[0])
        start = len(self.extents.uses)
        value = super()._call(token, scope)
        if token.text == "where":
            self.conditional(start)
        return value

    def conditional(self, start: int) -> None:
        """The uses from `start` on need not be inside their tensors everywhere."""
        for u in self.extents.uses[start:]:
            u.conditional = True

    # ---- reductions and prefixes ----

    def starts_fold(self, name: str) -> bool:
        """`max(k) x[k]` is a reduction, `max(a, b)` an operation."""
        if name in _ONLY_FOLDS or self.peek(2).text == ")":
            return True
        depth, k = 1, 1
        while depth:
            t = self.peek(k)
            if t.kind == "end":
                return False
            if depth == 1 and t.text in ("<", "if"):
                return True
            if t.kind == "op":
                depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(t.text, 0)
            k += 1
        after = self.peek(k)
        words = after.kind == "name" and after.text not in ("and", "or", "else", "if", "at", "of")
        return words or after.kind == "number" or after.text == "("

    def fold(self, token: Token, scope: Scope) -> Expr:
        """A reduction inside an expression: its own definition, and a read of it."""
        self.expect("(")
        count = len(self.order)
        outer = list(self.order)
        self.frames.append({})
        axes = self.axes_of(")")
        start = len(self.extents.uses)
        guard = self.expression(scope) if self.accept("if") else None
        self.expect(")")
        body = self.expression(scope, 7)
        if guard is not None:
            self.conditional(start)
        self.unbind(count)
        if token.text == "mean" and not body.dtype.is_float:
            raise self.fail(f"mean takes floats, found {body.dtype}", token)
        if token.text in ("all", "any") and body.dtype is not DTYPES["bool"]:
            raise self.fail(f"{token.text} takes bools, found {body.dtype}", token)
        monoid = "sum" if token.text == "mean" else token.text
        dtype = I64 if monoid in ("argmax", "argmin") else body.dtype
        value = self.hoist(outer, dtype, body, Reduction(monoid, tuple(axes), guard), None)
        if token.text == "mean":
            if guard is not None:
                raise self.fail("mean takes no `if`", token)
            size = E.const(1)
            for a in axes:
                size = size * a.extent
            value = E.binary("div", value, E.cast(size, body.dtype))
        return value

    def scan(self, token: Token) -> Expr:
        """`scan sum(i) body`: a prefix along index i, which is bound outside."""
        monoid_token = self.token
        monoid = self.name()
        if monoid not in MONOIDS or monoid in ("argmax", "argmin"):
            raise self.fail(f"scan of an unknown monoid {monoid!r}", monoid_token)
        self.expect("(")
        index_token = self.token
        name = self.name()
        index = self.scope.leaves.get(name)
        if index is None or index.op != "index":
            self.unbound(index_token)
            raise AssertionError
        self.expect(")")
        body = self.expression(self.scope, 7)
        needed = body.names("index") | {index.attr}
        outer = [i for i in self.order if i.attr in needed]
        return self.hoist(outer, body.dtype, body, None, (monoid, index.attr))

    def hoist(
        self,
        outer: list[Expr],
        dtype: DType,
        body: Expr,
        reduction: Reduction | None,
        scan: tuple[str, str] | None,
    ) -> Expr:
        """Define an intermediate tensor over the indexes that it needs, and read it."""
        names = body.names("index")
        if reduction is not None and reduction.guard is not None:
            names |= reduction.guard.names("index")
        if scan is not None:
            names |= {scan[1]}
        free = [i for i in outer if i.attr in names]
        axes = tuple(
            Axis(i.attr, self.extents.placeholder(self.extents.indexes[i.attr])) for i in free
        )
        name = self.fresh(self.defining)
        self.known[name] = Known(dtype, self.token, defined=True)
        self.extents.axes[name] = [self.extents.indexes[i.attr] for i in free]
        self.scope.tensors[name] = (dtype, len(axes))
        self.hoisted.append(Definition(name, dtype, axes, body, reduction, scan))
        return E.read(name, free, dtype)
