"""Self-reductions: what is learned, that false ones are refused, and that the table can be proved anew."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from tilewright.verify.reductions.field import PRIMES, Field
from tilewright.verify.reductions.functions import FAMILIES, FUNCTIONS, OTHERS, Function
from tilewright.verify.reductions.learn import falsify, learn, null_space, prove, rational
from tilewright.verify.reductions.table import family_of, function_of, read_table

TABLE = read_table()


def test_there_are_eighty_functions_and_enough_are_found() -> None:
    names = [f.name for f in FUNCTIONS]
    assert len(names) == len(set(names)) == 80
    assert sum(name in TABLE for name in names) >= 60


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_entry_is_proved_and_holds_in_float64(name: str) -> None:
    r = TABLE[name]
    function, family = function_of(r), family_of(r)
    bits = prove(r, function, family)
    assert bits is not None and bits >= 60
    assert falsify(r, function, family, seed=7) < 1e-7
    assert sum(any(p[k] for _, p in r.terms) for k in range(r.queries)) >= 2


@pytest.mark.parametrize("name", ["exp", "cos", "tanh", "x^3", "log", "ReLU", "floor", "arctan", "sqrt"])
def test_learning_finds_what_the_table_holds(name: str) -> None:
    found = learn(next(f for f in FUNCTIONS if f.name == name))
    assert found is not None
    assert str(found) == str(TABLE[name])


@pytest.mark.parametrize("name", ["exp", "sin", "sigmoid", "1 / x", "mod", "arcsinh", "abs"])
def test_a_false_relation_has_no_proof(name: str) -> None:
    r = TABLE[name]
    (c, p), *rest = r.terms
    false = replace(r, terms=((c + 1, p), *rest))
    function, family = function_of(r), family_of(r)
    assert prove(false, function, family) is None
    assert falsify(false, function, family) > 1e-3


def test_a_relation_of_another_function_is_falsified() -> None:
    """The falsifier alone would stop a wrong law: exp's relation does not hold for sinh."""
    r = TABLE["exp"]
    other = next(f for f in FUNCTIONS if f.name == "sinh")
    assert falsify(r, other, family_of(r)) > 1e-3


@pytest.mark.parametrize("name", ["gamma", "erf"])
def test_what_has_no_reduction_is_left_without(name: str) -> None:
    assert learn(next(f for f in FUNCTIONS if f.name == name)) is None


def test_known_relations_come_out() -> None:
    assert str(TABLE["cos"]) == "f(x+r) + f(x-r) - 2 f(x) f(r) = 0"
    assert str(TABLE["sin"]) == "f(x+r) f(x-r) - f(x)^2 + f(r)^2 = 0"
    assert TABLE["cos"].solved_for == "f(x+r)"
    assert TABLE["floor"].solved_for is None  # up to a branch


def test_a_new_function_is_learned() -> None:
    f = Function("3 exp(2 x)", lambda m, x: 3 * m.exp(2 * x))
    r = learn(f)
    assert r is not None and prove(r, f, FAMILIES[0]) is not None
    assert r.degree == 2


def test_null_space_and_rationals() -> None:
    prime = PRIMES[0]
    matrix = np.array([[1, 2, 3], [2, 4, 6], [1, 0, 1]])
    (v,) = null_space(matrix, prime)
    assert not (matrix @ v % prime).any()
    for c in (Fraction(-7, 12), Fraction(5), Fraction(355, 113)):
        residue = c.numerator * pow(c.denominator, -1, prime) % prime
        assert rational(residue, prime) == c


def test_the_field_obeys_the_laws_of_the_functions() -> None:
    m = Field(PRIMES[0], 64, seed=3)
    x, y = m.symbol("x"), m.symbol("y")

    def same(a: object, b: object) -> bool:
        return np.array_equal(a.value, b.value)  # type: ignore[attr-defined]

    assert same(m.exp(x + y), m.exp(x) * m.exp(y))
    assert same(m.sin(x) ** 2 + m.cos(x) ** 2, m.const(1))
    assert same(m.cosh(x) ** 2 - m.sinh(x) ** 2, m.const(1))
    assert same(m.sin(2 * x), 2 * m.sin(x) * m.cos(x))
    p = m.positive("p")
    assert same(m.log(p * p), 2 * m.log(p))
    assert same(m.root(p, 2) ** 2, p)
    assert not same(m.exp(x), m.exp(y)) and not same(m.sin(x), m.cos(x))
    assert OTHERS
