"""Operations and unique bytes of a Program."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tilewright.errors import UserError
from tilewright.ir.program import Program
from tilewright.ir.program_parser import parse_program
from tilewright.tools import wiring
from tilewright.tools.work import work_of
from tilewright.verify.programs import generate


def program(head: str, *lines: str, returns: str = "c") -> Program:
    body = "".join(f"  {line}\n" for line in lines)
    return parse_program(f"program p({head}):\n{body}  return {returns}\n")


MATMUL = program("a: f32[4, 6], b: f32[6, 5]", "c: f32[i<4, j<5] = sum(k<6) a[i, k] * b[k, j]")


def test_a_multiply_add_is_two_operations() -> None:
    counted = work_of(MATMUL)
    assert counted.flops == 2 * 4 * 5 * 6
    assert (counted.read_bytes, counted.written_bytes) == ((24 + 30) * 4, 20 * 4)
    assert counted.bytes == (24 + 30 + 20) * 4
    constant = wiring.with_constants(MATMUL, {"b": np.ones((6, 5), np.float32)})
    assert work_of(constant) == counted and [t.name for t in constant.inputs] == ["a"]
    assert work_of(replace(MATMUL, results=("c", "c"))).written_bytes == 80


@pytest.mark.parametrize(
    ("line", "operations"),
    [
        ("c: f32[i<64] = sum(k<64 if k <= i) x[i, k]", 64 * 65 / 2),
        ("c: f32[i<64] = max(k<64) x[i, k]", 64 * 64),
        ("c: f32[i<64] = exp(x[i, 0]) * 2.0", 128),
        ("c: f32[i<64, k<64] = scan sum(k) x[i, k]", 64 * 64),
        ("c: f32[i<64, k<64] = x[k, i]", 0),
        ("c: f32[i<64] = sum(k<64 if x[i, k] > 0.0) x[i, k]", 64 * 64),
    ],
)
def test_operations(line: str, operations: float) -> None:
    assert work_of(program("x: f32[64, 64]", line)).flops == operations


def test_a_large_guard_is_sampled() -> None:
    causal = program("x: f32[4096, 4096]", "c: f32[i<4096] = sum(k<4096 if k <= i) x[i, k]")
    assert work_of(causal).flops == pytest.approx(4096 * 4097 / 2, rel=0.01)


def test_a_lookup_reads_what_it_looks_up() -> None:
    table = program("t: f32[50000, 64], n: i64[9]", "c: f32[i<9, j<64] = t[n[i], j]")
    assert work_of(table).read_bytes == 9 * 64 * 4 + 9 * 8
    one = program("t: f32[500, 64]", "c: f32[j<64, r<30] = t[7, j]")
    assert work_of(one).read_bytes == 64 * 4
    window = program("x: f32[100]", "c: f32[i<98] = sum(k<3) x[i + k]")
    assert work_of(window).read_bytes == 400
    unread = program("x: f32[100], y: f32[3]", "c: f32[i<3] = y[i]")
    assert work_of(unread).read_bytes == 12


def test_open_sizes() -> None:
    symbolic = program("a: f32[N]", "dim N in 0 .. inf", "c: f32[i<N] = a[i] + 1.0")
    with pytest.raises(UserError, match="P001") as caught:
        work_of(symbolic)
    assert "N" in caught.value.message and caught.value.hint
    assert work_of(symbolic.bind({"N": 7})).flops == 7
    assert work_of(symbolic.bind({"N": 0})).bytes == 0


@pytest.mark.parametrize("seed", range(30))
def test_any_program_can_be_counted(seed: int) -> None:
    case: Any = generate(seed)
    work = work_of(case.program.bind(case.sizes))
    assert work.flops >= 0 and work.read_bytes >= 0 and work.written_bytes >= 0
