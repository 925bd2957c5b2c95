"""One row after the other, in the forms of old and new opsets, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.frontend.onnx import NEWEST_OPSET, import_onnx
from tilewright.ir.interpreter import run_program
from unit.frontend.onnx.support import check, floats, single

I64 = np.int64
X = floats(2, 3, 4)
IMAGE = floats(1, 4, 7, 6)
POSITIVE = np.abs(X) + 0.5
INTS = np.random.default_rng(1).integers(-9, 9, (2, 3, 4)).astype(np.int32)
BOOLS = X > 0


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, I64)


# operator, opset, inputs (names that start with c are constants), attributes
CASES: list[tuple[str, int, dict[str, Any], dict[str, Any]]] = [
    *[(op, 13, {"x": X}, {}) for op in (
        "Abs", "Neg", "Sign", "Floor", "Ceil", "Exp", "Sin", "Cos", "Tanh", "Erf", "Sigmoid",
        "Relu", "Softsign", "Softplus", "LeakyRelu", "Elu", "Selu", "HardSigmoid",
        "ThresholdedRelu", "Identity", "IsNaN", "IsInf", "Reciprocal", "Round", "Sinh", "Atan",
        "Asinh", "Celu", "Tan",
    )],
    *[(op, 13, {"x": POSITIVE}, {}) for op in ("Sqrt", "Log")],
    *[(op, 13, {"x": X / 8}, {}) for op in ("Asin", "Acos", "Atanh")],
    ("Acosh", 13, {"x": POSITIVE + 1}, {}),
    ("HardSwish", 14, {"x": X}, {}),
    ("Mish", 18, {"x": X}, {}),
    ("Gelu", 20, {"x": X}, {}),
    ("Gelu", 20, {"x": X}, {"approximate": "tanh"}),
    ("Shrink", 9, {"x": X}, {"lambd": 0.7, "bias": 0.2}),
    ("PRelu", 9, {"x": X, "c": floats(3, 1)}, {}),
    *[(op, 7, {"x": X, "z": POSITIVE[:, :1]}, {}) for op in ("Add", "Sub", "Mul", "Div", "Pow")],
    ("Pow", 13, {"x": POSITIVE, "c": np.array(2.0, np.float32)}, {}),
    ("Pow", 13, {"x": POSITIVE, "c": np.array(3, np.int64)}, {}),
    ("Pow", 13, {"x": INTS, "c": np.array(2, np.int32)}, {}),
    ("Div", 13, {"x": INTS, "z": np.where(INTS == 0, 3, INTS[:, ::-1] | 1)}, {}),
    ("Mod", 13, {"x": INTS, "z": INTS[:, ::-1] | 1}, {}),
    ("Mod", 13, {"x": X, "z": POSITIVE}, {"fmod": 1}),
    *[(op, 8, {"x": X, "z": X[:1], "w": X[:, :1]}, {}) for op in ("Sum", "Mean", "Max", "Min")],
    *[(op, 9, {"x": X, "z": np.round(X)}, {}) for op in ("Less", "Greater", "Equal") if op != "Equal"],
    ("Equal", 11, {"x": INTS, "z": INTS[:, :, ::-1].copy()}, {}),
    ("LessOrEqual", 16, {"x": INTS, "z": INTS[:, ::-1].copy()}, {}),
    ("GreaterOrEqual", 16, {"x": INTS, "z": INTS[:, ::-1].copy()}, {}),
    *[(op, 7, {"x": BOOLS, "z": BOOLS[:, ::-1].copy()}, {}) for op in ("And", "Or", "Xor")],
    ("Not", 7, {"x": BOOLS}, {}),
    *[(op, 18, {"x": INTS, "z": INTS[::-1].copy()}, {}) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")],
    ("BitwiseNot", 18, {"x": INTS}, {}),
    ("BitShift", 11, {"x": np.abs(INTS).astype(np.uint8), "c": np.array(2, np.uint8)}, {"direction": "LEFT"}),
    ("Where", 9, {"m": BOOLS, "x": X, "z": X[:, :1]}, {}),
    ("Clip", 6, {"x": X}, {"min": -0.5, "max": 0.3}),
    ("Clip", 7, {"x": X}, {"max": 0.3}),
    ("Clip", 12, {"x": X, "c": np.array(-0.5, np.float32)}, {}),
    ("Clip", 13, {"x": INTS, "a": None, "c": np.array(3, np.int32)}, {}),
    ("Cast", 9, {"x": X * 3}, {"to": 6}),
    ("Cast", 13, {"x": X}, {"to": 9}),
    ("Cast", 13, {"x": INTS}, {"to": 1}),
    ("CastLike", 15, {"x": X * 3, "c": ints(1)}, {}),
    # layout
    ("Reshape", 13, {"x": X, "c": ints(0, -1)}, {}),
    ("Reshape", 13, {"x": X, "c": ints(4, 2, 3)}, {}),
    ("Flatten", 9, {"x": X}, {"axis": 2}),
    ("Flatten", 13, {"x": X}, {"axis": -1}),
    ("Flatten", 13, {"c": ints()}, {"axis": 1}),
    ("Flatten", 13, {"c": ints().reshape(2, 0, 3)}, {"axis": 2}),
    ("Transpose", 13, {"x": X}, {"perm": [2, 0, 1]}),
    ("Transpose", 13, {"x": X}, {}),
    ("Squeeze", 11, {"x": X[:1, :, :1]}, {"axes": [0, 2]}),
    ("Squeeze", 13, {"x": X[:1, :, :1], "c": ints(-1)}, {}),
    ("Squeeze", 13, {"x": X[:1, :, :1]}, {}),
    ("Unsqueeze", 11, {"x": X}, {"axes": [0, 3]}),
    ("Unsqueeze", 13, {"x": X, "c": ints(-1, 1)}, {}),
    ("Concat", 13, {"x": X, "z": X[:, :1], "w": X[:, :2]}, {"axis": 1}),
    ("Slice", 9, {"x": X}, {"starts": [0, 1], "ends": [9, -1], "axes": [1, 2]}),
    ("Slice", 13, {"x": X, "c1": ints(3, -1), "c2": ints(0, -9), "c3": ints(2, 1), "c4": ints(-1, -2)}, {}),
    ("Slice", 10, {"x": X, "c1": ints(1), "c2": ints(2**62), "c3": ints(-1), "c4": ints(2)}, {}),
    ("Tile", 13, {"x": X, "c": ints(1, 2, 3)}, {}),
    ("Expand", 13, {"x": X[:, :1], "c": ints(3, 1, 3, 4)[1:]}, {}),
    ("Gather", 13, {"x": X, "c": ints(2, -1, 0)}, {"axis": 1}),
    ("Gather", 13, {"x": X, "c": ints(1, 2)}, {"axis": 2}),
    ("Gather", 13, {"x": X, "z": ints(0, -1)}, {"axis": -1}),
    ("Gather", 13, {"x": X, "c": np.array(-1, I64)}, {"axis": 1}),
    ("GatherElements", 13, {"x": X, "z": np.abs(INTS).astype(I64) % 3 - 1}, {"axis": 1}),
    ("GatherND", 13, {"x": X, "c": np.array([[1, -1], [0, 2]], I64)}, {}),
    ("GatherND", 13, {"x": X, "c": np.array([[1], [0]], I64)}, {"batch_dims": 1}),
    ("ScatterElements", 11, {"x": X, "c": np.array([[[1, 2, 0, 1]]], I64), "z": X[1:, 2:]}, {"axis": 1}),
    ("ScatterElements", 16, {"x": X, "c": np.array([[[1], [1], [1]]], I64), "z": X[1:, :, 1:2]},
     {"axis": 2, "reduction": "add"}),
    ("ScatterND", 13, {"x": X, "c": np.array([[1], [0]], I64), "z": X[:, ::-1].copy()}, {}),
    ("ScatterND", 16, {"x": X, "c": np.array([[1, 1], [1, 1]], I64), "z": X[:, 0]}, {"reduction": "mul"}),
    ("Pad", 2, {"x": X}, {"pads": [0, 1, 2, 1, 0, 1], "value": 2.5}),
    ("Pad", 13, {"x": X, "c": ints(0, 1, -1, 1, 0, 2), "c2": np.array(1.5, np.float32)}, {}),
    ("Pad", 13, {"x": X, "c": ints(0, 2, 1, 0, 1, 2)}, {"mode": "reflect"}),
    ("Pad", 13, {"x": X, "c": ints(1, 2, 0, 0, 0, 2)}, {"mode": "edge"}),
    ("Pad", 19, {"x": X, "c": ints(1, 2, 0, 0, 0, 2)}, {"mode": "wrap"}),
    ("Pad", 18, {"x": X, "c": ints(2, 1), "a": None, "c3": ints(-1)}, {}),
    ("DepthToSpace", 13, {"x": IMAGE}, {"blocksize": 2}),
    ("DepthToSpace", 13, {"x": IMAGE}, {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", 13, {"x": floats(1, 2, 4, 6)}, {"blocksize": 2}),
    ("Shape", 13, {"x": X}, {}),
    ("Size", 13, {"x": X}, {}),
    ("EyeLike", 9, {"x": X[0]}, {"k": 1}),
    ("Trilu", 14, {"x": X, "c": np.array(-1, I64)}, {"upper": 0}),
    ("OneHot", 11, {"x": ints(1, -1, 7), "c": ints(4), "v": np.array([0.5, 2], np.float32)}, {"axis": 0}),
    ("ReverseSequence", 10, {"x": X, "n": ints(1, 3)}, {"time_axis": 1, "batch_axis": 0}),
    # reductions
    *[(op, 11, {"x": POSITIVE}, {"axes": [0, -1], "keepdims": 0}) for op in (
        "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
        "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")],
    *[(op, 18, {"x": X, "c": ints(1)}, {}) for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2")],
    ("ReduceSum", 13, {"x": X}, {"noop_with_empty_axes": 1}),
    ("ReduceMax", 13, {"x": INTS}, {"axes": [1]}),
    ("ArgMax", 13, {"x": INTS}, {"axis": 2}),
    ("ArgMin", 13, {"x": INTS}, {"axis": 1, "keepdims": 0, "select_last_index": 1}),
    ("Softmax", 11, {"x": X}, {"axis": 1}),
    ("Softmax", 13, {"x": X}, {"axis": 1}),
    ("LogSoftmax", 13, {"x": X}, {}),
    ("LogSoftmax", 9, {"x": X}, {}),
    ("Hardmax", 11, {"x": X}, {"axis": 1}),
    ("Hardmax", 13, {"x": X}, {"axis": 1}),
    ("CumSum", 14, {"x": X, "c": np.array(1, np.int32)}, {"exclusive": 1, "reverse": 1}),
    ("TopK", 9, {"x": X}, {"k": 2, "axis": 2}),
    ("TopK", 11, {"x": X, "c": ints(3)}, {"axis": 1, "largest": 0}),
    # windows
    ("Conv", 11, {"x": IMAGE, "c": floats(6, 4, 3, 3), "c2": floats(6)}, {"pads": [1, 0, 1, 2], "strides": [2, 1]}),
    ("Conv", 11, {"x": IMAGE, "c": floats(8, 1, 3, 2)}, {"group": 4, "dilations": [2, 1]}),
    ("Conv", 11, {"x": IMAGE, "c": floats(6, 2, 2, 2)}, {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", 11, {"x": IMAGE, "c": floats(4, 4, 2, 3)}, {"auto_pad": "SAME_LOWER"}),
    ("Conv", 11, {"x": IMAGE, "c": floats(4, 4, 1, 1)}, {"auto_pad": "VALID"}),
    ("Conv", 11, {"x": floats(1, 2, 9), "c": floats(3, 2, 3)}, {"pads": [1, 1]}),
    ("Conv", 11, {"x": floats(1, 2, 4, 5, 4), "c": floats(3, 2, 2, 3, 1)}, {"pads": [0, 1, 0, 1, 1, 0]}),
    ("ConvTranspose", 11, {"x": IMAGE, "c": floats(4, 3, 3, 3), "c2": floats(3)},
     {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0]}),
    ("ConvTranspose", 11, {"x": IMAGE, "c": floats(4, 3, 2, 2)}, {"strides": [2, 2]}),
    ("ConvTranspose", 11, {"x": IMAGE, "c": floats(4, 2, 3, 2)}, {"group": 2, "dilations": [2, 1]}),
    ("ConvTranspose", 11, {"x": IMAGE, "c": floats(4, 2, 3, 3)}, {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    ("ConvTranspose", 11, {"x": IMAGE, "c": floats(4, 2, 3, 3)}, {"output_shape": [9, 8]}),
    ("MaxPool", 8, {"x": IMAGE}, {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    ("MaxPool", 12, {"x": IMAGE}, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "dilations": [1, 2]}),
    ("MaxPool", 12, {"x": IMAGE.astype(np.int8)}, {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("AveragePool", 11, {"x": IMAGE}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("AveragePool", 11, {"x": IMAGE}, {"kernel_shape": [3, 2], "pads": [1, 0, 1, 0], "count_include_pad": 1}),
    ("AveragePool", 19, {"x": IMAGE}, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("LpPool", 11, {"x": IMAGE}, {"kernel_shape": [2, 2], "p": 3}),
    ("GlobalAveragePool", 9, {"x": IMAGE}, {}),
    ("GlobalMaxPool", 9, {"x": IMAGE}, {}),
    ("GlobalLpPool", 9, {"x": IMAGE}, {"p": 1}),
    # normalization
    ("BatchNormalization", 9, {"x": IMAGE, "c1": floats(4), "c2": floats(4), "c3": floats(4), "c4": np.abs(floats(4))},
     {"epsilon": 1e-3}),
    ("BatchNormalization", 15, {"x": IMAGE, "a": floats(4), "b": floats(4), "d": floats(4), "e": np.abs(floats(4))}, {}),
    ("InstanceNormalization", 6, {"x": IMAGE, "c1": floats(4), "c2": floats(4)}, {}),
    ("LayerNormalization", 17, {"x": X, "c1": floats(3, 4), "c2": floats(3, 4)}, {"axis": 1}),
    ("GroupNormalization", 21, {"x": IMAGE, "c1": floats(4), "c2": floats(4)}, {"num_groups": 2}),
    ("LpNormalization", 11, {"x": X}, {"p": 1, "axis": 1}),
    ("LRN", 13, {"x": IMAGE}, {"size": 3, "alpha": 0.1}),
    ("MeanVarianceNormalization", 13, {"x": IMAGE}, {}),
    # contractions
    ("MatMul", 13, {"x": X, "z": floats(2, 4, 5)}, {}),
    ("MatMul", 9, {"x": X, "z": floats(4)}, {}),
    ("MatMul", 13, {"x": floats(3, 1, 2, 4), "z": floats(5, 4, 3)}, {}),
    ("Gemm", 9, {"x": X[0], "c": floats(5, 4), "c2": floats(5)}, {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", 13, {"x": X[0].T.copy(), "z": floats(4, 5)}, {"transA": 1}),
    ("Einsum", 12, {"x": X, "z": floats(2, 4, 5)}, {"equation": "bij,bjk->bik"}),
    ("Einsum", 12, {"x": X, "z": floats(4, 5)}, {"equation": "...j,jk"}),
    ("Einsum", 12, {"x": floats(3, 3)}, {"equation": "ii->i"}),
    ("Einsum", 12, {"x": floats(2, 3), "z": floats(3, 4), "w": floats(4, 2)}, {"equation": "ij,jk,kl->il"}),
    # resize
    ("Upsample", 7, {"x": IMAGE}, {"scales": [1.0, 1.0, 2.0, 3.0], "mode": "nearest"}),
    ("Upsample", 9, {"x": IMAGE, "c": np.array([1, 1, 2, 2], np.float32)}, {"mode": "linear"}),
    ("Resize", 10, {"x": IMAGE, "c": np.array([1, 1, 0.5, 2], np.float32)}, {}),
    ("Resize", 11, {"x": IMAGE, "c1": np.zeros(0, np.float32), "c2": np.array([1, 1, 2, 2], np.float32)},
     {"mode": "linear"}),
    ("Resize", 13, {"x": IMAGE, "a": None, "b": None, "c": ints(1, 4, 5, 9)}, {"mode": "cubic"}),
    ("Resize", 13, {"x": IMAGE, "a": None, "b": None, "c": ints(1, 4, 3, 8)},
     {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    ("Resize", 13, {"x": IMAGE, "a": None, "b": None, "c": ints(1, 4, 14, 1)},
     {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "pytorch_half_pixel"}),
    ("Resize", 13, {"x": IMAGE, "a": None, "c": np.array([1, 1, 2, 3], np.float32)},
     {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}),
    ("Resize", 18, {"x": IMAGE, "a": None, "b": None, "c": ints(3, 3)},
     {"mode": "linear", "antialias": 1, "axes": [2, 3]}),
    ("GridSample", 16, {"x": IMAGE, "z": floats(1, 3, 5, 2)}, {"padding_mode": "reflection"}),
    ("GridSample", 20, {"x": IMAGE, "z": floats(1, 3, 5, 2)}, {"mode": "cubic", "padding_mode": "border"}),
    # quantization
    ("QuantizeLinear", 10, {"x": X, "c": np.array(0.03, np.float32), "c2": np.array(7, np.uint8)}, {}),
    ("QuantizeLinear", 13, {"x": X, "c": np.array([0.1, 0.02, 0.3], np.float32), "c2": np.array([1, -4, 0], np.int8)}, {}),
    ("DequantizeLinear", 13, {"x": INTS.astype(np.int8), "c": np.array([0.1, 0.02, 0.3], np.float32)}, {"axis": 1}),
    ("DynamicQuantizeLinear", 11, {"x": X}, {}),
    ("MatMulInteger", 10, {"x": INTS[0].astype(np.uint8), "z": INTS[0].T.astype(np.int8).copy(),
                           "c": np.array(3, np.uint8), "c2": np.array([1, 2, 3], np.int8)}, {}),
    ("ConvInteger", 10, {"x": (IMAGE * 20 + 60).astype(np.uint8), "c": np.ones((2, 4, 2, 2), np.uint8),
                         "c2": np.array(9, np.uint8)}, {"pads": [1, 1, 0, 0]}),
    ("QLinearConv", 10, {"x": (IMAGE * 20 + 60).astype(np.uint8), "c1": np.array(0.1, np.float32),
                         "c2": np.array(50, np.uint8), "c3": (floats(3, 4, 3, 3) * 20).astype(np.int8),
                         "c4": np.array([0.1, 0.2, 0.3], np.float32), "c5": np.zeros(3, np.int8),
                         "c6": np.array(3.0, np.float32), "c7": np.array(100, np.uint8),
                         "c8": np.array([5, -50, 500], np.int32)}, {"pads": [1, 1, 1, 1]}),
    ("QLinearMatMul", 10, {"x": (X[0] * 20 + 60).astype(np.uint8), "c1": np.array(0.1, np.float32),
                           "c2": np.array(50, np.uint8), "c3": (floats(4, 5) * 20 + 60).astype(np.uint8),
                           "c4": np.array(0.2, np.float32), "c5": np.array(70, np.uint8),
                           "c6": np.array(4.7, np.float32), "c7": np.array(100, np.uint8)}, {}),
    # externs
    ("NonZero", 9, {"x": BOOLS}, {}),
    ("Unique", 11, {"x": INTS.astype(I64)}, {}),
    ("Unique", 11, {"x": INTS.astype(I64) % 2}, {"axis": 1, "sorted": 1}),
    ("Compress", 9, {"x": X, "z": np.array([True, False, True])}, {"axis": 1}),
    ("Compress", 9, {"x": X, "z": np.array([False, True, True, False, True])}, {}),
    ("MaxRoiPool", 1, {"x": IMAGE, "z": np.array([[0, 0, 1, 4, 6], [0, 2, 2, 2, 2], [0, 1, 0, 9, 9]], np.float32)},
     {"pooled_shape": [2, 3], "spatial_scale": 0.75}),
    ("Det", 11, {"x": floats(2, 3, 3)}, {}),
    ("Det", 11, {"x": floats(2, 5, 5)}, {}),
]  # fmt: skip

OUTPUTS = {"TopK": "y i", "DynamicQuantizeLinear": "y s z", "Unique": "y i v n", "MaxPool": "y i"}


@pytest.mark.parametrize(
    ("op", "opset", "inputs", "attributes"),
    CASES,
    ids=[f"{c[0]}-{c[1]}-{k}" for k, c in enumerate(CASES)],
)
def test_as_onnxruntime(
    op: str, opset: int, inputs: dict[str, Any], attributes: dict[str, Any]
) -> None:
    outputs = OUTPUTS.get(op, "y")
    if op == "MaxPool" and inputs["x"].dtype != np.float32:
        outputs = "y"
    data, feeds = single(op, inputs, opset, outputs, **attributes)
    check(data, feeds)


def test_celu_of_an_alpha_that_is_zero_in_half_precision() -> None:
    x = np.array([-3, -0.5, 0, 0.5, 3], np.float16)
    data, inputs = single("Celu", {"x": x}, NEWEST_OPSET, alpha=1e-40)
    (y,) = run_program(import_onnx(data).program, inputs, precision="naive")
    assert np.array_equal(np.asarray(y, np.float32), [0, 0, 0, 0.5, 3])


@pytest.mark.parametrize("op", ["Shrink", "ThresholdedRelu"])
def test_limits_are_not_rounded_to_half_precision(op: str) -> None:
    """1.8091 lies below the f16 1.8096, to which it would be rounded."""
    x = np.array([1.8096, -1.8096, 1.8086, 0], np.float16)
    more = {"lambd": 1.8091, "bias": 1.0} if op == "Shrink" else {"alpha": 1.8091}
    data, inputs = single(op, {"x": x}, 14, **more)
    (y,) = run_program(import_onnx(data).program, inputs, precision="naive")
    assert (np.asarray(y) != 0).tolist() == [True, op == "Shrink", False, False]


@pytest.mark.parametrize("one_for_all", [True, False])
def test_powers_of_one_half_are_those_of_c(one_for_all: bool) -> None:
    """onnxruntime and C give inf and +0 where a square root is NaN and -0."""
    x = np.array([-np.inf, -0.0, 0.0, 4, np.inf, -4], np.float32)
    half = np.array(0.5, np.float32) if one_for_all else np.full(6, 0.5, np.float32)
    data, inputs = single("Pow", {"x": x, "c": half}, 13)
    (y,) = run_program(import_onnx(data).program, inputs, precision="naive")
    np.testing.assert_array_equal(y, np.array([np.inf, 0, 0, 2, np.inf, np.nan], np.float32))
    assert not np.signbit(np.asarray(y))[:5].any()
