"""Stages as text and back, explain, and the counting of a Program's work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tilewright as tw
from tilewright.config import DUMP_STAGES
from tilewright.errors import UserError
from tilewright.ir.program import parse_program
from tilewright.tools import explain, models, stages, wiring
from tilewright.tools.cli import cli
from tilewright.tools.work import work_of

TEXT = """program two(x: f32[1, 8, 12, 12], w: f32[5, 8]):
  r: f32[n<1, c<8, h<12, v<12] = max(x[n, c, h, v], 0.0)
  s: f32[n<1, c<8] = sum(h<12, v<12) r[n, c, h, v]
  y: f32[n<1, o<5] = sum(c<8) s[n, c] * w[o, c]
  return y
"""


@pytest.fixture(scope="module")
def weights() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((5, 8), np.float32)


@pytest.fixture(scope="module")
def model(weights: np.ndarray[Any, Any]) -> Any:
    return tw.compile(wiring.with_constants(parse_program(TEXT), {"w": weights}), threads=2)


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TILEWRIGHT_NUM_THREADS", "2")
    monkeypatch.setenv("TILEWRIGHT_DB", str(tmp_path / "none.sqlite"))


def test_every_stage_prints(model: Any, tmp_path: Path) -> None:
    for stage in DUMP_STAGES:
        text = model.dump(stage, folder=tmp_path)
        assert text.strip()
        suffix = {"llvm": "ll", "asm": "s"}.get(stage, "txt")
        assert (tmp_path / f"{stage}.{suffix}").read_text() == text
    assert (tmp_path / stages.CONSTANTS).stat().st_size >= 5 * 8 * 4


@pytest.mark.parametrize("stage", ["program", "plan", "schedule", "kernels", "loops"])
def test_a_printed_stage_goes_on_to_the_same_code(model: Any, tmp_path: Path, stage: str) -> None:
    model.dump(stage, folder=tmp_path)
    for later in ("llvm", "asm", "loops"):
        again = models.dump(
            tmp_path / f"{stage}.txt", later, kernel=None, output=None, dims={}, threads=2, target=None, db=None
        )
        assert again == model.dump(later)


def test_llvm_goes_on_to_the_same_assembly(model: Any, tmp_path: Path) -> None:
    model.dump("llvm", folder=tmp_path)
    loaded = wiring.load_model(tmp_path / "llvm.ll")
    assert loaded.stage == "llvm" and loaded.dump("asm") == model.dump("asm")


def test_a_printed_program_runs_with_its_constants(model: Any, tmp_path: Path) -> None:
    model.dump("program", folder=tmp_path)
    x = np.random.default_rng(1).standard_normal((1, 8, 12, 12), np.float32)
    again = tw.compile(wiring.load_model(tmp_path / "program.txt"), threads=2)
    np.testing.assert_array_equal(again.run({"x": x})[0], model.run({"x": x})[0])
    (tmp_path / stages.CONSTANTS).unlink()
    with pytest.raises(UserError, match="U003") as caught:
        wiring.needs_program(wiring.load_model(tmp_path / "program.txt"))
    assert "constants" in caught.value.message and caught.value.hint


def test_one_kernel_by_number_and_name(model: Any, tmp_path: Path) -> None:
    assert model.dump("loops", kernel="0") == model.dump("loops", kernel="s")
    assert "nest k" in model.dump("loops", kernel="0")
    with pytest.raises(UserError) as caught:
        model.dump("loops", kernel="z")
    assert caught.value.code == "U001" and "numbered 0 to 1" in caught.value.hint
    with pytest.raises(UserError, match="U003"):
        model.dump("nonsense")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="U003"):
        model.dump("plan", folder=tmp_path / "file" / "x")


def test_a_printed_stage_says_what_it_cannot_do(model: Any, tmp_path: Path) -> None:
    model.dump("loops", folder=tmp_path)
    path = tmp_path / "loops.txt"
    for arguments in (("dump", path, "--stage", "plan"), ("explain", path), ("check", path), ("tune", path)):
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert result.exit_code == 2 and "[U003]" in result.output, result.output


def test_text_of_an_unknown_format(tmp_path: Path) -> None:
    for text in ("plan p format 99\n", "kernel format 99:\n  stage a of a\nprogram k format 1(x: f32[1]):\n"):
        with pytest.raises(UserError, match="S002"):
            stages.load(text)
    assert stages.load(TEXT) is None
    assert stages.load("C[i,j] = sum(k) A[i,k] * B[k,j]") is None
    assert stages.load("") is None


def test_explain(model: Any) -> None:
    text = model.explain()
    assert "two: 2 kernels in 2 steps" in text and "r with s" in text and "schedule (default)" in text
    assert "operations" in text and "bound by" in text
    assert "kernel 1" not in model.explain(kernel="s") and "kernel 0: s" in model.explain(kernel="s")
    memory = model.explain(memory=True)
    assert memory.startswith("peak ") and "steps 0 to 1" in memory
    with pytest.raises(UserError, match="U001"):
        explain.explain(model, kernel="nonsense")


def test_work_counts_the_program() -> None:
    matmul = parse_program(
        "program m(a: f32[4, 6], b: f32[6, 5]):\n  c: f32[i<4, j<5] = sum(k<6) a[i, k] * b[k, j]\n  return c\n"
    )
    counted = work_of(matmul)
    assert counted.flops == 2 * 4 * 5 * 6
    assert (counted.read_bytes, counted.written_bytes) == ((24 + 30) * 4, 20 * 4)
    constant = wiring.with_constants(matmul, {"b": np.ones((6, 5), np.float32)})
    assert work_of(constant) == counted and [t.name for t in constant.inputs] == ["a"]
    causal = parse_program(
        "program m(a: f32[64, 64]):\n  c: f32[i<64] = sum(k<64 if k <= i) a[i, k]\n  return c\n"
    )
    assert work_of(causal).flops == pytest.approx(64 * 65 / 2, rel=0.05)
    symbolic = parse_program("program m(a: f32[N]):\n  dim N in 0 .. inf\n  c: f32[i<N] = a[i] + 1.0\n  return c\n")
    with pytest.raises(UserError, match="P001"):
        work_of(symbolic)
    assert work_of(symbolic.bind({"N": 7})).flops == 7
    twice = replace(matmul, results=("c", "c"))
    assert work_of(twice).written_bytes == 80
