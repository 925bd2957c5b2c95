"""Weights of a recurrence that pass through the cache: there in one step, back in the next."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright.group.plan import plan_program
from tilewright.ir.kernel import Kernel
from tilewright.ir.nest import For, If
from tilewright.machine.target import Target
from tilewright.runtime.link import lower_kernel
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.schedule import Schedule
from tilewright.tools.wiring import with_constants

RNN = """
x: f32[T, B, H]; w: f32[H, H]
recur t<T: h[t, b, i] = tanh(x[t, b, i] + sum(j) w[i, j] * (h[t - 1, b, j] else 0))
"""
TARGET = Target.named("x86-avx512")


def case(steps: int, batch: int, width: int) -> tuple[tw.Program, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(width)
    w = (rng.standard_normal((width, width)) / width**0.5).astype(np.float32)
    x = rng.standard_normal((steps, batch, width)).astype(np.float32)
    program = tw.program(RNN).bind({"T": steps, "B": batch, "H": width})
    return with_constants(program, {"w": w}), w, x


def kernel(steps: int, batch: int, width: int) -> Kernel:
    kernels = plan_program(case(steps, batch, width)[0], TARGET)[0].kernels
    return next(k for k in kernels if k.sequence)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("width", [8, 331, 777])
@pytest.mark.parametrize("steps", [1, 2, 6, 7])
def test_both_ways_give_the_same(steps: int, batch: int, width: int) -> None:
    program, w, x = case(steps, batch, width)
    h, expected = np.zeros((batch, width)), []
    for t in range(steps):
        expected.append(h := np.tanh(x[t] + h @ w.T.astype(np.float64)))
    found = tw.compile(program, threads=1)(x)
    np.testing.assert_allclose(found, np.array(expected), atol=2e-5)


def test_only_what_does_not_stay_in_cache_turns() -> None:
    sizes = {}
    for width in (64, 1024, 8192):
        default = space_of(kernel(4, 1, width), TARGET).default()
        sizes[4 * width * width / TARGET.l2_bytes] = default.integer("s0.turn")
    assert all(turns == (0.5 < size < 8) for size, turns in sizes.items())
    assert set(sizes.values()) == {0, 1}


def test_every_other_step_begins_at_the_end() -> None:
    k = kernel(6, 1, 1024)
    schedule = space_of(k, TARGET).default()
    nest = lower_kernel(k, schedule, TARGET).nest
    (choice,) = (n for n in nest.walk() if isinstance(n, If))
    steps = next(n for n in nest.phases[-1].body if isinstance(n, For) and choice in n.body)
    assert str(choice.condition) == f"{steps.var} % 2 == 0"
    there, back = (next(n for n in w if isinstance(n, For)) for w in (choice.then, choice.orelse))
    assert there.hi == back.hi and len(there.body) == len(back.body)
    plain = lower_kernel(k, Schedule.of({**schedule.values, "s0.turn": 0}), TARGET).nest
    assert not [n for n in plain.walk() if isinstance(n, If)]
