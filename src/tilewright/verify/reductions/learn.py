"""Learn self-reductions: polynomial relations between the values of a function at random points.

In: a `Function`. Out: a `Reduction` with rational coefficients and its proof, or None. Invariants:
the coefficients come from exact linear algebra modulo a prime, over many random points; a relation
counts only after it also vanished modulo other primes at points of their own (the proof) and for
the real function in float64 (the falsifier, which shares none of the laws used by the proof).

Relations are looked for by degree, the lowest first; of those of a degree the one with the fewest
terms is kept. Relations within a single query are no reductions and are passed over.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from tilewright.verify.reductions.field import PRIMES, Element, Field, NotExpressible
from tilewright.verify.reductions.floats import Floats
from tilewright.verify.reductions.functions import FAMILIES, FUNCTIONS, Family, Function

__all__ = ["Reduction", "falsify", "learn", "learn_all", "prove"]

Array = np.ndarray[Any, np.dtype[Any]]
Powers = tuple[int, ...]

MOST_MONOMIALS = 300
MOST_DEGREE = 6
_POINTS = MOST_MONOMIALS + 60
_PROOF_POINTS = 256
_LARGEST = 1 << 15  # of numerators and denominators: sqrt(prime / 2)

BASES: dict[str, Callable[[Any, Any], Any]] = {
    "f": lambda m, v: v,
    "1/f": lambda m, v: 1 / v,
    "sqrt f": lambda m, v: m.sqrt(v),
    "log f": lambda m, v: m.log(v),
    "exp f": lambda m, v: m.exp(v),
    "tan f": lambda m, v: m.tan(v),
}


@dataclass(frozen=True)
class Reduction:
    """sum of coefficient * product of variable ** power = 0.

    variables: `basis` of f at the queries of `family`, then coordinates. proof_bits: a false proof
    has a probability below 2 ** -proof_bits. residual: of the falsifier, relative to the terms.
    """

    function: str
    family: str
    basis: str
    variables: tuple[str, ...]
    queries: int
    terms: tuple[tuple[Fraction, Powers], ...]
    is_random: bool
    proof_bits: float = 0.0
    residual: float = math.nan
    seconds: float = 0.0

    @property
    def degree(self) -> int:
        return max(sum(p) for _, p in self.terms)

    @property
    def solved_for(self) -> str | None:
        """A query whose value appears to the first power only, so that the others determine it."""
        for k in range(self.queries):
            if max(p[k] for _, p in self.terms) == 1:
                return self.variables[k]
        return None

    def __str__(self) -> str:
        out = ""
        for c, powers in self.terms:
            factors = [
                name if k == 1 else f"{name}^{k}"
                for name, k in zip(self.variables, powers, strict=True) if k
            ]  # fmt: skip
            size = abs(c)
            if size != 1 or not factors:
                factors.insert(0, str(size))
            out += (" - " if c < 0 else " + ") + " ".join(factors)
        return out.removeprefix(" + ").strip() + " = 0"


def evaluate(
    m: Any, function: Function, family: Family, basis: str, coordinates: bool
) -> tuple[list[str], int, list[Any]]:
    """(names of the variables, how many are queries, their values in the algebra m)."""
    queries, given = family.ask(m)
    shown = {"f": "f({})"}.get(basis, basis.replace("f", "f({})"))
    names = [shown.format(name) for name, _ in queries]
    values = [BASES[basis](m, function.f(m, *arguments)) for _, arguments in queries]
    if coordinates:
        names += [name for name, _ in given]
        values += [arguments[0] for _, arguments in given]
    return names, len(queries), values


def monomials(count: int, degree: int) -> Iterator[Powers]:
    """All powers of `count` variables, by total degree."""
    for total in range(degree + 1):
        for chosen in itertools.combinations_with_replacement(range(count), total):
            yield tuple(chosen.count(k) for k in range(count))


def null_space(matrix: Array, prime: int) -> list[Array]:
    """A basis of {v: matrix v = 0 modulo prime}, one vector per column without a pivot."""
    rows = matrix.copy() % prime
    pivots: list[int] = []
    free: list[int] = []
    top = 0
    for column in range(rows.shape[1]):
        below = np.flatnonzero(rows[top:, column])
        if top == rows.shape[0] or not below.size:
            free.append(column)
            continue
        row = top + int(below[0])
        rows[[top, row]] = rows[[row, top]]
        rows[top] = rows[top] * pow(int(rows[top, column]), -1, prime) % prime
        factors = rows[:, column].copy()
        factors[top] = 0
        used = np.flatnonzero(factors)
        rows[used] = (rows[used] - factors[used, None] * rows[top]) % prime
        pivots.append(column)
        top += 1
    out = []
    for column in free:
        v = np.zeros(rows.shape[1], np.int64)
        v[column] = 1
        for row, pivot in enumerate(pivots):
            v[pivot] = -rows[row, column] % prime
        out.append(v)
    return out


def rational(residue: int, prime: int) -> Fraction | None:
    """The fraction with small numerator and denominator that `residue` stands for."""
    a, b, s, t = prime, residue, 0, 1
    while b > _LARGEST:
        q = a // b
        a, b, s, t = b, a - q * b, t, s - q * t
    if not t or abs(t) > _LARGEST:
        return None
    return Fraction(b, t)


def _products(values: Sequence[Any], powers: Sequence[Powers], prime: int | None) -> list[Array]:
    """Each monomial at every point; modulo a prime, or in float64."""
    columns: dict[Powers, Array] = {}
    for p in powers:
        first = next((k for k, n in enumerate(p) if n), None)
        if first is None:
            kind = np.float64 if prime is None else np.int64
            columns[p] = np.ones(len(values[0]), kind)
            continue
        less = tuple(n - (k == first) for k, n in enumerate(p))
        if less not in columns:
            columns[less] = _products(values, [less], prime)[0]
        product = columns[less] * values[first]
        columns[p] = product if prime is None else product % prime
    return [columns[p] for p in powers]


def _whole(terms: list[tuple[Fraction, Powers]]) -> list[tuple[Fraction, Powers]]:
    """The same relation with coprime whole coefficients."""
    below = math.lcm(*(c.denominator for c, _ in terms))
    common = math.gcd(*(int(c * below) for c, _ in terms))
    return [(c * below / common, p) for c, p in terms]


def _queries_in(terms: Sequence[tuple[Fraction, Powers]], queries: int) -> int:
    return sum(any(p[k] for _, p in terms) for k in range(queries))


def _candidates(
    field: Field, values: Sequence[Element], powers: list[Powers], queries: int
) -> tuple[list[list[tuple[Fraction, Powers]]], bool]:
    """Relations of at least two queries, the shortest first; is there one of a single query?"""
    kept = np.flatnonzero(field.valid)[: len(powers) + 20]
    if len(kept) < len(powers) + 8:
        return [], False
    columns = _products([v.value[kept] for v in values], powers, field.prime)
    found = []
    single = False
    for vector in null_space(np.stack(columns, 1), field.prime):
        scale = pow(int(vector[np.flatnonzero(vector)[0]]), -1, field.prime)
        terms: list[tuple[Fraction, Powers]] = []
        for k in np.flatnonzero(vector):
            c = rational(int(vector[k]) * scale % field.prime, field.prime)
            if c is None:
                break
            terms.append((c, powers[k]))
        else:
            if _queries_in(terms, queries) >= 2:
                found.append(_whole(terms))
            else:
                single = True
    return sorted(
        found, key=lambda t: (len(t), sum(abs(c.numerator) + c.denominator for c, _ in t))
    ), single


def prove(r: Reduction, function: Function, family: Family) -> float | None:
    """Bits of certainty that it holds, from two further primes; None where it does not."""
    bits = 0.0
    for prime in PRIMES[1:3]:
        field = Field(prime, _PROOF_POINTS, seed=prime)
        coordinates = len(r.variables) > r.queries
        _, _, values = evaluate(field, function, family, r.basis, coordinates)
        total = np.zeros(field.count, np.int64)
        columns = _products([v.value for v in values], [p for _, p in r.terms], prime)
        degree = 0
        for (c, _), column in zip(r.terms, columns, strict=True):
            total = (total + field.number((c, Fraction(0))) * column) % prime
        # Over the common denominator, the numerator has at most this degree.
        for k, v in enumerate(values):
            most = max(p[k] for _, p in r.terms)
            degree += most * (v.degree[0] + v.degree[1])
        degree = max(1, degree) << field.roots
        if total[field.valid].any():
            return None
        combinations = math.prod(field.cases.values())
        points = int(field.valid.sum()) // combinations
        bits += points * (math.log2(prime) - math.log2(degree))
    return bits


def falsify(r: Reduction, function: Function, family: Family, seed: int = 1) -> float:
    """The largest residual in float64, relative to the terms; inf without enough points."""
    m = Floats(600, seed)
    with np.errstate(all="ignore"):
        coordinates = len(r.variables) > r.queries
        _, _, values = evaluate(m, function, family, r.basis, coordinates)
        columns = _products([np.asarray(v) for v in values], [p for _, p in r.terms], None)
        terms = np.stack([float(c) * x for (c, _), x in zip(r.terms, columns, strict=True)])
        share = np.abs(terms.sum(0)) / np.abs(terms).sum(0)
    usable = np.isfinite(terms).all(0) & (np.abs(terms).sum(0) > 0)
    return float(share[usable].max()) if usable.sum() >= 50 else math.inf


def learn(function: Function, *, random_only: bool = True) -> Reduction | None:
    """The simplest reduction that is found and proved, or None."""
    started = time.perf_counter()
    families = [
        f for f in FAMILIES if f.domain == function.domain and (f.is_random or not random_only)
    ]
    spaces = []
    for family, basis, coordinates in itertools.product(families, function.bases, (False, True)):
        field = Field(PRIMES[0], _POINTS * 4, seed=0)
        try:
            names, queries, values = evaluate(field, function, family, basis, coordinates)
        except NotExpressible:
            continue
        if not coordinates or len(names) > queries:
            spaces.append((family, basis, field, names, queries, values))
    closed: set[int] = set()
    for degree in range(1, MOST_DEGREE + 1):
        for number, (family, basis, field, names, queries, values) in enumerate(spaces):
            powers = list(monomials(len(values), degree))
            if number in closed or len(powers) > MOST_MONOMIALS:
                continue
            found, single = _candidates(field, values, powers, queries)
            if single and len(names) > queries:
                closed.add(number)  # with coordinates the function is known outright
                continue
            for terms in found[:4]:
                r = Reduction(
                    function.name, family.name, basis, tuple(names), queries, tuple(terms),
                    family.is_random,
                )  # fmt: skip
                bits = prove(r, function, family)
                if bits is None or bits < 60:
                    continue
                residual = falsify(r, function, family)
                if residual < 1e-7:
                    spent = time.perf_counter() - started
                    return replace(r, proof_bits=bits, residual=residual, seconds=spent)
    return None


def learn_all(
    functions: Sequence[Function] = FUNCTIONS,
) -> Iterator[tuple[Function, Reduction | None]]:
    """Every function with what was found."""
    for f in functions:
        yield f, learn(f)
