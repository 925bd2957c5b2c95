"""tune_plan with real code in the real measuring process: planted failures, kill -9, repetition."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import tilewright
from tilewright.errors import TargetError, UserError
from tilewright.group.plan import plan_program
from tilewright.ir.nest import LoopNest
from tilewright.ir.program_parser import parse_program
from tilewright.machine.target import Target
from tilewright.schedule.kernel_space import space_of
from tilewright.tools import candidate
from tilewright.tune import bench, task
from tilewright.tune.database import Database
from tilewright.tune.session import tune_plan

try:
    TARGET = Target.native()
except TargetError:
    pytest.skip("no native target", allow_module_level=True)

PROGRAM = """program p(x: f32[48, 64], w: f32[64, 40]):
  y: f32[i<48, j<40] = sum(k<64) x[i, k] * w[k, j]
  return y
"""
# What stands in for a candidate's code, after the first line of each phase.
CRASH = "  call void @llvm.trap()\n  ret void\n}\n"
HANG = "  br label %on\non:\n  br label %on\n}\n"
NOTHING = "  ret void\n}\n"
OUTSIDE = """  %slot = getelementptr ptr, ptr %args, i64 2
  %y = load ptr, ptr %slot
  %behind = getelementptr float, ptr %y, i64 {size}
  store float 1.0, ptr %behind
  ret void
}}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "cache"))


def replaced(text: str, body: str) -> str:
    """The module with every phase doing `body`."""
    heads = re.findall(r"^define [^{]*\{\n", text, flags=re.M)
    names = [h.split("%")[1].split(",")[0].split(")")[0] for h in heads]
    out = "declare void @llvm.trap()\n"
    for head, first in zip(heads, names, strict=True):
        out += head + "entry:\n" + body.replace("%args", f"%{first}")
    return out


def planting(
    bodies: list[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], Callable[[LoopNest, Target], str]]:
    """Let the candidates after the default have these bodies, one each."""
    emit, left = task.emit_llvm, list(bodies)
    count = 0

    def emit_other(nest: LoopNest, target: Target) -> str:
        nonlocal count
        count += 1
        text = emit(nest, target)
        return replaced(text, left.pop(0)) if count > 1 and left else text

    monkeypatch.setattr(task, "emit_llvm", emit_other)
    return left, emit_other


def test_planted_crash_hang_and_wrong_candidates_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_PATIENCE_S", 0.5)
    plan, _ = plan_program(parse_program(PROGRAM), TARGET)
    outside = OUTSIDE.format(size=48 * 40 + 2)
    left, _ = planting([CRASH, HANG, NOTHING, outside], monkeypatch)
    path = tmp_path / "db.sqlite"
    got = tune_plan(plan, {}, TARGET, 1, budget_s=8.0, db=path, frozen=False, on_event=None)
    assert not left
    assert {code: got.rejected.get(code) for code in ("R020", "R021", "R022", "V001")} == {
        "R020": 1, "R021": 1, "R022": 1, "V001": 1,
    }  # fmt: skip
    with Database(path, read_only=True) as db:
        refused = db.records(status="rejected")
        assert {r.code for r in refused} == {"R020", "R021", "R022", "V001"}
        assert all(r.detail for r in refused)
        chosen = str(got.choose(plan.kernels[0]))
        assert chosen not in {r.schedule for r in refused}
    (facts,) = got.facts.values()
    assert facts.rejected == got.rejected
    assert "R021" in str(facts)
    assert facts.checked  # the default agrees with the oracle
    again = tune_plan(plan, {}, TARGET, 1, budget_s=8.0, db=path, frozen=False, on_event=None)
    assert again.kernels_tuned == 0 and again.trials == 0


def test_the_public_verb_tunes_and_the_result_is_right(tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "db.sqlite"
    model = tilewright.compile(PROGRAM.replace("program p", "program q"), tune=1.5, threads=1, db=path)
    assert model.stats["kernels_tuned"] == 1
    rng = np.random.default_rng(0)
    x = rng.standard_normal((48, 64)).astype(np.float32)
    w = rng.standard_normal((64, 40)).astype(np.float32)
    assert np.allclose(model(x, w), x @ w, atol=1e-4)
    second = tilewright.compile(PROGRAM.replace("program p", "program q"), tune=1.5, threads=1, db=path)
    assert second.stats["kernels_tuned"] == 0
    assert second.stats["kernels_compiled"] == 0


CHILD = """
import sys
from tilewright.group.plan import plan_program
from tilewright.ir.program_parser import parse_program
from tilewright.machine.target import Target
from tilewright.tune import search
from tilewright.tune.session import tune_plan
search._FRUITLESS = 10_000
plan, _ = plan_program(parse_program(sys.argv[1]), Target.native())
print("started", flush=True)
tune_plan(plan, {}, Target.native(), 1, budget_s=120, db=sys.argv[2], frozen=False, on_event=None)
"""


def test_kill_9_leaves_the_database_whole_and_the_next_run_continues(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), PROGRAM, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stdout=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and child.poll() is None:
            with suppress(UserError):  # the child is just making the file
                if path.exists() and len(Database(path, read_only=True)) >= 12:
                    break
            time.sleep(0.05)
        assert child.poll() is None
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    with Database(path) as db:
        assert db.quarantined is None
        before = db.records()
    assert len(before) >= 12
    assert not [r for r in before if r.confirmed]
    plan, _ = plan_program(parse_program(PROGRAM), TARGET)
    got = tune_plan(plan, {}, TARGET, 1, budget_s=1.5, db=path, frozen=False, on_event=None)
    assert got.kernels_tuned == 1
    (facts,) = got.facts.values()
    distinct = {r.schedule for r in before} - {str(space_of(plan.kernels[0], TARGET, 1).default())}
    assert facts.trials >= len(distinct)
    with Database(path, read_only=True) as db:
        after = db.records()
    assert after[: len(before)] == before
    again = tune_plan(plan, {}, TARGET, 1, budget_s=1.5, db=path, frozen=False, on_event=None)
    assert again.kernels_tuned == 0


def test_what_a_candidate_costs() -> None:
    total, python = candidate.measure()
    assert 0 < python < total
