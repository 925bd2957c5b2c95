"""Recurrences of a batch: parts of it run all steps apart, on as many threads."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright.group.plan import plan_program
from tilewright.machine.target import Target
from tilewright.runtime.link import lower_kernel
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.schedule import Schedule
from tilewright.schedule.shares import shared_out

RNN = """
x: f32[T, B, H]; w: f32[H, H]
recur t<T: h[t, b, i] = tanh(x[t, b, i] + sum(j) w[i, j] * (h[t - 1, b, j] else 0))
"""
SCAN = """
a: f32[T, B, C]; x: f32[T, B, C]; c: f32[T, B, 4]
recur t<T:
  s[t, b, k, n<4] = a[t, b, k] * (s[t - 1, b, k, n] else 0) + x[t, b, k] * c[t, b, n]
  y[t, b, k] = sum(n) s[t, b, k, n]
return y
"""
MIXED = """
x: f32[T, B, H]
recur t<T: h[t, b, i] = x[t, b, i] + 0.5 * (h[t - 1, B - 1 - b, i] else 0)
"""


def kernels(text: str, **sizes: int) -> list:  # type: ignore[type-arg]
    plan = plan_program(tw.program(text).bind(sizes), Target.native())[0]
    return [k for k in plan.kernels if k.sequence]


def expected(text: str, x: dict[str, np.ndarray]) -> np.ndarray:
    """By NumPy, in float64, a step after the other."""
    x = {n: v.astype(np.float64) for n, v in x.items()}
    steps, batch = next(iter(x.values())).shape[:2]
    if text is RNN:
        h, out = np.zeros((batch, x["x"].shape[2])), []
        for t in range(steps):
            out.append(h := np.tanh(x["x"][t] + h @ x["w"].T))
        return np.array(out)
    if text is MIXED:
        h, out = np.zeros(x["x"].shape[1:]), []
        for t in range(steps):
            out.append(h := x["x"][t] + 0.5 * h[::-1])
        return np.array(out)
    s, out = np.zeros((batch, x["a"].shape[2], 4)), []
    for t in range(steps):
        s = x["a"][t][..., None] * s + x["x"][t][..., None] * x["c"][t][:, None]
        out.append(s.sum(-1))
    return np.array(out)


def arrays(text: str, steps: int, batch: int, width: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    shape = (steps, batch, width)
    if text is RNN:
        return {"x": rng.standard_normal(shape, np.float32), "w": 0.1 * rng.standard_normal((width, width)).astype(np.float32)}
    if text is MIXED:
        return {"x": rng.standard_normal(shape, np.float32)}
    c = rng.standard_normal((steps, batch, 4), np.float32)
    return {"a": rng.random(shape, np.float32), "x": rng.standard_normal(shape, np.float32), "c": c}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 5, 32, 33])
@pytest.mark.parametrize("text", [RNN, SCAN, MIXED])
def test_parts_give_what_one_thread_does(text: str, batch: int, threads: int) -> None:
    inputs = arrays(text, 7, batch, 19)
    model = tw.compile(text, inputs, threads=threads)
    found = np.asarray(model(*inputs.values()))
    np.testing.assert_allclose(found, expected(text, inputs), rtol=1e-4, atol=1e-4)


def test_an_axis_is_followed_through_all_reads() -> None:
    (rnn,) = kernels(RNN, T=6, B=8, H=40)
    assert not shared_out(rnn, 1)
    assert {m: rnn.definitions[m].axes[1].name for m in rnn.definitions} == shared_out(rnn, 2)
    (scan,) = kernels(SCAN, T=6, B=1, C=64)
    axes = shared_out(scan, 2)
    assert {m: scan.definitions[m].axes[2].name for m in axes} == axes  # channels: one sequence
    assert not shared_out(kernels(SCAN, T=6, B=1, C=8)[0], 2)  # of which a line holds all
    assert not shared_out(kernels(RNN, T=6, B=1, H=40)[0], 2)  # every position reads all others


@pytest.mark.parametrize(("batch", "parts"), [(8, 2), (9, 2), (9, 4), (5, 5)])
def test_the_loop_over_parts_is_outside_of_the_steps(batch: int, parts: int) -> None:
    (kernel,) = kernels(RNN, T=6, B=batch, H=40)
    target = Target.native()
    schedule = Schedule.of({**dict(space_of(kernel, target, parts).default().items), "par": parts})
    nest = lower_kernel(kernel, schedule, target).nest
    loop = nest.phases[-1].parallel
    assert loop is not None and int(loop.hi.attr) == -(-batch // -(-batch // parts))
    serial = lower_kernel(kernel, space_of(kernel, target, 1).default(), target).nest
    assert all(p.parallel is None for p in serial.phases[-1:])


def test_little_work_stays_on_one_thread() -> None:
    for width, first in ((8, 0), (64, 2)):
        (kernel,) = kernels(RNN, T=4, B=8, H=width)
        assert dict(space_of(kernel, Target.native(), 2).default().items)["par"] == first
