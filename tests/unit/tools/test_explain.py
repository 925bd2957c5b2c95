"""explain: what it says of kernels, layouts, schedules, fusion, times and memory."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tilewright as tw
from tilewright.errors import UserError
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F64, I64
from tilewright.ir.layout import Layout, Term, dense, ordered, panels
from tilewright.ir.program import Extern, Program, Tensor
from tilewright.ir.program_parser import parse_program
from tilewright.tools import wiring
from tilewright.tools.cli import cli
from tilewright.tools.explain import explain, kernel_times_ns
from tilewright.tools.words import layout_words, schedule_words

TEXT = """program two(x: f32[N, 8, 12, 12], w: f32[5, 8], f: f32[32, 8, 3, 3]):
  dim N in 1 .. 4
  r: f32[n<N, c<8, h<12, v<12] = max(x[n, c, h, v], 0.0)
  s: f32[n<N, c<8] = sum(h<12, v<12) r[n, c, h, v]
  y: f32[n<N, o<5] = sum(c<8) s[n, c] * w[o, c]
  z: f32[n<N, o<32, h<12, v<12] = sum(c<8, p<3, q<3) (x[n, c, h + p - 1, v + q - 1] else 0.0) * f[o, c, p, q]
  q: f32[n<N, o<32, h<12, v<12] = tanh(z[n, o, h, v])
  return y, q
"""


@pytest.fixture(scope="module")
def model() -> Any:
    rng = np.random.default_rng(0)
    values = {"w": rng.standard_normal((5, 8), np.float32), "f": rng.standard_normal((32, 8, 3, 3), np.float32)}
    made = tw.compile(wiring.with_constants(parse_program(TEXT), values), dims={"N": 2}, threads=2)
    made.origins = {"z": "block/conv1 (Conv)", "q": "block/act1 (Tanh)", "s": "pool (ReduceSum)"}
    return made


def test_the_model_in_two_lines(model: Any) -> None:
    first, second, *_ = model.explain().splitlines()
    count = len(model.latest.plan.kernels)
    assert first == f"two: {count} kernels in {count} steps for native, 2 threads, sizes N=2"
    assert re.match(r"[\d.e+]+ operations, [\d.]+ KiB in and out; bound by (arithmetic|memory): ", second)


def test_every_kernel_has_its_paragraph(model: Any) -> None:
    text = model.explain()
    paragraphs = text.split("\n\n")[1:]
    assert len(paragraphs) == len(model.latest.plan.kernels)
    for number, paragraph in enumerate(paragraphs):
        assert paragraph.startswith(f"kernel {number}: ")
        for word in ("  work: ", "  layout: ", "  schedule (default): ", '{"format":1'):
            assert word in paragraph, paragraph
        assert model.explain(kernel=str(number)).strip() == paragraph.strip()


def test_nodes_of_the_graph_and_why_they_are_together(model: Any) -> None:
    text = model.explain(kernel="q")
    assert "z (from block/conv1 (Conv)), q (from block/act1 (Tanh))" in text
    assert "z with q: computed on the producer's register tile" in text
    text = model.explain(kernel="s")
    assert " with s" in text and "apart from" in model.explain()


def test_layouts_in_words(model: Any) -> None:
    text = model.explain(kernel="q")
    assert "row-major: " in text and "output q [2, 32, 12, 12]" in text
    assert "const f [32, 8, 3, 3]: panels of " in text and "packed when compiled" in text
    assert layout_words(dense((2, 3))) == "row-major"
    assert layout_words(ordered((2, 3, 4), (0, 2, 1))) == "axes in the order 0 2 1"
    halo = ordered((2, 3), (1, 0), ((0, 0), (1, 2)), 0.5)
    assert layout_words(halo) == "axes in the order 1 0, with a halo of 0:0 1:2 that holds 0.5"
    assert layout_words(ordered((2, 3), (0, 1), ((0, 0), (1, 1)))).startswith("row-major, with a halo")
    assert layout_words(panels((8, 64), 1, 32, (0,))) == "panels of 32 along axis 1"
    terms = (Term(0, 1, 6, 16), Term(0, 6, 0, 288), Term(1, 1, 16, 1), Term(1, 16, 0, 96))
    blocks = Layout((20, 40), terms, 1152)
    assert layout_words(blocks) == "blocks of 6 along axis 0 x 16 along axis 1"
    odd = Layout((2, 2), (Term(0, 1, 0, 5), Term(1, 1, 0, 2)), 8)
    assert layout_words(odd) == str(odd)


def test_schedules_in_words(model: Any) -> None:
    for kernel, schedule in zip(model.latest.plan.kernels, model.latest.linked.schedules, strict=True):
        words = schedule_words(kernel, schedule)
        assert words and all(words)
        assert "thread" in words[0] or "parallel" in words[0] or "stages" in words[0]
    text = model.explain(kernel="q")
    assert re.search(r"points .*k0=", text) and "register tile" in text and "vectors along" in text


def test_measured_times(model: Any) -> None:
    times = kernel_times_ns(model, runs=2)
    assert set(times) == set(range(len(model.latest.plan.kernels))) and all(t > 0 for t in times.values())
    text = model.explain(measure=True)
    assert re.search(r"measured [\d.]+ (us|ms) in all", text)
    heading = next(line for line in text.splitlines() if line.lstrip().startswith("kernel "))
    assert heading.split() == ["kernel", "calls", "time", "share", "bound", "of", "bound", "computes"]
    shares = [float(x) for x in re.findall(r"([\d.]+) %  +[\d.]+ (?:ns|us|ms)", text)]
    assert len(shares) == len(times) and sum(shares) == pytest.approx(100, abs=1)
    assert "% of the bound" in model.explain(kernel="0", measure=True)
    assert "measured" not in model.explain()


def test_externs_are_steps_of_their_own() -> None:
    x = Tensor("x", F64, (E.const(4), E.const(9)))
    results = tuple(Tensor(n, t, (E.const(4), E.const(3))) for n, t in (("v", F64), ("i", I64)))
    top = Extern(results, "topk", ("x",), (("axis", -1), ("k", 3), ("largest", True)))
    made = tw.compile(Program("top", (x,), (top,), ("v", "i")))
    text = made.explain(measure=True)
    assert "step 0: extern topk -> v, i" in text and "externs" in text


def test_memory(model: Any) -> None:
    text = model.explain(memory=True)
    lines = text.splitlines()
    assert lines[0].startswith("peak ") and "scratch of 2 threads" in lines[0]
    assert lines[2].split()[:3] == ["offset", "size", "steps"]
    placement = model.latest.linked.placement
    rows = [line.split() for line in lines[3:]]
    assert [int(r[0]) for r in rows] == sorted(placement.offsets.values())
    assert any("s (from pool (ReduceSum))" in line for line in lines)
    bars = [next(word for word in r if set(word) <= set("#.") and "#" in word) for r in rows]
    assert len({len(b) for b in bars}) == 1


def test_unknown_kernels_and_the_command(model: Any, tmp_path: Any) -> None:
    with pytest.raises(UserError, match="U001") as caught:
        explain(model, kernel="nonsense")
    assert "kernels are numbered 0 to" in caught.value.hint
    (tmp_path / "m.prog").write_text("y[i] = exp(x[i])\nz = sum(i) y[i]\n")
    for options in ([], ["--memory"], ["--measure"], ["--kernel", "0", "--measure"]):
        result = CliRunner().invoke(cli, ["explain", str(tmp_path / "m.prog"), "--dim", "I=500", *options])
        assert result.exit_code == 0 and ("kernel 0" in result.output or "peak" in result.output), result.output
