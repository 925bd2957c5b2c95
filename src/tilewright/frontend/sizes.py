"""Arithmetic on sizes: what is known of the symbolic dims, equality of size expressions, values of
shape tensors.

In: dims and i64 expressions over them. Out: simplified sizes, decided comparisons, and `Fact`s:
when two sizes must be equal and only a property of a dim makes them so ("H is a multiple of 32", "N
is 4"), `LearnedFact` carries it and the import starts again knowing it. Invariant: every
simplification holds for all values of the dims that the facts allow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.ir.program import Dim

__all__ = ["LearnedFact", "Sizes", "SizesNeeded", "Sym", "Undecided"]

_MULTIPLES = (2, 4, 8, 16, 32, 64, 128, 256, 3, 6, 12, 24, 48, 96, 5, 7, 10, 14, 28, 56)


class LearnedFact(Exception):
    """Not an error: the import restarts with the fact in place."""


class SizesNeeded(Exception):
    """A block that may not run needs a fact about these dims: the facts hold for the whole model,
    so the dims must be known instead.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = sorted(names)
        super().__init__(", ".join(self.names))


class Undecided(Exception):
    """Not an error: a value of a shape tensor cannot be tracked any further."""


@dataclass
class Sizes:
    """Facts about dims. `dims` are those of the inputs and of externs; `equal` maps a dim's name to
    what it equals.
    """

    dims: dict[str, Dim] = field(default_factory=dict)
    equal: dict[str, Expr] = field(default_factory=dict)
    at_least: dict[str, int] = field(default_factory=dict)
    at_most: dict[str, int] = field(default_factory=dict)
    multiple: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)  # fact -> the node that asked for it
    where: str = ""
    defined: dict[str, Expr] = field(default_factory=dict)  # dims that values define, and bounds
    locked: int = 0  # inside a block that may not run: nothing may be learned there
    stale: bool = False  # a multiple was learned: what was simplified before it is not simplest
    _tidied: dict[Expr, Expr] = field(default_factory=dict)

    def _note(self, fact: str) -> None:
        self.reasons.setdefault(fact, self.where)

    def restart(self) -> None:
        """Forget the dims, keep the facts."""
        self.dims.clear()
        self.defined.clear()
        self.locked = 0
        self._tidied.clear()
        self.stale = False

    def declare(self, name: str) -> Expr:
        """The expression of a dim, with the facts known about it."""
        if name in self.equal:
            return self.equal[name]
        low, high = self.at_least.get(name, 0), self.at_most.get(name)
        self.dims[name] = Dim(name, low, high, self.multiple.get(name, 1))
        return E.dim(name)

    def define(self, name: str, bound: Expr) -> Expr:
        """The expression of a dim that a value defines; nothing can be learned about it."""
        most = self.bounds(bound)[1]
        self.dims[name] = Dim(name, 0, int(most) if most < 1 << 62 else None)
        self.defined[name] = bound
        return E.dim(name)

    def require_at_least(self, e: Expr, low: int) -> bool:
        """Make `e >= low` hold where e is a plain dim: its range is narrowed (and `stale` set, as
        what was simplified before may have a simpler form now).
        """
        if self.low(e) >= low:
            return True
        if e.op == "dim" and e.attr in self.dims and not self.locked and e.attr not in self.defined:
            self.stale = self.stale or low > 1
            self._note(f"{e} >= {low}")
            self.at_least[e.attr] = low
            self.dims[e.attr] = replace(self.dims[e.attr], lo=low)
            return True
        return False

    def require_extent(self, e: Expr) -> None:
        """Narrow the range of a dim so that its extent is not negative (best effort)."""
        names = e.names("dim")
        if len(names) != 1 or self.low(e) >= 0:
            return
        name = next(iter(names))
        if name not in self.dims:
            return
        start = self.dims[name].lo
        for low in range(start, start + 256):
            value = E.int_value(E.substitute(e, {E.dim(name): E.const(low)}))
            if value is None:
                return
            if value >= 0:
                self.require_at_least(E.dim(name), low)
                return

    # ---- bounds
    def bounds(self, e: Expr) -> tuple[float, float]:
        """An interval that holds the value of `e`, from the ranges of the dims."""
        if e.op == "const":
            return e.attr, e.attr
        if e.op == "dim":
            d = self.dims.get(e.attr, Dim(e.attr))
            return d.lo, math.inf if d.hi is None else d.hi
        parts = [self.bounds(a) for a in e.args] if e.dtype.is_int else []
        if len(parts) != 2:
            return -math.inf, math.inf
        (a, b), (c, d_) = parts
        match e.op:
            case "add":
                return a + c, b + d_
            case "mul":
                corners = [_times(x, y) for x in (a, b) for y in (c, d_)]
                return min(corners), max(corners)
            case "min":
                return min(a, c), min(b, d_)
            case "max":
                return max(a, c), max(b, d_)
            case "mod" if c > 0:
                return 0, min(d_ - 1, b) if a >= 0 else d_ - 1
            case "floordiv" if c > 0:
                return _floor_divide(a, c if a < 0 else d_), _floor_divide(b, c if b >= 0 else d_)
        return -math.inf, math.inf

    def low(self, e: Expr) -> float:
        """A lower bound of `e`; also that of its form with `lo + more` for every dim."""
        low = self.bounds(e)[0]
        if low < 0 and e.dtype.is_int and e.op == "add":
            # x - x//2 and the like: move each dim to its lower end, which cancels what intervals
            # cannot see.
            names = e.names("dim")
            mapping = {
                E.dim(n): E.dim(n) + int(self.dims[n].lo)
                for n in names
                if n in self.dims and self.dims[n].lo
            }
            if mapping:
                low = max(
                    low, Sizes(dims={n: Dim(n) for n in names}).bounds(E.substitute(e, mapping))[0]
                )
        return low

    # ---- canonical forms
    def floordiv(self, a: Expr, c: int) -> Expr:
        """a // c, with nested divisions merged: ((H + 1)//2 + 1)//2 is (H + 3)//4."""
        poly = E.polynomial(a)
        g = math.gcd(c, *(v for k, v in poly.items() if k))
        if g > 1:  # (2 x + 1) // 4 is x // 2
            reduced = E.from_polynomial({k: v // g for k, v in poly.items() if v // g})
            return self.floordiv(reduced, c // g)
        for atoms, k in poly.items():
            if (
                len(atoms) == 1
                and k == 1
                and atoms[0].op == "floordiv"
                and all(not x or x == atoms for x in poly)
            ):
                inner, m = atoms[0].args[0], E.int_value(atoms[0].args[1])
                if m is not None and m > 0:
                    return self.tidy(E.floordiv(inner + poly.get((), 0) * m, E.const(m * c)))
        return self.tidy(E.floordiv(a, E.const(c)))

    def tidy(self, e: Expr) -> Expr:
        """The simplest spelling of a size: with H a multiple of 32, (H + 1)//2 becomes H//2."""
        if not self.multiple or e.op == "const":
            return e
        found = self._tidied.get(e)
        if found is None:
            found = self._tidied[e] = self._simplest(e)
        return found

    def _simplest(self, e: Expr) -> Expr:
        scale = {n: m for n in e.names("dim") if (m := self.multiple.get(n, 1)) > 1}
        if not scale:
            return e
        poly = E.polynomial(self._scaled(e, scale))
        total = E.const(0)
        for atoms, k in poly.items():
            rest = k
            term = E.const(1)
            for atom in atoms:
                if atom.op == "dim" and atom.attr in scale:
                    m = scale[atom.attr]
                    g = math.gcd(rest, m)
                    rest //= g
                    term = term * E.floordiv(atom, E.const(m // g))
                else:
                    undo = {E.dim(n): E.floordiv(E.dim(n), E.const(m)) for n, m in scale.items()}
                    term = term * E.substitute(atom, undo)
            total = total + term * rest
        return total

    def _scaled(self, e: Expr, scale: dict[str, int]) -> Expr:
        """`e` with every dim n of `scale` written as scale[n] * n."""
        return E.substitute(e, {E.dim(n): E.dim(n) * m for n, m in scale.items()}) if scale else e

    def same(self, a: Expr, b: Expr) -> bool:
        """Are the two sizes equal for all allowed values of the dims?"""
        if a is b:
            return True
        difference = a - b
        scale = {n: m for n in difference.names("dim") if (m := self.multiple.get(n, 1)) > 1}
        return E.int_value(self._scaled(difference, scale)) == 0

    def require_equal(self, a: Expr, b: Expr) -> bool:
        """Make a == b hold. Returns False where it cannot; raises LearnedFact where a dim must
        equal something for it; becomes `stale` where a new multiple makes it hold.
        """
        if self.same(a, b):
            return True
        low, high = self.bounds(a - b)
        if low > 0 or high < 0:
            return False
        names = sorted((a - b).names("dim"))
        if any(n in self.defined for n in names):
            return False
        if self.locked and names:
            raise SizesNeeded(names)
        for x, y in ((a, b), (b, a)):
            self._learn_most(x, y)
        a, b = _without_common_factors(a, b)
        for x, y in ((a, b), (b, a)):
            solved = self._solve(x, y) if y.op == "const" or x.op == "dim" else None
            if solved is not None and solved[0] not in solved[1].names("dim"):
                self._learn_equal(*solved)
        for count in range(1, len(names) + 1):
            for m in _MULTIPLES:
                for chosen in [names] if count == len(names) else [[n] for n in names]:
                    scale = {
                        n: math.lcm(self.multiple.get(n, 1), m if n in chosen else 1) for n in names
                    }
                    if E.int_value(self._scaled(a - b, scale)) == 0:
                        for n, k in scale.items():
                            if k > self.multiple.get(n, 1):
                                self._note(f"{n} is a multiple of {k}")
                        self.multiple.update(scale)
                        self._tidied.clear()
                        self.stale = True
                        return True
        return False

    def _learn_most(self, x: Expr, y: Expr) -> None:
        """x == min(x, n) says that the dim x is n at most."""
        if y.op != "min" or x.op != "dim" or x not in y.args:
            return
        most = E.int_value(y.args[1] if y.args[0] is x else y.args[0])
        if most is not None and most >= self.dims[x.attr].lo:
            self.at_most[x.attr] = most
            self._note(f"{x} <= {most}")
            raise LearnedFact

    def _learn_equal(self, name: str, value: Expr) -> None:
        self.equal = {n: E.substitute(e, {E.dim(name): value}) for n, e in self.equal.items()}
        self.equal[name] = value
        self._note(f"{name} is {value}")
        raise LearnedFact

    def _solve(self, x: Expr, y: Expr) -> tuple[str, Expr] | None:
        """x == y solved for one dim that stands alone, times a factor and plus a constant, in x."""
        scale = {n: m for n in x.names("dim") if (m := self.multiple.get(n, 1)) > 1}
        poly = E.polynomial(self._scaled(x, scale))
        variables = [k for k in poly if k]
        if len(variables) != 1 or len(variables[0]) != 1 or variables[0][0].op != "dim":
            return None
        factor = poly[variables[0]]
        rest = y - poly.get((), 0)
        value = E.floordiv(rest, E.const(abs(factor)))
        if abs(factor) != 1 and E.int_value(value * abs(factor) - rest) != 0:
            return None
        name = variables[0][0].attr
        value = (value if factor > 0 else -value) * scale.get(name, 1)
        if name not in self.dims or self.bounds(value)[1] < 0:
            return None
        return name, value

    # ---- decisions
    def decide(self, op: str, a: Expr, b: Expr) -> bool | None:
        """The value of a comparison (lt, le, eq, ne) if it is the same for all allowed sizes, else
        None.
        """
        low, high = self.low(a - b), -self.low(b - a)
        match op:
            case "lt":
                return True if high < 0 else False if low >= 0 else None
            case "le":
                return True if high <= 0 else False if low > 0 else None
            case "eq":
                return True if self.same(a, b) else False if low > 0 or high < 0 else None
            case "ne":
                equal = self.decide("eq", a, b)
                return None if equal is None else not equal
        return None

    def smaller(self, a: Expr, b: Expr) -> Expr:
        """min(a, b), decided where possible."""
        return a if self.decide("le", a, b) else b if self.decide("le", b, a) else E.minimum(a, b)

    def larger(self, a: Expr, b: Expr) -> Expr:
        """max(a, b), decided where possible."""
        return b if self.decide("le", a, b) else a if self.decide("le", b, a) else E.maximum(a, b)

    def product(self, sizes: Iterable[Expr]) -> Expr:
        """The product, spelled as simply as the facts allow."""
        total = E.const(1)
        for s in sizes:
            total = total * s
        return total

    def quotient(self, a: Expr, b: Expr) -> Expr | None:
        """a / b where b divides a for all allowed sizes, else None."""
        if (c := E.int_value(b)) is not None:
            if c <= 0:
                return None
            q = self.tidy(E.floordiv(a, b))
            return q if self.same(q * c, a) else None
        pa, pb = E.polynomial(a), E.polynomial(b)
        if len(pb) == 1:  # one monomial: take its atoms out of every term, dims or not
            (atoms, k), out = next(iter(pb.items())), E.const(0)
            for term, v in pa.items():
                rest = list(term)
                for x in atoms:
                    if x not in rest:
                        break
                    rest.remove(x)
                else:
                    if v % k == 0:
                        out = out + self.product(rest) * (v // k)
                        continue
                return self._scaled_quotient(a, b)
            return out
        return E.const(1) if self.same(a, b) else self._scaled_quotient(a, b)

    def _scaled_quotient(self, a: Expr, b: Expr) -> Expr | None:
        scale = {n: m for n in (a * b).names("dim") if (m := self.multiple.get(n, 1)) > 1}
        if not scale:
            return None
        sa, sb = self._scaled(a, scale), self._scaled(b, scale)
        q = Sizes(dims=self.dims).quotient(sa, sb) if E.int_value(sb) is None else None
        if q is None:
            return None
        return self.tidy(
            E.substitute(q, {E.dim(n): E.floordiv(E.dim(n), E.const(m)) for n, m in scale.items()})
        )


def _without_common_factors(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    """Two products of sizes without what divides every term of both."""
    pa, pb = E.polynomial(a), E.polynomial(b)
    if not pa or not pb:
        return a, b
    common = Counter(next(iter(pa)))
    for atoms in (*pa, *pb):
        common &= Counter(atoms)
    g = math.gcd(*pa.values(), *pb.values())

    def reduced(p: Mapping[tuple[Expr, ...], int]) -> Expr:
        out: dict[tuple[Expr, ...], int] = {}
        for atoms, k in p.items():
            rest = list(atoms)
            for x in common.elements():
                rest.remove(x)
            out[tuple(rest)] = k // g
        return E.from_polynomial(out)

    return reduced(pa), reduced(pb)


def _times(x: float, y: float) -> float:
    return 0 if x == 0 or y == 0 else x * y


def _floor_divide(x: float, y: float) -> float:
    if math.isinf(x):
        return x
    if math.isinf(y):
        return -1 if x < 0 else 0
    return x // y


class Sym:
    """One element of a tracked shape tensor: num / den, with num an i64 expression over dims and
    den > 0.

    Float arithmetic on it is exact, so only factors whose products a float32 holds exactly are let
    in.
    """

    __slots__ = ("den", "num", "sizes")

    def __init__(self, num: Expr, den: int, sizes: Sizes) -> None:
        if den != 1:
            values = list(E.polynomial(num).values())
            g = math.gcd(den, *values)
            if g > 1:
                num, den = (
                    E.from_polynomial({k: v // g for k, v in E.polynomial(num).items()}),
                    den // g,
                )
        self.num, self.den, self.sizes = num, den, sizes

    def __repr__(self) -> str:
        return str(self.num) if self.den == 1 else f"({self.num})/{self.den}"

    def lift(self, value: float | int | Sym) -> Sym:
        """A number as Sym. Raises Undecided where a float is not a short binary fraction."""
        if isinstance(value, Sym):
            return value
        exact = Fraction(float(value)) if isinstance(value, float) else Fraction(int(value))
        if exact.denominator > 1 << 12:
            raise Undecided
        return Sym(E.const(exact.numerator), exact.denominator, self.sizes)

    def __add__(self, o: Sym) -> Sym:
        return Sym(self.num * o.den + o.num * self.den, self.den * o.den, self.sizes)

    def __sub__(self, o: Sym) -> Sym:
        return Sym(self.num * o.den - o.num * self.den, self.den * o.den, self.sizes)

    def __mul__(self, o: Sym) -> Sym:
        return Sym(self.num * o.num, self.den * o.den, self.sizes)

    def __neg__(self) -> Sym:
        return Sym(-self.num, self.den, self.sizes)

    def divide(self, o: Sym, integer: bool) -> Sym:
        """self / o; integers truncate towards zero, which is floor where both are known not to be
        negative.
        """
        quotient = self.sizes.quotient(self.num * o.den, o.num * self.den)
        if quotient is not None:
            return Sym(quotient, 1, self.sizes)
        k = E.int_value(o.num)
        if not integer:
            if k is None or k == 0:
                raise Undecided
            sign = 1 if k > 0 else -1
            return Sym(self.num * (o.den * sign), self.den * abs(k), self.sizes)
        if self.sizes.low(self.num) < 0 or self.sizes.low(o.num) <= 0:
            raise Undecided
        if k is not None:
            return Sym(self.sizes.floordiv(self.num, k), 1, self.sizes)
        return Sym(E.floordiv(self.num, o.num), 1, self.sizes)

    def modulo(self, o: Sym) -> Sym:
        """Floor modulo of integers (C's modulo where both are known not to be negative)."""
        if self.den != 1 or o.den != 1 or self.sizes.low(o.num) <= 0:
            raise Undecided
        return Sym(self.sizes.tidy(E.mod(self.num, o.num)), 1, self.sizes)

    def floor(self) -> Sym:
        return Sym(self.sizes.floordiv(self.num, self.den), 1, self.sizes)

    def ceil(self) -> Sym:
        return Sym(self.sizes.floordiv(self.num + (self.den - 1), self.den), 1, self.sizes)

    def truncate(self) -> Sym:
        """Towards zero."""
        if self.den != 1 and self.sizes.low(self.num) < 0:
            raise Undecided
        return self.floor()

    def compare(self, op: str, o: Sym) -> bool:
        """lt, le, eq, ne. Raises Undecided where it depends on the dims."""
        decided = self.sizes.decide(op, self.num * o.den, o.num * self.den)
        if decided is None:
            raise Undecided
        return decided
