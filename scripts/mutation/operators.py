"""Mutation operators: small changes of Python source, one at a time.

In: the source of a module. Out: every place where an operator fits, as a `Site`, and the source with
one of them changed. Invariant: only the text of the site changes; comments, annotations, docstrings,
decorators, imports, `__all__` and what a `raise` says are left alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Site", "apply", "sites"]

_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Div: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Site:
    """One change: characters `[start, end)` of the source become `text`."""

    operator: str
    function: str
    line: int
    start: int
    end: int
    old: str
    text: str


class _Finder:
    def __init__(self, source: str) -> None:
        self.source = source
        self.found: list[Site] = []
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.lines = source.splitlines(keepends=True)

    def place(self, line: int, column: int) -> int:
        text = self.lines[line - 1].encode()[:column].decode()
        return self.starts[line - 1] + len(text)

    def add(self, operator: str, node: ast.expr | ast.stmt, function: str, text: str) -> None:
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = self.place(node.lineno, node.col_offset)
        end = self.place(node.end_lineno, node.end_col_offset)
        old = self.source[start:end]
        self.found.append(Site(operator, function, node.lineno, start, end, old, text))

    def walk(self, node: ast.AST, function: str) -> None:
        if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.Assert | ast.JoinedStr):
            return  # an f-string's places are not exact before Python 3.12
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
        ):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            function = f"{function}.{node.name}" if function else node.name
        self.expression(node, function)
        self.statement(node, function)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.walk(child, function)

    def expression(self, node: ast.AST, function: str) -> None:
        if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARE:
            ops = [_COMPARE[type(node.ops[0])](), *node.ops[1:]]
            changed: ast.expr = ast.Compare(node.left, ops, node.comparators)
            self.add("compare", node, function, f"({ast.unparse(changed)})")
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            changed = ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right)
            if not any(isinstance(x, ast.Constant | ast.JoinedStr) and not _number(x)
                       for x in (node.left, node.right)):  # fmt: skip
                self.add("arithmetic", node, function, f"({ast.unparse(changed)})")
        elif isinstance(node, ast.BoolOp):
            op: ast.boolop = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            changed = ast.BoolOp(op, node.values)
            self.add("logic", node, function, f"({ast.unparse(changed)})")
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self.add("logic", node, function, f"({ast.unparse(node.operand)})")
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            self.add("constant", node, function, str(not node.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, int):
            self.add("constant", node, function, str(node.value + 1))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in _CALLS:
                self.add("call", node.func, function, _CALLS[node.func.id])

    def statement(self, node: ast.AST, function: str) -> None:
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            if not isinstance(node.test, ast.Constant):
                self.add("negate", node.test, function, f"(not ({ast.unparse(node.test)}))")
        elif isinstance(node, ast.Continue):
            self.add("loop", node, function, "break")
        elif isinstance(node, ast.Break):
            self.add("loop", node, function, "continue")
        elif isinstance(node, ast.AugAssign) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        ):
            self.add("delete", node, function, "pass")
        elif isinstance(node, ast.Assign) and isinstance(
            node.targets[0], ast.Subscript | ast.Attribute
        ):
            self.add("delete", node, function, "pass")


def _number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def sites(source: str) -> Iterator[Site]:
    """Every change of `source`, in order of place."""
    finder = _Finder(source)
    finder.walk(ast.parse(source), "")
    yield from sorted(finder.found, key=lambda s: (s.start, s.end, s.operator))


def apply(source: str, site: Site) -> str:
    """The source with the site changed."""
    assert source[site.start : site.end] == site.old
    return source[: site.start] + site.text + source[site.end :]
