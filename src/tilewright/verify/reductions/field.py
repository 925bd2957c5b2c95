"""Elementary functions over a prime field: values that know how they came about.

In: symbols. Out: `Element`s: residues modulo a prime at many random points at once. Invariant: a
polynomial relation between elements that vanishes at random points vanishes for the functions they
stand for, but for a probability of at most (degree / prime) per point.

A function that is no polynomial is computed from the laws it obeys. exp turns a polynomial in the
symbols into a product of generators, one per monomial and real or imaginary part, each a random
residue of its own; sin and cos are exponentials of imaginary arguments; a logarithm, and every
other inverse, is taken where the argument is known as a value of the function that it inverts.
floor and the sign of a number are decided by cases, which the points go through in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

__all__ = ["DENOMINATOR", "PRIMES", "Element", "Field", "NotExpressible"]

# Primes below 2^31 that are 5 mod 8: products fit into 64 bits, -1 has a root and half of the rest.
PRIMES = (2147483629, 2147483549, 2147483477, 2147483269)
DENOMINATOR = 12  # exponents of generators are multiples of 1/12
_MOST_TERMS = 16

Array = np.ndarray[Any, np.dtype[Any]]
Monomial = tuple[tuple[str, int], ...]
Number = tuple[Fraction, Fraction]  # real and imaginary part
Form = Mapping[Monomial, Number]
ONE: Monomial = ()
_Real = int | Fraction


class NotExpressible(Exception):
    """The function has no value here in terms of the symbols."""


_ZERO: Number = (Fraction(0), Fraction(0))
_UNIT: Number = (Fraction(1), Fraction(0))


def _form(terms: Mapping[Monomial, Number]) -> Form:
    return {m: c for m, c in terms.items() if c != _ZERO}


def _key(f: Form) -> tuple[Any, ...]:
    return tuple(sorted(f.items()))


def _times(a: Form | None, b: Form | None) -> Form | None:
    if a is None or b is None or len(a) * len(b) > _MOST_TERMS:
        return None
    out: dict[Monomial, Number] = {}
    for m, (re, im) in a.items():
        for n, (s, t) in b.items():
            powers = dict(m)
            for name, k in n:
                powers[name] = powers.get(name, 0) + k
            key = tuple(sorted((name, k) for name, k in powers.items() if k))
            old = out.get(key, _ZERO)
            out[key] = (old[0] + re * s - im * t, old[1] + re * t + im * s)
    return _form(out)


def _plus(a: Form | None, b: Form | None, sign: int = 1) -> Form | None:
    if a is None or b is None:
        return None
    out = dict(a)
    for m, (re, im) in b.items():
        old = out.get(m, _ZERO)
        out[m] = (old[0] + sign * re, old[1] + sign * im)
    return _form(out) if len(out) <= _MOST_TERMS else None


def _scaled(a: Form | None, c: Fraction) -> Form | None:
    return None if a is None else _form({m: (c * re, c * im) for m, (re, im) in a.items()})


@dataclass(frozen=True, eq=False)
class Element:
    """A value at every point.

    form: the value as a polynomial in the symbols; power: (base, form) of which it is the
    exponential; inverse: (function, form) of which it is the value; log_of, exp_of, square_of: what
    it is the logarithm, exponential, square of; preimage: (function, element) that it is the
    argument of; sign: +1 or -1 where that is known. degree: of numerator and denominator. The value
    of an element that is known by one of these four alone is random: nothing is learned about it.
    """

    field: Field
    value: Array
    form: Form | None = None
    power: tuple[str, Form] | None = None
    inverse: tuple[str, Form] | None = None
    log_of: Element | None = None
    exp_of: Element | None = None
    square_of: Element | None = None
    preimage: tuple[str, Element] | None = None
    sign: Array | None = None
    degree: tuple[int, int] = (1, 0)

    def _other(self, x: Element | _Real) -> Element:
        return x if isinstance(x, Element) else self.field.const(x)

    def __add__(self, x: Element | _Real, sign: int = 1) -> Element:
        o = self._other(x)
        value = (self.value + sign * o.value) % self.field.prime
        (n, d), (m, e) = self.degree, o.degree
        return Element(
            self.field, value, _plus(self.form, o.form, sign), degree=(max(n + e, m + d), d + e)
        )

    __radd__ = __add__

    def __sub__(self, x: Element | _Real) -> Element:
        return self.__add__(x, -1)

    def __rsub__(self, x: _Real) -> Element:
        return self._other(x) - self

    def __neg__(self) -> Element:
        sign = None if self.sign is None else -self.sign
        form = _scaled(self.form, Fraction(-1))
        return Element(
            self.field, -self.value % self.field.prime, form, sign=sign, degree=self.degree
        )

    def __mul__(self, x: Element | _Real) -> Element:
        o = self._other(x)
        value = self.value * o.value % self.field.prime
        degree = (self.degree[0] + o.degree[0], self.degree[1] + o.degree[1])
        sign = None if self.sign is None or o.sign is None else self.sign * o.sign
        return Element(
            self.field, value, _times(self.form, o.form), self._joined(o, 1),
            square_of=self if o is self else None, sign=sign, degree=degree,
        )  # fmt: skip

    __rmul__ = __mul__

    def _joined(self, o: Element, sign: int) -> tuple[str, Form] | None:
        if self.power is None or o.power is None:
            return None
        (base, f), (other, g) = self.power, o.power
        if base and other and base != other:
            return None
        sum_ = _plus(f, g, sign)
        return None if sum_ is None else (base or other, sum_)

    def __truediv__(self, x: Element | _Real) -> Element:
        o = self._other(x)
        value = self.value * self.field.inverse(o.value) % self.field.prime
        degree = (self.degree[0] + o.degree[1], self.degree[1] + o.degree[0])
        form = None
        if o.form is not None and len(o.form) == 1:
            ((monomial, (re, im)),) = o.form.items()
            size = re * re + im * im
            turned = {tuple((n, -k) for n, k in monomial): (re / size, -im / size)}
            form = _times(self.form, turned)
        sign = None if self.sign is None or o.sign is None else self.sign * o.sign
        return Element(self.field, value, form, self._joined(o, -1), sign=sign, degree=degree)

    def __rtruediv__(self, x: _Real) -> Element:
        return self._other(x) / self

    def __pow__(self, n: int) -> Element:
        out = self.field.const(1)
        for _ in range(abs(n)):
            out = out * self
        return 1 / out if n < 0 else out


@dataclass
class Field:
    """Residues modulo `prime` at `count` points, drawn by `seed`."""

    prime: int
    count: int
    seed: int
    valid: Array = field(init=False)
    roots: int = 0  # square roots taken: each doubles the degree
    symbols: dict[str, Array] = field(default_factory=dict)
    generators: dict[tuple[Any, ...], Array] = field(default_factory=dict)
    cases: dict[Any, int] = field(default_factory=dict)
    bases: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.valid = np.ones(self.count, np.bool_)
        self.i = pow(2, (self.prime - 1) // 4, self.prime)  # 2 is no square modulo 5 mod 8
        if pow(self.i, 2, self.prime) != self.prime - 1:
            raise ValueError(f"{self.prime} is not 5 modulo 8")

    # ---- residues ----

    def random(self) -> Array:
        return self.rng.integers(1, self.prime, self.count, dtype=np.int64)

    def raised(self, base: Array, exponent: int) -> Array:
        if exponent < 0:
            return self.raised(self.inverse(base), -exponent)
        out = np.ones_like(base)
        while exponent:
            if exponent & 1:
                out = out * base % self.prime
            base = base * base % self.prime
            exponent >>= 1
        return out

    def inverse(self, value: Array) -> Array:
        self.valid &= value != 0
        return self.raised(value, self.prime - 2)

    def number(self, c: Number) -> int:
        """A Gaussian rational as a residue."""
        re, im = (x.numerator * pow(x.denominator, -1, self.prime) % self.prime for x in c)
        return (re + self.i * im) % self.prime

    # ---- elements ----

    def const(self, c: _Real) -> Element:
        number = (Fraction(c), Fraction(0))
        value = np.full(self.count, self.number(number), np.int64)
        power: tuple[str, Form] | None = ("", {}) if c == 1 else None
        sign = np.full(self.count, 1 if c > 0 else -1) if c else None
        return Element(self, value, _form({ONE: number}), power, sign=sign, degree=(0, 0))

    def of_form(self, form: Form) -> Element:
        value = np.zeros(self.count, np.int64)
        for monomial, c in form.items():
            term = np.full(self.count, self.number(c), np.int64)
            for name, k in monomial:
                term = term * self.raised(self.symbols[name], k) % self.prime
            value = (value + term) % self.prime
        # A symbol may be a generator to the power DENOMINATOR.
        below = sum(max(0, -k) for m in form for _, k in m) * DENOMINATOR
        above = max((sum(abs(k) for _, k in m) for m in form), default=0) * DENOMINATOR
        return Element(self, value, form, degree=(above + below, below))

    def symbol(self, name: str) -> Element:
        """A real number that may be anything."""
        self.symbols.setdefault(name, self.random())
        return self.of_form({((name, 1),): _UNIT})

    def positive(self, name: str, base: str = "e") -> Element:
        """A positive number, the exponential of a symbol."""
        exponent = self.symbol(f"log {name}")
        e = self.power(base, exponent)
        self.symbols[name] = e.value
        self.bases[name] = base
        form: Form = {((name, 1),): _UNIT}
        return replace(e, form=form, sign=np.ones(self.count, np.int64))

    def signed(self, name: str) -> Element:
        """A number that is not zero; its sign alternates over the points."""
        size = self.positive(f"|{name}|")
        sign = 1 - 2 * self.case(("sign", name), 2)
        return Element(self, size.value * sign % self.prime, sign=sign, degree=size.degree)

    def split(self, name: str, up: bool = False) -> Element:
        """A number as a whole part and a fraction in [0, 1) beyond it; up: short of it."""
        whole, part = self.symbol(f"{name}.whole"), self.symbol(f"{name}.part")
        return whole - part if up else whole + part

    def case(self, key: Any, count: int) -> Array:
        """0 .. count-1 by point, all combinations of cases in turn."""
        period = 1
        for k, size in self.cases.items():
            if k == key:
                break
            period *= size
        else:
            self.cases[key] = count
        return np.arange(self.count) // period % count

    # ---- functions ----

    def power(self, base: str, x: Element) -> Element:
        """base ** x."""
        if x.log_of is not None and base == "e":
            return x.log_of
        if x.form is None:
            return Element(self, self.random(), exp_of=x)
        value, up, down = np.ones(self.count, np.int64), 0, 0
        for monomial, parts in x.form.items():
            for which, c in enumerate(parts):
                exponent = c * DENOMINATOR
                if exponent.denominator != 1:
                    raise NotExpressible
                key = (base, monomial, which)
                if key not in self.generators:
                    self.generators[key] = self.random()
                value = value * self.raised(self.generators[key], int(exponent)) % self.prime
                up, down = up + max(0, int(exponent)), down + max(0, -int(exponent))
        return Element(self, value, None, (base, x.form), degree=(up, down))

    def exp(self, x: Element) -> Element:
        return self.power("e", x)

    def log(self, x: Element, base: str = "e") -> Element:
        if x.exp_of is not None:
            return x.exp_of
        power = x.power
        if power is None and x.form is not None and len(x.form) == 1:
            ((monomial, c),) = x.form.items()
            if c == _UNIT and all(self.bases.get(name) == base for name, _ in monomial):
                logs: Form = {((f"log {n}", 1),): (Fraction(k), Fraction(0)) for n, k in monomial}
                return self.of_form(logs)
        if power is None or power[0] not in ("", base):
            return Element(self, self.random(), log_of=x)
        return self.of_form(power[1])

    def log2(self, x: Element) -> Element:
        return self.log(x, "2")

    def sqrt(self, x: Element) -> Element:
        """The root of a square is the positive number it was made of, or else any of the two."""
        if x.square_of is not None:
            return x.square_of
        try:
            return self.root(x, 2)
        except NotExpressible:
            pass
        residue = self.raised(x.value, (self.prime - 1) // 2)
        self.valid &= residue == 1
        root = self.raised(x.value, (self.prime + 3) // 8)
        root = np.where(root * root % self.prime == x.value, root, root * self.i % self.prime)
        self.roots += 1
        return Element(self, root, degree=x.degree)

    def root(self, x: Element, n: int) -> Element:
        """The n-th root of a positive number."""
        if x.power is None:
            raise NotExpressible
        base, form = x.power
        scaled = _scaled(form, Fraction(1, n))
        assert scaled is not None
        return self.power(base, Element(self, x.value, scaled))

    def _waves(self, x: Element, factor: Number) -> tuple[Element, Element]:
        turned = _times(x.form, {ONE: factor})
        if turned is None:
            raise NotExpressible
        up = self.power("e", Element(self, x.value, turned))
        return up, 1 / up

    def _known(self, name: str, x: Element, e: Element) -> Element:
        return e if x.form is None else replace(e, inverse=(name, x.form))

    def sin(self, x: Element) -> Element:
        up, down = self._waves(x, (Fraction(0), Fraction(1)))
        factor = Element(self, np.full(self.count, pow(2 * self.i, -1, self.prime)), degree=(0, 0))
        return self._known("sin", x, (up - down) * factor)

    def cos(self, x: Element) -> Element:
        up, down = self._waves(x, (Fraction(0), Fraction(1)))
        return self._known("cos", x, (up + down) / 2)

    def tan(self, x: Element) -> Element:
        if x.preimage is not None and x.preimage[0] == "tan":
            return x.preimage[1]
        return self._known("tan", x, self.sin(x) / self.cos(x))

    def sinh(self, x: Element) -> Element:
        up, down = self._waves(x, (Fraction(1), Fraction(0)))
        return self._known("sinh", x, (up - down) / 2)

    def cosh(self, x: Element) -> Element:
        up, down = self._waves(x, (Fraction(1), Fraction(0)))
        return self._known("cosh", x, (up + down) / 2)

    def tanh(self, x: Element) -> Element:
        return self._known("tanh", x, self.sinh(x) / self.cosh(x))

    def sigmoid(self, x: Element) -> Element:
        return self._known("sigmoid", x, 1 / (1 + self.exp(-x)))

    def asserted(self, q: Element, name: str, argument: Element) -> Element:
        """`q`, of which it is now known that it is `name(argument)`; checked at every point."""
        function: Callable[[Element], Element] = getattr(self, name)
        if argument.form is None or not np.array_equal(
            function(argument).value[self.valid], q.value[self.valid]
        ):
            raise NotExpressible
        return replace(q, inverse=(name, argument.form))

    def inverted(self, name: str, x: Element) -> Element:
        """The argument at which the function `name` is `x`."""
        if x.inverse is None or x.inverse[0] != name:
            return Element(self, self.random(), preimage=(name, x))
        return self.of_form(x.inverse[1])

    def floor(self, x: Element) -> Element:
        """The greatest whole number that is not greater."""
        if x.form is None:
            raise NotExpressible
        whole: dict[Monomial, Number] = {}
        parts: dict[Monomial, Fraction] = {}
        for monomial, c in x.form.items():
            name = monomial[0][0] if monomial else ""
            if c[1] or len(monomial) > 1 or (monomial and monomial[0][1] != 1):
                raise NotExpressible
            if monomial == ONE or name.endswith(".whole"):
                if c[0].denominator != 1:
                    raise NotExpressible
                whole[monomial] = c
            elif name.endswith(".part"):
                parts[monomial] = c[0]
            else:
                raise NotExpressible
        low = sum((min(c, Fraction(0)) for c in parts.values()), Fraction(0))
        high = sum((max(c, Fraction(0)) for c in parts.values()), Fraction(0))
        if low.denominator != 1 or high.denominator != 1:
            raise NotExpressible
        # The sum of the fractions lies in (low, high), or in (low, 0] where none is added.
        count = max(1, int(high - low)) + (low < 0 == high)
        chosen = self.case(("floor", _key({m: (c, Fraction(0)) for m, c in parts.items()})), count)
        e = self.of_form(whole)
        value = (e.value + int(low) + chosen) % self.prime
        return Element(self, value, degree=e.degree)

    def sign(self, x: Element) -> Element:
        if x.sign is None:
            raise NotExpressible
        return Element(self, x.sign % self.prime, sign=x.sign, degree=(0, 0))

    def odd(self, name: str, x: Element) -> Element:
        """A function of which only f(-x) = -f(x) is used."""
        if not x.form:
            raise NotExpressible
        key = _key(x.form)
        turned = _key(_scaled(x.form, Fraction(-1)) or {})
        first = min(key, turned)
        value = self.generators.setdefault((name, first), self.random())
        return Element(self, value if key == first else -value % self.prime)
