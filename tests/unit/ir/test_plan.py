"""Plans: text that comes back as the same value, and what is refused."""

from __future__ import annotations

from functools import lru_cache

import pytest

from tilewright.errors import TilewrightError, UserError
from tilewright.group.plan import plan_program
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F32, I64
from tilewright.ir.layout import dense, ordered
from tilewright.ir.plan import ExternCall, KernelCall, Plan, PlanBuffer, parse_plan
from tilewright.ir.program import Extern, Program, Tensor
from tilewright.ir.program_parser import parse_program
from tilewright.machine.target import Target
from tilewright.verify.programs import generate

TARGET = Target.named("x86-avx512")
CONV = """program conv(x: f32[2, 20, 20, 16]):
  const w: f32[32, 3, 3, 16] @aa11
  const v: f32[32] @bb22
  y: f32[n<2, i<20, j<20, c<32] = sum(p<3, q<3, k<16) (x[n, i + p - 1, j + q - 1, k] else 0.0) * w[c, p, q, k]
  z: f32[n<2, i<20, j<20, c<32] = max(y[n, i, j, c] + v[c], 0.0)
  m: f32[n<2, c<32] = max(i<20, j<20) z[n, i, j, c]
  return z, m
"""


@lru_cache(maxsize=256)
def random_plan(seed: int) -> Plan:
    case = generate(seed)
    return plan_program(case.program.bind(case.sizes), TARGET)[0]


def conv() -> Plan:
    return plan_program(parse_program(CONV), TARGET)[0]


@pytest.mark.parametrize("seed", range(24))
def test_text_round_trip_of_random_plans(seed: int) -> None:
    plan = random_plan(seed)
    again = parse_plan(str(plan))
    assert again == plan
    assert again.key == plan.key and str(again) == str(plan)
    assert [k.key for k in again.kernels] == [k.key for k in plan.kernels]


@pytest.mark.parametrize("seed", range(24))
def test_what_a_plan_promises(seed: int) -> None:
    """Operands are declared, are written before they are read, and results come in order."""
    case = generate(seed)
    plan = random_plan(seed)
    places = {b.name: b.place for b in plan.buffers}
    assert len(places) == len(plan.buffers)
    written = {n for n, p in places.items() if p in ("input", "const")}
    called = set()
    for step in plan.steps:
        if isinstance(step, ExternCall):
            reads, writes = step.args, step.results
        else:
            kernel = plan.kernels[step.kernel]
            called.add(step.kernel)
            assert len(step.buffers) == len(kernel.layouts)
            names = dict(zip((n for n, _ in kernel.layouts), step.buffers, strict=True))
            own = {*kernel.program.results, *kernel.definitions}  # states may not leave it
            writes = tuple(b for n, b in names.items() if n in own)
            reads = tuple(b for n, b in names.items() if n not in own)
        assert set(reads) <= written, step
        assert all(places[n] in ("output", "arena") for n in writes), step
        written |= set(writes)
    assert called == set(range(len(plan.kernels)))
    assert len({k.key for k in plan.kernels}) == len(plan.kernels)
    outputs = [b.name for b in plan.buffers if b.place == "output"]
    results = [r for r in dict.fromkeys(case.program.results) if places[r] != "input"]
    assert outputs == results and set(outputs) <= written


def test_the_plan_of_a_convolution() -> None:
    plan = conv()
    assert parse_plan(str(plan)) == plan
    assert any(b.layout.halo for b in plan.buffers)
    assert {b.constant for b in plan.buffers if b.place == "const"} == {"aa11", "bb22"}
    assert plan.buffer_of["z"].bytes == 4 * 2 * 20 * 20 * 32


def test_externs_and_every_kind_of_attribute() -> None:
    layout = dense((3, 4))
    buffers = (
        PlanBuffer("x", F32, layout, "input"),
        PlanBuffer("v.1", F32, layout, "arena"),
        PlanBuffer("p", I64, ordered((3, 4), (1, 0), ((1, 2), (0, 0)), -1), "output"),
    )
    attributes = (
        ("axis", -1), ("largest", True), ("flag", False), ("scale", 2.5), ("tiny", -1e-30),
        ("mode", "half up"), ("shape", (3, 4)), ("one", (7,)), ("none", ()), ("edge", float("inf")),
    )  # fmt: skip
    plan = Plan("externs", buffers, (), (ExternCall("topk", ("x",), ("v.1", "p"), attributes),))
    assert parse_plan(str(plan)) == plan


def test_equal_work_is_one_kernel() -> None:
    text = """program thrice(x: f32[8, 8], w: f32[8, 8], y: f32[8, 8]):
  a: f32[i<8, j<8] = sum(k<8) x[i, k] * w[k, j]
  b: f32[r<8, s<8] = sum(t<8) y[r, t] * x[t, s]
  c: f32[u<8, v<8] = sum(t<8) w[u, t] * y[t, v]
  return c, a, b
"""
    plan = plan_program(parse_program(text), TARGET)[0]
    assert [s.kernel for s in plan.steps if isinstance(s, KernelCall)] == [0, 0, 0]
    assert len(plan.kernels) == 1
    assert [b.name for b in plan.buffers if b.place == "output"] == ["c", "a", "b"]
    assert parse_plan(str(plan)) == plan


def test_a_constant_changes_the_key_and_not_the_task() -> None:
    first = conv()
    second = plan_program(parse_program(CONV.replace("aa11", "cc33")), TARGET)[0]
    assert first.key != second.key
    assert [k.task_key for k in first.kernels] == [k.task_key for k in second.kernels]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("plan p format 2\n", "S002"),
        ("program p format 1():\n", "S002"),
        ("", "S002"),
        ("plan p format 1\n  what is this\n", "F010"),
        ("plan p format 1\n  input x: f99 [2] a0*1 size 2\n", "F010"),
        ("plan p format 1\n  input x: f32 [2] a0*q size 2\n", "F010"),
        ("plan p format 1\n--- kernel 0\nkernel format 9:\n", "S002"),
    ],
)
def test_text_that_is_no_plan(text: str, code: str) -> None:
    with pytest.raises(TilewrightError) as caught:
        parse_plan(text)
    assert isinstance(caught.value, UserError) and caught.value.code == code


def test_sizes_must_be_known() -> None:
    x = Tensor("x", F32, (E.dim("N"),))
    p = Program("p", (x,), (Extern((x.__class__("y", F32, x.shape),), "sort", ("x",)),), ("y",))
    with pytest.raises(UserError) as caught:
        plan_program(p, TARGET)
    assert caught.value.code == "P001"
