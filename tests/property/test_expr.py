"""Expressions: canonical forms mean what was written, text round-trips, intervals and rewriting are sound."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, DTYPES, I64, DType
from tilewright.ir.expr import Expr
from tilewright.ir.ranges import interval, simplify
from tilewright.ir.scalar import evaluate
from tilewright.ir.text import Parser, Scope

Values = dict[str, int]
Meaning = Callable[[Values], int]
INDEXES, DIMS = ("i", "j", "k"), ("N", "M")


def floordiv(a: int, b: int) -> int:
    return 0 if b == 0 else a // b


def modulo(a: int, b: int) -> int:
    return 0 if b == 0 else a % b


@st.composite
def integers(draw: st.DrawFn, depth: int = 4) -> tuple[Expr, Meaning]:
    """An i64 expression through the constructors, and what it means, written independently."""
    if depth == 0 or (draw(st.booleans()) and depth < 3):
        if draw(st.integers(0, 3)) == 0:
            c = draw(st.integers(-9, 9))
            return E.const(c), lambda v: c
        name = draw(st.sampled_from(INDEXES + DIMS))
        return (E.index(name) if name in INDEXES else E.dim(name)), lambda v: v[name]
    a, fa = draw(integers(depth=depth - 1))
    kind = draw(
        st.sampled_from(["add", "sub", "mul", "floordiv", "mod", "min", "max", "neg", "select"])
    )
    if kind == "neg":
        return E.neg(a), lambda v: -fa(v)
    if kind in ("floordiv", "mod") and draw(st.integers(0, 4)):
        c = draw(st.integers(-3, 12))
        b, fb = E.const(c), lambda v: c
    else:
        b, fb = draw(integers(depth=depth - 1))
    match kind:
        case "add":
            return a + b, lambda v: fa(v) + fb(v)
        case "sub":
            return a - b, lambda v: fa(v) - fb(v)
        case "mul":
            return a * b, lambda v: fa(v) * fb(v)
        case "floordiv":
            return a // b, lambda v: floordiv(fa(v), fb(v))
        case "mod":
            return a % b, lambda v: modulo(fa(v), fb(v))
        case "min":
            return E.minimum(a, b), lambda v: min(fa(v), fb(v))
        case "max":
            return E.maximum(a, b), lambda v: max(fa(v), fb(v))
    test = E.compare("lt", a, b)
    return E.select(test, b, a), lambda v: fb(v) if fa(v) < fb(v) else fa(v)


def value(e: Expr, v: Values) -> int:
    """The value of a node tree by the NumPy meanings."""
    if e.op == "const":
        return int(e.attr)
    if e.op in ("index", "dim"):
        return v[e.attr]
    args = [np.asarray(value(a, v), a.dtype.np) for a in e.args]
    return int(evaluate(e.op, args, e.dtype))


points = st.fixed_dictionaries(
    {n: st.integers(-20, 40) for n in INDEXES} | {n: st.integers(1, 15) for n in DIMS}
)


@given(integers(), points)
def test_canonical_form_keeps_the_value(pair: tuple[Expr, Meaning], v: Values) -> None:
    e, meaning = pair
    assert value(e, v) == meaning(v)


@given(integers())
def test_rebuilding_gives_the_same_object(pair: tuple[Expr, Meaning]) -> None:
    e, _ = pair
    assert E.from_polynomial(E.polynomial(e)) is e
    assert E.rebuild(e, e.args) is e
    assert E.substitute(e, {}) is e
    for name in INDEXES:
        there = E.substitute(e, {E.index(name): E.index("fresh")})
        assert E.substitute(there, {E.index("fresh"): E.index(name)}) is e


@given(integers(), integers(depth=2), points)
def test_substitution_is_composition(
    pair: tuple[Expr, Meaning], other: tuple[Expr, Meaning], v: Values
) -> None:
    (e, meaning), (r, replaced) = pair, other
    got = value(E.substitute(e, {E.index("i"): r}), v)
    assert got == meaning({**v, "i": replaced(v)})


@given(integers(depth=3), integers(depth=3))
def test_sums_and_products_are_canonical(
    one: tuple[Expr, Meaning], two: tuple[Expr, Meaning]
) -> None:
    a, b = one[0], two[0]
    i, j = E.index("i"), E.index("j")
    assert a + b is b + a and a * b is b * a
    assert (a + b) - b is a and a - a is E.const(0)
    assert (i + j) * a is i * a + j * a
    assert (a + i) * (a - i) is a * a - i * i


boxes = st.fixed_dictionaries(
    {n: st.tuples(st.integers(-12, 20), st.integers(0, 12)) for n in INDEXES}
)


@given(integers(), boxes, st.data())
def test_intervals_and_simplification_are_sound(
    pair: tuple[Expr, Meaning], box: dict[str, tuple[int, int]], data: st.DataObject
) -> None:
    e, meaning = pair
    ranges = {n: (lo, lo + width) for n, (lo, width) in box.items()}
    low, high = interval(e, ranges)
    simple = simplify(e, ranges)
    low2, high2 = interval(simple, ranges)
    for _ in range(4):
        v = {n: data.draw(st.integers(*r)) for n, r in ranges.items()}
        v |= {n: data.draw(st.integers(1, 9)) for n in DIMS}
        x = meaning(v)
        assert (low is None or low <= x) and (high is None or x <= high)
        assert value(simple, v) == x
        assert (low2 is None or low2 <= x) and (high2 is None or x <= high2)


@pytest.mark.parametrize(
    ("radices", "tile", "tiles"),
    [
        ((8, 7, 7), 14, 4),  # x // 49 stays whole while x // 7 % 7 loses the tile's start
        ((8, 14, 14), 16, 4),
        ((5, 8, 28, 2), 32, 2),  # the first digit needs the ranges: x // 448 is i // 7
        ((4, 9, 28, 12), 16, 8),
        ((8, 9, 7, 8), 14, 1),
        ((3, 5), 1, 1),
        ((2, 3, 4), 24, 1),
    ],
)
def test_digits_of_a_tile_position_are_put_together(
    radices: tuple[int, ...], tile: int, tiles: int
) -> None:
    """A flattened axis that is read by its digits, `x // 49, x // 7 % 7, x % 7`, is one again."""
    position = E.index("i") * (tile * tiles) + E.index("j") * tile + E.index("k")
    last = math.prod(radices) - 1
    ranges = {"i": (0, last // (tile * tiles)), "j": (0, tiles - 1), "k": (0, tile - 1)}
    address, unit = E.const(0), 1
    for r in reversed(radices[1:]):
        address, unit = address + position // unit % r * (unit * 3), unit * r
    address = address + position // unit * (unit * 3)
    assert simplify(address, ranges) is position * 3


# ---- text ----

TENSORS: dict[str, tuple[DType, int | None]] = {f"t_{n}": (d, 2) for n, d in DTYPES.items()}
LEAVES: dict[str, Expr] = {n: E.index(n) for n in INDEXES} | {n: E.dim(n) for n in DIMS}


def constants(dtype: DType) -> st.SearchStrategy[Expr]:
    if dtype is BOOL:
        return st.booleans().map(lambda v: E.const(v, BOOL))
    if dtype.is_float:
        return st.floats(width=64).map(lambda v: E.const(v, dtype))
    return st.integers(-(2**63), 2**64 - 1).map(lambda v: E.const(v, dtype))


@st.composite
def scalars(draw: st.DrawFn, dtype: DType, depth: int = 3) -> Expr:
    """Any expression of a dtype."""
    style = draw(st.integers(0, 9)) if depth else draw(st.integers(0, 2))
    if style == 0:
        return draw(constants(dtype))
    if style <= 2:
        if dtype is I64 and draw(st.booleans()):
            return draw(integers(depth=2))[0]
        subscripts = [draw(integers(depth=2))[0] for _ in range(2)]
        orelse = draw(scalars(dtype, 0)) if draw(st.booleans()) else None
        return E.read(f"t_{dtype}", subscripts, dtype, orelse)
    if style == 3:
        other = draw(st.sampled_from(list(DTYPES.values())))
        return E.cast(draw(scalars(other, depth - 1)), dtype)
    if style == 4:
        test = draw(scalars(BOOL, depth - 1))
        return E.select(test, draw(scalars(dtype, depth - 1)), draw(scalars(dtype, depth - 1)))
    a = draw(scalars(dtype, depth - 1))
    if dtype is BOOL:
        if style == 5:
            return E.unary("not", a)
        if style == 6:
            kind = draw(st.sampled_from([d for d in DTYPES.values() if d.is_float]))
            return E.unary(
                draw(st.sampled_from(("isnan", "isinf"))), draw(scalars(kind, depth - 1))
            )
        if style == 7:
            return E.logical(
                draw(st.sampled_from(("and", "or"))), a, draw(scalars(BOOL, depth - 1))
            )
        kind = draw(st.sampled_from(list(DTYPES.values())))
        op = draw(st.sampled_from(("lt", "le", "gt", "ge", "eq", "ne")))
        return E.compare(op, draw(scalars(kind, depth - 1)), draw(scalars(kind, depth - 1)))
    if style == 5:
        ops = ["neg", "abs", "sign"]
        ops += ["exp", "tanh", "floor", "erf", "rsqrt"] if dtype.is_float else ["not"]
        return E.unary(draw(st.sampled_from(ops)), a)
    ops = ["add", "sub", "mul", "div", "floordiv", "mod", "min", "max", "pow", "fmod"]
    ops += [] if dtype.is_float else ["and", "or", "xor", "shl", "shr"]
    return E.binary(draw(st.sampled_from(ops)), a, draw(scalars(dtype, depth - 1)))


@pytest.mark.parametrize("name", DTYPES)
def test_text_round_trips(name: str) -> None:
    @settings(max_examples=25)
    @given(scalars(DTYPES[name]))
    def check(e: Expr) -> None:
        parser = Parser(str(e))
        back = parser.expression(Scope(dict(TENSORS), dict(LEAVES)))
        if back.op == "const" and back.dtype is not e.dtype:  # a bare literal names no dtype
            back = parser.retype(back, e.dtype)
        assert parser.token.kind == "end"
        assert back is e, f"{e} became {back}"

    check()
