"""Intervals of integer expressions, and simplification that needs them.

In: an i64 (or bool, over i64) expression and the inclusive range of each index variable. Out: its
interval, or a simpler equal expression. Invariants: the interval contains every value the
expression takes; the simplified expression has the same value at every point of the ranges.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64
from tilewright.ir.expr import Expr

__all__ = ["Interval", "Ranges", "coefficient", "interval", "simplify", "split_linear"]

Interval = tuple[int | None, int | None]  # inclusive; None is unbounded
Ranges = Mapping[str, tuple[int, int]]  # index variable -> inclusive range

_ANY: Interval = (None, None)


def interval(e: Expr, ranges: Ranges) -> Interval:
    """Inclusive bounds of an i64 expression; dims count as 0 and more."""
    op = e.op
    if op == "const":
        return (int(e.attr), int(e.attr))
    if op == "index":
        return ranges.get(e.attr, _ANY)
    if op == "dim":
        return (0, None)
    if op == "add":
        (a, b), (c, d) = interval(e.args[0], ranges), interval(e.args[1], ranges)
        return (
            None if a is None or c is None else a + c,
            None if b is None or d is None else b + d,
        )
    if op == "mul":
        return _product(interval(e.args[0], ranges), interval(e.args[1], ranges))
    if op in ("min", "max"):
        (a, b), (c, d) = interval(e.args[0], ranges), interval(e.args[1], ranges)
        if op == "min":
            lo = None if a is None or c is None else min(a, c)
            return (lo, b if d is None else d if b is None else min(b, d))
        hi = None if b is None or d is None else max(b, d)
        return (a if c is None else c if a is None else max(a, c), hi)
    if op in ("floordiv", "mod"):
        c = E.int_value(e.args[1])
        if c is not None and c > 0:
            lo, hi = interval(e.args[0], ranges)
            if op == "floordiv":
                return (None if lo is None else lo // c, None if hi is None else hi // c)
            if lo is not None and hi is not None and lo // c == hi // c:
                return (lo % c, hi % c)
            return (0, c - 1)
        return _ANY
    if op == "select":
        (a, b), (c, d) = interval(e.args[1], ranges), interval(e.args[2], ranges)
        return (
            None if a is None or c is None else min(a, c),
            None if b is None or d is None else max(b, d),
        )
    if op == "cast" and e.args[0].dtype.kind in "ub":
        return (0, None)
    return _ANY


def _product(x: Interval, y: Interval) -> Interval:
    if None in x or None in y:
        for (a, b), (c, d) in ((x, y), (y, x)):
            if c is not None and c == d:  # a constant factor
                lo, hi = (None if a is None else a * c), (None if b is None else b * c)
                return (lo, hi) if c >= 0 else (hi, lo)
        if x[0] is not None and y[0] is not None and x[0] >= 0 and y[0] >= 0:
            return (x[0] * y[0], None)
        return _ANY
    corners = [a * b for a in x for b in y if a is not None and b is not None]
    return (min(corners), max(corners))


def simplify(e: Expr, ranges: Ranges) -> Expr:
    """A simpler expression with the same value everywhere in `ranges`; works below reads and
    selects too.
    """
    memo: dict[int, Expr] = {}

    def go(node: Expr) -> Expr:
        if not node.args or E.is_affine(node):
            return node
        hit = memo.get(id(node))
        if hit is None:
            hit = E.rebuild(node, tuple(map(go, node.args)))
            if hit.op in ("floordiv", "mod") and hit.dtype is I64:
                hit = _divide(hit, ranges)
            elif hit.op in ("lt", "le", "eq", "ne") and hit.args[0].dtype is I64:
                hit = _decide(hit, ranges)
            elif hit.op in ("min", "max") and hit.dtype is I64:
                hit = _pick(hit, ranges)
            elif hit.op == "add" and hit.dtype is I64:
                hit = _recombine(hit)
            elif hit.op == "select" and hit.args[0].op == "const":
                hit = hit.args[1] if hit.args[0].attr else hit.args[2]
            memo[id(node)] = hit
        return hit

    return go(e)


def _divide(e: Expr, ranges: Ranges) -> Expr:
    """(g*A + r) // (g*q) is A // q, and (g*A + r) % (g*q) is g*(A % q) + r, where 0 <= r < g."""
    c = E.int_value(e.args[1])
    if c is None or c <= 0:
        return e
    a = e.args[0]
    lo, hi = interval(a, ranges)
    if lo is not None and hi is not None and lo // c == hi // c:
        q = lo // c
        return E.const(q) if e.op == "floordiv" else a - q * c
    p = E.polynomial(a)
    for g in sorted({gcd(abs(v), c) for k, v in p.items() if k} - {1}, reverse=True):
        big = {k: v // g for k, v in p.items() if k and v % g == 0}
        rest = {k: v for k, v in p.items() if not (k and v % g == 0)}
        constant = rest.get((), 0)
        if constant:  # move whole multiples of g into the divisible part
            big[()] = constant // g
            rest[()] = constant % g
        low, high = interval(E.from_polynomial({k: v for k, v in rest.items() if v}), ranges)
        if low is None or high is None or low < 0 or high >= g or not any(big.values()):
            continue
        head = E.from_polynomial({k: v for k, v in big.items() if v})
        tail = E.from_polynomial({k: v for k, v in rest.items() if v})
        if e.op == "floordiv":
            return simplify(E.floordiv(head, E.const(c // g)), ranges)
        return simplify(E.mod(head, E.const(c // g)), ranges) * g + tail
    return e


def _recombine(e: Expr) -> Expr:
    """k*c*(x // c) + k*(x % c) is k*x."""
    p = E.polynomial(e)
    mods = [k[0] for k in p if len(k) == 1 and k[0].op == "mod"]
    if not mods:
        return e
    out = dict(p)
    for m in mods:
        x, c = m.args[0], E.int_value(m.args[1])
        if c is None:
            continue
        q = E.floordiv(x, m.args[1])
        if out.get((q,)) is not None and out.get((m,)) is not None and out[(q,)] == c * out[(m,)]:
            k = out.pop((m,))
            del out[(q,)]
            for atoms, v in E.polynomial(x).items():
                out[atoms] = out.get(atoms, 0) + k * v
    return E.from_polynomial({k: v for k, v in out.items() if v})


def _decide(e: Expr, ranges: Ranges) -> Expr:
    lo, hi = interval(e.args[0] - e.args[1], ranges)
    if e.op == "lt":
        known = True if hi is not None and hi < 0 else False if lo is not None and lo >= 0 else None
    elif e.op == "le":
        known = True if hi is not None and hi <= 0 else False if lo is not None and lo > 0 else None
    else:
        apart = (hi is not None and hi < 0) or (lo is not None and lo > 0)
        same = lo == 0 and hi == 0
        known = (e.op == "ne") if apart else (e.op == "eq") if same else None
    return e if known is None else E.const(known)


def _pick(e: Expr, ranges: Ranges) -> Expr:
    lo, hi = interval(e.args[0] - e.args[1], ranges)
    a, b = e.args if e.op == "min" else (e.args[1], e.args[0])
    if hi is not None and hi <= 0:
        return a
    return b if lo is not None and lo >= 0 else e


def coefficient(e: Expr, var: Expr) -> int | None:
    """c where e = c*var + (terms without var); None where e is not linear in `var` with a constant
    factor.
    """
    c = 0
    for atoms, v in E.polynomial(e).items():
        if var in atoms:
            if len(atoms) != 1:
                return None
            c = v
        elif any(var.attr in a.indices() for a in atoms if a.args):
            return None
    return c


def split_linear(e: Expr, variables: list[Expr]) -> tuple[dict[Expr, int], Expr] | None:
    """({var: coefficient}, rest) with e = sum(coefficient*var) + rest and rest free of all of them,
    or None.
    """
    wanted = set(variables)
    names = frozenset(v.attr for v in variables)
    out: dict[Expr, int] = {}
    rest = {}
    for atoms, v in E.polynomial(e).items():
        if len(atoms) == 1 and atoms[0] in wanted:
            out[atoms[0]] = v
        elif any(names & a.indices() for a in atoms):
            return None
        else:
            rest[atoms] = v
    return out, E.from_polynomial(rest)
