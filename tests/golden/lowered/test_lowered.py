"""Default nests as text: a change of lowering or of a default is seen as a difference here.

`pytest tests/golden/lowered --update-golden` writes the files anew; read what changed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tilewright.group.plan import plan_program
from tilewright.ir.nest import parse_nest
from tilewright.ir.nest_verifier import verify_nest
from tilewright.ir.program import Program
from tilewright.ir.program_parser import parse_program
from tilewright.lower.kernel import Lowered, lower
from tilewright.machine.target import Target
from tilewright.schedule.kernel_space import space_of

HERE = Path(__file__).resolve().parent
TARGET = Target.named("x86-avx512")

# name -> (program, its constants)
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "matmul": (
        """program matmul(x: f32[512, 512], w: f32[512, 512]):
  y: f32[i<512, j<512] = sum(k<512) x[i, k] * w[k, j]
  return y
""",
        (),
    ),
    "convolution": (
        """program convolution(x: f32[1, 64, 28, 28], k: f32[64, 64, 3, 3], b: f32[64]):
  a: f32[n<1, o<64, h<28, w<28] = sum(c<64, u<3, v<3) (x[n, c, h + u - 1, w + v - 1] else 0.0) * k[o, c, u, v]
  y: f32[n<1, o<64, h<28, w<28] = max(a[n, o, h, w] + b[o], 0.0)
  return y
""",
        ("k", "b"),
    ),
    "softmax": (
        """program softmax(x: f32[256, 1000]):
  m: f32[i<256] = max(j<1000) x[i, j]
  e: f32[i<256, j<1000] = exp(x[i, j] - m[i])
  s: f32[i<256] = sum(j<1000) e[i, j]
  y: f32[i<256, j<1000] = e[i, j] / s[i]
  return y
""",
        (),
    ),
    "layer_norm": (
        """program layer_norm(x: f32[256, 768], g: f32[768], b: f32[768]):
  s: f32[i<256] = sum(j<768) x[i, j]
  d: f32[i<256, j<768] = x[i, j] - s[i] / 768.0
  v: f32[i<256] = sum(j<768) d[i, j] * d[i, j]
  y: f32[i<256, j<768] = d[i, j] * rsqrt(v[i] / 768.0 + 0.00001) * g[j] + b[j]
  return y
""",
        ("g", "b"),
    ),
    "transpose": (
        """program transpose(x: f32[1000, 700]):
  y: f32[i<700, j<1000] = x[j, i]
  return y
""",
        (),
    ),
    "depthwise": (
        """program depthwise(x: f32[1, 28, 28, 96], k: f32[96, 3, 3]):
  y: f32[n<1, h<28, w<28, c<96] = sum(u<3, v<3) (x[n, h + u - 1, w + v - 1, c] else 0.0) * k[c, u, v]
  return y
""",
        ("k",),
    ),
}


def program_of(text: str, constants: tuple[str, ...]) -> Program:
    """Named inputs as constants; only their names matter to the text."""
    p = parse_program(text)
    found = tuple((t, f"{t.name}-value") for t in p.inputs if t.name in constants)
    inputs = tuple(t for t in p.inputs if t.name not in constants)
    return replace(p, inputs=inputs, constants=found)


def lowered(text: str, constants: tuple[str, ...]) -> str:
    """Every kernel of the program, its default schedule and its nest."""
    plan, _ = plan_program(program_of(text, constants), TARGET)
    parts = []
    for kernel in plan.kernels:
        schedule = space_of(kernel, TARGET, 1).default()
        out = lower(kernel, schedule, TARGET)
        assert isinstance(out, Lowered)
        verify_nest(out.nest)
        assert parse_nest(str(out.nest)) == out.nest
        parts += [str(kernel), str(schedule), str(out.nest)]
    return "\n".join(x.rstrip() + "\n" for x in parts)


@pytest.mark.parametrize("name", CASES)
def test_default_nest(name: str, update_golden: bool) -> None:
    text = lowered(*CASES[name])
    path = HERE / f"{name}.txt"
    if update_golden:
        path.write_text(text)
    assert path.exists(), f"run pytest {HERE} --update-golden"
    assert path.read_text() == text, (
        "the default nest has changed; look at the difference, then run with --update-golden"
    )
