"""The same elements in another shape.

In: a value, sizes. Out: definitions whose subscripts are quasi-affine. Invariant: axes that stay
as they are keep a plain index; only regrouped axes use // and %.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.frontend.values import Definer, Value
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr

__all__ = ["regroup", "reshape_to"]


def regroup(
    n: Definer, old: Sequence[Expr], new: Sequence[Expr], index: Sequence[Expr]
) -> list[Expr]:
    """Subscripts into shape `old` for the element at `index` of shape `new`, of equal element
    counts.

    Axes are matched from the left in the smallest groups of equal products, so equal axes keep
    plain indices.
    Errors: F006 when the counts differ.
    """
    same = n.sizes.same
    one = E.const(1)
    out: list[Expr] = [E.const(0)] * len(old)
    a = [k for k, s in enumerate(old) if E.int_value(s) != 1]
    b = [k for k, s in enumerate(new) if E.int_value(s) != 1]
    i = j = 0
    while i < len(a) or j < len(b):
        left, right = [a[i]] if i < len(a) else [], [b[j]] if j < len(b) else []
        i, j = i + len(left), j + len(right)
        while not same(
            p := n.sizes.product(old[k] for k in left), q := n.sizes.product(new[k] for k in right)
        ):
            # Extend the side with the smaller product, or the one that has something left.
            grow_left = n.sizes.decide("lt", p, q)
            if grow_left is None:
                grow_left = n.sizes.quotient(q, p) is not None
            if grow_left and i < len(a):
                left.append(a[i])
                i += 1
            elif j < len(b):
                right.append(b[j])
                j += 1
            elif i < len(a):
                left.append(a[i])
                i += 1
            else:
                n.equal(p, q, "element counts")
                break
        linear, stride = E.const(0), one
        for k in reversed(right):
            linear = linear + index[k] * stride
            stride = stride * new[k]
        stride = one
        for position, k in reversed(list(enumerate(left))):
            quotient = E.floordiv(linear, stride)
            out[k] = quotient if position == 0 else E.mod(quotient, old[k])
            stride = stride * old[k]
    return out


def reshape_to(n: Definer, x: Value, shape: Sequence[Expr], suffix: str = "") -> Value:
    """The value in another shape of the same element count."""
    if len(shape) == x.rank and all(
        n.sizes.same(p, q) for p, q in zip(shape, x.shape, strict=True)
    ):
        return x
    if x.array is not None and all(E.int_value(s) is not None for s in shape):
        return n.constant(x.array.reshape([E.int_value(s) or 0 for s in shape]), suffix or "shaped")
    return n.define(shape, lambda *i: x.at(*regroup(n, x.shape, shape, i)), suffix=suffix)
