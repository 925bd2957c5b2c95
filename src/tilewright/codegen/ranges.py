"""Intervals of subscript expressions, from the ranges of loop variables.

In: an i64 `Expr`. Out: inclusive (low, high), None for unbounded. Invariant: sound, not tight; used
only to drop bounds that are true anyway and to choose unsigned division.
"""

from __future__ import annotations

import math

from tilewright.ir.expr import Expr, int_value, polynomial

__all__ = ["Interval", "Ranges"]

Interval = tuple[int | None, int | None]
_ANY: Interval = (None, None)


def _add(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _product(a: Interval, b: Interval) -> Interval:
    (al, ah), (bl, bh) = a, b
    if al is not None and ah is not None and bl is not None and bh is not None:
        corners = (al * bl, al * bh, ah * bl, ah * bh)
        return min(corners), max(corners)
    if al is not None and al >= 0 and bl is not None and bl >= 0:
        return al * bl, None
    return _ANY


def _scale(a: Interval, c: int) -> Interval:
    low = None if a[0] is None else a[0] * c
    high = None if a[1] is None else a[1] * c
    return (low, high) if c >= 0 else (high, low)


class Ranges:
    """What is known about each loop variable."""

    def __init__(self) -> None:
        self.variables: dict[str, Interval] = {}
        self.divisors: dict[str, int] = {}  # what divides every value of a variable
        self._known: dict[Expr, Interval] = {}

    def loop(self, var: str, lo: Expr, hi: Expr, step: int) -> None:
        """Bind the variable of a loop that is about to be entered."""
        low, high = self.of(lo)[0], self.of(hi)[1]
        divisor = math.gcd(self.divisor(lo), step)
        last = None
        if high is not None:
            a = int_value(lo)
            last = (
                (high - 1) // divisor * divisor
                if a is None
                else a + max(0, high - 1 - a) // step * step
            )
            last = last if low is None else max(last, low)
        self.variables[var] = (low, last)
        self.divisors[var] = divisor
        self._known.clear()

    def divisor(self, e: Expr) -> int:
        """A number that divides every value of an i64 expression (0 for the constant 0)."""
        if e.op == "index":
            return self.divisors.get(e.attr, 1)
        if e.op in ("min", "max"):
            return math.gcd(self.divisor(e.args[0]), self.divisor(e.args[1]))
        if e.op not in ("const", "add", "mul"):
            return 1
        total = 0
        for atoms, c in polynomial(e).items():
            term = abs(c)
            for x in atoms:
                term *= self.divisor(x)
            total = math.gcd(total, term)
        return total

    def of(self, e: Expr) -> Interval:
        """Inclusive bounds of an i64 expression."""
        op = e.op
        if op == "const":
            return (e.attr, e.attr) if type(e.attr) is int else _ANY
        if op == "index":
            return self.variables.get(e.attr, _ANY)
        found = self._known.get(e)
        if found is None:
            found = self._known[e] = self._of(e)
        return found

    def _of(self, e: Expr) -> Interval:
        op = e.op
        if op == "dim":
            return 0, None
        if op in ("add", "mul"):
            total: Interval = (0, 0)
            for atoms, c in polynomial(e).items():
                term: Interval = (1, 1)
                for a in atoms:
                    term = _product(term, self.of(a))
                term = _scale(term, c)
                total = (_add(total[0], term[0]), _add(total[1], term[1]))
            return total
        if op in ("floordiv", "mod"):
            return self._division(e)
        if op in ("min", "max"):
            return self._extremum(op, self.of(e.args[0]), self.of(e.args[1]))
        if op == "select":
            (al, ah), (bl, bh) = self.of(e.args[1]), self.of(e.args[2])
            low = None if al is None or bl is None else min(al, bl)
            return low, None if ah is None or bh is None else max(ah, bh)
        return _ANY

    def _division(self, e: Expr) -> Interval:
        a, b = self.of(e.args[0]), self.of(e.args[1])
        if b[0] is None or b[0] <= 0:
            if e.op == "floordiv" and a[0] is not None and a[0] >= 0 and b[0] == 0:
                return 0, a[1]  # x // 0 is 0
            return _ANY
        if e.op == "mod":
            high = None if b[1] is None else b[1] - 1
            if a[0] is not None and a[0] >= 0 and a[1] is not None:
                high = a[1] if high is None else min(high, a[1])
            return 0, high
        if a[0] is not None and a[0] >= 0:
            return 0 if b[1] is None else a[0] // b[1], None if a[1] is None else a[1] // b[0]
        low = None if a[0] is None else a[0] // b[0]
        high = None if a[1] is None else (a[1] // b[0] if a[1] >= 0 else 0)
        return low, high

    def _extremum(self, op: str, a: Interval, b: Interval) -> Interval:
        pick = min if op == "min" else max
        lows = [x for x in (a[0], b[0]) if x is not None]
        highs = [x for x in (a[1], b[1]) if x is not None]
        low = pick(lows) if len(lows) == 2 else (lows[0] if lows and op == "max" else None)
        high = pick(highs) if len(highs) == 2 else (highs[0] if highs and op == "min" else None)
        return low, high

    def true(self, condition: str, a: Expr, b: Expr) -> bool:
        """Is `a <= b` (le) or `a < b` (lt) for every value of the variables?"""
        high, low = self.of(a)[1], self.of(b)[0]
        if (
            high is not None
            and low is not None
            and (high <= low if condition == "le" else high < low)
        ):
            return True
        if a.op == "const":
            return False  # the difference would say no more
        low = self.of(b - a)[0]
        return low is not None and low >= (0 if condition == "le" else 1)

    def nonnegative(self, e: Expr) -> bool:
        low = self.of(e)[0]
        return low is not None and low >= 0
