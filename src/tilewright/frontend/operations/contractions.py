"""Contractions of two operands.

In: two values. Out: `sum(k) a[..., i, k] * b[..., k, j]`. Invariant: the sum is in the dtype that
the caller names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.frontend.values import Definer, Value
from tilewright.ir import expr as E
from tilewright.ir.dtypes import DType
from tilewright.ir.expr import Expr

__all__ = ["Element", "contract"]

Element = Callable[[Sequence[Expr]], Expr]


def contract(
    n: Definer,
    a: Value,
    b: Value,
    dtype: DType,
    suffix: str = "",
    left: Element | None = None,
    right: Element | None = None,
) -> Value:
    """NumPy matmul of a and b in `dtype`; `left` and `right` read one element (default: a cast
    read).
    """
    if not a.rank or not b.rank:
        raise n.contradiction("a scalar operand")
    left = left or (lambda i: E.cast(a.at(*i), dtype))
    right = right or (lambda i: E.cast(b.at(*i), dtype))
    n.equal(a.shape[-1], b.shape[-2] if b.rank > 1 else b.shape[0], "the contracted sizes")
    depth = a.shape[-1]
    if E.int_value(depth) is None:
        depth = b.shape[-2] if b.rank > 1 else b.shape[0]
    batch = n.broadcast(a.shape[:-2], b.shape[:-2])
    rows = [a.shape[-2]] if a.rank > 1 else []
    columns = [b.shape[-1]] if b.rank > 1 else []

    def batch_of(v: Value, i: Sequence[Expr]) -> list[Expr]:
        lead = v.shape[:-2]
        subs = i[len(batch) - len(lead) : len(batch)]
        return [E.const(0) if E.int_value(s) == 1 else e for s, e in zip(lead, subs, strict=True)]

    def body(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        k = r[0]
        at_a = [*batch_of(a, i), *i[len(batch) : len(batch) + len(rows)], k]
        at_b = [*batch_of(b, i), k, *i[len(batch) + len(rows) :]]
        return E.mul(left(at_a), right(at_b))

    names = ["b" if len(batch) == 1 else f"b{k}" for k in range(len(batch))]
    names += [x for x, y in (("i", rows), ("j", columns)) if y]
    return n.reduce(
        "sum",
        [*batch, *rows, *columns],
        [depth],
        body,
        names=names,
        over_names=("k",),
        suffix=suffix,
    )
