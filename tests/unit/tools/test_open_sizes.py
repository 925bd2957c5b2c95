"""Open sizes of the suite: every case names a row and a dim of it, and both builds agree."""

from __future__ import annotations

import pytest

from tilewright.tools.open_sizes import loss_of, losses
from tilewright.tools.suite import OpenSize, Workload, load_suite


def test_cases_name_rows_and_dims() -> None:
    suite = load_suite("kernels")
    rows = {row.name: row for row in suite.rows}
    assert len(suite.open) >= 16
    for case in suite.open:
        assert case.dim in rows[case.row].dims and len(case.sizes) >= 1
        assert f"${case.dim}" not in rows[case.row].program  # a number in the text cannot be open


def test_one_model_for_several_sizes() -> None:
    row = Workload("t", "t", "c", {"M": 5, "K": 7, "N": 9}, constants=("b",),
                   program="a: f32[M, K]; b: f32[K, N]; y[m, n] = sum(k) a[m, k] * b[k, n]")  # fmt: skip
    found = loss_of(row, OpenSize("t", "M", (1, 4, 40)), 1)
    assert set(found) == {"t M=1", "t M=4", "t M=40"}
    assert all(value > 0 for value in found.values())


def test_unknown_row() -> None:
    with pytest.raises(ValueError, match="no row"):
        losses([], [OpenSize("t", "M", (1,))], 1, print)
