"""The operator table: one row per ATen operator overload.

In: nothing. Out: `ROWS`, filled by the `rows_*` modules through the decorators here. Invariant: a
row's expansion returns one value per result of the operator, or one value where it has one result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.frontend.torch.call import Call
from tilewright.frontend.values import Value
from tilewright.ir.expr import Expr

__all__ = ["ROWS", "Results", "Row", "pointwise", "row"]

Results = Value | Sequence[Value | None]


@dataclass(frozen=True)
class Row:
    """One operator.

    name: `packet.overload` of the namespace aten, or `namespace.packet.overload`. expand: adds
    definitions and returns the results. kind: the group of the coverage table. notes: what is
    refused, and so handed to PyTorch.
    """

    name: str
    expand: Callable[[Call], Results]
    kind: str
    notes: str = ""


ROWS: dict[str, Row] = {}


def row(
    *names: str, kind: str, notes: str = ""
) -> Callable[[Callable[[Call], Results]], Callable[[Call], Results]]:
    """Decorator: enter an expansion under one or several names."""

    def enter(f: Callable[[Call], Results]) -> Callable[[Call], Results]:
        for name in names:
            ROWS[name] = Row(name, f, kind, notes)
        return f

    return enter


def pointwise(
    *names: str,
    f: Callable[..., Expr],
    args: Sequence[str] = ("self",),
    compute: str = "result",
    kind: str = "elementwise",
) -> None:
    """Enter an elementwise operator: `f(call, *operands)` is its scalar expression.

    args: names of the operands in the schema; they broadcast. compute: the dtype that operands are
    converted to: `result`, the dtype of the result; `operands`, the one that they promote to;
    `own`, each its own. Half-precision operands are computed with in f32 and rounded once.
    """

    def expand(n: Call) -> Value:
        return n.pointwise(lambda *e: f(n, *e), args, compute)

    for name in names:
        ROWS[name] = Row(name, expand, kind)
