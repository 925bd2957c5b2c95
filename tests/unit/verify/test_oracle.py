"""`check`: right code passes, slightly wrong code does not, and ties are judged by witness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tilewright.errors import UserError
from tilewright.frontend.notation import parse_notation
from tilewright.ir.interpreter import run_program
from tilewright.ir.program import Program
from tilewright.ir.program_parser import parse_program
from tilewright.verify.generate import default_sizes, random_inputs
from tilewright.verify.oracle import check, compare_outputs
from tilewright.verify.witness import references

SOURCES = {
    "matmul": "C[i,j] = sum(k) A[i,k] * B[k,j]",
    "softmax": "y[i,j] = exp(x[i,j]) / sum(k) exp(x[i,k])",
    "half": "x: f16[...]; w: f16[...]; y: f16[i] = sum(k) x[i,k] * w[k]",
    "integers": "a: i8[N,K]; b: i8[K,M]; y[i,j] = sum(k) i32(a[i,k]) * i32(b[k,j])",
    "gather": "e[b,s,d] = t[ids[b,s], d]",
    "argmax": "h[i,j] = sum(k) x[i,k]*w[k,j]; p[i] = argmax(j) h[i,j]; return h, p",
    "quantise": "q: i8[i,j] = i8(round(sum(k) x[i,k]*w[k,j] * 8.0)); y[i,j] = f32(q[i,j]) / 8.0",
    "narrow": "y[i,j] = f32(bf16(exp(x[i,j]) * 3.0)); z[i] = sum(j) y[i,j]; return y, z",
    "compare": "b[i] = sum(k) x[i,k]*w[k] > 0.0; y[i] = where(b[i], x[i,0], 0.0); return b, y",
    "wide": "x: f64[N]; y[i] = exp(x[i]) / 3.0",
    "lstm": "recur t<T:\n  h[t,i] = tanh(sum(j) w[i,j]*(h[t-1,j] else 0.0) + x[t,i])",
}


def storing(program: Program) -> Callable[[dict[str, Any]], list[Any]]:
    """A stand-in for compiled code: the naive evaluation, stored in the outputs' dtypes."""

    def run(inputs: dict[str, Any]) -> list[Any]:
        outputs = run_program(program, inputs, precision="naive")
        pairs = zip(outputs, program.results, strict=True)
        return [a.astype(program.tensors[n].dtype.np) for a, n in pairs]

    return run


@pytest.mark.parametrize("name", SOURCES)
def test_plain_evaluation_passes(name: str) -> None:
    program = parse_notation(SOURCES[name])
    report = check(storing(program), program, sizes=default_sizes(program, 3, 20))
    assert report.ok, str(report)
    assert len(report.outcomes) == 3 * len(program.results)
    report.raise_if_wrong()


@pytest.mark.parametrize("name", SOURCES)
def test_a_wrong_element_fails(name: str) -> None:
    program = parse_notation(SOURCES[name])

    def wrong(inputs: dict[str, Any]) -> list[Any]:
        out = storing(program)(inputs)
        flat = out[0].reshape(-1)
        if flat.dtype == np.bool_:
            flat[-1] = not flat[-1]
        else:
            flat[-1] = flat[-1] + 3 if flat.dtype.kind == "i" else flat[-1] * 1.3 + 0.01
        return out

    report = check(wrong, program, sizes=default_sizes(program, 3, 20))
    assert not report.ok
    with pytest.raises(UserError, match=r"^\[V001\] output '.*' of program 'main' is wrong"):
        report.raise_if_wrong()


def test_an_object_with_run_and_given_inputs() -> None:
    program = parse_notation("y[i] = x[i] * 2.0")

    class Model:
        def run(self, inputs: dict[str, Any]) -> list[Any]:
            return [inputs["x"] * np.float32(2)]

    report = check(Model(), program, inputs={"x": np.ones(4, np.float32)})
    assert report.ok and report.outcomes[0].seed == -1
    assert check(lambda i: [], program).worst.verdict.message == "0 outputs instead of 1"  # type: ignore[union-attr]


def test_ties_of_computed_values_are_judged_by_witness() -> None:
    """Two columns equal up to rounding: either position is right, a third is not."""
    program = parse_notation("p[i] = argmax(j) exp(x[i,j]) * 1.1")
    x = np.zeros((1, 5), np.float32)
    x[0, 1:3] = 1, np.nextafter(np.float32(1), np.float32(0))

    def answer(k: int) -> bool:
        return check(lambda _: [np.asarray([k])], program, inputs={"x": x}).ok

    assert [answer(k) for k in range(5)] == [False, True, True, False, False]
    exact = parse_notation("p[i] = argmax(j) x[i,j]")
    assert not check(lambda _: [np.asarray([2])], exact, inputs={"x": x}).ok


def test_ties_of_values_rounded_to_half_precision_are_judged_too() -> None:
    """Where the rounding of many nearly equal values falls decides which is the first and best."""
    text = (
        "program p(x: f32[20]):\n  h: f16[i<20] = f16(exp(x[i]) * 1.1)\n"
        "  t: i64[] = argmax(i<20) h[i]\n  return t\n"
    )
    x = np.linspace(0.4990, 0.5, 20).astype(np.float32)
    x[:2] = 0.3, 0.4
    program = parse_program(text)

    def answer(k: int) -> bool:
        return check(lambda _: [np.asarray(k)], program, inputs={"x": x}).ok

    assert [answer(k) for k in range(20)] == [False, False, *[True] * 18]


