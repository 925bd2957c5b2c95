"""Intervals of integer expressions, and simplification that needs them.

In: an i64 (or bool, over i64) expression and the inclusive range of each index variable, whose end
may be a symbolic extent. Out: its interval, a simpler equal expression, or a proof that it is not
negative. Invariants: the interval contains every value the expression takes, the simplified
expression has the same value at every point of the ranges, and a proof holds at every point, for
every size within the ranges of the dims.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import gcd
from typing import Any

import numpy as np

from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64
from tilewright.ir.expr import Expr, Polynomial
from tilewright.ir.extent import Extent, dim_range, extent_of, is_symbolic

__all__ = [
    "Interval",
    "Ranges",
    "coefficient",
    "divide",
    "along",
    "interval",
    "is_inside",
    "nonnegative",
    "simplify",
    "split_linear",
]

Interval = tuple[int | None, int | None]  # inclusive; None is unbounded
Ranges = Mapping[str, tuple[int, int]]  # index variable -> inclusive range

Array = np.ndarray[Any, np.dtype[Any]]

_ANY: Interval = (None, None)
_ALONG: Mapping[str, Callable[[Array, Array], Array]] = {
    "add": np.add, "mul": np.multiply, "floordiv": np.floor_divide, "mod": np.mod,
    "min": np.minimum, "max": np.maximum,
}  # fmt: skip


def interval(e: Expr, ranges: Ranges) -> Interval:
    """Inclusive bounds of an i64 expression, for every size of the dims."""
    op = e.op
    if op == "const":
        return (int(e.attr), int(e.attr))
    if op == "index":
        lo, hi = ranges.get(e.attr, _ANY)
        if type(lo) is Extent:
            lo = interval(lo.expr, ranges)[0]
        if type(hi) is Extent:
            hi = interval(hi.expr, ranges)[1]
        return lo, hi
    if op == "dim":
        return dim_range(e.attr)
    if op == "add":
        (a, b), (c, d) = interval(e.args[0], ranges), interval(e.args[1], ranges)
        return (
            None if a is None or c is None else a + c,
            None if b is None or d is None else b + d,
        )
    if op == "mul":
        x, y = e.args
        if y.op == "const":
            return _scaled(interval(x, ranges), y.attr)
        return _product(interval(x, ranges), interval(y, ranges))
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


def along(e: Expr, axis: str, positions: Array) -> Array | None:
    """The values of an i64 expression at positions of one index; None where it holds another one, a
    dim or a read.
    """
    if e.op == "const":
        return np.full(positions.shape, e.attr, np.int64)
    if e.op == "index":
        return positions if e.attr == axis else None
    operation = _ALONG.get(e.op)
    if operation is None or any(x.dtype is not e.dtype for x in e.args):
        return None
    found = along(e.args[0], axis, positions)
    for x in e.args[1:]:
        more = None if found is None else along(x, axis, positions)
        if found is None or more is None or (e.op in ("floordiv", "mod") and not more.all()):
            return None
        found = operation(found, more)
    return found


def _scaled(x: Interval, c: int) -> Interval:
    lo, hi = (None if x[0] is None else x[0] * c), (None if x[1] is None else x[1] * c)
    return (lo, hi) if c >= 0 else (hi, lo)


def _product(x: Interval, y: Interval) -> Interval:
    if None in x or None in y:
        for factor, (c, d) in ((x, y), (y, x)):
            if c is not None and c == d:
                return _scaled(factor, c)
        if x[0] is not None and y[0] is not None and x[0] >= 0 and y[0] >= 0:
            return (x[0] * y[0], None)
        return _ANY
    corners = [a * b for a in x for b in y if a is not None and b is not None]
    return (min(corners), max(corners))


def simplify(e: Expr, ranges: Ranges, done: dict[Expr, Expr] | None = None) -> Expr:
    """A simpler expression with the same value everywhere in `ranges`; works below reads and
    selects too. done: what became of each node, kept for further expressions in the same ranges.
    """
    if not e.args:
        return e
    done = {} if done is None else done
    found = done.get(e)
    if found is None:
        found = done[e] = _simplified(e, ranges, done)
    return found


def _simplified(e: Expr, ranges: Ranges, done: dict[Expr, Expr]) -> Expr:
    if e.op in ("add", "mul") and e.dtype is I64:
        if E.is_affine(e):
            return e
        e = E.map_atoms(e, lambda x: simplify(x, ranges, done))
        return _recombine(e, ranges) if e.op == "add" else e
    args = [simplify(a, ranges, done) if a.args else a for a in e.args]
    e = E.rebuild(e, tuple(args))
    match e.op:
        case "floordiv" | "mod" if e.dtype is I64:
            return _divide(e, ranges)
        case "lt" | "le" | "eq" | "ne" if e.args[0].dtype is I64:
            return _decide(e, ranges)
        case "min" | "max" if e.dtype is I64:
            return _pick(e, ranges)
        case "add" if e.dtype is I64:
            return _recombine(e, ranges)
        case "select" if e.args[0].op == "const":
            return e.args[1] if e.args[0].attr else e.args[2]
    return e


def divide(p: Polynomial, c: int, ranges: Ranges) -> tuple[Polynomial, Polynomial]:
    """(p // c, p % c) as `simplify` makes them, for a positive c.

    In tiled code nearly every subscript is c times something, and positions inside a tile whose sum
    is less than c: no expression is built to be taken apart again.
    """
    if type(c) is Extent:
        return _divide_expr(p, c, ranges)
    whole, rest = E.split_multiples(p, c)
    low = high = rest.get((), 0)
    for atoms, v in rest.items():
        if not atoms:
            continue
        bounds = ranges.get(atoms[0].attr) if len(atoms) == 1 and atoms[0].op == "index" else None
        if bounds is None or type(bounds[0]) is Extent or type(bounds[1]) is Extent:
            break
        low += v * bounds[v < 0]
        high += v * bounds[v > 0]
    else:
        if low >= 0 and high < c:
            return whole, rest
    return _divide_expr(p, c, ranges)


def _divide_expr(p: Polynomial, c: int, ranges: Ranges) -> tuple[Polynomial, Polynomial]:
    e = E.from_polynomial(p)
    return E.polynomial(simplify(e // c, ranges)), E.polynomial(simplify(e % c, ranges))


def _divide(e: Expr, ranges: Ranges) -> Expr:
    """(g*A + r) // (g*q) is A // q, and (g*A + r) % (g*q) is g*(A % q) + r, where 0 <= r < g."""
    c = E.int_value(e.args[1])
    if c is None:
        return _divide_by_dims(e, ranges)
    if c <= 0:
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


def _divide_by_dims(e: Expr, ranges: Ranges) -> Expr:
    """(A*c + r) // c is A, and (A*c + r) % c is r, where 0 <= r < c, for a product c of dims."""
    a, divisor = e.args
    whole, rest = _multiples(E.polynomial(a), divisor)
    r = E.from_polynomial(rest)
    if whole is None or not (nonnegative(r, ranges) and nonnegative(divisor - 1 - r, ranges)):
        return e
    return E.from_polynomial(whole) if e.op == "floordiv" else r


def _multiples(p: Polynomial, divisor: Expr) -> tuple[Polynomial | None, Polynomial]:
    """p as (first * divisor + second), where the divisor is one product of dims; else (None, p)."""
    d = E.polynomial(divisor)
    if len(d) != 1:
        return None, p
    ((atoms, c),) = d.items()
    if c <= 0 or any(x.op != "dim" for x in atoms):
        return None, p
    first: Polynomial = {}
    second: Polynomial = {}
    for k, v in p.items():
        left = list(k)
        for x in atoms:
            if x in left:
                left.remove(x)
            else:
                break
        else:
            if v % c == 0:
                first[tuple(left)] = v // c
                continue
        second[k] = v
    return first, second


def _recombine(e: Expr, ranges: Ranges) -> Expr:
    """k*c*(x // c) + k*(x % c) is k*x."""
    p = E.polynomial(e)
    remainders = [a for k in p for a in k if a.op == "mod"]
    if not remainders:
        return e
    if any([a.args[1].op != "const" for a in remainders]):
        p = _recombine_dims(p)
    out = dict(p)
    while pair := _digits(out, ranges):  # what one leaves may be half of the next: a mixed radix
        high, m = pair
        k = out.pop((m,))
        for atoms in high:
            del out[atoms]
        for atoms, v in E.polynomial(m.args[0]).items():
            out[atoms] = out.get(atoms, 0) + k * v
    return E.from_polynomial({k: v for k, v in out.items() if v})


def _digits(p: Polynomial, ranges: Ranges) -> tuple[Polynomial, Expr] | None:
    """The terms k*c*(x // c) of p and the atom x % c, where p has the latter k times.

    The quotient may stand there as y // (d*c), where x is y // d, or as what `ranges` make of it.
    """
    for atoms, k in p.items():
        if len(atoms) != 1 or atoms[0].op != "mod" or not k:
            continue
        m = atoms[0]
        x, c = m.args[0], E.int_value(m.args[1])
        if c is None or c <= 0:
            continue
        q = E.floordiv(x, m.args[1])
        if p.get((q,)) == c * k:
            return {(q,): c * k}, m
        for others, v in p.items():
            if len(others) == 1 and v == c * k and others[0].op == "floordiv":
                y, n = others[0].args[0], E.int_value(others[0].args[1])
                if n is not None and n > c and n % c == 0 and E.floordiv(y, E.const(n // c)) is x:
                    return {others: v}, m
        high = E.polynomial(simplify(q, ranges) * (c * k))
        if high and all(p.get(atoms) == v for atoms, v in high.items()):
            return high, m
    return None


def _recombine_dims(p: Polynomial) -> Polynomial:
    """`_recombine` for remainders by dims, with further factors."""
    out = dict(p)
    for atoms in list(p):
        for m in (x for x in atoms if x.op == "mod" and x.args[1].op != "const"):
            x, c = m.args
            others = list(atoms)
            others.remove(m)
            rest = E.from_polynomial({tuple(others): p[atoms]})
            partner = E.polynomial(E.mul(E.mul(rest, c), E.binary("floordiv", x, c)))
            if all(out.get(k) == v for k, v in partner.items()) and atoms in out:
                for k in (*partner, atoms):
                    del out[k]
                for k, v in E.polynomial(E.mul(rest, x)).items():
                    out[k] = out.get(k, 0) + v
                break
    return {k: v for k, v in out.items() if v}


def _decide(e: Expr, ranges: Ranges) -> Expr:
    lo, hi = interval(e.args[0] - e.args[1], ranges)
    if e.op in ("lt", "le") and (lo is None or hi is None):
        a, b = e.args
        if nonnegative(b - a - int(e.op == "lt"), ranges):
            return E.const(True)
        if nonnegative(a - b - int(e.op == "le"), ranges):
            return E.const(False)
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
    if lo is None or hi is None:
        if nonnegative(e.args[1] - e.args[0], ranges):
            return a
        if nonnegative(e.args[0] - e.args[1], ranges):
            return b
    if hi is not None and hi <= 0:
        return a
    return b if lo is not None and lo >= 0 else e


def coefficient(e: Expr, var: Expr) -> int | None:
    """c where e = c*var + (terms without var); None where e is not linear in `var` with a factor
    that is a constant or a product of dims.
    """
    c = 0
    for atoms, v in E.polynomial(e).items():
        if var in atoms:
            factor = _factor(atoms, var, v)
            if factor is None:
                return None
            c = c + factor
        elif any(var.attr in a.indices() for a in atoms if a.args):
            return None
    return c


def split_linear(
    e: Expr | Polynomial, variables: Collection[Expr]
) -> tuple[dict[Expr, int], Expr] | None:
    """({var: coefficient}, rest) with e = sum(coefficient*var) + rest and rest free of all of them,
    or None.
    """
    out: dict[Expr, int] = {}
    rest = {}
    names = {x.attr for x in variables}
    for atoms, v in (E.polynomial(e) if isinstance(e, Expr) else e).items():
        hit = None
        for a in atoms:
            if a in variables:
                hit = a
                break
        if hit is not None:
            factor = v if len(atoms) == 1 else _factor(atoms, hit, v)
            if factor is None:
                return None
            out[hit] = factor + out[hit] if hit in out else factor
            continue
        for a in atoms:
            if a.args and not names.isdisjoint(a.indices()):
                return None
        rest[atoms] = v
    return out, E.from_polynomial(rest)


def _factor(atoms: tuple[Expr, ...], var: Expr, v: int) -> int | None:
    """What multiplies `var` in a term: a number, or a product of dims; None for anything else."""
    if len(atoms) == 1:
        return v
    left = list(atoms)
    left.remove(var)
    if any(x.indices() or x.reads() for x in left):
        return None
    return extent_of(E.from_polynomial({tuple(left): v}))


# ---- proofs --------------------------------------------------------------------------------------

_STEPS = 120  # eliminations after which a proof is given up


def is_inside(e: Expr, lo: int, hi: int, ranges: Ranges) -> bool:
    """Is `lo <= e < hi` at every point, for every size of the dims?"""
    return nonnegative(e - lo, ranges) and nonnegative(E.const(hi) - e - 1, ranges)


def nonnegative(e: Expr, ranges: Ranges) -> bool:
    """Is it proved that the expression is never negative?"""
    low = interval(e, ranges)[0]
    if low is not None and low >= 0:
        return True
    if not e.names("dim") and not any(is_symbolic(ranges.get(a, _ANY)[1]) for a in e.indices()):  # type: ignore[arg-type]
        return False
    if any(_value_at(e, ranges, dims, at) < 0 for dims in range(len(_SAMPLES)) for at in (0, 1, 2)):
        return False
    return _Proof(ranges).holds(E.polynomial(e))


_SAMPLES = ((0, 0, 0), (1, 4, 9), (300, 35, 2), (3, 510, 77))  # above the least size of each dim


def _value_at(e: Expr, ranges: Ranges, sample: int, at: int) -> int:
    """The value at one point: dims near or far from their least sizes, index variables at the first
    (0), last (1) or alternating (2) ends of their ranges; 0 where it is not known.
    """
    known: dict[Expr, int | None] = {}
    names = sorted(e.names("dim"))

    def dim(name: str) -> int:
        if name not in names:
            names.append(name)
        lo, hi = dim_range(name)
        value = lo + _SAMPLES[sample][names.index(name) % 3]
        return value if hi is None else min(value, hi)

    def go(x: Expr) -> int | None:
        if x not in known:
            known[x] = None
            known[x] = compute(x)
        return known[x]

    def end(n: int | None) -> int | None:
        return go(n.expr) if isinstance(n, Extent) else n

    def compute(x: Expr) -> int | None:
        if x.op == "const":
            return int(x.attr)
        if x.op == "dim":
            return dim(x.attr)
        if x.op == "index":
            first, last = ranges.get(x.attr, _ANY)
            low, high = end(first), end(last)
            if low is None or high is None or high < low:
                return low if high is None else None
            return high if at == 1 or (at == 2 and len(known) % 2) else low
        args = [go(a) for a in x.args]
        if x.dtype is not I64 or len(args) != 2 or args[0] is None or args[1] is None:
            return None
        a, b = args[0], args[1]
        match x.op:
            case "add":
                return a + b
            case "mul":
                return a * b
            case "min":
                return min(a, b)
            case "max":
                return max(a, b)
            case "floordiv":
                return a // b if b else 0
            case "mod":
                return a % b if b else 0
        return None

    return go(e) or 0


class _Proof:
    """The attempt to prove that polynomials are not negative."""

    def __init__(self, ranges: Ranges) -> None:
        self.ranges = ranges
        self.left = _STEPS
        self.known: dict[Expr, bool] = {}

    def holds(self, p: Polynomial) -> bool:
        e = E.from_polynomial(p)
        found = self.known.get(e)
        if found is None:
            self.known[e] = False  # while it is tried: nothing follows from itself
            found = self.known[e] = _proved(p, self.ranges, self)
        return found


def _proved(p: Polynomial, ranges: Ranges, proof: _Proof) -> bool:
    """Eliminate one atom after the other at the end of its range where the value is least."""
    if all(v >= 0 for v in p.values()) and all(_is_low(a, ranges) for k in p for a in k):
        return True
    low = interval(E.from_polynomial(p), ranges)[0]
    if low is not None and low >= 0:
        return True
    if proof.left <= 0:
        return False
    proof.left -= 1
    atoms = sorted({a for k in p for a in k if a.op != "dim"}, key=_height)
    if not atoms:
        return _proved_dims(p, proof)
    atom = atoms[-1]
    without: Polynomial = {}
    slope: Polynomial = {}
    for k, v in p.items():
        n = k.count(atom)
        if n > 1:
            return False
        if n:
            left = list(k)
            left.remove(atom)
            slope[tuple(left)] = slope.get(tuple(left), 0) + v
        else:
            without[k] = v
    rest, factor = E.from_polynomial(without), E.from_polynomial(slope)

    def at(value: Expr) -> bool:
        return proof.holds(E.polynomial(rest + factor * value))

    if atom.op == "floordiv":  # c * (x // c) is x - x % c
        x, c = atom.args
        whole, left_over = _quotient(slope, c)
        if whole is not None and not left_over and _positive(c, ranges):
            swapped = rest + E.from_polynomial(whole) * (x - E.binary("mod", x, c))
            if proof.holds(E.polynomial(swapped)):
                return True
    rises = proof.holds(slope)
    falls = not rises and proof.holds({k: -v for k, v in slope.items()})
    if not rises and not falls:
        return False
    lows, highs = _ends(atom, ranges)
    # Any one of the bounds that hold is enough; the true value of min and max is one of two.
    if (atom.op == "min" and rises) or (atom.op == "max" and falls):
        return all(at(x) for x in atom.args)
    return any(at(x) for x in (lows if rises else highs))


def _is_low(a: Expr, ranges: Ranges) -> bool:
    low = interval(a, ranges)[0]
    return low is not None and low >= 0


def _height(a: Expr) -> tuple[int, str]:
    """Atoms that hold others go first."""
    return (sum(1 for _ in a.walk()), str(a))


def _quotient(p: Polynomial, c: Expr) -> tuple[Polynomial | None, Polynomial]:
    n = E.int_value(c)
    if n is None:
        return _multiples(p, c)
    if n <= 0:
        return None, p
    return (
        {k: v // n for k, v in p.items() if v % n == 0},
        {k: v for k, v in p.items() if v % n},
    )


def _ends(a: Expr, ranges: Ranges) -> tuple[list[Expr], list[Expr]]:
    """Lower and upper bounds of an atom."""
    lo, hi = interval(a, ranges)
    lows = [E.const(lo)] if lo is not None else []
    highs = [E.const(hi)] if hi is not None else []
    if a.op == "index":
        first, last = ranges.get(a.attr, _ANY)
        lows += [first.expr] if isinstance(first, Extent) else []
        highs += [last.expr] if isinstance(last, Extent) else []
    elif a.op in ("min", "max"):
        (highs if a.op == "min" else lows).extend(a.args)
    elif a.op == "mod" and _positive(a.args[1], ranges):
        lows.append(E.const(0))
        highs.append(a.args[1] - 1)
        if nonnegative(a.args[0], ranges):
            highs.append(a.args[0])
    elif a.op == "floordiv" and _positive(a.args[1], ranges):
        x, c = a.args
        if nonnegative(x, ranges):
            lows.append(E.const(0))
            highs.append(x)
        top = _upper(x, ranges)
        if top is not None:
            # (A*c + r) // c with r below c is A and what r adds
            whole, rest = _quotient(E.polynomial(top), c)
            if whole is not None:
                r = E.from_polynomial(rest)
                if nonnegative(c - 1 - r, ranges):
                    less = -1 if nonnegative(-r - 1, ranges) else 0
                    highs.append(E.from_polynomial(whole) + less)
            highs.append(E.floordiv(top, c))
    return lows, highs


def _positive(e: Expr, ranges: Ranges) -> bool:
    low = interval(e, ranges)[0]
    return low is not None and low > 0


def _upper(e: Expr, ranges: Ranges) -> Expr | None:
    """A bound over dims of an expression that is linear in index variables, with plain factors."""
    out = E.const(0)
    for atoms, v in E.polynomial(e).items():
        names = [a for a in atoms if a.op != "dim"]
        if not names:
            out = out + E.from_polynomial({atoms: v})
            continue
        if len(names) > 1 or names[0].op != "index":
            return None
        first, last = ranges.get(names[0].attr, _ANY)
        end = last if v > 0 else first
        if end is None:
            return None
        left = list(atoms)
        left.remove(names[0])
        out = out + E.from_polynomial({tuple(left): v}) * end
    return out


def _proved_dims(p: Polynomial, proof: _Proof) -> bool:
    """Over dims alone: at the ends of a dim that is bounded, and by counting from the least size of
    the others.
    """
    e = E.from_polynomial(p)
    for a in {a for k in p for a in k}:
        lo, hi = dim_range(a.attr)
        if hi is not None and all(k.count(a) <= 1 for k in p):
            ends = (E.substitute(e, {a: E.const(n)}) for n in (lo, hi))
            return all(proof.holds(E.polynomial(x)) for x in ends)
    shifted = E.substitute(e, {a: a + dim_range(a.attr)[0] for k in p for a in k})
    return all(v >= 0 for v in E.polynomial(shifted).values())
