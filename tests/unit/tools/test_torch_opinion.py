"""PyTorch as a third party of generated Programs: it agrees, and a wrong value is told."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from tilewright.tools.fuzz import campaign
from tilewright.tools.fuzz.torch_opinion import opinion, torch_outputs
from tilewright.verify.programs import Case, generate

pytest.importorskip("torch")


def test_generated_programs_agree() -> None:
    verdicts = Counter(opinion(generate(number, 3))[0] for number in range(40))
    assert verdicts["agreed"] > 30 and not verdicts["differs"], verdicts


def test_numbers_that_are_easily_confused() -> None:
    """Halves round to even, division of integers by zero gives zero, casts stop at the ends, NaN stays."""
    text = """# sizes
# seed 1
program p(x: f32[5], n: i32[4]):
  r: f32[i<5] = round(x[i])
  c: i8[i<5] = i8(x[i] * 100.0)
  q: i32[i<4] = n[i] // (n[i] - n[0])
  m: i32[i<4] = n[i] % (n[i] - n[0])
  p: f32[i<7] = (x[i - 1] else 9.0)
  s: f32[i<5] = sign(sqrt(x[i]))
  return r, c, q, m, p, s
"""
    case = Case.parse(text)
    x = np.array([0.5, 1.5, -2.5, 2.0, -0.5], np.float32)
    n = np.array([-7, 3, -7, 5], np.int32)
    r, c, q, m, p, s = torch_outputs(case.program, {"x": x, "n": n})
    np.testing.assert_array_equal(r, [0, 2, -2, 2, -0.0])
    np.testing.assert_array_equal(c, [50, 127, -128, 127, -50])
    np.testing.assert_array_equal(q, [0, 0, 0, 0])
    np.testing.assert_array_equal(m, [0, 3, 0, 5])
    np.testing.assert_array_equal(p, [9, 0.5, 1.5, -2.5, 2, -0.5, 9])
    np.testing.assert_array_equal(s, [1, 1, np.nan, 1, np.nan])  # PyTorch's own sign gives 0
    assert c.dtype == np.int8 and p.dtype == np.float32


def test_compiled_code_never_shares_a_process_with_it() -> None:
    """A child that has run a case, and the parent of a campaign, have not loaded PyTorch."""
    code = (
        "import sys; from tilewright.tools.fuzz import campaign, kinds; "
        "kinds.KINDS['programs'].check(3, kinds.options_of({'target': 'x86-avx2', 'threads': 1}), False); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_campaign_asks_it() -> None:
    settings = campaign.Settings(kinds=("programs",), count=1, targets=("x86-avx2",), seed=3)
    result = campaign.run(settings, lambda share, facts: None)
    others = result["counts"]["programs"]["others"]
    assert sum(others.get(f"torch {v}", 0) for v in ("agreed", "refused")) == 1, others
