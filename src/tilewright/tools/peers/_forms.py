"""Workloads written as Python expressions: what the torch, JAX and NumPy adapters share.

In: a form, that is lines of Python of which the last is an expression over the row's inputs. Out: a
function. Invariants: a form comes from a committed suite file, never from a model or a user's data;
its first lines run once and see constants only.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewright.tools.suite import Workload

__all__ = ["Form", "fill_forms", "with_out"]


class Form:
    """One parsed form: `namespace` holds the libraries, the constants and what the setup made."""

    def __init__(self, source: str, libraries: Mapping[str, Any], values: Mapping[str, Any]):
        tree = ast.parse(source.strip())
        last = tree.body[-1]
        if not isinstance(last, ast.Expr):
            raise ValueError("the last line of a form is an expression")
        self.expression = last.value
        self.namespace: dict[str, Any] = {**libraries, **values}
        setup = ast.Module(tree.body[:-1], [])
        exec(compile(setup, "<form>", "exec"), self.namespace)  # a committed file's own lines
        self._known = {*libraries, *values}

    @property
    def made(self) -> dict[str, Any]:
        """What the setup lines defined."""
        hidden = {"__builtins__"}
        return {
            name: value
            for name, value in self.namespace.items()
            if name not in self._known and name not in hidden
        }

    def mentions(self, name: str) -> bool:
        """Does the expression use this name?"""
        return any(
            isinstance(node, ast.Name) and node.id == name for node in ast.walk(self.expression)
        )

    def function(self, arguments: Sequence[str], expression: ast.expr | None = None) -> Any:
        """The expression as a function of the named arguments."""
        body = _text(expression or self.expression)
        code = f"def form({', '.join(arguments)}):\n    return {body}"
        space = self.namespace
        exec(compile(code, "<form>", "exec"), space)
        function: Callable[..., Any] = space.pop("form")
        assert inspect.isfunction(function)
        return function


def _text(expression: ast.expr) -> str:
    return ast.unparse(expression).replace("\n", " ")


def with_out(form: Form, target: str) -> ast.expr | None:
    """The expression with `out=TARGET` in its outermost call; None where it is no call."""
    call = form.expression
    if not isinstance(call, ast.Call) or any(word.arg == "out" for word in call.keywords):
        return None
    if isinstance(call.func, ast.Lambda):
        return None
    extra = ast.keyword("out", ast.Name(target, ast.Load()))
    return ast.fix_missing_locations(ast.Call(call.func, call.args, [*call.keywords, extra]))


def fill_forms(workload: Workload, forms: Sequence[str]) -> list[str]:
    """The forms with the sizes filled in."""
    return [workload.fill(form) for form in forms]