def test_rounding_of_computed_values_is_judged_by_witness() -> None:
    program = parse_notation("q: i32[i] = i32(round(x[i] * 3.0))")
    x = np.asarray([0.5, 1.0, -0.5], np.float32)  # 1.5 and -1.5 lie on a boundary

    def answer(*q: int) -> bool:
        return check(lambda _: [np.asarray(q, np.int32)], program, inputs={"x": x}).ok

    assert answer(2, 3, -2) and answer(1, 3, -1)
    assert not answer(2, 4, -2) and not answer(3, 3, -2)
    exact = parse_notation("q: i32[i] = i32(round(x[i]))")
    assert not check(lambda _: [np.asarray([1, 1, 0], "i")], exact, inputs={"x": x}).ok


def test_programs_of_exact_choices_have_no_wiggle() -> None:
    program = parse_notation("y[i] = where(x[i] > 0.0, x[i], 0.0); p = argmax(i) x[i]")
    assert references(program, random_inputs(program, {"I": 9})).wiggle == []


def test_random_inputs() -> None:
    program = parse_notation(
        "ids: i32[B, S]; a: i8[B]; m: bool[B]; h: bf16[B]\n"
        "e[b,s] = t[ids[b,s] - 2] * f32(a[b]) + where(m[b], 1.0, 0.0) * f32(h[b])"
    )
    sizes = {"B": 40, "S": 3, "T_0": 6}
    one, two = random_inputs(program, sizes, 1), random_inputs(program, sizes, 1)
    for n, array in one.items():
        np.testing.assert_array_equal(array, two[n])
        assert array.dtype == program.tensors[n].dtype.np
    assert one["ids"].min() == 2 and one["ids"].max() == 7
    assert one["t"].dtype == np.float32 and np.isfinite(one["t"]).all()
    assert one["a"].min() < -50 and 0 < one["m"].sum() < 40
    assert (random_inputs(program, sizes, 2)["t"] != one["t"]).any()


def test_sizes_respect_range_and_divisibility() -> None:
    program = parse_notation(
        "dim N in 3 .. 12 multiple 4\ndim M in 0 .. inf hint 33\nx: f32[N, M]\ny[i,j] = x[i,j]"
    )
    found = {tuple(default_sizes(program, seed).values()) for seed in range(30)}
    assert {n for n, _ in found} == {4, 8, 12} and {m for _, m in found} == {33}


def test_positions_in_an_order_of_equal_keys() -> None:
    """Keys that differ by less than rounding may stand in either order; others may not."""
    text = "program p format 1(x: f32[4]):\n  y: f32[i<4] = erf(x[i])\n  v: f32[4], at: i64[4] = extern sort(y) {axis = 0}\n  return at\n"
    p = parse_program(text)
    x = np.array([5.0, 4.5, 0.1, 0.2], np.float32)  # both of the first are 1 in f32
    expected = references(p, {"x": x})
    for at, ok in (([2, 3, 0, 1], True), ([2, 3, 1, 0], True), ([3, 2, 1, 0], False), ([2, 3, 1, 1], False)):
        (o,) = compare_outputs(p, [np.array(at)], expected)
        assert o.verdict.ok is ok, at


def positions(text: str, x: np.ndarray, answers: list[Any]) -> list[bool]:
    """Which positions are accepted for the result of a program of one input `x`."""
    p = parse_program(text)
    expected = references(p, {"x": x})
    return [compare_outputs(p, [np.array(a)], expected)[0].verdict.ok for a in answers]


def test_every_position_of_many_nearly_equal_values_is_right() -> None:
    """x - 1.5 - x is -1.5 up to rounding everywhere but at two places, of which one is refused."""
    body = "where(j < 12, x[i, j] + -1.5 - x[i, j], -1.0)"
    text = f"program p format 1(x: f32[1, 14]):\n  t: i64[] = argmax(i<1, j<14 if j != 12) {body}\n  return t\n"
    x = random_inputs(parse_program(text), {}, 564429336)["x"]
    answers = [*range(12), 12, 13]
    assert positions(text, x, answers) == [False] * 13 + [True]
    other = text.replace("-1.0", "-2.0")
    assert positions(other, x, answers) == [True] * 12 + [False, False]
    lowest = text.replace("argmax", "argmin")
    assert positions(lowest, x, answers) == [True] * 12 + [False, False]
    assert positions(other, x, [-1, 14]) == [False, False]


def test_nearly_equal_values_along_one_of_several_axes() -> None:
    """Axes that are divided are evaluated in parts, and the best of each row stands by itself."""
    body = "x[i, j // 4] + -1.5 - x[i, j // 4] - where(j % 4 == i, 0.0, 1.0)"
    text = f"program p format 1(x: f32[2, 3]):\n  t: i64[i<2] = argmax(j<12) {body}\n  return t\n"
    x = np.array([[0.1, 0.7, 1.3], [-0.3, 2.1, 0.9]], np.float32)
    best = [[a, b] for a in (0, 4, 8) for b in (1, 5, 9)]
    assert positions(text, x, best) == [True] * 9
    assert positions(text, x, [[0, 0], [1, 1], [4, 8], [3, 5]]) == [False] * 4


def test_a_value_that_jumps_may_decide_a_position() -> None:
    """floor(3 x) at x = 1/3 may be 0 or 1: then another position is the best, a third never is."""
    third = np.float32(1 / 3)
    text = "program p format 1(x: f32[4]):\n  t: i64[] = argmax(j<4) floor(x[j] * 3.0) - x[j] * 0.0625\n  return t\n"
    x = np.array([0.1, third, 0.2, 0.3], np.float32)
    assert positions(text, x, [0, 1, 2, 3]) == [True, True, False, False]
