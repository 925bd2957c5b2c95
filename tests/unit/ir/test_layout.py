"""Layouts: injective, in range, packed and unpacked, printed and parsed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.errors import UserError
from tilewright.ir import expr as E
from tilewright.ir.layout import Layout, Term, dense, ordered, panels

SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)
FULL = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)


@st.composite
def layouts(draw: Any) -> Layout:
    """One of every kind, over random shapes."""
    kind = draw(st.sampled_from(["dense", "ordered", "halo", "panels"]))
    if kind == "dense":
        return dense(draw(SHAPES))
    shape = draw(FULL)
    axes = range(len(shape))
    if kind == "panels":
        axis = draw(st.sampled_from(list(axes)))
        others = [a for a in axes if a != axis]
        inner = draw(st.permutations(others))[: draw(st.integers(0, len(others)))]
        group = draw(st.sampled_from([(-1, 1), *((a, 2) for a in inner)]))
        block = 2 * draw(st.integers(0, 3)) if inner else 0
        return panels(shape, axis, draw(st.integers(1, 16)), inner, group, block)
    order = draw(st.permutations(list(axes)))
    if kind == "ordered":
        return ordered(shape, order)
    pad = st.tuples(st.integers(0, 3), st.integers(0, 3))
    fill = draw(st.sampled_from([0, 0.0, 1.5, -1, float("inf"), float("-inf"), True, False, 1e-30]))
    return ordered(shape, order, [draw(pad) for _ in axes], fill)


def evaluate(e: E.Expr, point: dict[str, int]) -> int:
    swap = {E.index(n): E.const(v) for n, v in point.items()}
    value = E.int_value(E.substitute(e, swap))
    assert value is not None
    return value


@given(layouts())
@settings(max_examples=80, deadline=None)
def test_addresses_are_distinct_and_in_range(layout: Layout) -> None:
    addresses = np.asarray(layout.addresses())
    assert addresses.shape == layout.shape
    assert len(np.unique(addresses)) == addresses.size == math.prod(layout.shape)
    if addresses.size:
        assert 0 <= addresses.min() and addresses.max() < layout.size


@given(layouts(), st.data())
@settings(max_examples=60, deadline=None)
def test_expressions_say_what_the_table_says(layout: Layout, data: Any) -> None:
    if 0 in layout.shape:
        return
    names = [f"i{k}" for k in range(len(layout.shape))]
    address = layout.address([E.index(n) for n in names])
    point = tuple(data.draw(st.integers(0, n - 1)) for n in layout.shape)
    assert evaluate(address, dict(zip(names, point, strict=True))) == layout.addresses()[point]


@given(layouts())
@settings(max_examples=40, deadline=None)
def test_a_halo_is_addressed_in_range_and_apart_from_all_else(layout: Layout) -> None:
    ranges = [range(*layout.valid(a)) for a in range(len(layout.shape))]
    if math.prod(map(len, ranges)) > 400:
        return
    names = [f"i{k}" for k in range(len(layout.shape))]
    address = layout.address([E.index(n) for n in names])
    seen = set()
    for point in np.ndindex(*map(len, ranges)):
        at = evaluate(address, {n: r[k] for n, r, k in zip(names, ranges, point, strict=True)})
        assert 0 <= at < layout.size and at not in seen
        seen.add(at)


@given(layouts(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_packing_and_unpacking_is_the_identity(layout: Layout, seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = rng.standard_normal(layout.shape).astype(np.float32)
    flat = layout.pack(array)
    assert flat.shape == (layout.size,) and flat.dtype == array.dtype
    np.testing.assert_array_equal(layout.unpack(flat), array)
    rest = np.ones(layout.size, bool)
    rest[np.asarray(layout.addresses()).reshape(-1)] = False
    np.testing.assert_array_equal(flat[rest], np.full(rest.sum(), layout.fill, np.float32))


@given(layouts())
@settings(max_examples=80, deadline=None)
def test_text_round_trip(layout: Layout) -> None:
    again = Layout.parse(str(layout))
    assert again == layout and str(again) == str(layout)
    assert type(again.fill) is type(layout.fill)


def test_row_major_is_what_numpy_calls_c_order() -> None:
    for shape in ((), (1,), (5,), (2, 3), (1, 4, 1, 5), (0, 3)):
        layout = dense(shape)
        assert layout.is_row_major
        a = np.arange(math.prod(shape)).reshape(shape)
        if a.size:
            np.testing.assert_array_equal(layout.pack(a)[: a.size], a.reshape(-1))
    assert not ordered((2, 3), (1, 0)).is_row_major
    assert not ordered((2, 3), (0, 1), ((0, 0), (1, 1))).is_row_major
    assert not panels((4, 4), 1, 2, (0,)).is_row_major
    assert ordered((1, 3), (1, 0)).is_row_major


def test_strides_of_plain_and_blocked_axes() -> None:
    assert [dense((2, 3, 5)).stride(a) for a in range(3)] == [15, 5, 1]
    assert [ordered((2, 3), (1, 0)).stride(a) for a in range(2)] == [1, 2]
    assert dense((1, 7)).stride(0) == 0
    blocked = panels((6, 9), 1, 4, (0,))
    assert blocked.stride(0) == 4 and blocked.stride(1) is None


def test_blocks_of_all_panels_come_one_after_the_other() -> None:
    a = np.arange(8).reshape(4, 2)
    cut = panels((4, 2), 1, 1, (0,), block=2)
    np.testing.assert_array_equal(cut.pack(a), [0, 2, 1, 3, 4, 6, 5, 7])
    paired = panels((4, 2), 1, 2, (0,), (0, 2), 2)
    np.testing.assert_array_equal(paired.pack(a), [0, 2, 1, 3, 4, 6, 5, 7])


def test_panels_in_full() -> None:
    a = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(panels((2, 3), 1, 2, (0,)).pack(a), [0, 1, 3, 4, 2, 0, 5, 0])


def test_the_text_of_each_kind() -> None:
    assert str(dense((2, 3))) == "[2,3] a0*3+a1*1 size 6"
    assert str(dense(())) == "[] 0 size 1"
    assert str(panels((4, 5), 1, 4, (0,))) == "[4,5] a0*4+a1%4*1+a1//4*16 size 32"
    halo = ordered((2,), (0,), ((1, 2),), float("-inf"))
    assert str(halo) == "[2] a0*1 size 5 offset 1 halo 1:2 fill -inf"


@pytest.mark.parametrize("text", ["", "[2", "[2] a0", "[2] a0*x size 2", "[a] 0 size 1", "[2] a0*1 size", "[2] a1*1 size 2"])
def test_text_that_is_no_layout(text: str) -> None:
    with pytest.raises(UserError) as caught:
        Layout.parse(text)
    assert caught.value.code == "F010" and repr(text) in caught.value.message


def test_terms_may_overlap_only_if_somebody_lies() -> None:
    broken = Layout((2, 2), (Term(0, 1, 0, 1), Term(1, 1, 0, 1)), 3)
    assert len(np.unique(broken.addresses())) < 4
