"""Programs that were compiled wrongly once, or not at all: every file under `programs/`, as the fuzzer files it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.errors import TargetError
from tilewright.ir.program_parser import parse_program
from tilewright.machine.target import Target
from tilewright.tools.fuzz.programs import Options, check_program
from tilewright.verify.fuzz import isolated
from tilewright.verify.programs import Case

FILES = sorted((Path(__file__).parent / "programs").glob("*.txt"))


@pytest.mark.parametrize("target", ["x86-avx512", "x86-avx2", "x86-sse42"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_case(path: Path, target: str) -> None:
    try:
        Target.named(target).require_runnable()
    except TargetError:
        pytest.skip("this machine does not run the target")
    case = Case.parse(path.read_text(encoding="utf-8"))
    for threads in (1, 2):
        answer = check_program(case, Options(target, threads, rebuild=True), isolated)
        assert answer.found is None, answer.found


@pytest.mark.parametrize("target", ["x86-avx2", "x86-sse42"])
def test_double_to_half_rounds_once(target: str) -> None:
    """Numbers whose rounding to f32 lies on a tie of f16 that they do not lie on themselves."""
    p = parse_program("program p(x: f64[8]):\n  y: f16[i<8] = f16(x[i])\n  return y\n")
    tie = 1 + 2.0**-11  # between 1 and the next f16
    x = np.array([tie + 2.0**-40, tie - 2.0**-40, tie, -tie - 2.0**-40, 1e300, 2.0**-24 + 2.0**-60, np.nan, 65519.999999])
    got = tw.compile(p, target=target)(x)
    np.testing.assert_array_equal(got, x.astype(np.float16))


@pytest.mark.parametrize("target", ["x86-avx512", "x86-avx2", "x86-sse42"])
def test_remainders_of_large_quotients_are_exact(target: str) -> None:
    """x - floor(x / y) * y was off by more than y where x is 2^24 times as large."""
    try:
        Target.named(target).require_runnable()
    except TargetError:
        pytest.skip("this machine does not run the target")
    x = np.array([1.26232084e11, 3.36038675e6, -1e9, 7.0, -7.0, 5.5] * 6, np.float32)
    y = np.array([18.855078, 14.341055, 3.0, -2.5, 2.5, 1.5] * 6, np.float32)
    z = tw.compile(tw.program("x: f32[36]; y: f32[36]; z[i] = x[i] % y[i]"), target=target)(x, y)
    np.testing.assert_array_equal(z, np.mod(x, y))
