"""Lowering: deterministic, refuses what is no schedule, one nest for equal decisions."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.errors import Rejected
from tilewright.group.plan import plan_program
from tilewright.ir.kernel import Kernel
from tilewright.ir.nest import For, If, Load, LoopNest, Map, Node, Store, parse_nest
from tilewright.ir.nest_interpreter import run_nest
from tilewright.ir.nest_verifier import verify_nest
from tilewright.ir.program import Definition
from tilewright.ir.program_parser import parse_program
from tilewright.lower.kernel import Lowered, lower
from tilewright.machine.target import Target
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.schedule import Schedule
from tilewright.verify.schedules import replay

TARGET = Target.named("x86-avx512")
MATMUL = """program p(x: f32[37, 29], w: f32[29, 45], b: f32[45]):
  c: f32[i<37, j<45] = sum(k<29) x[i, k] * w[k, j]
  y: f32[i<37, j<45] = max(c[i, j] + b[j], 0.0)
  return y
"""
SOFTMAX = """program p(x: f32[13, 83]):
  m: f32[i<13] = max(j<83) x[i, j]
  e: f32[i<13, j<83] = exp(x[i, j] - m[i])
  s: f32[i<13] = sum(j<83) e[i, j]
  y: f32[i<13, j<83] = e[i, j] / s[i]
  return y
"""


def kernel_of(text: str, target: Target = TARGET) -> Kernel:
    (kernel,) = plan_program(parse_program(text), target)[0].kernels
    return kernel


def nest_of(kernel: Kernel, schedule: Schedule, target: Target = TARGET) -> LoopNest:
    out = lower(kernel, schedule, target)
    assert isinstance(out, Lowered)
    verify_nest(out.nest)
    return out.nest


def nodes(body: tuple[Node, ...]) -> list[Node]:
    out: list[Node] = []
    for n in body:
        out.append(n)
        if isinstance(n, For):
            out += nodes(n.body)
        elif isinstance(n, If):
            out += nodes(n.then) + nodes(n.orelse)
    return out


@pytest.mark.parametrize("text", [MATMUL, SOFTMAX])
def test_the_same_text_twice(text: str) -> None:
    rng = np.random.default_rng(0)
    for target in map(Target.named, ("x86-avx512", "x86-avx2", "x86-sse42")):
        one, two = kernel_of(text, target), kernel_of(text, target)
        assert one == two
        space = space_of(one, target)
        for s in (space.default(), space.sample(rng)):
            nest = nest_of(one, s, target)
            assert str(nest) == str(nest_of(two, s, target))
            assert parse_nest(str(nest)) == nest


def test_an_unknown_parameter_is_rejected() -> None:
    kernel = kernel_of(MATMUL)
    values = dict(space_of(kernel, TARGET).default().values)
    out = lower(kernel, Schedule.of({**values, "colour": 3}), TARGET)
    assert isinstance(out, Rejected)
    assert out.code == "S001"
    assert "colour" in out.detail


def test_every_output_is_stored_once_and_epilogues_stay_in_registers() -> None:
    kernel = kernel_of(MATMUL)
    nest = nest_of(kernel, space_of(kernel, TARGET).default())
    found = [n for p in nest.phases for n in nodes(p.body)]
    result = kernel.program.results[0]
    assert {n.buffer for n in found if isinstance(n, Store)} == {result}
    assert not any(isinstance(n, Load) and n.buffer == result for n in found)


def test_intermediate_rows_live_in_scratch() -> None:
    kernel = kernel_of(SOFTMAX)
    nest = nest_of(kernel, space_of(kernel, TARGET).default())
    scratch = [b for b in nest.buffers if b.place == "scratch"]
    assert scratch
    assert all(int(str(b.size)) <= 13 * 96 for b in scratch)


def test_par_zero_is_one_serial_phase() -> None:
    kernel = kernel_of(MATMUL)
    values = dict(space_of(kernel, TARGET).default().values)
    nest = nest_of(kernel, Schedule.of({**values, "par": 0, "s0.pack.b": "none"}))
    assert not any(isinstance(n, For) and n.parallel for p in nest.phases for n in nodes(p.body))


def test_a_branch_keeps_its_loads() -> None:
    """Loads of a tail are not moved in front of the branch that guards them."""
    kernel = kernel_of("""program p(x: f32[19, 22]):
  y: f32[i<22, j<19] = x[j, i]
  return y
""")
    space = space_of(kernel, TARGET)
    rng = np.random.default_rng(3)
    for _ in range(2):
        finding = replay(kernel, space.sample(rng), TARGET, native=False)
        assert finding is None, str(finding)


def test_replay_finds_a_wrong_kernel() -> None:
    """The fuzzer is no rubber stamp: a kernel judged by other definitions is found."""
    from dataclasses import replace

    from tilewright.verify import schedules

    kernel = kernel_of(MATMUL)
    good = space_of(kernel, TARGET).default()
    assert replay(kernel, good, TARGET, native=False) is None
    body = kernel.program.body
    first = body[0]
    assert isinstance(first, Definition) and first.reduction is not None
    wrong = replace(first, reduction=replace(first.reduction, monoid="max"))
    other = replace(kernel, program=replace(kernel.program, body=(wrong, *body[1:])))

    def lower_other(_: Kernel, s: Schedule, t: Target) -> Lowered | Rejected:
        return lower(other, s, t)

    old = schedules.lower
    schedules.lower = lower_other  # type: ignore[assignment]
    try:
        finding = replay(kernel, good, TARGET, native=False)
    finally:
        schedules.lower = old
    assert finding is not None
    assert finding.stage == "interpreter"
    assert "instead of" in finding.message


GUARDED = """program p(x: f32[5, 6, 20], w: f32[6, 40]):
  y: f32[h<5, i<20, o<40] = sum(k<6 if 2*k - h < {end}) x[h, k, i] * w[k, o]
  return y
"""


@pytest.mark.parametrize(("end", "longest"), [(3, 4), (-3, 1), (99, 6)])
def test_a_loop_ends_where_its_guard_says(end: int, longest: int) -> None:
    """A comparison of a reduced axis with what the whole tile has in common ends the loop: no step
    is masked, and contributions are those of the guard.
    """
    kernel = kernel_of(GUARDED.format(end=end))
    space = space_of(kernel, TARGET, 1)
    nest = nest_of(kernel, space.default())
    steps = [n for p in nest.phases for n in nodes(p.body)]
    assert not any(isinstance(n, Map) and n.op == "select" for n in steps)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 6, 20)).astype(np.float32)
    w = rng.standard_normal((6, 40)).astype(np.float32)
    buffers = {"t0": x.ravel(), "t1": w.ravel(), "t2": np.full(4000, np.nan, np.float32)}
    kept = np.array([[2 * k - h < end for k in range(6)] for h in range(5)], np.float32)
    assert kept.sum(1).max() == longest
    run_nest(nest, buffers, {})
    want = np.einsum("hki,hk,ko->hio", x.astype(np.float64), kept, w.astype(np.float64))
    np.testing.assert_allclose(buffers["t2"].reshape(want.shape), want, rtol=1e-5, atol=1e-5)
