"""Layouts of tensors between kernels: lanes of constants innermost, halos, views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tilewright.group.plan import plan_program
from tilewright.ir.plan import Plan, parse_plan
from tilewright.ir.program_parser import parse_program
from tilewright.machine.target import Target

TARGET = Target.named("x86-avx512")


def planned(text: str, constants: tuple[str, ...] = ()) -> Plan:
    """The plan, some inputs as constants."""
    p = parse_program(text)
    inputs = tuple(t for t in p.inputs if t.name not in constants)
    found = tuple((t, t.name * 8) for t in p.inputs if t.name in constants)
    return plan_program(replace(p, inputs=inputs, constants=found), TARGET)[0]


CONVOLUTIONS = """program p(x: f32[1, 3, 10, 11], u: f32[20, 3, 3, 3], v: f32[7, 20, 3, 3]):
  a: f32[n<1, o<20, h<10, w<11] = sum(c<3, r<3, s<3) (x[n, c, h + r - 1, w + s - 1] else 0.0) * u[o, c, r, s]
  b: f32[n<1, o<20, h<10, w<11] = max(a[n, o, h, w], 0.0)
  y: f32[n<1, o<7, h<10, w<11] = sum(c<20, r<3, s<3) (b[n, c, h + r - 1, w + s - 1] else 0.0) * v[o, c, r, s]
  return y
"""


def test_channels_of_a_constant_contraction_go_last() -> None:
    plan = planned(CONVOLUTIONS, ("u", "v"))
    layout = plan.buffer_of["b"].layout
    assert layout.stride(1) == 1
    assert plan.buffer_of["y"].layout.is_row_major
    assert plan.buffer_of["x"].layout.is_row_major


def test_without_constants_the_order_stays() -> None:
    plan = planned("""program p(x: f32[9, 8], u: f32[8, 7], v: f32[7, 5]):
  a: f32[i<9, j<7] = sum(k<8) x[i, k] * u[k, j]
  b: f32[i<9, j<7] = exp(a[i, j])
  y: f32[n<5, i<9] = sum(j<7) v[j, n] * b[i, j]
  return b, y
""")
    assert plan.buffer_of["b"].layout.is_row_major


def test_padded_readers_give_a_halo_with_their_value() -> None:
    plan = planned(CONVOLUTIONS, ("u", "v"))
    layout = plan.buffer_of["b"].layout
    assert layout.halo == ((0, 0), (0, 0), (1, 1), (1, 1))
    assert layout.fill == 0
    assert layout.valid(2) == (-1, 11)
    flat = layout.pack(np.ones(layout.shape, np.float32))
    assert len(flat) == layout.size == 12 * 13 * 20
    assert flat.sum() == 20 * 10 * 11


def test_a_pool_has_a_halo_of_its_own_value() -> None:
    plan = planned("""program p(x: f32[1, 18, 9, 10]):
  r: f32[n<1, c<18, h<9, w<10] = exp(x[n, c, h, w])
  y: f32[n<1, c<18, h<5, w<5] = max(u<3, v<3) (r[n, c, h * 2 + u - 1, w * 2 + v - 1] else -inf)
  return y
""")
    layout = plan.buffer_of["r"].layout
    assert layout.fill == -np.inf
    assert layout.halo[2][0] == 1


def test_results_and_inputs_have_no_halo() -> None:
    plan = planned(CONVOLUTIONS.replace("return y", "return y, b"), ("u", "v"))
    assert plan.buffer_of["b"].place == "output"
    assert plan.buffer_of["b"].layout.is_row_major


def test_a_rearranged_tensor_is_written_in_place() -> None:
    """What only rearranges a contraction's result is no step of its own."""
    plan = planned("""program p(x: f32[9, 8], u: f32[8, 12]):
  a: f32[i<9, j<12] = sum(k<8) x[i, k] * u[k, j]
  y: f32[m<108] = a[8 - m // 12, m % 12]
  return y
""", ("u",))  # fmt: skip
    assert len(plan.steps) == 1
    assert [b.name for b in plan.buffers if b.place == "output"] == ["y"]
    assert not [b for b in plan.buffers if b.place == "arena"]


def test_a_plan_prints_and_parses() -> None:
    plan = planned(CONVOLUTIONS, ("u", "v"))
    assert parse_plan(str(plan)) == plan
