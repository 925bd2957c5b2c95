"""Branches and loops run natively: results, arena, saved files, the clock, damaged files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.errors import UserError
from tilewright.group.plan import plan_program
from tilewright.ir.interpreter import run_program
from tilewright.ir.plan import Control, parse_plan
from tilewright.ir.program import Program, array_key
from tilewright.ir.program_parser import parse_program
from tilewright.machine.target import Target
from tilewright.runtime.package import _step_in

BRANCH = """program p format 1(x: f32[37], c: i64[]):
  big: bool[] = 3 < c[]
  a: f32[i<37] = x[i] * 2.0
  y: f32[37], n: i64[] = if big:
    u: f32[i<37] = a[i] + 1.0
    two: i64[] = c[] * 2
    yield u, two
  else:
    yield x, c
  z: f32[i<37] = y[i] + f32(n[])
  return z, y
"""
LOOP = """program p format 1(x: f32[3, 70], m: i64[], go: bool[]):
  zero: f32[j<70] = 0.0
  s: f32[70], old: f32[70], ys: f32[3, 70] = while t<3 if go:
    carry a: f32[70] = zero, b: f32[70] = zero
    sum_: f32[j<70] = a[j] + b[j] + x[t[], j]
    square: f32[j<70] = sum_[j] * sum_[j]
    more: bool[] = t[] + 1 < m[]
    next sum_, a stack square if more
  steps: i64[] = t[]*10
  return s, old, ys, steps
"""
SWAP = """program p format 1(x: f32[5], y: f32[5], n: i64[]):
  u: f32[5], v: f32[5] = while t<9:
    carry a: f32[5] = x, b: f32[5] = y
    odd: bool[] = (t[] + n[]) % 2 == 1
    c: f32[5], d: f32[5] = if odd:
      yield b, a
    else:
      e: f32[5], f: f32[5] = while k<2:
        carry g: f32[5] = a, h: f32[5] = b
        w: f32[i<5] = g[i] + h[i] + f32(k[] + t[])
        next h, w
      yield e, f
    next c, d
  return u, v
"""


def check(p: Program, inputs: dict[str, Any]) -> None:
    model = tw.compile(p)
    for _ in range(2):  # the arena of the first call is used again
        for got, wanted in zip(model.run(inputs), run_program(p, inputs), strict=True):
            assert got.shape == wanted.shape
            np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("c", [2, 4])
def test_branch(c: int) -> None:
    x = np.linspace(-1, 1, 37, dtype=np.float32)
    check(parse_program(BRANCH), {"x": x, "c": np.asarray(c)})


@pytest.mark.parametrize(("m", "go"), [(0, True), (2, True), (9, True), (2, False)])
def test_loop(m: int, go: bool) -> None:
    x = np.arange(210, dtype=np.float32).reshape(3, 70)
    check(parse_program(LOOP), {"x": x, "m": np.asarray(m), "go": np.asarray(go)})


@pytest.mark.parametrize("n", [0, 1])
def test_states_that_swap_in_nested_blocks(n: int) -> None:
    x, y = np.arange(5, dtype=np.float32), np.full(5, 3, np.float32)
    check(parse_program(SWAP), {"x": x, "y": y, "n": np.asarray(n)})


@pytest.mark.parametrize("text", [BRANCH, LOOP, SWAP])
def test_plan_text(text: str) -> None:
    plan, _ = plan_program(parse_program(text), Target.native())
    assert parse_plan(str(plan)) == plan
    assert len(plan.buffer_of) == len(plan.buffers)
    assert any(isinstance(s, Control) for s in plan.steps)


def test_known_conditions_leave_no_branch() -> None:
    p = parse_program(
        BRANCH.replace("c: i64[]", "d: i64[]").replace("big:", "c: i64[] = 5\n  big:", 1)
    )
    plan, _ = plan_program(p, Target.native())
    assert not any(isinstance(s, Control) for s in plan.steps)
    check(p, {"x": np.ones(37, np.float32), "d": np.asarray(0)})


def test_saved_and_timed(tmp_path: Path) -> None:
    p = parse_program(LOOP)
    model = tw.compile(p)
    x = np.ones((3, 70), np.float32)
    given = {"x": x, "m": np.asarray(2), "go": np.asarray(True)}
    wanted = model.run(given)
    model.save(tmp_path / "m.twa")
    for a, b in zip(tw.load(tmp_path / "m.twa").run(given), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    got, phases = model.timed(given)
    np.testing.assert_array_equal(got[0], wanted[0])
    assert len(phases) == len(model.latest.binding.phases) == len(model.latest.linked.owners)
    assert all(ns >= 0 for ns in phases) and sum(phases) > 0
    assert "while t < 3" in model.dump("plan")
    assert model.explain(measure=True) and model.explain(memory=True)


def test_denormals_of_a_first_state_are_kept() -> None:
    """A constant that is multiplied somewhere, and elsewhere what a loop starts from, stays exact."""
    text = """program p format 1(x: f32[3]):
  const w: f32[3] @KEY
  z: f32[i<3] = x[i] * w[i]
  s: f32[3] = while t<1:
    carry h: f32[3] = w
    same: f32[i<3] = where(x[i] < 9.0, h[i], x[i])
    next same
  return z, s
"""
    w = np.array([1e-40, 1.0, 2.0], np.float32)
    key = array_key(w)
    p = dataclasses.replace(parse_program(text.replace("KEY", key)), values={key: w})
    np.testing.assert_array_equal(tw.compile(p).run({"x": np.ones(3, np.float32)})[1], w)


def broken(change: Any) -> str:
    plan, _ = plan_program(parse_program(LOOP), Target.native())
    return str(dataclasses.replace(plan, steps=tuple(change(list(plan.steps)))))


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda steps: [s for s in steps if s != Control("end")], "P001", "without its end"),
        (lambda steps: [*steps, Control("end")], "P001", "an end without"),
        (lambda steps: [Control("else"), *steps], "P001", "an else without"),
        (lambda steps: [Control("if", ("x",)), Control("end"), *steps], "P002", "must be bool"),
        (lambda steps: [Control("copy", ("x", "s")), *steps], "P002", "different tensors"),
        (lambda steps: [Control("copy", ("nowhere", "s")), *steps], "P004", "not declared"),
        (lambda steps: [Control("stack", ("s", "s", "t")), *steps], "P002", "row of another"),
    ],
)
def test_malformed_plans(change: Any, code: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_plan(broken(change))
    assert caught.value.code == code


@pytest.mark.parametrize(
    "step",
    [
        {"control": "jump", "to": 9, "count": 0, "bytes": 0, "arguments": []},
        {"control": "while", "to": 1, "count": 0, "bytes": 0, "arguments": [["arena", 0]]},
        {"control": "copy", "to": 0, "count": 0, "bytes": -1, "arguments": [["arena", 0]] * 2},
        {
            "control": "copy",
            "to": 0,
            "count": 0,
            "bytes": 64,
            "arguments": [["arena", 0], ["arena", 8]],
        },
    ],
)
def test_damaged_steps(step: dict[str, Any]) -> None:
    limits = {"input": 1, "output": 1, "const": 1, "arena": 65}
    with pytest.raises(ValueError, match="does not fit"):
        _step_in(step, limits, 0, 3)
