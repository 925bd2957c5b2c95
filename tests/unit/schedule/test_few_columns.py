"""Products with too few columns to fill vectors: rows do, and are turned in registers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tilewright as tw
from tilewright.errors import TargetError
from tilewright.group.plan import plan_program
from tilewright.ir.interpreter import run_program
from tilewright.ir.program import Program, array_key
from tilewright.ir.program_parser import parse_program
from tilewright.machine.target import Target
from tilewright.schedule.kernel_space import space_of

HEAD = """program head(x: f32[{n}, 67, 24], w: f32[24, {p}, {q}]):
  t: f32[i<{n}, p<{p}, j<67, q<{q}] = sum(c<24) x[i, j, c] * w[c, p, q]
  y: f32[i<{n}, p<{p}, j<67, q<{q}] = sigmoid(t[i, p, j, q] + 0.25)
  return y
"""


def head(n: int, p: int, q: int) -> Program:
    made = parse_program(HEAD.format(n=n, p=p, q=q))
    w = np.random.default_rng(0).standard_normal((24, p, q)).astype(np.float32)
    key = array_key(w)
    return replace(made, inputs=made.inputs[:1], constants=((made.inputs[1], key),), values={key: w})


@pytest.mark.parametrize(("p", "q", "lane"), [(2, 2, "m1"), (1, 3, "n0"), (16, 4, "n0")])
def test_rows_are_the_lanes_where_columns_are_few(p: int, q: int, lane: str) -> None:
    target = Target.named("x86-avx512")
    (kernel,) = plan_program(head(66, p, q), target)[0].kernels
    chosen = dict(space_of(kernel, target, 1).default().items)
    assert str(chosen["s0.lane"])[0] == lane[0]
    if lane == "m1":
        assert chosen["s0.lane"] == lane and int(chosen["s0.reg.k0"]) >= 4


@pytest.mark.parametrize("target", ["x86-avx512", "x86-avx2", "x86-sse42"])
@pytest.mark.parametrize(("n", "p", "q"), [(66, 2, 2), (5, 1, 3), (1, 2, 1)])
def test_they_are_right(n: int, p: int, q: int, target: str) -> None:
    try:
        Target.named(target).require_runnable()
    except TargetError as e:
        pytest.skip(str(e))
    program = head(n, p, q)
    x = np.random.default_rng(1).standard_normal((n, 67, 24)).astype(np.float32)
    got = tw.compile(program, target=Target.named(target), threads=1)(x)
    np.testing.assert_allclose(got, run_program(program, {"x": x})[0], rtol=1e-5, atol=1e-6)
