"""The standard Backend interface: a few of ONNX's own node tests through it, single nodes, devices."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import tilewright as tw
from tilewright.errors import UserError
from unit.frontend.onnx.support import floats, model, node

CASES = ("test_loop11", "test_if", "test_scan9_sum", "test_nonzero_example", "test_unique_length_1",
         "test_range_float_type_positive_delta", "test_reshape_negative_dim", "test_top_k",
         "test_compress_1", "test_nonmaxsuppression_two_batches", "test_gemm_all_attributes")  # fmt: skip
MODULES = ("loop", "if_", "scan", "nonzero", "unique", "rangeop", "reshape", "topk", "compress",
           "nonmaxsuppression", "gemm")  # fmt: skip


def cases() -> dict[str, Any]:
    from onnx.backend.test.case import node as found

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in MODULES:
            importlib.import_module(f"onnx.backend.test.case.node.{name}")
    return {c.name: c for c in found._NodeTestCases}


@pytest.mark.parametrize("name", CASES)
def test_node_tests(name: str) -> None:
    case = cases()[name]
    inputs, expected = (
        [numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else np.asarray(x) for x in xs]
        for xs in case.data_sets[0]
    )
    for got, wanted in zip(tw.onnx.backend.run_model(case.model, inputs), expected, strict=True):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


def test_prepared_models_run_by_place_and_by_name() -> None:
    data = model(
        [node("Sub", "a b", "y")], {"a": (np.float32, (3,)), "b": (np.float32, (3,))}, ["y"]
    )
    proto = onnx.load_model_from_string(data)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [3]))
    a, b = floats(3), floats(3, seed=1)
    prepared = tw.onnx.backend.prepare(proto, device="CPU:0")
    assert isinstance(prepared, onnx.backend.base.BackendRep)
    np.testing.assert_array_equal(prepared.run([a, b]).y, a - b)
    np.testing.assert_array_equal(prepared.run({"b": b, "a": a})[0], a - b)
    with pytest.raises(UserError, match="3 arrays given"):
        prepared.run([a, b, a])


def test_inputs_go_by_the_names_of_the_file() -> None:
    """`max` and `a.b` are no names that a Program can hold."""
    data = model(
        [node("Add", "max a.b", "y")], {"max": (np.float32, (3,)), "a.b": (np.float32, (3,))}, ["y"]
    )
    a, b = floats(3), floats(3, seed=1)
    np.testing.assert_array_equal(tw.onnx.load(data).run({"max": a, "a.b": b})[0], a + b)


def test_single_nodes() -> None:
    a, b = floats(2, 3), floats(3, 4)
    (y,) = tw.onnx.backend.run_node(node("MatMul", "a b", "y"), [a, b])
    np.testing.assert_allclose(y, a @ b, rtol=1e-5)
    out = tw.onnx.backend.run_node(node("Clip", "a - high", "y"), {"a": a, "high": np.float32(0.1)})
    np.testing.assert_array_equal(out.y, np.minimum(a, np.float32(0.1)))


def test_devices_and_models_that_are_not_supported() -> None:
    assert tw.onnx.backend.supports_device("CPU") and not tw.onnx.backend.supports_device("CUDA")
    x = {"x": (np.float32, (2,))}
    good = onnx.load_model_from_string(model([node("Relu", "x", "y")], x, ["y"]))
    bad = onnx.load_model_from_string(model([node("RandomNormalLike", "x", "y")], x, ["y"]))
    assert tw.onnx.backend.is_compatible(good) and not tw.onnx.backend.is_compatible(bad)
    with pytest.raises(UserError, match="no device 'CUDA:1'") as caught:
        tw.onnx.backend.prepare(good, device="CUDA:1")
    assert caught.value.code == "U003"
