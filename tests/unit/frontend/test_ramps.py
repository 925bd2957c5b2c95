"""Constant positions as formulas: equal wherever one is found, and found where an axis is enlarged."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tilewright.frontend.operations.indexing import _ramp
from tilewright.ir import expr as E
from tilewright.ir.ranges import along


@pytest.mark.parametrize("scale", [Fraction(2), Fraction(4), Fraction(8), Fraction(1, 2), Fraction(4, 3)])
@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("size", [16, 37, 64])
def test_positions_of_an_enlarged_axis(scale: Fraction, offset: int, size: int) -> None:
    at = np.arange(int(size * scale))
    values = np.clip(np.floor((at + 0.5) / float(scale) - 0.5).astype(np.int64) + offset, 0, size - 1)
    for table in (values, values[::-1]):
        found = _ramp(table, E.index("i"))
        assert found is not None, table
        np.testing.assert_array_equal(along(found, "i", at), table)


def test_what_is_found_is_equal() -> None:
    """Ramps with elements changed at random: a formula that is given holds everywhere."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        n, a, c = int(rng.integers(8, 50)), int(rng.integers(-6, 7)), int(rng.integers(1, 9))
        values = (a * np.arange(n) + rng.integers(0, 300)) // c
        values = np.clip(values, *sorted(rng.integers(0, 120, 2)))
        if rng.random() < 0.4:
            values[rng.integers(0, n)] += rng.integers(0, 2)
        e = _ramp(values, E.index("i"))
        if e is not None:
            found += 1
            np.testing.assert_array_equal(along(e, "i", np.arange(n)), values)
    assert found > 20


def test_lists_and_thirds_stay_tables() -> None:
    """Vectors of results would not read alike where the divisor is no power of two."""
    i = E.index("i")
    assert _ramp(np.array([0, 0, 1, 1, 2, 2]), i) is None
    assert _ramp(np.arange(60) // 3, i) is None
    assert _ramp(np.array([5, 1, 4, 2, 9, 0, 3, 7, 7, 6]), i) is None
    assert _ramp(np.full(20, 3), i) is None
    assert str(_ramp(np.arange(60) // 2, i)) == "i // 2"
