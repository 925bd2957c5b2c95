"""Symbolic sizes of PyTorch (sympy expressions over a shape environment's symbols) as ours.

In: int, SymInt, or a sympy expression. Out: an i64 `Expr` over dims of the same names, and the
dims' ranges. Invariant: an expression that has no counterpart is refused, never approximated.
"""

from __future__ import annotations

from typing import Any

from tilewright.errors import UserError
from tilewright.frontend.sizes import Sizes
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.ir.program import Dim

__all__ = ["SymbolicSizes"]

_FAR = 1 << 40  # bounds beyond this say nothing


class SymbolicSizes:
    """The dims of one graph: translates sizes, and declares each symbol at first sight."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def size(self, value: Any) -> Expr:
        """A size as an expression. Errors: F005 for what cannot be translated."""
        if isinstance(value, bool | int):
            return E.const(int(value))
        node = getattr(value, "node", None)
        if node is None:
            raise UserError("F005", f"{value!r} is no size", hint="it is computed by PyTorch")
        constant = node.maybe_as_int()
        if constant is not None:
            return E.const(int(constant))
        return self.expression(node.expr, node.shape_env)

    def expression(self, e: Any, env: Any) -> Expr:
        """A sympy expression. Errors: F005."""
        if e.is_Integer:
            return E.const(int(e))
        if e.is_Symbol:
            return self._symbol(e, env)
        args = [self.expression(a, env) for a in e.args if not getattr(a, "is_Boolean", False)]
        name = type(e).__name__
        if e.is_Add or e.is_Mul:
            total = args[0]
            for a in args[1:]:
                total = total + a if e.is_Add else total * a
            return total
        if name in ("Pow", "PowByNatural"):
            count = E.int_value(args[1])
            if count is not None and 0 <= count <= 16:
                total = E.const(1)
                for _ in range(count):
                    total = total * args[0]
                return total
        if name in ("FloorDiv", "CleanDiv", "IntTrueDiv") and len(args) == 2:
            if name != "IntTrueDiv" and self.sizes.low(args[1]) > 0:
                quotient = self.sizes.quotient(args[0], args[1])
                return quotient if quotient is not None else E.floordiv(*args)
        if name == "CeilToInt" or name == "Identity":
            return args[0]
        if name == "CeilDiv" and self.sizes.low(args[1]) > 0:
            return E.floordiv(args[0] + args[1] - 1, args[1])
        if name in ("Mod", "PythonMod") and self.sizes.low(args[1]) > 0:
            if self.sizes.low(args[0]) >= 0 or name == "PythonMod":
                return E.mod(*args)
        if name in ("Max", "Min"):
            total = args[0]
            for a in args[1:]:
                total = (
                    self.sizes.larger(total, a) if name == "Max" else self.sizes.smaller(total, a)
                )
            return total
        raise UserError("F005", f"the size {e} cannot be followed", hint="it runs in PyTorch")

    def _symbol(self, symbol: Any, env: Any) -> Expr:
        name = str(symbol)
        if name not in self.sizes.dims:
            found = None if env is None else env.var_to_range.get(symbol)
            low, high, hint = 0, None, None
            if found is not None:
                low = max(int(found.lower), 0) if found.lower.is_Integer else 0
                if found.upper.is_Integer and int(found.upper) < _FAR:
                    high = int(found.upper)
            if env is not None:
                typical = getattr(env, "backed_var_to_val", {}).get(symbol)
                hint = None if typical is None else int(typical)
            self.sizes.dims[name] = Dim(name, low, high, 1, hint)
        return E.dim(name)
