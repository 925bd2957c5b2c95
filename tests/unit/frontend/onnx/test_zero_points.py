"""Zero points of known weights leave the sum of products, and nothing changes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tilewright.frontend.onnx import import_onnx
from tilewright.ir.program import Definition, Program
from tilewright.ir.words import narrow_factors
from unit.frontend.onnx.support import model, run

RNG = np.random.default_rng(5)
X = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
W = RNG.integers(-128, 128, (9, 7), dtype=np.int8)
IMAGE = RNG.integers(0, 256, (1, 4, 5, 6), dtype=np.uint8)
KERNEL = RNG.integers(-128, 128, (3, 4, 3, 3), dtype=np.int8)


def is_narrow(program: Program) -> bool:
    """Whether a definition sums products of 8-bit factors as they are."""
    found = [d for d in program.body if isinstance(d, Definition)]
    return any(narrow_factors(d) is not None for d in found)


@pytest.mark.parametrize("zero", [0, 1, 131, 255])
@pytest.mark.parametrize("weight_zero", [0, -7])
def test_matmul(zero: int, weight_zero: int) -> None:
    node = helper.make_node("MatMulInteger", ["x", "w", "zx", "zw"], ["y"])
    constants = {"w": W, "zx": np.array(zero, np.uint8), "zw": np.array(weight_zero, np.int8)}
    imported = import_onnx(model([node], {"x": (np.uint8, X.shape)}, ["y"], constants))
    found = run(imported, {"x": X})[0]
    expected = (X.astype(np.int32) - zero) @ (W.astype(np.int32) - weight_zero)
    assert np.array_equal(found, expected)
    if not weight_zero:
        assert is_narrow(imported.program)


@pytest.mark.parametrize("zero", [0, 77])
def test_convolution_pads_with_the_zero_point(zero: int) -> None:
    node = helper.make_node("ConvInteger", ["x", "w", "zx"], ["y"], pads=[1, 1, 1, 1])
    constants = {"w": KERNEL, "zx": np.array(zero, np.uint8)}
    imported = import_onnx(model([node], {"x": (np.uint8, IMAGE.shape)}, ["y"], constants))
    found = run(imported, {"x": IMAGE})[0]
    wide = np.pad(IMAGE.astype(np.int32) - zero, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.zeros((1, 3, 5, 6), np.int32)
    for r in range(3):
        for s in range(3):
            window = wide[:, :, r : r + 5, s : s + 6]
            expected += np.einsum("nchw,oc->nohw", window, KERNEL[:, :, r, s].astype(np.int32))
    assert np.array_equal(found, expected)
    assert is_narrow(imported.program)
