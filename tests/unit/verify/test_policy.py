"""The numeric policy, clause by clause."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.ir.dtypes import BF16, BOOL, DTYPES, F16, F32, F64, I8, I64
from tilewright.verify.policy import UNIT_ROUNDOFF, allowed_error, compare


def f32(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


def f64(*values: float) -> np.ndarray:
    return np.asarray(values, np.float64)


def test_bound() -> None:
    ref = f64(1, 2, -4)
    u = 2.0**-24
    assert allowed_error(ref, ref, F32) == 4 * 8 * u * 4
    assert allowed_error(ref, ref, F32, bilinear=True) == 16 * 8 * u * 4
    assert allowed_error(ref, ref + 0.5, F32) == 2.0
    assert allowed_error(ref, ref, F16) == 4 * 8 * 2.0**-11 * 4
    assert allowed_error(ref, ref, BF16) == 4 * 8 * 2.0**-8 * 4
    assert allowed_error(f64(), f64(), F32) > 0
    assert allowed_error(f64(0, 0), f64(0, 0), F32) == 4 * 2.0**-149
    assert allowed_error(f64(np.inf, 1), f64(np.inf, np.inf), F32) == 4 * 2.0**-149
    assert set(UNIT_ROUNDOFF) == {n for n, d in DTYPES.items() if d.is_float}


def test_the_bound_is_one_number_per_tensor() -> None:
    ref, naive = f64(1000, 1e-6), f64(1000, 1e-6)
    assert compare(f32(1000, 2e-6), ref, naive, F32).ok
    verdict = compare(f32(1000.1, 1e-6), ref, naive, F32)
    assert not verdict.ok and verdict.where == (0,)
    assert str(verdict) == (
        "1000.0999755859375 instead of 1000.0, 1 of 2 wrong, at [0]: max error 0.1, allowed 0.00191"
    )


def test_f64_is_judged_in_longdouble() -> None:
    ref = np.asarray([1], np.longdouble) / 3
    assert compare(ref.astype(np.float64), ref, ref.astype(np.float64), F64).ok
    assert not compare(ref.astype(np.float32).astype(float), ref, ref.astype(float), F64).ok


def test_shape_and_dtype() -> None:
    ref = f64(1, 2)
    assert compare(f32(1), ref, ref, F32).message == "the shape is [1] instead of [2]"
    assert compare(f64(1, 2), ref, ref, F32).message == "the dtype is float64 instead of f32"


def test_integers_are_exact() -> None:
    ref = np.asarray([2**60 + 1, 5], np.int64)
    assert compare(ref.copy(), ref, ref, I64).ok
    verdict = compare(np.asarray([2**60, 5]), ref, ref, I64)
    assert not verdict.ok and verdict.where == (0,)
    assert not compare(np.asarray([True]), np.asarray([False]), np.asarray([False]), BOOL).ok


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_special_values_stand_where_they_must(special: float) -> None:
    ref = f64(1, special)
    assert compare(f32(1, special), ref, ref, F32).ok
    assert not compare(f32(1, 0), ref, ref, F32).ok
    assert not compare(f32(special, special), ref, ref, F32).ok
    if np.isinf(special):
        assert not compare(f32(1, -special), ref, ref, F32).ok


def test_overflow_of_the_plain_evaluation_is_allowed() -> None:
    ref, naive = f64(1, 1e39), f64(1, np.inf)
    assert compare(f32(1, np.inf), ref, naive, F32).ok
    assert not compare(f32(1, -np.inf), ref, naive, F32).ok


def test_witness() -> None:
    ref = np.asarray([3, 7, 10], np.int8)
    moved = np.asarray([3, 8, 10], np.int8)
    assert compare(np.asarray([3, 8, 10], np.int8), ref, ref, I8, wiggle=[moved]).ok
    assert not compare(np.asarray([3, 9, 10], np.int8), ref, ref, I8, wiggle=[moved]).ok
    assert not compare(np.asarray([4, 7, 10], np.int8), ref, ref, I8, wiggle=[moved]).ok
    far = np.asarray([3, 11, 10], np.int8)
    between = np.asarray([3, 9, 10], np.int8)
    assert compare(between, ref, ref, I8, wiggle=[far]).ok
    assert not compare(between, ref, ref, I8, wiggle=[far], chosen=True).ok
    assert compare(far, ref, ref, I8, wiggle=[far], chosen=True).ok


def test_the_naive_value_is_a_witness() -> None:
    """Where moved operands leap over a choice that plain rounding makes."""
    ref, moved, naive = np.array([0]), np.array([-3]), np.array([-10])
    assert not compare(naive, ref, ref, I64, wiggle=[moved]).ok
    assert compare(naive, ref, naive, I64, wiggle=[moved]).ok
    assert not compare(naive, ref, naive, I64).ok  # nothing rounds: the two must agree


def test_witness_reaches_floats() -> None:
    ref, moved = f64(1, 2), f64(1, 3)
    assert compare(f32(1, 3), ref, ref, F32, wiggle=[moved]).ok
    assert not compare(f32(2, 2), ref, ref, F32, wiggle=[moved]).ok
    assert compare(f32(1, np.nan), ref, ref, F32, wiggle=[f64(1, np.nan)]).ok


def test_a_number_of_elements_that_rounding_decides() -> None:
    """`Unique` of computed floats: as many as one of the evaluations found, and nothing else."""
    ref, plain = f64(1, 2, 3), f64(1, 3)
    assert compare(f32(1, 3), ref, plain, F32).ok
    assert compare(f32(1, 2, 3), ref, plain, F32).ok
    assert not compare(f32(1, 4), ref, plain, F32).ok
    assert not compare(f32(1), ref, plain, F32).ok
    assert compare(f32(1), ref, plain, F32, wiggle=[f64(1)]).ok
