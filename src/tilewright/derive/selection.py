"""Selection: the few largest elements of an axis, one reduction after the other; and orders of
values whose positions nobody reads.

In: a bound Program. Out: the Program with each extern that selects few elements (`SELECTIONS`) as
definitions, each one that orders more (`ORDERS`) without positions that are not read, and what was
done. Invariants: the order is that of the extern, exactly: NaN where it
belongs, of equal elements the first; results are elements of the operand, bit for bit.

The rule. Every element gets an i64 of its own: what orders the values in the upper half, the
distance from the axis' end in the lower one. The largest number is the first result, the largest
below it the next, and so on: k passes over a row in cache, of three operations a vector each, where
a sort moves all of it. The extern runs by its NumPy meaning; definitions are compiled.
"""

from __future__ import annotations

from tilewright.derive import Derivation, Names, rewritten
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F32, I64
from tilewright.ir.expr import Expr
from tilewright.ir.externs import ORDERS, SELECTIONS
from tilewright.ir.program import (
    Axis,
    Definition,
    Extern,
    Program,
    Reduction,
    Statement,
    Tensor,
    statement_reads,
)

__all__ = ["order_values", "select_few"]

MOST = 16  # results beyond which the extern stays: passes grow with them, a partition does not
_WIDE = 1 << 32
_SIGN = 1 << 31


def _rank(x: Expr, largest: bool, nan_first: bool) -> Expr:
    """What orders values as i64 in -2^31 .. 2^31-1, the best the highest, NaN at an end."""
    if not x.dtype.is_float:
        rank = E.cast(x, I64)
        if x.dtype.name == "u32":
            rank = rank - _SIGN
        return rank if largest else E.const(-1) - rank
    bits = E.cast(E.unary("bits", E.cast(x, F32)), I64)
    # Positive numbers order as their bits do, negative ones the other way round; both zeros are 0.
    rank = E.select(E.compare("lt", bits, E.const(0)), E.const(-_SIGN) - bits, bits)
    rank = rank if largest else E.const(-1) - rank
    return E.select(E.unary("isnan", x), E.const(_SIGN - 1 if nan_first else -_SIGN), rank)


def _fits(s: Statement, tensors: dict[str, Tensor]) -> bool:
    """Is it a selection of few elements of known number along an axis of known size?"""
    if not isinstance(s, Extern) or s.function not in SELECTIONS or len(s.args) != 1:
        return False
    x, given = tensors[s.args[0]], dict(s.attributes)
    k, axis = given.get("k", -1), given.get("axis", -1)
    if type(k) is not int or type(axis) is not int or not x.shape:
        return False
    n = E.int_value(x.shape[axis])
    return 0 < k <= MOST and n is not None and k <= n < _SIGN and x.dtype.bytes <= 4


def _written(s: Extern, tensors: dict[str, Tensor], names: Names) -> list[Statement]:
    """Definitions of both results."""
    x, given = tensors[s.args[0]], dict(s.attributes)
    values, order = s.results
    k, largest = int(given["k"]), bool(given.get("largest", True))  # type: ignore[arg-type]
    at = int(given.get("axis", -1)) % len(x.shape)  # type: ignore[arg-type]
    axes = tuple(Axis(f"i{j}", n) for j, n in enumerate(x.shape))
    rows, along = (*axes[:at], *axes[at + 1 :]), axes[at]
    point = tuple(a.index for a in axes)
    base = names.new(f"{values.name}_rank")
    rank = _rank(E.read(x.name, point, x.dtype), largest, bool(given.get("nan_first")))
    behind = E.const(_WIDE - 1) - along.index
    out: list[Statement] = [Definition(base, I64, axes, rank * _WIDE + behind)]
    number = E.read(base, point, I64)
    place = tuple(a.index for a in rows)
    best: list[Expr] = []
    for j in range(k):
        left = number
        if best:
            least = E.const(-(1 << 63))
            left = E.select(E.compare("lt", number, best[-1]), number, least)
        name = names.new(f"{values.name}_{j}")
        out.append(Definition(name, I64, rows, left, Reduction("max", (along,))))
        best.append(E.read(name, place, I64))
    which = Axis("t", E.const(k))
    found = best[-1]
    for j in range(k - 2, -1, -1):
        found = E.select(E.compare("eq", which.index, E.const(j)), best[j], found)
    results = (*axes[:at], which, *axes[at + 1 :])
    position = E.const(_WIDE - 1) - E.mod(found, E.const(_WIDE))
    out.append(Definition(order.name, I64, results, position))
    chosen = E.read(order.name, tuple(a.index for a in results), I64)
    subscripts = (*place[:at], chosen, *place[at:])
    value = E.read(x.name, subscripts, x.dtype, E.const(0, x.dtype))  # never outside
    out.append(Definition(values.name, x.dtype, results, value))
    return out


def select_few(program: Program) -> tuple[Program, list[Derivation]]:
    """The Program with selections of few elements as reductions."""
    tensors = dict(program.tensors)
    names = Names(set(tensors))
    body: list[Statement] = []
    found: list[Derivation] = []
    for s in program.body:
        if not isinstance(s, Extern) or not _fits(s, tensors):
            body.append(s)
            continue
        body += _written(s, tensors, names)
        k = dict(s.attributes)["k"]
        found.append(Derivation("selection", s.results[0].name, f"{k} passes instead of a sort"))
    if not found:
        return program, []
    return rewritten(program, body, (), program.values), found


def order_values(program: Program) -> tuple[Program, list[Derivation]]:
    """The Program with sorted values alone where their positions are not read."""
    used = {n for s in program.body for n in statement_reads(s)} | set(program.results)
    body: list[Statement] = []
    found: list[Derivation] = []
    for s in program.body:
        if not isinstance(s, Extern) or s.function not in ORDERS or len(s.args) != 1:
            body.append(s)
            continue
        values, order = s.results
        if order.name in used:
            body.append(s)
            continue
        attributes = ORDERS[s.function](**dict(s.attributes))
        body.append(Extern((values,), "ordered", s.args, tuple(attributes.items())))
        found.append(Derivation("order", values.name, "nobody reads the positions"))
    if not found:
        return program, []
    return rewritten(program, body, (), program.values), found
