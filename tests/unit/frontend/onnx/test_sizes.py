"""Arithmetic on sizes: simplification, decisions, learning facts; sound for every allowed size."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.frontend.sizes import LearnedFact, Sizes, Sym, Undecided
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr


def sizes(**multiples: int) -> Sizes:
    z = Sizes(multiple={n: m for n, m in multiples.items() if m > 1})
    for name in ("H", "W", "N"):
        z.declare(name)
    return z


H, W, N = E.dim("H"), E.dim("W"), E.dim("N")


def test_nested_divisions_merge() -> None:
    z = sizes()
    half = z.floordiv(H + 1, 2)
    assert str(z.floordiv(half + 1, 2)) == "(H + 3) // 4"
    assert str(z.floordiv(z.floordiv(z.floordiv(H + 1, 2) + 1, 2) + 1, 2)) == "(H + 7) // 8"


def test_multiples_clear_rounding() -> None:
    z = sizes(H=32)
    assert str(z.tidy(E.floordiv(H + 31, E.const(32)))) == "H // 32"
    assert str(z.tidy(E.floordiv(H + 1, E.const(2)))) == "H // 2"
    assert z.same(E.floordiv(H + 1, E.const(2)) * 2, H)
    assert not z.same(E.floordiv(W + 1, E.const(2)) * 2, W)


def test_quotients() -> None:
    z = sizes(H=4)
    assert z.quotient(N * 64, E.const(8)) is N * 8
    assert z.quotient(N * H * 64, N * 16) is H * 4
    assert z.quotient(N * H, N * 4) is E.floordiv(H, E.const(4))
    assert z.quotient(N, E.const(2)) is None
    assert z.quotient(N + 1, N + 1) is E.const(1)
    assert z.quotient(N, E.const(0)) is None


def test_equality_teaches_a_multiple() -> None:
    z = sizes()
    up = z.floordiv(H + 31, 32) * 2
    assert z.require_equal(up, z.floordiv(H + 15, 16)) and z.stale
    assert z.multiple["H"] == 32
    z.restart()
    assert not z.stale and not z.dims and z.multiple["H"] == 32


def test_equality_teaches_a_value() -> None:
    z = sizes()
    with pytest.raises(LearnedFact):
        z.require_equal(N, E.const(3))
    assert z.equal["N"] is E.const(3)
    with pytest.raises(LearnedFact):
        z.require_equal(H * 2 + 2, E.const(8))
    assert z.equal["H"] is E.const(3)
    assert not z.require_equal(W * 2, E.const(7))
    assert not z.require_equal(E.const(2), E.const(3))
    assert not z.require_equal(W + 3, E.const(2))


def test_equality_teaches_that_two_dims_agree() -> None:
    z = sizes()
    with pytest.raises(LearnedFact):
        z.require_equal(H, W * 2)
    assert z.equal["H"] is W * 2
    assert z.declare("H") is W * 2


def test_decisions() -> None:
    z = sizes()
    assert z.decide("eq", H, E.const(-1)) is False
    assert z.decide("le", E.const(0), H) is True
    assert z.decide("lt", H, H + 1) is True
    assert z.decide("lt", H, W) is None
    assert z.smaller(H, H + 2) is H
    assert z.larger(E.const(0), H) is H
    assert str(z.smaller(H, E.const(100))) == "min(H, 100)"


def test_ranges_narrow_to_what_an_extent_needs() -> None:
    z = sizes()
    z.require_extent(E.floordiv(H - 7, E.const(2)) + 1)
    assert z.dims["H"].lo == 5
    assert z.require_at_least(W, 2) and z.dims["W"].lo == 2
    assert not z.require_at_least(W - 5, 0)


def test_elements_of_shape_tensors() -> None:
    z = sizes()
    n = Sym(N, 1, z)
    assert str((n * n.lift(0.5)).floor()) == "N // 2"
    assert str((n * n.lift(1.5)).ceil()) == "(N*3 + 1) // 2"
    assert str((n + n.lift(1)).divide(n.lift(2), integer=True)) == "(N + 1) // 2"
    assert str(Sym(N * H, 1, z).divide(n, integer=True)) == "H"
    assert str(n.divide(n.lift(4), integer=False)) == "(N)/4"
    assert str(n.modulo(n.lift(8))) == "N % 8"
    assert n.compare("le", n + n.lift(1))
    for undecided in (
        lambda: n.lift(0.1),
        lambda: n.compare("eq", n.lift(7)),
        lambda: (n - n.lift(5)).divide(n.lift(2), integer=True),
    ):
        with pytest.raises(Undecided):
            undecided()


def values(e: Expr, at: dict[str, int]) -> int:
    value = E.int_value(E.substitute(e, {E.dim(n): E.const(v) for n, v in at.items()}))
    assert value is not None
    return value


def expressions() -> st.SearchStrategy[Expr]:
    leaves = st.sampled_from([H, W, N]) | st.integers(-3, 9).map(E.const)
    positive = st.integers(1, 8)

    def grow(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        return st.one_of(
            st.tuples(inner, inner).map(lambda p: p[0] + p[1]),
            st.tuples(inner, inner).map(lambda p: p[0] - p[1]),
            st.tuples(inner, st.integers(0, 6)).map(lambda p: p[0] * p[1]),
            st.tuples(inner, positive).map(lambda p: E.floordiv(p[0], E.const(p[1]))),
            st.tuples(inner, positive).map(lambda p: E.mod(p[0], E.const(p[1]))),
            st.tuples(inner, inner).map(lambda p: E.minimum(p[0], p[1])),
            st.tuples(inner, inner).map(lambda p: E.maximum(p[0], p[1])),
        )

    return st.recursive(leaves, grow, max_leaves=6)


@settings(max_examples=300, deadline=None)
@given(
    expressions(), expressions(), st.sampled_from([1, 2, 4, 12]), st.integers(1, 8),
    st.tuples(*[st.integers(0, 9)] * 3),
)  # fmt: skip
def test_simplifications_and_decisions_are_sound(
    a: Expr, b: Expr, multiple: int, divisor: int, at: tuple[int, int, int]
) -> None:
    z = sizes(H=multiple)
    point = {"H": at[0] * multiple, "W": at[1], "N": at[2]}
    va, vb = values(a, point), values(b, point)
    assert values(z.tidy(a), point) == va
    assert values(z.floordiv(a, divisor), point) == va // divisor
    low, high = z.bounds(a)
    assert low <= va <= high and z.low(a) <= va
    if z.same(a, b):
        assert va == vb
    for op, holds in (("lt", va < vb), ("le", va <= vb), ("eq", va == vb), ("ne", va != vb)):
        assert z.decide(op, a, b) in (None, holds)
    quotient = z.quotient(a, b)
    if quotient is not None and vb != 0:
        assert values(quotient, point) * vb == va
    assert values(z.smaller(a, b), point) == min(va, vb)
    assert values(z.larger(a, b), point) == max(va, vb)
