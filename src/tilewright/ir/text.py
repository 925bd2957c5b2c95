"""Text of expressions: printer, tokenizer and parser, shared by Programs, LoopNests and index
notation.

In: an `Expr`, or source text. Out: text, or an `Expr`. Invariant: `parse(str(e)) is e`. Literals
without a dtype take that of the other operand; a printed constant that is neither i64, f32 nor bool
is written `f64(0.5)`.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from tilewright.errors import UserError
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, DTYPES, F32, I64, DType
from tilewright.ir.expr import Expr

__all__ = ["Parser", "Scope", "Token", "expr_text", "tokenize"]

_INFIX = {
    "or": ("or", 1),
    "and": ("and", 2),
    "lt": ("<", 4),
    "le": ("<=", 4),
    "eq": ("==", 4),
    "ne": ("!=", 4),
    "add": ("+", 6),
    "sub": ("-", 6),
    "mul": ("*", 7),
    "div": ("/", 7),
    "floordiv": ("//", 7),
    "mod": ("%", 7),
}
_EXACT: dict[str, Callable[[float, float], float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
}
_BY_SYMBOL = {s: (op, p) for op, (s, p) in _INFIX.items()} | {">": ("gt", 4), ">=": ("ge", 4)}


def expr_text(e: Expr) -> str:
    """Mathematical text of an expression."""
    return _print(e)[0]


def _literal(value: float | int | bool, dtype: DType) -> str:
    if dtype is BOOL:
        return "true" if value else "false"
    if isinstance(value, float):
        body = "nan" if math.isnan(value) else "inf" if value == math.inf else repr(value)
        if value == -math.inf:
            body = "-inf"
    else:
        body = str(value)
    return body if dtype in (I64, F32) else f"{dtype}({body})"


def _print(e: Expr) -> tuple[str, int]:
    """Text and binding strength (9 is atomic)."""
    op = e.op
    if op == "const":
        text = _literal(e.attr, e.dtype)
        return text, 8 if text.startswith("-") else 9
    if op in ("index", "dim"):
        return e.attr, 9
    if op == "read":
        name, has_else = e.attr
        subs = e.args[:-1] if has_else else e.args
        text = f"{name}[{', '.join(map(str, subs))}]"
        return (f"({text} else {e.args[-1]})", 9) if has_else else (text, 9)
    if op in _INFIX and not (op in ("and", "or") and e.dtype is not BOOL):
        symbol, level = _INFIX[op]
        a, la = _print(e.args[0])
        b, lb = _print(e.args[1])
        if op == "add" and e.dtype is I64:  # the canonical i64 sum reads better with minus signs
            c = E.int_value(e.args[1])
            if c is not None and c < 0:
                return f"{a} - {-c}", 6
            if (
                e.args[1].op == "mul"
                and (c := E.int_value(e.args[1].args[1])) is not None
                and c < 0
            ):
                factor = e.args[1].args[0]
                body, strength = _print(factor)
                body = body if strength >= 7 else f"({body})"
                return (f"{a} - {body}" if c == -1 else f"{a} - {body}*{-c}"), 6
        if la < level or (la == level and level == 4):
            a = f"({a})"
        if lb <= level:
            b = f"({b})"
        gap = "" if level == 7 and symbol == "*" and e.dtype is I64 else " "
        return f"{a}{gap}{symbol}{gap}{b}", level
    if op == "neg":
        a, la = _print(e.args[0])
        return (f"-{a}" if la >= 9 and e.args[0].op != "const" else f"-({a})"), 8
    if op == "not":
        a, la = _print(e.args[0])
        return f"not {a}" if la >= 9 else f"not ({a})", 3
    if op == "cast":
        return f"{e.dtype}({e.args[0]})", 9
    name = {"select": "where"}.get(op, op)
    return f"{name}({', '.join(map(str, e.args))})", 9


# ---- tokens --------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"(?P<space>[ \t]+)|(?P<comment>#[^\n]*)|(?P<newline>\n)"
    r"|(?P<number>\d+\.\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+)"
    r"|(?P<name>%?[A-Za-z_][A-Za-z_0-9]*)|(?P<string>\"[^\"\n]*\")"
    r"|(?P<op>\.\.|//|<=|>=|==|!=|->|[-+*/%<>=()\[\],:;{}@.])"
)


@dataclass(frozen=True)
class Token:
    """kind: number, name, string, op, newline, end. `at` is the character offset in the source."""

    kind: str
    text: str
    at: int


def caret(source: str, at: int) -> str:
    """The source line of offset `at` with a caret under it."""
    start = source.rfind("\n", 0, at) + 1
    end = source.find("\n", at)
    line = source[start : len(source) if end < 0 else end]
    number = source.count("\n", 0, at) + 1
    return f"line {number}, column {at - start + 1}\n    {line}\n    {' ' * (at - start)}^"


def tokenize(source: str, newlines: bool = False) -> list[Token]:
    """Tokens of the source. Errors: F010 with a caret at a character that starts no token."""
    out: list[Token] = []
    at, depth = 0, 0
    while at < len(source):
        m = _TOKEN.match(source, at)
        if m is None:
            raise UserError("F010", f"unexpected character {source[at]!r}", where=caret(source, at))
        kind = m.lastgroup or ""
        if kind == "op":
            depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(m.group(), 0)
        if kind not in ("space", "comment") and not (
            kind == "newline" and (not newlines or depth > 0)
        ):
            out.append(Token(kind, m.group(), at))
        at = m.end()
    out.append(Token("end", "", len(source)))
    return out


@dataclass
class Scope:
    """What names mean while an expression is parsed.

    tensors: name -> dtype (and rank, or None where any rank will do); leaves: name -> Expr (index
    variables, dims); fallback: called with an unknown name's token, returns its Expr or raises.
    """

    tensors: dict[str, tuple[DType, int | None]]
    leaves: dict[str, Expr]
    fallback: Callable[[Token], Expr] | None = None
    functions: dict[str, Callable[[list[Expr]], Expr]] | None = None


class Parser:
    """Recursive descent over tokens; subclasses add statements."""

    def __init__(self, source: str, newlines: bool = False) -> None:
        self.source = source
        self.tokens = tokenize(source, newlines)
        self.position = 0
        # What a literal said before it was rounded to f32: f64(0.1) and 0.1 * f64 reads need it.
        self.exact: dict[Expr, float] = {}

    # -- token helpers
    @property
    def token(self) -> Token:
        return self.tokens[self.position]

    def peek(self, ahead: int = 1) -> Token:
        return self.tokens[min(self.position + ahead, len(self.tokens) - 1)]

    def next(self) -> Token:
        t = self.tokens[self.position]
        self.position += 1
        return t

    def accept(self, text: str) -> bool:
        if self.token.text == text and self.token.kind != "string":
            self.position += 1
            return True
        return False

    def expect(self, text: str) -> Token:
        if self.token.text != text:
            shown = "end of text" if self.token.kind == "end" else repr(self.token.text)
            raise self.fail(f"expected {text!r}, found {shown}")
        return self.next()

    def name(self) -> str:
        if self.token.kind != "name":
            shown = "end of text" if self.token.kind == "end" else repr(self.token.text)
            raise self.fail(f"expected a name, found {shown}")
        return self.next().text

    def integer(self) -> int:
        negative = self.accept("-")
        if self.token.kind != "number" or not self.token.text.isdigit():
            raise self.fail(f"expected an integer, found {self.token.text!r}")
        value = int(self.next().text)
        return -value if negative else value

    def dtype(self) -> DType:
        token = self.token
        name = self.name()
        if name not in DTYPES:
            close = difflib.get_close_matches(name, list(DTYPES), 1, 0.0)[0]
            raise self.fail(f"unknown dtype {name!r}", token, hint=f"did you mean {close!r}?")
        return DTYPES[name]

    def column(self, token: Token | None = None) -> int:
        """Where a token (default: the next one) stands in its line."""
        at = (token or self.token).at
        return at - (self.source.rfind("\n", 0, at) + 1)

    def end_line(self) -> None:
        if self.token.kind not in ("newline", "end"):
            raise self.fail(f"unexpected {self.token.text!r} at the end of a statement")
        self.skip_newlines()

    def skip_newlines(self) -> None:
        while self.token.kind == "newline":
            self.position += 1

    def fail(
        self, message: str, token: Token | None = None, code: str = "F010", hint: str = ""
    ) -> UserError:
        return UserError(
            code, message, where=caret(self.source, (token or self.token).at), hint=hint
        )

    # -- expressions
    def expression(self, scope: Scope, level: int = 1) -> Expr:
        """An expression of binding strength `level` or more."""
        token = self.token
        if level <= 3 and self.accept("not"):
            left = E.unary("not", self.expression(scope, 3))
        else:
            left = self._prefix(scope)
        while self.token.kind in ("op", "name") and self.token.text in _BY_SYMBOL:
            op, strength = _BY_SYMBOL[self.token.text]
            if strength < level:
                break
            token = self.next()
            right = self.expression(scope, strength + 1)
            left = self._apply(op, left, right, token)
        return left

    def _prefix(self, scope: Scope) -> Expr:
        token = self.token
        if self.accept("-"):
            if self.token.kind == "number" or self.token.text == "inf":
                value = self._atom(scope)
                return self.literal(-self.exact.get(value, value.attr))
            return E.neg(self._prefix(scope))
        if self.accept("+"):
            return self._prefix(scope)
        value = self._atom(scope)
        if (
            self.token.text == "*"
            and self.peek().text == "*"
            and self.peek().at == self.token.at + 1
        ):
            self.position += 2
            value = self._apply("pow", value, self._prefix(scope), token)
        return value

    def _apply(self, op: str, a: Expr, b: Expr, token: Token) -> Expr:
        a, b = self.unify(a, b, token)
        if op in ("lt", "le", "gt", "ge", "eq", "ne"):
            return E.compare(op, a, b)
        if op in ("and", "or"):
            if a.dtype is not BOOL:
                raise self.fail(f"{op!r} needs bools, found {a.dtype}", token)
            return E.logical(op, a, b)
        if op == "div" and a.dtype is I64 and a.op == "const" and b.op == "const" and b.attr:
            return self.literal(a.attr / b.attr)
        result = {
            "add": E.add,
            "sub": E.sub,
            "mul": E.mul,
            "floordiv": E.floordiv,
            "mod": E.mod,
        }.get(op, lambda x, y: E.binary(op, x, y))(a, b)
        if op in _EXACT and a in self.exact and b in self.exact and math.isfinite(result.attr):
            self.exact[result] = _EXACT[op](self.exact[a], self.exact[b])
        return result

    def literal(self, value: float | int) -> Expr:
        """A number without a dtype: i64 or f32 until another operand says otherwise."""
        e = E.const(value)
        if isinstance(value, float):
            self.exact[e] = value
        return e

    def retype(self, e: Expr, dtype: DType) -> Expr:
        """A literal in another dtype, rounded once."""
        return E.const(self.exact.get(e, e.attr), dtype)

    def unify(self, a: Expr, b: Expr, token: Token) -> tuple[Expr, Expr]:
        """Give a literal the other side's dtype; anything else must agree already."""
        if a.dtype is b.dtype:
            return a, b
        for x, y, flip in ((a, b, False), (b, a, True)):
            if (
                x.op == "const"
                and x.dtype in (I64, F32)
                and y.op != "const"
                and not (x.dtype is F32 and not y.dtype.is_float)
            ):
                x = self.retype(x, y.dtype)
                return (y, x) if flip else (x, y)
        if a.op == "const" and b.op == "const" and {a.dtype, b.dtype} == {I64, F32}:
            return tuple(self.literal(float(x.attr)) if x.dtype is I64 else x for x in (a, b))  # type: ignore[return-value]
        raise self.fail(
            f"operands of different dtypes, {a.dtype} and {b.dtype}",
            token,
            hint=f"write a cast, as in {b.dtype}(...)",
        )

    def arguments(self, scope: Scope) -> list[Expr]:
        out: list[Expr] = []
        self.expect("(")
        while not self.accept(")"):
            out.append(self.expression(scope))
            if self.token.text != ")":
                self.expect(",")
        return out

    def _atom(self, scope: Scope) -> Expr:
        token = self.next()
        if token.kind == "number":
            return self.literal(int(token.text) if token.text.isdigit() else float(token.text))
        if token.text == "(":
            inner = self.expression(scope)
            if self.accept("else"):
                orelse = self.expression(scope)
                if inner.op != "read" or inner.attr[1]:
                    raise self.fail(
                        "'else' belongs to a plain read, as in (x[i - 1] else 0.0)", token
                    )
                if orelse.op == "const" and orelse.dtype is not inner.dtype:
                    orelse = self.retype(orelse, inner.dtype)
                inner = E.read(inner.attr[0], inner.args, inner.dtype, orelse)
            self.expect(")")
            return inner
        if token.kind != "name":
            self.position -= 1
            shown = "end of text" if token.kind == "end" else repr(token.text)
            raise self.fail(f"expected an expression, found {shown}", token)
        return self._named(token, scope)

    def _named(self, token: Token, scope: Scope) -> Expr:
        name = token.text
        if name in scope.tensors and name not in scope.leaves:
            dtype, rank = scope.tensors[name]
            if self.token.text != "[":
                if rank == 0:
                    return E.read(name, (), dtype)
                raise self.fail(f"tensor {name!r} is read without subscripts", token)
            self.expect("[")
            subscripts: list[Expr] = []
            while not self.accept("]"):
                subscripts.append(self._subscript(scope))
                if self.token.text != "]":
                    self.expect(",")
            if rank is not None and len(subscripts) != rank:
                raise self.fail(
                    f"{name!r} has {rank} axes, {len(subscripts)} subscripts given",
                    token,
                    code="P003",
                )
            return E.read(name, subscripts, dtype)
        if name in scope.leaves:
            return scope.leaves[name]
        if name in ("true", "false"):
            return E.const(name == "true")
        if name in ("inf", "nan"):
            return E.const(math.inf if name == "inf" else math.nan)
        if self.token.text == "(":
            return self._call(token, scope)
        if scope.fallback is not None:
            return scope.fallback(token)
        raise self.fail(f"unknown name {name!r}", token, code="F011")

    def _subscript(self, scope: Scope) -> Expr:
        token = self.token
        e = self.expression(scope)
        if not e.dtype.is_int:
            raise self.fail(f"a subscript must be an integer, found {e.dtype}", token)
        return E.cast(e, I64)

    def _call(self, token: Token, scope: Scope) -> Expr:
        name = token.text
        args = self.arguments(scope)
        if name in DTYPES:
            dtype = DTYPES[name]
            self._arity(token, args, 1)
            return self.retype(args[0], dtype) if args[0].op == "const" else E.cast(args[0], dtype)
        if scope.functions and name in scope.functions:
            return scope.functions[name](args)
        if name == "where":
            self._arity(token, args, 3)
            then, orelse = self.unify(args[1], args[2], token)
            return E.select(args[0], then, orelse)
        if name in E.UNARY:
            self._arity(token, args, 1)
            a = args[0]
            if a.op == "const" and a.dtype is I64 and name not in ("neg", "abs", "sign"):
                a = E.cast(a, F32)
            return E.unary(name, a)
        if name in E.BINARY:
            self._arity(token, args, 2)
            a, b = self.unify(args[0], args[1], token)
            return E.binary(name, a, b)
        raise self.fail(
            f"unknown function {name!r}", token, hint="see docs/notation.md for the list"
        )

    def _arity(self, token: Token, args: list[Expr], n: int) -> None:
        if len(args) != n:
            raise self.fail(f"{token.text} takes {n} operands, {len(args)} given", token)
