"""Index notation as a user writes it: extents, dtypes and intermediate tensors inferred.

In: text such as `C[i,j] = sum(k) A[i,k] * B[k,j]`, or full Program text. Out: a `Program`.
Invariants: every index is bound on the left or by a reduction; the Program says explicitly what was
inferred. The notation is described in docs/notation.md.
"""

from __future__ import annotations

import difflib
from dataclasses import replace

from tilewright.errors import UserError
from tilewright.frontend.extents import finish
from tilewright.frontend.terms import RESERVED, Known, Terms
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F32, DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import (
    MONOIDS,
    Axis,
    Definition,
    Dim,
    Extern,
    Program,
    Recurrence,
    Scatter,
    Statement,
    Tensor,
    defined_by,
)
from tilewright.ir.program_parser import parse_program
from tilewright.ir.text import Token

__all__ = ["from_einsum", "parse_notation"]


class _Notation(Terms):
    def skip(self) -> None:
        while self.token.kind == "newline" or self.token.text == ";":
            self.next()

    def end_line(self) -> None:
        if self.token.kind not in ("newline", "end") and self.token.text != ";":
            raise self.fail(f"unexpected {self.token.text!r} at the end of a statement")
        self.skip()

    def program(self, name: str) -> Program:
        results: list[str] = []
        self.skip()
        while self.token.kind != "end":
            if self.token.text == "return":
                self.next()
                results.append(self.result())
                while self.accept(","):
                    results.append(self.result())
                self.end_line()
                if self.token.kind != "end":
                    raise self.fail(f"unexpected {self.token.text!r} after the return line")
                break
            self.line()
        if not self.body:
            raise self.fail("there is no definition", hint="write one, as in y[i] = x[i] + 1.0")
        if not results:
            last = self.body[-1]
            match last:
                case Extern():
                    results = [t.name for t in last.results]
                case Recurrence():
                    results = [last.definitions[-1].name]
                case Definition() | Scatter():
                    results = [last.name]
                case _:
                    results = [t.name for t in defined_by(last)]
        return self.assemble(name, results)

    def result(self) -> str:
        token = self.token
        name = self.name()
        if name not in self.known or not (self.known[name].defined or self.known[name].declared):
            close = difflib.get_close_matches(name, list(self.known), 1, 0.4)
            hint = f"did you mean {close[0]!r}?" if close else ""
            raise self.fail(f"unknown result {name!r}", token, code="P004", hint=hint)
        return name

    def line(self) -> None:
        after = self.after_brackets()
        if self.token.text == "dim" and self.peek().kind == "name":
            self.dim_line()
        elif self.token.text == "recur" and self.peek().kind == "name":
            self.recurrence()
        elif after is None or (after[0].text == "=" and after[1].text != "extern"):
            self.body += self.definition()
        elif after[0].text in ("=", ","):
            self.body.append(self.extern())
        else:
            self.declaration()

    def after_brackets(self) -> tuple[Token, Token] | None:
        """The two tokens after `name: dtype[...]`, if the line starts with that."""
        if self.peek().text != ":" or self.peek(3).text != "[":
            return None
        k = 4
        while self.peek(k).text != "]":
            if self.peek(k).kind == "end":
                return None
            k += 1
        return self.peek(k + 1), self.peek(k + 2)

    def dim_line(self) -> None:
        self.next()
        token = self.token
        self.new_dim(token)
        d = self.size_range()
        self.dims[d.name] = d
        self.end_line()

    def declaration(self) -> None:
        """`x: f16[N, K]`, or `x: f16[...]` where the shape is to be inferred."""
        token = self.token
        name = self.name()
        self.expect(":")
        dtype = self.dtype()
        if name in RESERVED:
            raise self.fail(f"{name!r} cannot be the name of a tensor", token)
        if name in self.known:
            raise self.fail(f"{name!r} is declared after its first use", token, code="F012")
        self.expect("[")
        self.known[name] = Known(dtype, token, declared=True)
        if self.accept(".."):
            self.expect(".")
            self.expect("]")
        else:
            shape: list[Expr] = []
            while not self.accept("]"):
                shape.append(self.size())
                if self.token.text != "]":
                    self.expect(",")
            self.touch(token, len(shape))
            for number, e in zip(self.extents.axes[name], shape, strict=True):
                self.extents.variables[number].value = e
        self.end_line()

    def target(self) -> tuple[Token, DType | None]:
        """The name that a statement defines, and its dtype if it is given."""
        token = self.token
        name = self.name()
        if name in RESERVED:
            raise self.fail(f"{name!r} cannot be the name of a tensor", token)
        dtype = self.dtype() if self.accept(":") else None
        known = self.known.get(name)
        if known is None:
            self.known[name] = Known(dtype or F32, token, defined=True)
            return token, dtype
        if known.defined:
            raise self.fail(f"{name!r} is defined twice", token, code="F012")
        if not known.declared or any(u.tensor == name for u in self.extents.uses):
            hint = "a definition that reads itself is a recurrence: recur t<T:"
            message = f"{name!r} is read before it is defined"
            raise self.fail(message, token, code="P004", hint=hint)
        known.defined = True
        if name in self.extents.inputs:
            self.extents.inputs.remove(name)
        return token, dtype or known.dtype

    def left_side(self, step: Expr | None = None) -> list[Axis]:
        """The axes of a definition; inside a recurrence the first one is the step."""
        if not self.accept("["):
            return []
        axes: list[Axis] = []
        if step is not None:
            token = self.token
            name = self.name()
            if self.scope.leaves.get(name) is not step:
                raise self.fail("the first axis must be the step of the recurrence", token)
            axes.append(self.axis_of(step))
            if self.token.text != "]":
                self.expect(",")
        axes += self.axes_of("]")
        self.expect("]")
        return axes

    def axis_of(self, index: Expr) -> Axis:
        return Axis(index.attr, self.extents.placeholder(self.extents.indexes[index.attr]))

    def settle(self, token: Token, axes: list[Axis], dtype: DType) -> None:
        """A tensor is defined over these axes."""
        name = token.text
        numbers = [self.extents.indexes[a.name] for a in axes]
        self.known[name].dtype = dtype
        if name in self.extents.axes:
            self.touch(token, len(axes), True)
            for a, b in zip(self.extents.axes[name], numbers, strict=True):
                self.extents.unite(a, b, token)
        else:
            self.extents.axes[name] = numbers
        self.scope.tensors[name] = (dtype, len(axes))

    def definition(self, step: Expr | None = None) -> list[Statement]:
        """One statement, after the intermediate tensors that it needs."""
        token, dtype = self.target() if step is None else self.member()
        self.defining = token.text
        self.hoisted = []
        count = len(self.order)
        self.frames.append({})
        axes = self.left_side(step)
        self.expect("=")
        if self.token.text == "scatter":
            statement: Definition | Scatter = self.scatter(token, dtype, axes, count)
        else:
            statement = self.plain(token, dtype, axes)
        self.unbind(count)
        self.settle(token, axes, statement.dtype)
        self.end_line()
        return [*self.hoisted, statement]

    def plain(self, token: Token, dtype: DType | None, axes: list[Axis]) -> Definition:
        body = self.expression(self.scope)
        if body.op == "const" and dtype is not None:
            body = self.retype(body, dtype)
        last = self.hoisted[-1] if self.hoisted else None
        reads_all = last is not None and body is E.read(
            last.name, [E.index(a.name) for a in axes], last.dtype
        )
        if last is not None and reads_all and dtype in (None, last.dtype):
            self.hoisted.pop()
            del self.known[last.name], self.scope.tensors[last.name]
            return replace(last, name=token.text, axes=tuple(axes))
        return Definition(
            token.text, dtype or body.dtype, tuple(axes), E.cast(body, dtype or body.dtype)
        )

    def scatter(self, token: Token, dtype: DType | None, axes: list[Axis], count: int) -> Scatter:
        self.expect("scatter")
        monoid_token = self.token
        monoid: str | None = self.name()
        if monoid == "last":
            monoid = None
        elif monoid not in MONOIDS or monoid in ("argmax", "argmin"):
            raise self.fail(f"scatter by an unknown monoid {monoid!r}", monoid_token)
        # The source indexes are alone in scope; those of the target come back for the base.
        left, order = self.frames.pop(), self.order[count:]
        for name in left:
            del self.scope.leaves[name]
        del self.order[count:]
        self.frames.append({})
        self.expect("(")
        source = self.axes_of(")")
        self.expect(")")
        self.expect("at")
        self.expect("(")
        subscripts: list[Expr] = []
        self.in_subscript = True
        while not self.accept(")"):
            subscripts.append(self._subscript(self.scope))
            if self.token.text != ")":
                self.expect(",")
        self.in_subscript = False
        if len(subscripts) != len(axes):
            message = f"scatter into {token.text!r} needs {len(axes)} subscripts"
            raise self.fail(message, monoid_token, code="P003")
        self.expect("of")
        body = self.expression(self.scope)
        self.unbind(count)
        self.frames.append(left)
        self.scope.leaves.update(left)
        self.order += order
        self.expect("base")
        base = self.expression(self.scope)
        dtype = dtype or body.dtype
        body, base = (
            self.retype(x, dtype) if x.op == "const" else E.cast(x, dtype) for x in (body, base)
        )
        return Scatter(
            token.text, dtype, tuple(axes), monoid, tuple(source), tuple(subscripts), body, base
        )

    def member(self) -> tuple[Token, DType | None]:
        """The target of a definition in a recurrence, whose names are known from the start."""
        token = self.next()
        dtype = self.dtype() if self.accept(":") else None
        return token, dtype

    def recurrence(self) -> None:
        first = self.next()
        column = self.column(first)
        self.frames.append({})
        token = self.token
        self.name()
        step = self.bind(token, self.size() if self.accept("<") else None)
        self.expect(":")
        inline = self.token.kind != "newline"
        self.skip()

        def inside() -> bool:
            if self.token.kind == "end" or self.token.text == "return":
                return False
            same_line = "\n" not in self.source[first.at : self.token.at]
            return same_line if inline else self.column(self.token) > column

        start = self.position
        while inside():  # the names of the whole group are visible in it
            token, dtype = self.target()
            rank = 0
            if self.accept("["):
                depth, rank = 1, int(self.token.text != "]")
                while depth and self.token.kind != "end":
                    t = self.next().text
                    depth += {"[": 1, "(": 1, "]": -1, ")": -1}.get(t, 0)
                    rank += t == "," and depth == 1
            self.known[token.text].dtype = dtype or F32
            self.touch(token, rank, True)
            while self.token.kind not in ("newline", "end") and self.token.text != ";":
                self.next()
            self.skip()
        self.position = start
        group: list[Definition] = []
        while inside():
            token = self.token
            before = self.known[token.text].dtype
            for s in self.definition(step):
                if not isinstance(s, Definition):
                    raise self.fail("a recurrence holds plain definitions", token)
                if any(a.name == step.attr for a in s.axes):
                    group.append(s)
                else:
                    self.body.append(s)
            if group[-1].dtype is not before:
                message = f"{token.text!r} is {group[-1].dtype}, read as {before}"
                hint = f"declare it on the left: {token.text}: {group[-1].dtype}[...]"
                raise self.fail(message, token, code="P002", hint=hint)
        if not group:
            raise self.fail("the recurrence is empty")
        axis = self.axis_of(step)
        self.unbind(len(self.order) - 1)
        self.body.append(Recurrence(axis, tuple(group)))

    def extern(self) -> Extern:
        """`v: f32[N, 5], p: i64[N, 5] = extern topk(x) {k = 5}`."""
        results: list[Tensor] = []
        tokens: list[Token] = []
        while True:
            token, dtype = self.target()
            if dtype is None:
                raise self.fail("the result of an extern needs a dtype and a shape", token)
            self.expect("[")
            shape: list[Expr] = []
            while not self.accept("]"):
                shape.append(self.size())
                if self.token.text != "]":
                    self.expect(",")
            results.append(Tensor(token.text, dtype, tuple(shape)))
            tokens.append(token)
            if not self.accept(","):
                break
        self.expect("=")
        extern = self.extern_call(tuple(results))
        for token, t in zip(tokens, results, strict=True):
            self.known[t.name].dtype = t.dtype
            self.touch(token, len(t.shape), True)
            for number, e in zip(self.extents.axes[t.name], t.shape, strict=True):
                self.extents.variables[number].value = e
        self.end_line()
        return extern

    # ---- the Program ----

    def assemble(self, name: str, results: list[str]) -> Program:
        names = {n.split("#")[0] for n in self.extents.indexes}
        self.extents.solve({*self.known, *self.dims, *names})
        for n, k in self.known.items():
            if k.declared and n not in self.extents.axes:
                raise self.fail(f"{n!r} is declared without a shape and never read", k.token)
        inputs = tuple(
            Tensor(
                n,
                self.known[n].dtype,
                tuple(
                    self.extents.resolve(self.extents.placeholder(k)) for k in self.extents.axes[n]
                ),
            )
            for n in self.extents.inputs
        )
        taken = {
            *self.known,
            *(d for t in inputs for e in t.shape for d in e.names("dim")),
            *self.dims,
        }
        body = tuple(finish(s, self.extents.resolve, taken) for s in self.body)
        self.check_dims(inputs, body)
        loose = tuple(
            d or Dim(n)
            for n, d in self.dims.items()
            if not any(n in e.names("dim") for t in inputs for e in t.shape)
        )
        draft = Program(name, inputs, body, tuple(results), loose)
        program = parse_program(str(draft))  # verified, its sizes in order
        dims = tuple(self.dims.get(d.name) or d for d in program.dims)
        return replace(program, dims=dims)

    def check_dims(self, inputs: tuple[Tensor, ...], body: tuple[Statement, ...]) -> None:
        """Every size must follow from an input or from the result of an extern."""
        shown = {d for t in inputs for e in t.shape for d in e.names("dim")}
        for s in body:
            if isinstance(s, Extern):
                shown |= {e.attr for t in s.results for e in t.shape if e.op == "dim"}
        for n, token in self.dim_tokens.items():
            if n not in shown:
                hint = f"declare the tensor that has it, as in x: f32[{n}]"
                raise self.fail(
                    f"the size {n!r} appears in no input", token, code="F006", hint=hint
                )


