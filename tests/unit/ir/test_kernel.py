"""Kernels: canonical names, text that comes back, and the same nest and code from that text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tilewright.codegen.llvm import emit_llvm
from tilewright.errors import Rejected, UserError
from tilewright.group.plan import canonical, plan_program
from tilewright.ir.kernel import Kernel, parse_kernel
from tilewright.ir.nest import parse_nest
from tilewright.ir.program_parser import parse_program
from tilewright.lower.kernel import lower
from tilewright.machine.target import Target
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.schedule import Schedule
from tilewright.verify.programs import generate

TARGET = Target.named("x86-avx512")
NORM = """program norm(x: f32[40, 96], g: f32[96]):
  m: f32[i<40] = sum(k<96) x[i, k]
  d: f32[i<40, k<96] = x[i, k] - m[i] / 96.0
  v: f32[i<40] = sum(k<96) d[i, k] * d[i, k]
  y: f32[i<40, k<96] = d[i, k] / sqrt(v[i] / 96.0 + 1e-05) * g[k]
  return y
"""
LSTM = """program r(x: f32[5, 8], w: f32[8, 8], h0: f32[8]):
  recur t<5:
    h: f32[t<5, j<8] = sum(k<8) (h[t - 1, k] else h0[k]) * w[k, j]
  return h
"""


def kernels_of(seed: int) -> tuple[Kernel, ...]:
    case = generate(seed)
    return plan_program(case.program.bind(case.sizes), TARGET)[0].kernels


def code(kernel: Kernel, schedule: Schedule) -> tuple[str, str]:
    low = lower(kernel, schedule, TARGET)
    assert not isinstance(low, Rejected), low
    nest = parse_nest(str(low.nest))
    assert nest == low.nest and nest.key == low.nest.key
    text = emit_llvm(low.nest, TARGET)
    assert emit_llvm(nest, TARGET) == text
    return str(low.nest), text


@pytest.mark.parametrize("seed", range(40))
def test_every_stage_of_a_random_kernel_comes_back(seed: int) -> None:
    for kernel in kernels_of(seed):
        again = parse_kernel(str(kernel))
        assert again == kernel and again.key == kernel.key and again.task_key == kernel.task_key
        space = space_of(kernel, TARGET, 2)
        schedule = space.default()
        assert Schedule.parse(str(schedule)) == schedule and space.contains(schedule)
        assert space_of(again, TARGET, 2).default() == schedule
        assert code(again, Schedule.parse(str(schedule))) == code(kernel, schedule)


@pytest.mark.parametrize("seed", range(24, 36))
def test_names_are_canonical(seed: int) -> None:
    for kernel in kernels_of(seed):
        assert canonical(kernel) == kernel
        names = list(kernel.program.tensors)
        assert set(names) == {f"t{k}" for k in range(len(names))}
        assert all(re.fullmatch(r"a\d+", a) for a in kernel.extents)


def test_stages_and_shared_axes_come_back() -> None:
    (kernel,) = plan_program(parse_program(NORM), TARGET)[0].kernels
    assert kernel.shared and len(kernel.stages) > 1
    assert parse_kernel(str(kernel)) == kernel
    assert "  shared a0\n" in str(kernel) and "\n  stage " in str(kernel)


def test_a_recurrence_comes_back() -> None:
    (kernel,) = plan_program(parse_program(LSTM), TARGET)[0].kernels
    assert kernel.sequence
    assert parse_kernel(str(kernel)) == kernel


def test_names_do_not_matter() -> None:
    other = NORM
    for old, new in (("x", "input_0"), ("g", "Gamma"), ("m", "mean"), ("d", "centered"), ("v", "var"), ("y", "out")):
        other = re.sub(rf"\b{old}\b", new, other)
    other = re.sub(r"\bk\b", "column", re.sub(r"\bi\b", "row", other))
    first, second = (plan_program(parse_program(t), TARGET)[0].kernels for t in (NORM, other))
    assert [k.key for k in first] == [k.key for k in second]


def test_constants_count_by_content_in_key_and_not_in_task_key() -> None:
    text = "program p(x: f32[4]):\n  const w: f32[4] @{0}\n  y: f32[i<4] = x[i] * w[i]\n  return y\n"
    a, b = (plan_program(parse_program(text.format(c)), TARGET)[0].kernels[0] for c in ("aa", "bb"))
    assert a.key != b.key and a.task_key == b.task_key
    assert parse_kernel(str(a)).key == a.key


@pytest.mark.parametrize(
    ("text", "code_"),
    [
        ("kernel format 7:\n", "S002"),
        ("nest k format 1:\n", "S002"),
        ("", "S002"),
        ("kernel format 1:\n  unknown line\nprogram k format 1():\n  return\n", "F010"),
        ("kernel format 1:\n  layout t0: [2] what\nprogram k format 1(t0: f32[2]):\n  return t0\n", "F010"),
        ("kernel format 1:\n  stage t1 of t1\n", "F010"),
    ],
)
def test_text_that_is_no_kernel(text: str, code_: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_kernel(text)
    assert caught.value.code == code_


def test_a_schedule_of_another_kernel_is_rejected_as_a_value() -> None:
    (kernel,) = plan_program(parse_program(NORM), TARGET)[0].kernels
    strange = Schedule.of({**space_of(kernel, TARGET).default().values, "turbo": 1})
    low = lower(kernel, strange, TARGET)
    assert isinstance(low, Rejected) and low.code == "S001"


def test_layouts_are_part_of_the_key() -> None:
    (kernel,) = plan_program(parse_program(NORM), TARGET)[0].kernels
    name, layout = kernel.layouts[0]
    moved = replace(kernel, layouts=((name, replace(layout, offset=64, size=layout.size + 64)), *kernel.layouts[1:]))
    assert moved.key != kernel.key and parse_kernel(str(moved)) == moved
