"""Parser of Programs: from text to statements.

In: the text that ir/program.py prints, or a line of it. Out: a `Program` (without constant values)
or a part. Invariants: `parse_program(str(p)) == p`; what `parse_program` returns is verified.
"""

from __future__ import annotations

from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64, DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import (
    MONOIDS,
    PROGRAM_FORMAT,
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
)
from tilewright.ir.program_verifier import verify_program
from tilewright.ir.text import Parser, Scope, Token

__all__ = ["ProgramParser", "StatementParser", "parse_dim", "parse_program"]


class StatementParser(Parser):
    """What the parsers of printed Programs and of index notation share of statements."""

    def result(self) -> str:
        """The name of a known tensor."""
        raise NotImplementedError

    def size_range(self) -> Dim:
        """`N in 0 .. inf multiple 8 hint 64`, the last two where they are given."""
        name = self.name()
        self.expect("in")
        lo = self.integer()
        self.expect("..")
        hi = None if self.accept("inf") else self.integer()
        multiple = self.integer() if self.accept("multiple") else 1
        hint = self.integer() if self.accept("hint") else None
        return Dim(name, lo, hi, multiple, hint)

    def extern_call(self, results: tuple[Tensor, ...]) -> Extern:
        """`extern function(args) {attributes}`."""
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
        return Extern(results, function, tuple(args), tuple(attributes))

    def attribute(self) -> Attribute:
        """A string, a number, a truth value or integers in parentheses."""
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
        if e.op != "const":
            raise self.fail("an attribute is a literal")
        value: Attribute = self.exact.get(e, e.attr)
        return value


class ProgramParser(StatementParser):
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
        d = self.size_range()
        self.skip_newlines()
        return d

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
        extern = self.extern_call(tuple(results))
        for t in results:
            self.define(token, t.name, t.dtype, len(t.shape))
        self.end_line()
        return extern

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


def parse_dim(text: str) -> Dim:
    """The dim of its line. Errors: F010."""
    return ProgramParser(text).dim_line()


def parse_program(text: str) -> Program:
    """The Program of its text, without constant values.

    Errors: F010, F011, F012, P003, P004, S002 with a caret.
    """
    p = ProgramParser(text).program()
    verify_program(p)
    return p
