"""Self-tests: they hold for right code, notice planted faults, correct results, and live in saved models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import tilewright as tw
from tilewright.codegen.mathlib.harness import LEVELS, compile_loop
from tilewright.ir.interpreter import run_program
from tilewright.runtime.save import save_model
from tilewright.tools.cli import cli
from tilewright.verify.reductions.mathtest import MATH_REDUCTIONS, SERIES, check_math
from tilewright.verify.reductions.models import (
    SelfTest,
    corrected,
    learn_model,
    run_self_test,
    same_bits,
)
from tilewright.verify.reductions.structure import affine_inputs, axis_classes

MATMUL = """program p(a: f32[9, 14], b: f32[14, 11]):
  y: f32[i<9, j<11] = sum(k<14) a[i, k] * b[k, j]
  return y
"""
SOFTMAX = """program p(x: f32[7, 13]):
  m: f32[i<7] = max(j<13) x[i, j]
  e: f32[i<7, j<13] = exp(x[i, j] - m[i])
  s: f32[i<7] = sum(j<13) e[i, j]
  y: f32[i<7, j<13] = e[i, j] / s[i]
  return y
"""
PREFIX = """program p(x: f32[5, 8]):
  y: f32[i<5, j<8] = scan sum(j) x[i, j]
  return y
"""


def by_position(model: Any) -> Any:
    names = [s.name for s in model.input_specs]
    return lambda arrays: model.run(dict(zip(names, arrays, strict=True)))


def meaning(program: Any) -> Any:
    names = [t.name for t in program.inputs]
    return lambda arrays: [
        np.asarray(y) for y in run_program(program, dict(zip(names, arrays, strict=True)))
    ]


def learned(text: str) -> tuple[Any, SelfTest]:
    program = tw.program(text)
    return program, learn_model(meaning(program), program)


@pytest.mark.parametrize("text", [MATMUL, SOFTMAX, PREFIX])
def test_relations_learned_from_the_meaning_hold_for_the_code(text: str) -> None:
    program, test = learned(text)
    model = tw.compile(program)
    outcomes = run_self_test(by_position(model), test, seeds=3)
    assert outcomes and all(o.ok for o in outcomes), [o for o in outcomes if not o.ok]
    assert all(o.ok for o in same_bits([by_position(tw.compile(program, threads=n)) for n in (1, 2)], test))


def test_what_is_learned() -> None:
    _, matmul = learned(MATMUL)
    shown = {str(s): s.is_proved for s in matmul.sums}
    assert shown["result 0, input 0: - F(x) - F(r) + F(x+r) = 0"]
    moves = {str(p) for p in matmul.permutations}
    assert "permutation of input 0 axis 1, input 1 axis 0" in moves
    _, softmax = learned(SOFTMAX)
    shown = {str(s) for s in softmax.sums}
    assert "result 0, input 0: - F(x) + F(x+1) = 0" in shown
    assert any("total 1" in s for s in shown)
    _, prefix = learned(PREFIX)
    assert any(s.view == "local" for s in prefix.sums)
    assert [p.inputs for p in prefix.permutations] == [((0, 0),)]  # not along the prefix


def test_structure_claims_nothing_that_is_not_so() -> None:
    """Axes whose index is compared, shifted or scanned, and inputs under a product, are no claim."""
    program = tw.program("""program p(x: f32[6, 6], z: f32[6]):
  y: f32[i<6, j<6] = where(j <= i, x[i, j], 0.0)
  w: f32[i<6, j<5] = x[i, j + 1] * z[i]
  return y, w
