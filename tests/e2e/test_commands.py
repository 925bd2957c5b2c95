"""The commands, end to end, on a small ONNX model: each in a process of its own, as a user has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw

onnx = pytest.importorskip("onnx")
SOURCE = Path(tw.__file__).parents[1]


def random(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


W = {
    "k": random(1, 16, 3, 3, 3) * 0.3,
    "kb": random(2, 16),
    "d": random(3, 16, 1, 3, 3) * 0.3,
    "g": random(4, 16, 10) * 0.3,
    "gb": random(5, 10),
}


def build(path: Path) -> Path:
    """Convolution, depthwise convolution, pooling, a matrix product, softmax; batch and height free."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Conv", ["image", "k", "kb"], ["c"], "conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["cr"], "relu"),
        helper.make_node("Conv", ["cr", "d"], ["e"], "depthwise", pads=[1, 1, 1, 1], group=16),
        helper.make_node("Add", ["e", "cr"], ["s"], "skip"),
        helper.make_node("GlobalAveragePool", ["s"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "g", "gb"], ["logits"], "dense"),
        helper.make_node("Softmax", ["logits"], ["class"], "softmax", axis=-1),
    ]
    f = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info("image", f, ["batch", 3, "height", 20])],
        [helper.make_tensor_value_info("class", f, ["batch", 10]), helper.make_tensor_value_info("logits", f, ["batch", 10])],
        [numpy_helper.from_array(a, n) for n, a in W.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made)
    onnx.save(made, str(path))
    return path


def reference(x: Any) -> tuple[Any, Any]:
    from numpy.lib.stride_tricks import sliding_window_view

    x = x.astype(np.float64)
    wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = sliding_window_view(wide, (3, 3), (2, 3))[:, :, ::2, ::2]
    c = np.maximum(np.einsum("nchwpq,ocpq->nohw", windows, W["k"]) + W["kb"][None, :, None, None], 0)
    wide = np.pad(c, ((0, 0), (0, 0), (1, 1), (1, 1)))
    e = np.einsum("nchwpq,cpq->nchw", sliding_window_view(wide, (3, 3), (2, 3)), W["d"][:, 0])
    logits = (e + c).mean((2, 3)) @ W["g"] + W["gb"]
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True), logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("e2e")
    build(path / "small.onnx")
    np.savez(path / "x.npz", image=random(9, 2, 3, 14, 20))
    return path


