"""The fuzzer tested: valid cases, agreement of the two interpreters, planted bugs found and reduced."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.errors import UserError
from tilewright.ir import expr as E
from tilewright.ir.binding import size_of
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.interpreter import run_program
from tilewright.ir.program import (
    Definition,
    Extern,
    Program,
    Recurrence,
    Scatter,
    map_program,
)
from tilewright.ir.program_parser import parse_program
from tilewright.ir.reference import run_reference
from tilewright.verify import policy
from tilewright.verify.fuzz import Run, fuzz, isolated, judge
from tilewright.verify.generate import random_inputs
from tilewright.verify.oracle import compare_outputs
from tilewright.verify.programs import BLOCK_KINDS, KINDS, Case, generate
from tilewright.verify.witness import references, spreads


def plain(program: Program, inputs: dict[str, Any]) -> Sequence[Any]:
    """Code under test that is right: the naive evaluation, stored in the outputs' dtypes."""
    outputs = run_program(program, inputs, precision="naive")
    pairs = zip(outputs, program.results, strict=True)
    return [a.astype(program.tensors[n].dtype.np) for a, n in pairs]


def test_cases_are_valid_and_round_trip() -> None:
    seen: set[str] = set()
    for seed in range(60):
        case = generate(seed)
        seen |= set(case.kinds)
        text = str(case)
        assert str(Case.parse(text)) == text
        assert Case.parse(text).program == case.program
        assert str(generate(seed)) == text
    assert seen == set(KINDS)
    with pytest.raises(UserError):
        Case.parse("program p(x: f32[1]):\n  return x\n")


def test_cases_with_blocks() -> None:
    seen: set[str] = set()
    for seed in range(40):
        case = generate(seed, blocks=True)
        seen |= set(case.kinds)
        assert Case.parse(str(case)).program == case.program
        inputs = random_inputs(case.program, case.sizes, case.seed)
        if len(case.program.body) < 4:
            slow = run_reference(case.program, inputs, case.sizes)
            fast = run_program(case.program, inputs, dims=case.sizes)
            for a, b in zip(slow, fast, strict=True):
                assert a.shape == b.shape and a.dtype == b.dtype
    assert seen >= set(BLOCK_KINDS)


def work(case: Case) -> int:
    """Index points of the case, for the slow interpreter."""
    total = 0
    for s in case.program.body:
        if isinstance(s, Extern):
            continue
        for d in s.definitions if isinstance(s, Recurrence) else (s,):
            axes = [*d.axes, *(d.source if isinstance(d, Scatter) else ())]
            axes += d.reduction.axes if isinstance(d, Definition) and d.reduction else []
            total += int(np.prod([size_of(a.extent, case.sizes) for a in axes]))
    return total


