"""NumPy meanings of extern functions: ties, NaN, empty inputs, attributes."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.errors import UserError
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.externs import (
    EXTERNS,
    bitcast,
    descending_order,
    det,
    nms,
    sort,
    topk,
    unique,
)

NAN = float("nan")


def test_sort_is_stable_and_puts_nan_last() -> None:
    x = np.array([2.0, NAN, 1.0, 2.0, -np.inf])
    assert sort(x)[1].tolist() == [4, 2, 0, 3, 1]
    assert sort(x, descending=True)[1].tolist() == [0, 3, 2, 4, 1]
    for dtype in (np.uint8, np.int8, np.bool_):
        assert descending_order(np.array([0, 1, 0, 1]).astype(dtype), 0).tolist() == [1, 3, 0, 2]


def test_integers_sort_down_without_overflow() -> None:
    low = np.iinfo(np.int64).min
    assert sort(np.array([0, low, 5]), descending=True)[0].tolist() == [5, 0, low]
    assert sort(np.array([0, 255, 5], np.uint8), descending=True)[0].tolist() == [255, 5, 0]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    "dtype", ["f32", "f16", "bf16", "f64", "i8", "u8", "i16", "i32", "u32", "i64", "u64", "bool"]
)
def test_every_type_sorts_as_a_stable_sort_does(dtype: str, descending: bool, axis: int) -> None:
    rng = np.random.default_rng(len(dtype) + axis)
    for shape in ((5, 37), (3, 0), (0, 3), (1, 1), (64, 700)):
        wide = np.round(rng.standard_normal(shape) * 3).astype(np.float64)
        if DTYPES[dtype].is_float:
            for value in (np.nan, -0.0, np.inf, -np.inf):
                wide[rng.random(shape) < 0.1] = value
        elif dtype[0] == "u":
            wide = np.abs(wide)
        x = wide.astype(DTYPES[dtype].np)
        exact = x.astype(np.float64)  # every value is small, or no number
        order = np.argsort(-exact if descending else exact, axis, kind="stable")
        values, positions = EXTERNS["sort"](x, axis=axis, descending=descending)
        assert values.dtype == x.dtype and positions.dtype == np.int64
        np.testing.assert_array_equal(positions, order)
        np.testing.assert_array_equal(
            values.astype(np.float64), np.take_along_axis(exact, order, axis)
        )
        for k in {0, min(3, x.shape[axis]), x.shape[axis]}:
            _, first = EXTERNS["topk"](x, axis=axis, k=k, largest=descending)
            np.testing.assert_array_equal(first, np.take(order, np.arange(k), axis))


def test_topk() -> None:
    x = np.array([[1, 3, 3], [2, 0, 2]])
    values, indices = topk(x, axis=1, k=2)
    assert values.tolist() == [[3, 3], [2, 2]] and indices.tolist() == [[1, 2], [0, 2]]
    values, indices = topk(x, np.array([1]), axis=0, largest=False)
    assert values.tolist() == [[1, 0, 2]] and indices.tolist() == [[0, 1, 1]]
    assert topk(np.zeros((2, 0)), axis=1, k=0)[0].shape == (2, 0)
    with pytest.raises(UserError, match="R004"):
        topk(x, axis=1, k=4)


@pytest.mark.parametrize("ordered", [True, False])
def test_unique(ordered: bool) -> None:
    x = np.array([3, 1, 3, 2, 1])
    y, first, inverse, counts, number = unique(x, ordered=ordered)
    assert number == 3 and all(len(v) == 5 and not v[3:].any() for v in (y, first, counts))
    y, first, counts = y[:number], first[:number], counts[:number]
    assert y.tolist() == ([1, 2, 3] if ordered else [3, 1, 2])
    assert x[first].tolist() == y.tolist() and y[inverse].tolist() == x.tolist()
    assert counts.sum() == 5
    rows = np.array([[1, 0], [2, 0], [1, 0]])
    y, first, inverse, counts, number = unique(rows, axis=0, flat=False, ordered=ordered)
    assert number == 2 and y.shape == rows.shape and not y[2:].any()
    y, first, counts = y[:number], first[:number], counts[:number]
    assert y.tolist() == [[1, 0], [2, 0]] and inverse.tolist() == [0, 1, 0]
    assert first.tolist() == [0, 1] and counts.tolist() == [2, 1]


BOXES = np.array([[[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, 10, 1, 11], [1, 1, 0, 0]]], np.float32)
SCORES = np.array([[[0.9, 0.8, 0.7, 0.9]]], np.float32)


def select(limit: int = 9, overlap: float = 0.5, threshold: float | None = None) -> list[int]:
    low = None if threshold is None else np.array([threshold], np.float32)
    kept, number = nms(BOXES, SCORES, np.array([limit]), np.array([overlap], np.float32), low)
    assert kept.shape == (4, 3) and not kept[number:].any()
    return kept[:number, 2].tolist()


def test_non_maximum_suppression() -> None:
    assert select() == [0, 2]  # 3 is 0 with its corners swapped, and ties go to the lower index
    assert select(limit=1) == [0]
    assert select(limit=0) == []
    assert select(overlap=1.0) == [0, 3, 1, 2]
    assert select(threshold=0.75) == [0]
    centre = np.array([[[0.5, 0.5, 1, 1], [0.5, 0.6, 1, 1]]], np.float32)
    kept, number = nms(
        centre, SCORES[..., :2], np.array([9]), np.array([0.5], np.float32), center=True
    )
    assert number == 1 and kept.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_det_and_bitcast() -> None:
    assert det(np.array([[[2.0, 0], [0, 3]]])).tolist() == [pytest.approx(6)]
    assert det(np.eye(3, dtype=np.float16)).dtype == np.float16
    assert bitcast(np.array([1.0]), source="f32", target="i32").tolist() == [0x3F800000]
    assert bitcast(np.array(-1), source="i64", target="u64").shape == ()


def test_every_name_has_a_meaning_with_a_docstring() -> None:
    assert all(f.__doc__ for f in EXTERNS.values())
