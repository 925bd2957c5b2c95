"""The suites `kernels` and `models`: every row of the promise, every form well formed."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.tools import figures, results, suite, worker, zoo
from tilewright.tools.peers import (
    PEERS,
    BoundCall,
    Entry,
    Unavailable,
    _forms,
    check_names,
    preload_of,
)
from tilewright.tools.work import work_of

KERNELS = suite.load_suite("kernels")
ROWS = {row.name: row for row in KERNELS.rows}


def names(category: str) -> list[str]:
    return [row.name for row in KERNELS.rows if row.category == category]


def test_the_list_is_complete() -> None:
    assert len(ROWS) == len(KERNELS.rows) >= 110
    shapes = {tuple(row.dims.values()) for row in KERNELS.rows if row.category == "matmul"}
    assert {(n, n, n) for n in (64, 128, 256, 512, 1024, 2048)} <= shapes
    assert {(1, 4096, 4096), (16, 4096, 4096), (1000, 77, 1000), (96, 128, 128, 64), (512, 3072, 768)} <= shapes
    assert {ROWS[n].dtype for n in names("matmul")} == {"f32", "bf16", "f16", "f64", "u8"}
    assert any(row.constants for row in KERNELS.rows if row.name.startswith("matmul_512"))
    for n in (1, 8):
        assert sum(name.endswith(f"_n{n}") for name in names("conv")) == 6
    for part in ("depthwise", "grouped", "dilated", "transposed", "residual", "_1d_", "_3d_", "u8s8"):
        assert any(part in name for name in names("conv")), part
    for part in ("512x64_causal", "2048x64_causal", "mask", "decode", "grouped"):
        assert any(part in name for name in names("attention")), part
    for part in (
        "softmax", "layer_norm", "rms_norm", "batch_norm", "group_norm", "sum_rows", "sum_columns", "sum_full",
        "max_rows", "max_columns", "max_full", "argmax", "variance", "logsumexp", "top8",
    ):  # fmt: skip
        assert any(name.startswith(part) for name in names("norm")), part
    for part in (
        "gelu", "bias_gelu", "chain8_4M", "chain8_64M", "add_row", "add_column", "transpose", "permute_0213",
        "permute_0231", "concat", "slice", "pad", "where", "compare", "cast", "max_pool", "average_pool",
        "resize_nearest", "resize_bilinear",
    ):  # fmt: skip
        assert any(name.startswith(part) for name in names("elementwise")), part
    for part in ("cumsum_rows", "cumsum_columns", "cumprod_rows", "cumprod_columns", "selective_scan"):
        assert any(name.startswith(part) for name in names("scan")), part
    assert {"lstm_128x1x512", "lstm_128x32x512", "gru_128x1x512", "gru_128x32x512"} <= set(ROWS)
    assert {"embedding_50000x768_4096", "scatter_add_50000x768_4096", "sort_1M", "sort_rows_4096x1024"} <= set(ROWS)
    assert {"adam_10M", "add_64", "mlp_4x64_b1", "cholesky_10000x16"} <= set(ROWS)
    assert {f"matmul_tiny_10000x{n}" for n in (4, 8, 16)} <= set(ROWS)
    assert set(KERNELS.peers) >= {"torch", "torch+tcmalloc", "onnxruntime", "openvino", "jax", "numpy"}
    models = {row.name for row in suite.load_suite("models").rows}
    assert set(zoo.ZOO) | {"ocr_det", "ocr_rec", "magika", "open_nsfw"} == models


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_well_formed(name: str) -> None:
    row = ROWS[name]
    program = suite.bound_program(row)
    assert set(row.constants) | set(row.inputs) <= {tensor.name for tensor in program.inputs}
    assert set(row.fixed) <= set(row.dims)
    counted = work_of(program)
    assert counted.bytes > 0
    if row.flops:  # a formula states less than the definitions spell out, never more
        assert 0 < row.number(row.flops) <= counted.flops
    moved = suite.jitter(row, 3)
    assert work_of(suite.bound_program(moved)).bytes > 0
    known = {tensor.name for tensor in program.inputs} | {"out", "outs"}
    known |= {"torch", "F", "aten", "jax", "jnp", "lax", "np", "scipy"}
    for form in (*row.torch, *row.jax, *row.numpy):
        tree = ast.parse(row.fill(form).strip())
        assert isinstance(tree.body[-1], ast.Expr)
        stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        stored |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        stored |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        assert used - stored - known <= {"tuple", "range", "dict", "zip", "bool"}, form


@pytest.mark.parametrize("name", [row.name for row in KERNELS.rows if row.onnx])
def test_the_onnx_forms_are_valid(name: str) -> None:
    onnx = pytest.importorskip("onnx")
    from tilewright.tools.peers._onnx import onnx_models

    row = ROWS[name]
    small = {name: np.zeros(shape, dtype) for name, (shape, dtype) in _tiny_constants(row).items()}
    models = onnx_models(row, small)
    assert len(models) == len(row.onnx)
    for model in models:
        assert isinstance(model, bytes)
        loaded = onnx.load_model_from_string(model)
        onnx.checker.check_model(loaded)
        assert [value.name for value in loaded.graph.output] == list(suite.bound_program(row).results)


def _tiny_constants(row: suite.Workload) -> dict[str, tuple[tuple[int, ...], str]]:
    specs = suite.input_specs(row)
    return {name: specs[name] for name in row.constants if math.prod(specs[name][0]) < 1 << 22}


def test_known_amounts_of_work() -> None:
    """Against the textbook counts, not against the code that counts."""

    def flops(name: str) -> float:
        row = ROWS[name]
        return row.number(row.flops) if row.flops else work_of(suite.bound_program(row)).flops

    assert flops("matmul_1024") == 2 * 1024**3
    assert flops("conv_3x3_128_28_n1") == 2 * 9 * 128 * 128 * 28 * 28
    assert flops("conv_transposed_4x4_s2_128_28") == 2 * 16 * 128 * 128 * 28 * 28
    whole, half = flops("attention_12x2048x64"), flops("attention_12x2048x64_causal")
    assert half / whole == pytest.approx(0.5, abs=0.01)
    assert whole == pytest.approx(4 * 12 * 2048 * 2048 * 64, rel=0.05)
    copied = work_of(suite.bound_program(ROWS["transpose_4096x4096"]))
    assert (copied.flops, copied.bytes) == (0, 2 * 4096 * 4096 * 4)
    looked_up = work_of(suite.bound_program(ROWS["embedding_50000x768_4096"]))
    assert looked_up.read_bytes == 4096 * 768 * 4 + 4096 * 8


def test_a_sample_takes_from_every_class() -> None:
    classes = {row.category for row in KERNELS.rows}
    for seed in range(5):
        chosen = suite.choose(KERNELS, sample=40, seed=seed).rows
        assert len(chosen) == 40 and {row.category for row in chosen} == classes
        assert chosen == suite.choose(KERNELS, sample=40, seed=seed).rows
    assert suite.choose(KERNELS, sample=40, seed=1) != suite.choose(KERNELS, sample=40, seed=2)
    assert [r.category for r in suite.choose(KERNELS, only="attention").rows] == ["attention"] * len(names("attention"))


def test_inputs_are_what_the_row_asks_for() -> None:
    small = suite.replace(ROWS["embedding_50000x768_4096"], dims={"V": 20, "D": 3, "L": 50}, constants=())
    ids = suite.make_inputs(small, suite.input_specs(small), 1)["n"]
    assert ids.dtype == np.int64 and ids.min() >= 0 and ids.max() < 20 and len(set(ids)) > 5
    matrices = suite.replace(ROWS["cholesky_10000x16"], dims={"G": 7, "N": 16})
    a = suite.make_inputs(matrices, suite.input_specs(matrices), 1)["a"]
    assert np.allclose(a, a.swapaxes(1, 2)) and np.linalg.eigvalsh(a).min() > 0.5
    whole = suite.make_inputs(ROWS["conv_3x3_128_28_u8s8"], suite.input_specs(ROWS["conv_3x3_128_28_u8s8"]), 1)
    assert whole["x"].dtype == np.uint8 and whole["k"].min() < -100
    chosen = suite.replace(ROWS["where_4096x4096"], dims={"M": 8, "N": 8})
    assert suite.make_inputs(chosen, suite.input_specs(chosen), 1)["c"].dtype == np.bool_


def test_arrays_keep_their_dtypes_in_files(tmp_path: Path) -> None:
    import ml_dtypes

    arrays = [
        np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3), np.float32([1.5, -2]), np.array(3, np.int64),
        np.zeros((0, 4), np.bool_),
    ]  # fmt: skip
    path = str(tmp_path / "a.npz")
    suite.save_arrays(path, arrays)
    for wrote, read in zip(arrays, suite.load_arrays(path), strict=True):
        assert wrote.dtype == read.dtype and wrote.shape == read.shape and (wrote == read).all()


def test_forms() -> None:
    values = {"a": np.float32([1, 2]), "b": np.float32([3, 4]), "out": np.zeros(2, np.float32)}
    form = _forms.Form("twice = 2 * b\nnp.add(a, twice)", {"np": np}, values)
    assert set(form.made) == {"twice"} and form.mentions("a") and not form.mentions("b")
    assert form.function(())().tolist() == [7, 10]
    assert form.function(["a"])(np.float32([0, 0])).tolist() == [6, 8]
    into = _forms.with_out(form, "out")
    assert into is not None and form.function((), into)() is values["out"]
    assert _forms.with_out(_forms.Form("a + b", {}, values), "out") is None
    with pytest.raises(ValueError, match="expression"):
        _forms.Form("a = 1", {}, {})


def test_the_fastest_way_is_chosen() -> None:
    import time

    slow = Entry([BoundCall(lambda: time.sleep(0.01), {}, list)], settings="slow")
    quick = Entry([BoundCall(lambda: None, {}, list)], settings="quick")
    assert worker.fastest([slow, quick], 0.01) is quick and worker.fastest([slow], 0.01) is slow


def test_variants_of_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"torch", "inductor", "inductor_max", "onnxruntime", "openvino", "jax", "numpy"} == set(PEERS)
    check_names(["jax+tcmalloc"])
    assert preload_of("jax") == ""
    monkeypatch.setattr("tilewright.tools.peers._LIBRARY_FOLDERS", ("/nonexistent",))
    with pytest.raises(Unavailable, match="apt-get install libtcmalloc-minimal4"):
        preload_of("jax+tcmalloc")


def test_numpy_peer_follows_new_inputs() -> None:
    from tilewright.tools.peers.numpy import Adapter

    for name, dims in (("matmul_64", {"M": 5, "N": 6, "K": 7}), ("transpose_4096x4096", {"M": 5, "N": 6})):
        row = suite.replace(ROWS[name], dims=dims)
        for fresh in (False, True):
            (entry,) = Adapter().prepare(suite.replace(row, fresh=fresh), 1, 2)
            assert len(entry.calls) == 2 and entry.outputs_kind == ("fresh" if fresh else "bound")
            bound = entry.calls[0]
            for array in bound.inputs.values():
                array[...] = 2.0
            bound.call()
            (out,) = bound.outputs()
            assert out.shape == suite.output_specs(row)[0][0]
            assert (out == (28.0 if name == "matmul_64" else 2.0)).all()


SMALL = {
    "resnet": zoo.Model({"x": ((1, 3, 32, 32), "float32", "normal")}, ("y",), zoo._resnet((1, 1, 1, 1), True)),
    "bert": zoo.Model({"ids": ((1, 8), "int64", "below:100")}, ("y",), zoo._bert(1, 8, 64, 1)),
    "gpt": zoo.Model({"ids": ((1, 4), "int64", "below:100")}, ("y",), zoo._gpt2(1, 4, 0, 64, 1, 100)),
    "decode": zoo.Model(
        {
            "ids": ((1, 1), "int64", "below:100"),
            "k0": ((1, 1, 5, 64), "float32", "normal"),
            "v0": ((1, 1, 5, 64), "float32", "normal"),
        },
        ("y", "k", "v"),
        zoo._gpt2(1, 1, 5, 64, 1, 100),
    ),
    "dlrm": zoo.Model(
        {"dense": ((4, 13), "float32", "normal"), "ids": ((4, 2), "int64", "below:10")}, ("y",),
        zoo._dlrm(4, 2, 10, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_a_model_is_the_same_for_onnx_and_for_torch(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ort = pytest.importorskip("onnxruntime")
    torch = pytest.importorskip("torch")
    from tilewright.tools.peers._models import TorchOps

    monkeypatch.setitem(zoo.ZOO, name, SMALL[name])
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path))
    path = zoo.onnx_file(name)
    assert path == zoo.onnx_file(name) and path.stat().st_size > 1000
    row = suite.Workload("models", name, "c", {}, model=name)
    given = suite.make_inputs(row, suite.input_specs(row), 1)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = session.run(None, given)
    tensors = {name: torch.from_numpy(array) for name, array in given.items()}
    with torch.no_grad():
        got = SMALL[name].build(TorchOps(), tensors)
    assert len(got) == len(expected) == len(SMALL[name].outputs)
    for mine, theirs in zip(got, expected, strict=True):
        scale = np.abs(theirs).max()
        assert np.isfinite(scale) and np.abs(mine.numpy() - theirs).max() < 1e-4 * max(scale, 1.0)


def row_of(name: str, ratio: float, **facts: Any) -> dict[str, Any]:
    row = {
        "workload": name, "category": "c", "verified": True, "outputs": "bound", "ours_us": 10.0,
        "ours_untuned_us": 12.0, "roofline_us": 5.0, "compile_s": 0.5, "peers": {"numpy": {"us": 10.0 * ratio}},
        "rounds_us": {"ours": [10.0] * 11, "numpy": [10.0 * ratio] * 11}, "detail": {},
    }  # fmt: skip
    return {**row, **facts}


def test_figures_of_kernels() -> None:
    rows = [
        row_of("a", 2.0, detail={"scaling": {"one_thread_us": 4000.0, "us": 2000.0}, "bound_by": "flops"}),
        row_of("b", 0.5, detail={"scaling": {"one_thread_us": 100.0, "us": 200.0}, "bound_by": "flops"}),
        row_of("a", 9.0, outputs="fresh"),
    ]
    found = figures.figures(rows, ["best_peer", "scaling", "compile"])
    assert found["rows"]["value"] == 2 and found["fresh_rows"]["value"] == 1
    assert found["geomean_vs_best_peer"]["value"] == pytest.approx(1.0)
    assert found["scaling_worst"]["value"] == 2.0 and found["rows_slower_than_one_thread"]["value"] == 1
    assert found["compile_s_max"]["value"] == 0.5
    nothing = figures.figures([row_of("a", 2.0)], ["scaling"])["scaling_worst"]
    assert nothing["value"] is None and "not measured" in nothing["how"]


def test_the_page_of_results(tmp_path: Path) -> None:
    import json
    import xml.etree.ElementTree as tree

    (tmp_path / "figures").mkdir()
    data = {
        "machine": {"versions": {"tilewright": "1"}, "cpu": "x", "cores": 2},
        "settings": {"suite": "kernels", "threads": 1, "budget_s": 10.0},
        "rows": [row_of("fast<row>", 3.0), row_of("bad", 1.0, verified=False, detail={"error": "wrong: a|b"})],
        "figures": {"x": {"value": None, "unit": "ns", "how": "not measured: no"}},
    }
    (tmp_path / "figures" / "m.json").write_text(json.dumps(data))
    pages = results.results(tmp_path)
    page = pages[tmp_path / "results.md"]
    assert "| 3.00 |" in page and "unverified: wrong: a\\|b" in page and "| `x` | - |" in page
    picture = tree.fromstring(pages[tmp_path / "figures" / "m.svg"])
    assert sum(node.tag.endswith("rect") for node in picture.iter()) == 2  # the ground and one bar