@pytest.mark.parametrize("block", range(2))
def test_reference_and_fast_agree(block: int) -> None:
    compared = 0
    for seed in range(1000 + 60 * block, 1060 + 60 * block):
        case = generate(seed, statements=2)
        if work(case) > 4000:
            continue
        inputs = random_inputs(case.program, case.sizes, case.seed)
        slow = run_reference(case.program, inputs, case.sizes)
        fast = run_program(case.program, inputs, dims=case.sizes)
        for name, a, b in zip(case.program.results, slow, fast, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            if a.dtype.kind == "f":
                scale = np.abs(a[np.isfinite(a)]).max(initial=1e-3)
                np.testing.assert_allclose(
                    b.astype(float), a.astype(float), 1e-9, 1e-9 * float(scale), err_msg=str(case)
                )
            else:
                np.testing.assert_array_equal(a, b, err_msg=f"{name} of\n{case}")
        compared += 1
    assert compared > 18


def test_right_code_passes() -> None:
    report = fuzz(plain, count=30, seed=7)
    assert report.ok, str(report)
    assert report.programs == 30 and str(report).startswith("30 programs in ")
    assert sum(report.definitions.values()) == 30


def wrong_max(program: Program, inputs: dict[str, Any]) -> Sequence[Any]:
    """A planted bug: max of two values is taken for min."""

    def go(e: E.Expr) -> E.Expr:
        for node in e.walk():
            if node.op == "max" and node.dtype.is_float:
                return E.substitute(e, {node: E.minimum(*node.args)})
        return e

    return plain(map_program(program, go), inputs)


def wrong_padding(program: Program, inputs: dict[str, Any]) -> Sequence[Any]:
    """A planted bug: the value of `else` is taken for 2 in windows."""

    def go(e: E.Expr) -> E.Expr:
        for node in e.reads():
            if node.attr[1] and node.dtype.is_float and len(node.args) > 2:
                two = E.const(2, node.dtype)
                return E.substitute(
                    e, {node: E.read(node.attr[0], node.args[:-1], node.dtype, two)}
                )
        return e

    return plain(map_program(program, go), inputs)


def wrong_last_element(program: Program, inputs: dict[str, Any]) -> Sequence[Any]:
    """A planted bug: the last element of rows of an odd number over four is lost."""
    out = [np.array(a) for a in plain(program, inputs)]
    for a in out:
        if a.ndim and a.shape[-1] % 4 == 1 and a.shape[-1] > 4 and a.dtype == np.float32:
            a[..., -1] = 0
    return out


def raises(program: Program, inputs: dict[str, Any]) -> Sequence[Any]:
    """A planted bug: prefixes are not supported."""
    for s in program.body:
        if isinstance(s, Definition) and s.scan is not None:
            raise NotImplementedError("scan")
    return plain(program, inputs)


@pytest.mark.parametrize(
    ("run", "kind", "lines"),
    [
        (wrong_max, "wrong", 8),
        (wrong_padding, "wrong", 8),
        (wrong_last_element, "wrong", 8),
        (raises, "error NotImplementedError", 8),
    ],
)
def test_planted_bugs_are_found_and_reduced(
    run: Any, kind: str, lines: int, tmp_path: Path
) -> None:
    report = fuzz(run, count=60, seed=1, reduce_s=3, most_failures=1, folder=tmp_path)
    assert not report.ok and report.failures
    failure = report.failures[0]
    assert failure.kind == kind
    found = judge(run, failure.case)
    assert found is not None and found[0] == kind
    assert judge(plain, failure.case) is None
    text = str(failure.case)
    assert len(failure.case.program.body) <= 1 and text.count("\n") <= lines
    (path,) = tmp_path.iterdir()
    again = Case.parse(path.read_text())
    assert judge(run, again) is not None and str(again) == text


def test_crashes_and_hangs_are_findings() -> None:
    def dies(program: Program, inputs: dict[str, Any]) -> Sequence[Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []

    def hangs(program: Program, inputs: dict[str, Any]) -> Sequence[Any]:
        while True:
            pass

    case = generate(3)
    assert judge(isolated(dies), case) == ("crash", "killed by SIGKILL")
    assert judge(isolated(hangs, 0.3), case) == ("crash", "no answer within 0.3 s")
    assert judge(isolated(plain), case) is None

    def refuses(program: Program, inputs: dict[str, Any]) -> Sequence[Any]:
        raise UserError("V001", "no")

    found = judge(isolated(refuses), case)
    assert found is not None and found[0].startswith("error UserError V001")


def test_an_unlucky_bound_gets_a_second_opinion() -> None:
    """1/x at a sum that nearly cancels: right code may be off by more than four naive errors."""
    text = """# sizes
# seed 775279102
program case format 1(x2: f32[13, 31, 13]):
  t3: f32[k<13] = sum(i<31, j<13) x2[j, i, k]
  t4: f32[i<13] = pow(t3[i], -1.5)
  return t4
"""
    case = Case.parse(text)
    given = random_inputs(case.program, case.sizes, case.seed)
    (want,) = plain(case.program, given)

    def near(program: Program, inputs: dict[str, Any]) -> Sequence[Any]:
        return [want * np.float32(1 + 3e-5)]

    def far(program: Program, inputs: dict[str, Any]) -> Sequence[Any]:
        return [want * np.float32(1 + 3e-3)]

    assert judge(near, case, inputs=given) is None
    assert judge(far, case, inputs=given) is not None


def test_what_a_choice_among_many_leads_to_is_judged_by_more_runs() -> None:
    """x - 1.5 - x is -1.5 up to rounding at every place, so any of the numbers may be picked."""
    text = """# sizes
# seed 1
program case format 1(x: f32[14], t: i32[14]):
  k: i64[] = argmax(j<14) x[j] + -1.5 - x[j]
  y: i32[] = t[k[]]
  return y
"""
    case = Case.parse(text)
    for seed in range(1, 40):
        given = random_inputs(case.program, {}, seed)
        assert judge(plain, case, inputs=given) is None
        for far in (given["t"].min() - 20, given["t"].max() + 20):
            found = judge(lambda p, i, far=far: [np.asarray(far, np.int32)], case, inputs=given)  # type: ignore[misc]
            assert found is not None and found[0] == "wrong"


def test_a_child_that_leaves_a_process_behind_is_no_hang() -> None:
    def leaves(program: Program, inputs: dict[str, Any]) -> Sequence[Any]:
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
        return plain(program, inputs)

    start = time.monotonic()
    assert judge(isolated(leaves, 60), generate(3)) is None
    assert time.monotonic() - start < 4


_BORDER = """# sizes
# seed {seed}
program p(x: f32[7, 40], y: f32[40]):
  t: f32[n<7] = sum(i<40) x[n, i] * y[i]
  s: f32[n<7] = sum(i<40) x[n, 39 - i] * y[39 - i]
  u: f32[n<7] = sqrt(t[n] - s[n] {more})
  return u
"""


def _plain_float32(more: float) -> Run:
    """_BORDER in float32, the difference pushed to either side."""

    def run(program: Program, inputs: dict[str, Any]) -> list[Any]:
        x, y = inputs["x"], inputs["y"]
        rounding = np.float32(1e-6) * np.resize([-1, 1], 7).astype(np.float32)
        difference = x @ y - (x[:, ::-1] @ y[::-1]) + rounding
        with np.errstate(invalid="ignore"):
            return [np.sqrt(difference + np.float32(more))]

    return run


@pytest.mark.parametrize("seed", range(6))
def test_a_root_of_what_only_rounding_makes_differ_from_zero(seed: int) -> None:
    """sqrt(0 - 1e-6) may be NaN; NaN at a distance from the border is wrong."""
    border = Case.parse(_BORDER.format(seed=seed, more=""))
    inside = Case.parse(_BORDER.format(seed=seed, more="+ 1.0"))
    assert judge(_plain_float32(0), border) is None
    assert judge(_plain_float32(1), inside) is None
    found = judge(_plain_float32(-1), inside)
    assert found is not None and found[0] == "wrong"


@pytest.mark.parametrize(
    "text",
    [
        "x: f32[1500]; y = sum(i<1500) x[i]",
        "x: f32[1500]; z: f32[1500]; y = sum(i<1500) x[i] * z[i]",
        "x: f32[1500]; y[i] = scan sum(i) x[i]",
    ],
)
def test_every_step_of_a_sum_moves_it(text: str) -> None:
    """Whether the plain evaluation is off by chance or not: sums of other orders differ by as much."""
    program = tw.program(text)
    rng = np.random.default_rng(0)
    given = {t.name: rng.standard_normal(1500).astype(np.float32) for t in program.inputs}
    (moved,) = spreads(program, given, runs=8)
    terms = np.prod([x.astype(np.float64) for x in given.values()], axis=0)
    walk = 2.0**-24 * np.sqrt((terms**2).sum())
    assert walk < moved < 100 * walk


def test_terms_that_cancel_move_a_sum_by_what_other_orders_do() -> None:
    """Column by column the sum passes through 100 times its value; row by row it never does."""
    text = "x: f32[84, 2]; y = sum(i<84, j<2) x[i, j]"
    case = Case(tw.program(text), {}, 3, ())
    x = np.random.default_rng(1).standard_normal((84, 2)).astype(np.float32)
    x[:, 0] += np.float32(1.3)
    x[:, 1] -= np.float32(1.3)

    def by_columns(times: int) -> Run:
        y = np.float32(0)
        for term in x.T.reshape(-1):
            y = np.float32(y + term)
        error = float(y) - x.astype(np.float64).sum()
        return lambda program, inputs: [np.float32(float(y) + (times - 1) * error).reshape(())]

    assert judge(by_columns(1), case, inputs={"x": x}) is None
    found = judge(by_columns(40), case, inputs={"x": x})
    assert found is not None and found[0] == "wrong"


def test_infinity_and_nan_lie_on_the_two_sides_of_a_pole() -> None:
    """What is 0 or less but for rounding is infinity in one order and NaN in another."""
    one, nan, inf = np.ones(2, np.float32), np.full(2, np.nan, "f4"), np.full(2, np.inf, "f4")
    f32 = DTYPES["f32"]
    assert policy.compare(inf, one, one, f32, wiggle=[nan]).ok
    assert not policy.compare(inf, one, one, f32, wiggle=[one]).ok
    assert not policy.compare(nan, one, one, f32, wiggle=[inf]).ok


def test_the_plain_evaluation_may_choose() -> None:
    """An argmax of rounded 16-bit values: what plain arithmetic picks is one of the right answers."""
    text = """# sizes
# seed 5
program p(x: bf16[4, 300], y: bf16[4, 300]):
  t: bf16[i<4, j<300] = x[i, j] * y[i, j]
  z: i64[i<4] = argmax(j<300) t[i, j] + x[i, j]
  return z
"""
    case = Case.parse(text)
    given = random_inputs(case.program, case.sizes, case.seed)
    expected = references(case.program, given)
    assert list(expected.keys) == ["z"]
    worst = run_program(parse_program(str(case.program).replace("argmax", "argmin")), given)[0]
    other = replace(expected, naive=[worst])
    assert compare_outputs(case.program, [worst], other)[0].verdict.ok
    assert not compare_outputs(case.program, [worst], expected)[0].verdict.ok


@pytest.mark.parametrize("lanes", [4, 32])
@pytest.mark.parametrize(
    ("text", "operation"),
    [
        ("t: f32[]; y[] = sum(i<4093) t[]", np.add),
        ("t: f32[]; y[] = prod(i<4093) t[]", np.multiply),
        ("t: f32[]; y[] = logsumexp(i<4093) t[] * f32(i % 2)", np.add),
    ],
)
def test_terms_that_are_alike_drift(text: str, operation: np.ufunc, lanes: int) -> None:
    """Equal roundings add up, in another way for each number of partial folds; a missing term, or a
    second one, is more than that.
    """
    case = Case(tw.program(text), {}, 3, ())
    t = np.asarray(1.0002 if operation is np.multiply else 0.7891, np.float32)
    terms = np.full(4093, t)
    if "logsumexp" in text:
        terms = np.exp(t * (np.arange(4093) % 2).astype(np.float32) - t)

    def folded(count: int) -> Run:
        parts = [operation.accumulate(terms[k:count:lanes])[-1] for k in range(lanes)]
        y = operation.reduce(np.array(parts, np.float32))
        got = np.float32(np.log(y) + t if "logsumexp" in text else y)
        return lambda program, inputs: [np.asarray(got)]

    assert judge(folded(4093), case, inputs={"t": t}) is None
    if "logsumexp" not in text:
        found = judge(folded(4092), case, inputs={"t": t})
        assert found is not None and found[0] == "wrong"


def test_a_product_may_meet_infinity_and_zero_in_any_order() -> None:
    """In single precision 1e30 times 1e30 is infinite, and infinity times zero is no number."""
    case = Case(tw.program("x: f32[96]; y[] = prod(i<96) x[i]"), {}, 3, ())
    x = np.ones(96, np.float32)
    x[0], x[1], x[95] = 1e30, 1e30, 0.0
    for value, right in ((0.0, True), (np.nan, True), (1.0, False)):
        found = judge(lambda p, g, v=value: [np.float32(v).reshape(())], case, inputs={"x": x})
        assert (found is None) == right, value


def test_positions_of_values_beside_a_pole_come_in_any_order() -> None:
    """log1p(expm1(-40)) is minus infinity in single precision: such values are all alike."""
    text = """# sizes
# seed 3
program p format 1(x: f32[9]):
  y: f32[i<9] = log1p(expm1(x[i]))
  v: f32[4], z: i64[4] = extern topk(y) {axis = 0, k = 4, largest = false}
  return z
"""
    case = Case.parse(text)
    x = np.array([3, -50, 1, -40, -60, 2, 0.5, 5, 4], np.float32)
    for places, right in (
        ([4, 1, 3, 6], True),
        ([1, 3, 4, 6], True),
        ([1, 3, 4, 2], False),  # 0.5 is less than 1
        ([2, 4, 1, 6], False),
        ([1, 3, 3, 6], False),
    ):
        got = [np.array(places, np.int64)]
        found = judge(lambda p, g, got=got: got, case, inputs={"x": x})
        assert (found is None) == right, places


def test_rounding_makes_values_equal() -> None:
    """tan(x) is x for small x in 16 bits, though it is not; far from zero it never is."""
    text = """# sizes
# seed 3
program p format 1(x: f16[3]):
  t: f16[i<3] = tan(x[i])
  y: bool[i<3] = t[i] == x[i]
  return y
"""
    case = Case.parse(text)
    x = np.array([0.0, 0.002, 1.2], np.float16)
    for equal, right in (((1, 1, 0), True), ((1, 0, 0), True), ((1, 1, 1), False)):
        got = [np.array(equal, np.bool_)]
        found = judge(lambda p, g, got=got: got, case, inputs={"x": x})
        assert (found is None) == right, equal


def test_a_choice_that_few_runs_see_decides_a_result() -> None:
    """Which of twenty nearly equal values is the least tells how many terms there are."""
    text = """# sizes
# seed 3
program p format 1(x: f32[20], z: f64[20]):
  t: f32[i<20] = exp(x[i] * x[i])
  least: i64[] = argmin(i<20) t[i]
  y: f64[] = sum(i<20) where(i < least[] // 17, z[i], f64(0.0))
  return y
"""
    case = Case.parse(text)
    x = np.full(20, 1.25, np.float32)
    z = np.arange(1.0, 21)
    for value, right in ((0.0, True), (1.0, True), (3.0, False)):
        got = [np.asarray(value)]
        found = judge(lambda p, g, got=got: got, case, inputs={"x": x, "z": z})
        assert (found is None) == right, value