""")
    assert axis_classes(program) == []
    assert affine_inputs(program) == [frozenset({"x"}), frozenset({"z"})]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (MATMUL, lambda run, a: [run([a[0][:, :-1], a[1][:-1]])[0]]),  # the last step left out
        (MATMUL, lambda run, a: [y + np.float32(1e-2) for y in run(a)]),  # not started at zero
        (MATMUL, lambda run, a: [np.where(np.arange(11) == 10, 0, run(a)[0])]),  # a lane not stored
        (SOFTMAX, lambda run, a: [run(a)[0] * np.float32(1.001)]),
        (SOFTMAX, lambda run, a: [np.exp(a[0]) / np.exp(a[0]).sum() * 7]),  # the wrong axis
        (PREFIX, lambda run, a: [run(a)[0] - a[0]]),  # exclusive
        (PREFIX, lambda run, a: [run(a)[0][:, ::-1]]),
    ],
)
def test_faults_are_noticed(text: str, fault: Any) -> None:
    program, test = learned(text)
    if text is MATMUL:
        def plain(a: Any) -> list[Any]:
            return [a[0] @ a[1]]
    else:
        plain = meaning(program)
    assert all(o.ok for o in run_self_test(lambda a: [np.float32(y) for y in plain(a)], test))
    assert not all(o.ok for o in run_self_test(lambda a: fault(plain, a), test))


def test_results_that_change_from_call_to_call_are_noticed() -> None:
    _, test = learned(MATMUL)
    calls = iter(range(10**6))

    def run(a: Any) -> list[Any]:
        return [np.float32(a[0] @ a[1]) + np.float32(1e-7) * next(calls)]

    found = run_self_test(run, test)
    assert not next(o for o in found if "same bits" in o.relation).ok


def test_correction_repairs_what_is_wrong_now_and_then() -> None:
    _, test = learned(MATMUL)
    rng = np.random.default_rng(0)
    a = [rng.standard_normal(s.shape).astype(np.float32) for s in test.inputs]
    bad = np.random.default_rng(1)

    def run(arrays: Any) -> list[Any]:
        y = np.asarray(arrays[0] @ arrays[1])
        wrong = bad.random(y.shape) < 0.03
        return [np.where(wrong, y + 100, y).astype(np.float32)]

    right = a[0] @ a[1]
    assert np.abs(run(a)[0] - right).max() > 50
    assert np.abs(corrected(run, test, a, trials=15)[0] - right).max() < 1e-4


def test_math_functions_obey_their_reductions() -> None:
    for level in ("avx2", "sse42"):
        outcomes = list(check_math(level=level))
        assert len(outcomes) == len(MATH_REDUCTIONS) + len(SERIES)
        assert all(o.ok for o in outcomes), [o for o in outcomes if not o.ok]


@pytest.mark.parametrize("name", ["exp", "tanh", "sin", "log", "atan", "sigmoid", "cosh"])
def test_a_changed_constant_of_a_math_function_is_noticed(name: str) -> None:
    """Every constant that decides results of moderate arguments, one at a time."""
    level = LEVELS["avx2"]
    x = np.linspace(0.1, 3.0, 512, dtype=np.float32)
    if name == "atan":
        x /= 4
    plain = compile_loop(name, "f32", 8, level)(x)
    texts: list[str] = []
    compile_loop(name, "f32", 8, level, lambda text: (texts.append(text), text)[1])
    constants = sorted({m[1] for m in re.finditer(r"0x([0-9A-F]{16})", texts[0])})
    tried = noticed = 0
    for constant in constants:
        other = f"{int(constant, 16) ^ (1 << 47):016X}"  # some percent of it

        def change(text: str, constant: str = constant, other: str = other) -> str:
            return text.replace(f"0x{constant}", f"0x{other}")

        try:
            got = compile_loop(name, "f32", 8, level, change)(x)
        except RuntimeError:  # no number of the type, LLVM says
            continue
        if np.abs(got - plain).max() > 1e-3 * np.abs(plain).max():
            tried += 1
            noticed += not all(o.ok for o in check_math([name], level="avx2", change=change))
    assert tried >= 2
    assert noticed == tried


def check(path: Path, *more: str) -> Result:
    return CliRunner().invoke(cli, ["check", str(path), "--self", *more])


def test_a_saved_model_tests_itself(tmp_path: Path) -> None:
    path = tmp_path / "m.twa"
    tw.compile(tw.program(SOFTMAX)).save(path, self_test=True)
    shown = check(path, "--json", str(tmp_path / "r.json"))
    assert shown.exit_code == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert {r["part"] for r in rows} == {"model", "math"}
    assert all(r["ok"] for r in rows)
    ((_, data),) = tw.load(path).self_tests
    test = SelfTest.from_json(data)
    assert SelfTest.from_json(json.loads(json.dumps(test.to_json()))) == test


def test_a_source_is_tested_by_what_its_meaning_obeys(tmp_path: Path) -> None:
    path = tmp_path / "m.tw"
    path.write_text(MATMUL)
    assert check(path).exit_code == 0


def test_a_model_without_a_self_test_says_so(tmp_path: Path) -> None:
    path = tmp_path / "m.twa"
    tw.compile(tw.program(MATMUL)).save(path)
    shown = check(path)
    assert shown.exit_code == 2
    assert "[U003] m.twa holds no self-test" in shown.stderr
    assert "self_test=True" in shown.stderr


def test_a_broken_model_fails_its_self_test(tmp_path: Path) -> None:
    """The relations of one model kept with another: exit status 1."""
    _, test = learned(SOFTMAX)
    other = tw.compile(tw.program(SOFTMAX.replace("e[i, j] / s[i]", "e[i, j]")))
    path = tmp_path / "m.twa"
    save_model(path, other, [(other.target, other.variants)], [test.to_json()])
    assert check(path).exit_code == 1


@pytest.mark.parametrize(
    "damage",
    [{}, {"inputs": [], "sums": [], "permutations": []}, {"inputs": 3}, {"sums": [{"terms": 1}]}],
)
def test_a_self_test_that_is_none(damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.twa"
    model = tw.compile(tw.program(MATMUL))
    save_model(path, model, [(model.target, model.variants)], [{"x": 1, **damage}])
    shown = check(path)
    assert shown.exit_code == 3
    assert "R011" in shown.stderr


@pytest.mark.parametrize("text", [MATMUL, SOFTMAX, PREFIX])
def test_zeros_are_noticed(text: str) -> None:
    """They satisfy every linear relation, and move with every axis."""
    program, test = learned(text)
    run = meaning(program)
    outcomes = run_self_test(lambda arrays: [np.zeros_like(y) for y in run(arrays)], test)
    failed = {o.relation for o in outcomes if not o.ok}
    assert "result 0 is not the same everywhere" in failed
    assert all(o.ok for o in run_self_test(run, test))


def test_weights_that_sum_to_one_give_a_relation_with_a_constant() -> None:
    """Softmax times v: v + 1 gives one more."""
    text = """program p(x: f32[7, 13], v: f32[13, 5]):
  m: f32[i<7] = max(j<13) x[i, j]
  e: f32[i<7, j<13] = exp(x[i, j] - m[i])
  s: f32[i<7] = sum(j<13) e[i, j]
  w: f32[i<7, j<13] = e[i, j] / s[i]
  y: f32[i<7, k<5] = sum(j<13) w[i, j] * v[j, k]
  return y
"""
    _, test = learned(text)
    assert "result 0, input 1: - F(x) - 1 + F(x+1) = 0" in {str(s) for s in test.sums}
    assert SelfTest.from_json(json.loads(json.dumps(test.to_json()))) == test
