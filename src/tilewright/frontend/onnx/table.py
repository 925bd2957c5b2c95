"""The operator table: one row per ONNX operator.

In: nothing. Out: `ROWS`, filled by the `operators_*` modules through the decorators here.
Invariant: a row's expansion returns one value per output that the node names (None for outputs it
does not give), in ONNX order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tilewright.frontend.onnx.value import Node
from tilewright.frontend.values import Array, Value
from tilewright.ir.expr import Expr

__all__ = ["ROWS", "Results", "Row", "elementwise", "folds", "row"]

Results = Value | Sequence[Value | None]


@dataclass(frozen=True)
class Row:
    """One operator.

    expand: adds definitions and returns the outputs. scalar: for elementwise operators, the
    function of one element, which also folds constants. fold: the NumPy function of known inputs,
    for operators that only move data; it works on arrays of tracked sizes too. since: the oldest
    opset whose form is read. notes: what is refused.
    """

    name: str
    expand: Callable[[Node], Results]
    kind: str
    since: int = 1
    notes: str = ""
    domain: str = ""
    scalar: Callable[..., Expr] | None = None
    fold: Callable[..., Array | Sequence[Array]] | None = None


ROWS: dict[tuple[str, str], Row] = {}


def _enter(r: Row) -> None:
    ROWS[r.domain, r.name] = r


def row(
    *names: str, kind: str, since: int = 1, notes: str = "", domain: str = ""
) -> Callable[[Callable[[Node], Results]], Callable[[Node], Results]]:
    """Decorator: enter an expansion under one or several names."""

    def enter(f: Callable[[Node], Results]) -> Callable[[Node], Results]:
        for name in names:
            _enter(Row(name, f, kind, since, notes, domain))
        return f

    return enter


def elementwise(
    name: str, f: Callable[..., Expr], *, kind: str = "elementwise", since: int = 1, notes: str = ""
) -> None:
    """Enter an elementwise operator: `f(node, *operands)` is its scalar expression; operands
    broadcast.
    """

    def expand(n: Node) -> Value:
        operands = [v for v in n.inputs if v is not None]
        return n.elementwise(lambda *e: f(n, *e), *operands)

    _enter(Row(name, expand, kind, since, notes, scalar=f))


def folds(
    *names: str, domain: str = ""
) -> Callable[[Callable[..., Array | Sequence[Array]]], Callable[..., object]]:
    """Decorator: attach `fold(node, *arrays)` to rows that are already there."""

    def attach(f: Callable[..., Array | Sequence[Array]]) -> Callable[..., object]:
        for name in names:
            _enter(replace(ROWS[domain, name], fold=f))
        return f

    return attach
