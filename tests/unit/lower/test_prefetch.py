"""Software prefetch: where the default asks for it, and that it asks for the right addresses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tilewright.group.plan import plan_program
from tilewright.ir import expr as E
from tilewright.ir.kernel import Kernel
from tilewright.ir.nest import For, If, Load, LoopNest, Prefetch
from tilewright.ir.program import Program, array_key
from tilewright.ir.program_parser import parse_program
from tilewright.ir.ranges import simplify
from tilewright.lower.kernel import Lowered, lower
from tilewright.machine.target import Target
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.schedule import Schedule

TARGET = Target.named("x86-avx512")
PRODUCT = """program p(x: f32[{m}, {k}], w: f32[{k}, {n}], r: f32[{m}, {n}]):
  c: f32[i<{m}, j<{n}] = sum(k<{k}) x[i, k] * w[k, j]
  y: f32[i<{m}, j<{n}] = max(c[i, j] + r[i, j], 0.0)
  return y
"""


def kernel_of(m: int, n: int, k: int) -> Kernel:
    """A product with a constant right operand and a residual."""
    p = parse_program(PRODUCT.format(m=m, n=n, k=k))
    w = np.ones((k, n), np.float32)
    key = array_key(w)
    constants = tuple((t, key) for t in p.inputs if t.name == "w")
    inputs = tuple(t for t in p.inputs if t.name != "w")
    p = replace(p, inputs=inputs, constants=constants, values={key: w})
    assert isinstance(p, Program)
    plan, _ = plan_program(p, TARGET)
    return plan.kernels[0]


def nest_of(kernel: Kernel, **changes: int) -> LoopNest:
    default = space_of(kernel, TARGET).default()
    lowered = lower(kernel, Schedule.of({**default.values, **changes}), TARGET)
    assert isinstance(lowered, Lowered)
    return lowered.nest


def prefetches(nodes: object, inside: int = 0) -> list[tuple[int, Prefetch]]:
    """(number of loops around it, node) of all prefetches."""
    found = []
    for n in nodes:  # type: ignore[attr-defined]
        if isinstance(n, Prefetch):
            found.append((inside, n))
        elif isinstance(n, For):
            found += prefetches(n.body, inside + 1)
        elif isinstance(n, If):
            found += prefetches(n.then, inside) + prefetches(n.orelse, inside)
    return found


def all_prefetches(nest: LoopNest) -> list[tuple[int, Prefetch]]:
    return [x for phase in nest.phases for x in prefetches(phase.body)]


def test_large_constants_are_fetched_ahead_and_small_ones_are_not() -> None:
    large, small = kernel_of(28, 1024, 1024), kernel_of(28, 64, 64)
    assert space_of(large, TARGET).default().integer("s0.ahead") > 0
    assert space_of(small, TARGET).default().integer("s0.ahead") == 0


def loops(nodes: object) -> list[For]:
    found = []
    for n in nodes:  # type: ignore[attr-defined]
        if isinstance(n, For):
            found += [n, *loops(n.body)]
        elif isinstance(n, If):
            found += loops(n.then) + loops(n.orelse)
    return found


def test_what_is_fetched_ahead_is_what_a_later_step_loads() -> None:
    kernel = kernel_of(28, 1024, 1024)
    nest = nest_of(kernel, **{"s0.ahead": 8, "s0.fetch": 0, "s0.reg.k0": 1})
    width = space_of(kernel, TARGET).default().integer("s0.reg.n0")
    found = 0
    for loop in (x for phase in nest.phases for x in loops(phase.body)):
        for p in (n for n in loop.body if isinstance(n, Prefetch)):
            bases = [n.base for n in loop.body if isinstance(n, Load) and n.buffer == p.buffer]
            later = {E.index(loop.var): E.index(loop.var) + 8}
            assert [E.substitute(b, later) for b in bases] == [p.base]
            assert p.bytes == 4 * width
            found += 1
    assert found


def test_rows_of_the_residual_and_the_result_are_fetched_before_the_reduction() -> None:
    kernel = kernel_of(28, 64, 64)
    nest = nest_of(kernel, **{"s0.ahead": 0, "s0.fetch": 1})
    rows = space_of(kernel, TARGET).default().integer("s0.reg.m0")
    found = all_prefetches(nest)
    residual = {kernel.program.inputs[1].name, *kernel.program.results}
    assert {p.buffer for _, p in found} == residual
    assert len(found) % (2 * rows) == 0
    assert not all_prefetches(nest_of(kernel, **{"s0.ahead": 0, "s0.fetch": 0}))


@pytest.mark.parametrize(("rows", "tail"), [(21, "peel"), (510, "overlap")])
def test_a_long_rest_of_a_short_axis_is_a_tile_of_its_own(rows: int, tail: str) -> None:
    space = space_of(kernel_of(rows, 1024, 64), TARGET)
    (tails,) = (g.rows for g in space.groups if g.names == ("s0.tail.m0",))
    assert {t for (t,) in tails} == {"peel", "overlap"}
    height = space.default().integer("s0.reg.m0")
    assert rows % height
    assert tails[0] == (tail,)


NORM = """program p(x: f32[{m}, {n}]):
  s: f32[i<{m}] = sum(j<{n}) x[i, j] * x[i, j]
  y: f32[i<{m}, j<{n}] = x[i, j] / sqrt(s[i])
  return y
"""


@pytest.mark.parametrize(
    ("m", "n", "rows"), [(1 << 20, 256, 16), (1 << 18, 1024, 4), (1 << 16, 8192, 1), (64, 1024, 0)]
)
def test_rows_are_asked_for_by_the_stage_that_writes(m: int, n: int, rows: int) -> None:
    """16 KB ahead, one row at least, where results do not stay in cache."""
    plan, _ = plan_program(parse_program(NORM.format(m=m, n=n)), TARGET)
    (kernel,) = plan.kernels
    default = space_of(kernel, TARGET).default()
    assert default.integer("s0.prefetch") == 1 and default.integer("s1.prefetch") == rows
    nest = nest_of(kernel, **{"s0.prefetch": 0})
    found = 0
    for loop in (x for phase in nest.phases for x in loops(phase.body)):
        for p in (n for n in loop.body if isinstance(n, Prefetch)):
            (base,) = (n.base for n in loop.body if isinstance(n, Load) and n.buffer == p.buffer)
            assert simplify(p.base - base, {}) == E.const(rows * n)
            found += 1
    assert found == (rows > 0)