def parse_notation(source: str, name: str = "main") -> Program:
    """The Program of index notation, or of full Program text.

    Errors, each with a caret: F010 unparsable; F011 an index that is not bound or has no extent;
    F012 a name defined twice; F006 sizes that contradict; P002 dtypes; P003 a wrong number of
    subscripts; P004 a name read before it is defined.
    """
    parser = _Notation(source)
    parser.skip()
    if parser.token.text == "program" and parser.peek().kind == "name":
        return parse_program(source)
    return parser.program(name)


def from_einsum(spec: str, dtype: DType = F32) -> Program:
    """The Program of an einsum string such as `ij,jk->ik`; operands are x0, x1, ..., the result is
    y.

    Without `->` the result has the letters that occur once, in alphabetical order, as in NumPy.
    Errors: F010 for anything but letters, commas and one arrow.
    """
    text = spec.replace(" ", "")
    left, arrow, right = text.partition("->")
    letters = left.replace(",", "")
    if not all(c.isascii() and c.isalpha() for c in letters + right):
        raise UserError(
            "F010", f"{spec!r} is not an einsum string", hint="write one, as in ij,jk->ik"
        )
    if not arrow:
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    unknown = [c for c in right if c not in letters]
    if unknown or len(set(right)) != len(right):
        raise UserError("F010", f"the result of {spec!r} has a wrong or repeated index")
    operands = left.split(",")
    lines = [f"x{k}: {dtype}[{'...' if o else ''}]" for k, o in enumerate(operands)]
    summed = sorted(set(letters) - set(right), key=letters.index)
    reads = [f"x{k}[{', '.join(o)}]" for k, o in enumerate(operands)]
    fold = f"sum({', '.join(summed)}) " if summed else ""
    result = "result" if "y" in letters else "y"
    lines.append(f"{result}[{', '.join(right)}] = {fold}{' * '.join(reads)}")
    return parse_notation("\n".join(lines), "einsum")