def run(folder: Path, *arguments: str, status: int = 0) -> Any:
    """One command; its standard output, or the JSON that it wrote."""
    environment = {
        **os.environ, "PYTHONPATH": str(SOURCE), "TILEWRIGHT_CACHE_DIR": str(folder / "cache"),
        "TILEWRIGHT_NUM_THREADS": "1", "TMPDIR": str(folder),
    }  # fmt: skip
    command = [sys.executable, "-m", "tilewright", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, (arguments, done.stdout, done.stderr)
    return json.loads(done.stdout) if "-" in arguments else done.stdout


def outputs(folder: Path, name: str) -> list[Any]:
    with np.load(folder / name) as file:
        return [file[n] for n in file.files]


def test_run(folder: Path) -> None:
    shown = run(folder, "run", "small.onnx", "--input", "x.npz", "--output", "y.npz")
    assert "class: float32[2, 10]" in shown and "logits: float32[2, 10]" in shown
    x = np.load(folder / "x.npz")["image"]
    for got, wanted in zip(outputs(folder, "y.npz"), reference(x), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_check(folder: Path) -> None:
    result = run(folder, "check", "small.onnx", "--dim", "batch=3", "--dim", "height=9", "--json", "-")
    assert result["ok"] and len(result["rows"]) == 6


def test_dump_and_back(folder: Path) -> None:
    sizes = ("--dim", "batch=2", "--dim", "height=14")
    code = run(folder, "dump", "small.onnx", "--stage", "llvm", *sizes)
    assert "define void @k_p0" in code
    for stage in ("program", "plan", "loops"):
        text = run(folder, "dump", "small.onnx", "--stage", stage, *sizes, "-o", "stages")
        assert (folder / "stages" / f"{stage}.txt").read_text() == text
        dims = sizes if stage == "program" else ()
        again = run(folder, "dump", f"stages/{stage}.txt", "--stage", "llvm", *dims)
        assert again == code
    run(folder, "run", "stages/plan.txt", "--input", "x.npz", "--output", "plan.npz")
    run(folder, "run", "small.onnx", "--input", "x.npz", "--output", "y.npz")
    for got, wanted in zip(outputs(folder, "plan.npz"), outputs(folder, "y.npz"), strict=True):
        np.testing.assert_array_equal(got, wanted)
    one = run(folder, "dump", "small.onnx", "--stage", "asm", "--kernel", "0", *sizes)
    assert "k_p0:" in one


def test_explain(folder: Path) -> None:
    sizes = ("--dim", "batch=2", "--dim", "height=14")
    text = run(folder, "explain", "small.onnx", *sizes)
    for node in ("conv (Conv)", "depthwise (Conv)", "softmax (Softmax)", "pool (GlobalAveragePool)"):
        assert node in text, node
    assert "computed on the producer's register tile" in text
    assert run(folder, "explain", "small.onnx", "--memory", *sizes).startswith("peak ")
    assert "measured" in run(folder, "explain", "small.onnx", "--measure", *sizes)


def test_tune_then_frozen_then_saved(folder: Path) -> None:
    """A short search; its result is found again, gives right results, and can be saved."""
    db, sizes = ("--db", "tuning.sqlite"), ("--dim", "batch=2", "--dim", "height=14")
    result = run(folder, "tune", "small.onnx", "--budget", "3s", *sizes, *db, "-o", "small.twa", "--json", "-")
    assert result["stats"]["kernels_tuned"] >= 1 and result["seconds"] < 60
    run(folder, "run", "small.onnx", "--input", "x.npz", "--output", "tuned.npz", "--frozen", *db)
    run(folder, "run", "small.twa", "--input", "x.npz", "--output", "saved.npz")
    x = np.load(folder / "x.npz")["image"]
    for tuned, saved, wanted in zip(
        outputs(folder, "tuned.npz"), outputs(folder, "saved.npz"), reference(x), strict=True
    ):
        np.testing.assert_array_equal(tuned, saved)
        np.testing.assert_allclose(tuned, wanted, rtol=1e-4, atol=1e-5)
    tuned_code = run(folder, "dump", "small.onnx", "--stage", "llvm", *sizes, *db)
    run(folder, "dump", "small.onnx", "--stage", "plan", *sizes, *db, "-o", "tuned")
    assert run(folder, "dump", "tuned/plan.txt", "--stage", "llvm", *db) == tuned_code
    listed = run(folder, "db", "list", *db, "--json", "-")
    assert len(listed["tasks"]) >= result["stats"]["kernels_tuned"]


def test_budget_zero_tunes_nothing(folder: Path) -> None:
    sizes = ("--dim", "batch=1", "--dim", "height=8")
    result = run(folder, "tune", "small.onnx", "--budget", "0", *sizes, "--db", "zero.sqlite", "--json", "-")
    assert result["stats"]["kernels_tuned"] == 0 and result["stats"]["tune_s"] < 5


def test_mistakes_have_their_exit_status(folder: Path) -> None:
    np.savez(folder / "bad.npz", imgae=np.zeros((1, 3, 8, 20), "f4"))
    np.savez(folder / "wide.npz", image=np.zeros((1, 3, 8, 21), "f4"))
    np.savez(folder / "double.npz", image=np.zeros((1, 3, 8, 20)))
    for file, code in (("bad.npz", "R001"), ("wide.npz", "R003"), ("double.npz", "R002")):
        error = run(folder, "run", "small.onnx", "--input", file, "--json", "-", status=2)
        assert error["error"]["code"] == code and error["error"]["next"]
    (folder / "cut.twa").write_bytes(b"PK\x03\x04")
    assert run(folder, "run", "cut.twa", "--input", "x.npz", "--json", "-", status=3)["error"]["code"] == "R011"
    assert run(folder, "dump", "small.onnx", "--stage", "loops", "--json", "-", status=2)["error"]["code"] == "R004"
