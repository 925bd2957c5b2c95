"""The analytic cost: what must be cheaper is cheaper."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.group.plan import plan_program
from tilewright.ir.kernel import Kernel
from tilewright.ir.program_parser import parse_program
from tilewright.lower.kernel import Lowered, lower
from tilewright.machine.cost import Loop, Stream, Tiling, Work, balance, lines, stage_cycles
from tilewright.machine.target import Target
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.space import Space
from tilewright.tune.features import KernelCost

TARGET = Target.named("x86-avx512")
MATRIX = """program p(x: f32[{n}, {n}], w: f32[{n}, {n}]):
  y: f32[i<{n}, j<{n}] = sum(k<{n}) x[i, k] * w[k, j]
  return y
"""
ROWS = """program p(x: f32[512, 1000]):
  m: f32[i<512] = max(j<1000) x[i, j]
  e: f32[i<512, j<1000] = exp(x[i, j] - m[i])
  s: f32[i<512] = sum(j<1000) e[i, j]
  y: f32[i<512, j<1000] = e[i, j] / s[i]
  return y
"""
WINDOW = """program p(x: f32[1, 16, 20, 20], w: f32[32, 16, 3, 3]):
  y: f32[n<1, o<32, h<18, v<18] = sum(c<16, a<3, b<3) x[n, c, h + a, v + b] * w[o, c, a, b]
  return y
"""


def kernel(text: str) -> Kernel:
    return plan_program(parse_program(text), TARGET)[0].kernels[0]


def product(n: int, m: int, lanes: int) -> float:
    x = Stream((n, 0, 1), 4)
    w = Stream((0, 1, n), 4, is_packed=True)
    y = Stream((n, 1, 0), 4, True)
    work = Work((n, n, n), frozenset({2}), (x, w, y), 1.0, True)
    tiling = Tiling((Loop(1, lanes), Loop(0, m), Loop(2, 1)), (m, lanes, 1), 1)
    return stage_cycles(work, tiling, TARGET)


def test_a_full_register_tile_is_faster_than_a_thin_one() -> None:
    assert product(512, 14, 32) < product(512, 4, 32) < product(512, 1, 32)
    assert product(512, 14, 32) < product(512, 14, 16)


def test_lines_of_rows_windows_and_columns() -> None:
    row = Stream((64, 1), 4)
    assert lines(row, (1, 16)) == 1
    assert lines(row, (8, 16)) == 8
    window = Stream((1, 1), 4)  # x[i + j]
    assert lines(window, (16, 3)) == pytest.approx(18 * 4 / 64)
    column = Stream((0, 64), 4)
    assert lines(column, (8, 16)) == 16
    assert lines(Stream((0, 64), 4, is_packed=True), (8, 16)) == 1
    assert lines(Stream((None,), 4), (9,)) == 9


def test_a_reused_operand_that_fits_is_fetched_once() -> None:
    def cycles(n: int) -> float:
        table, out = Stream((0, 1), 4), Stream((n, 1), 4, True)
        work = Work((64, n), frozenset(), (table, out))
        return stage_cycles(work, Tiling((Loop(0, 1), Loop(1, 16)), (1, 16), 1), TARGET) / n

    assert cycles(1000) < cycles(10_000_000)


def test_threads_divide_equal_chunks_only() -> None:
    work = 1e7
    assert balance(work, 8, 2) < 0.6 * work
    assert balance(work, 3, 2) > balance(work, 4, 2)
    assert balance(work, 1, 2) >= work
    assert balance(1000.0, 8, 2) > 1000.0  # waking a thread costs more than that


@pytest.mark.parametrize("text", [MATRIX.format(n=100), ROWS, WINDOW])
def test_equal_canonical_rows_are_equal_nests(text: str) -> None:
    k = kernel(text)
    for threads in (1, 2):
        space = space_of(k, TARGET, threads)
        cost = KernelCost(k, space, TARGET, threads)
        rng = np.random.default_rng(0)
        changed = 0
        for _ in range(60):
            rows = tuple(int(rng.integers(len(g.rows))) for g in space.groups)
            plain = cost.canonical(rows)
            assert cost.canonical(plain) == plain
            if plain != rows and cost.value(rows, "chunk") == cost.value(plain, "chunk"):
                changed += 1
                if changed <= 4:
                    assert nest_key(k, space, rows) == nest_key(k, space, plain)


def nest_key(k: Kernel, space: Space, rows: tuple[int, ...]) -> str:
    low = lower(k, space.at(rows), TARGET)
    assert isinstance(low, Lowered)
    return low.nest.key


@pytest.mark.parametrize("text", [MATRIX.format(n=200), ROWS, WINDOW])
def test_the_default_is_near_the_best_guess(text: str) -> None:
    k = kernel(text)
    space = space_of(k, TARGET)
    cost = KernelCost(k, space, TARGET, 1)
    rng = np.random.default_rng(1)
    default = tuple(g.start for g in space.groups)
    assert cost.log_gain(default) == 0.0
    sampled = [tuple(int(rng.integers(len(g.rows))) for g in space.groups) for _ in range(200)]
    gains = [cost.log_gain(r) for r in sampled if cost.is_reasonable(r)]
    assert np.median(gains) < 0.0
    assert max(gains) < 0.7
