"""Saved models without a compiler: only NumPy and ml_dtypes can be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F64, I64
from tilewright.ir.program import Extern, Program, Tensor
from tilewright.machine.target import Target

SOURCE = Path(tw.__file__).parents[1]
ALONE = """
import importlib.abc
import os
import sys

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        ours = top in ("numpy", "ml_dtypes", "tilewright")
        if not ours and top not in sys.stdlib_module_names and not top.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"no {name} here", name=name)

sys.meta_path.insert(0, Nothing())
import numpy as np
from tilewright import runner

folder, cache = sys.argv[1:]
for name in ("layers", "loop", "top"):
    given = dict(np.load(f"{folder}/{name}.npz"))
    for threads in (1, 2):
        model = runner.load(f"{folder}/{name}.twa", threads=threads)
        got = model.run(given)
        for k, y in enumerate(got):
            np.save(f"{folder}/{name}-{threads}-{k}.npy", y)
try:
    runner.load(f"{folder}/layers.twa")(np.zeros(3, np.float32))
except runner.UserError as error:
    assert error.code == "R001", error
else:
    raise AssertionError("taken")
assert not os.path.exists(cache)
loaded = {m.partition(".")[0] for m in sys.modules}
assert not loaded & {"llvmlite", "torch", "onnx", "platformdirs", "rich", "click"}, loaded
"""
LOOP = """program p(x: f32[64], g: f32[9]):
  s: f32[64], rows: f32[9, 64] = while t<9:
    carry h: f32[64] = x
    a: f32[j<64] = tanh(h[j]) * 0.75 + g[t[]]
    m: f32[] = max(j<64) a[j]
    go: bool[] = m > 0.01
    next a stack a if go
  y: f32[j<64] = s[j] + 1.0
  return y, rows
"""


def models() -> dict[str, tuple[tw.CompiledModel, dict[str, np.ndarray]]]:
    """Names, models, and inputs: layers with constants and calls to the C library, a loop, a sort."""
    rng = np.random.default_rng(0)
    text = "x: f32[300, 200]; w: f32[200, 400]; y[i, j] = tanh(sum(k) x[i, k] * w[k, j])"
    x, w = (rng.standard_normal(s, np.float32) for s in ((300, 200), (200, 400)))
    t = Tensor("x", F64, (E.const(6), E.const(9)))
    results = tuple(Tensor(n, d, (E.const(6), E.const(3))) for n, d in (("v", F64), ("i", I64)))
    top = Extern(results, "topk", ("x",), (("axis", -1), ("k", 3), ("largest", True)))
    return {
        "layers": (tw.compile(text), {"x": x, "w": w}),
        "loop": (tw.compile(LOOP), {"x": x[0, :64].copy(), "g": np.linspace(1, -1, 9, dtype="f4")}),
        "top": (tw.compile(Program("top", (t,), (top,), ("v", "i"))), {"x": x[:6, :9].astype("f8")}),
    }  # fmt: skip


def test_numpy_is_enough(tmp_path: Path) -> None:
    if Target.native().isa == "aarch64":
        pytest.skip("LLVM places objects there")
    held = models()
    for name, (model, inputs) in held.items():
        model.save(tmp_path / f"{name}.twa")
        np.savez(tmp_path / f"{name}.npz", **inputs)
    cache = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path), str(cache)], check=False,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "TILEWRIGHT_CACHE_DIR": str(cache)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, (model, inputs) in held.items():
        wanted = model.run(inputs)
        for threads in (1, 2):
            for k, y in enumerate(wanted):
                np.testing.assert_array_equal(np.load(tmp_path / f"{name}-{threads}-{k}.npy"), y)
