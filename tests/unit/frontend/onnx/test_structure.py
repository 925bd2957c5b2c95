"""What the definitions look like: later stages recognise structure, so the text of rows is fixed."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.frontend.onnx import import_onnx
from tilewright.ir.program import Definition, Extern, Recurrence, Scatter
from unit.frontend.onnx.support import check, floats, model, node, single

F = np.float32
I64 = np.int64


def body(data: bytes) -> list[str]:
    return [str(s) for s in import_onnx(data).program.body]


def of_one(
    op: str, inputs: dict[str, np.ndarray], opset: int = 18, **attributes: object
) -> list[str]:
    return body(single(op, inputs, opset, **attributes)[0])


def shape_of(*sizes: int) -> np.ndarray:
    return np.array(sizes, I64)


RESHAPES = [
    ((2, 3, 4), (2, 12), "y[i, j] = x[i, j // 4, j % 4]"),
    ((2, 12), (2, 3, 4), "y[i, j, k] = x[i, j*4 + k]"),
    ((2, 3, 4), (6, 4), "y[i, j] = x[i // 3, i % 3, j]"),
    ((2, 3, 4), (2, 1, 3, 4), "y[i, j, k, l] = x[i, k, l]"),
    ((2, 1, 3, 1), (2, 3), "y[i, j] = x[i, 0, j, 0]"),
    ((5, 8, 6), (5, 2, 4, 6), "y[i, j, k, l] = x[i, j*4 + k, l]"),
    ((5, 2, 4, 6), (5, 8, 2, 3), "y[i, j, k, l] = x[i, j // 4, j % 4, k*3 + l]"),
    ((6, 4), (4, 6), "y[i, j] = x[(i*6 + j) // 4, (i*6 + j) % 4]"),
]


@pytest.mark.parametrize(("old", "new", "expected"), RESHAPES)
def test_reshape_regroups_only_what_changes(
    old: tuple[int, ...], new: tuple[int, ...], expected: str
) -> None:
    data, feeds = single("Reshape", {"x": floats(*old), "c": shape_of(*new)}, 13)
    (line,) = body(data)
    head, _, e = line.partition(" = ")
    indices = ", ".join(a.partition("<")[0] for a in head[head.index("[") + 1 : -1].split(", "))
    assert f"y[{indices}] = {e}" == expected.replace("x[", "x_1[" if "x_1[" in e else "x[")
    check(data, feeds)


X = floats(2, 4, 8, 8)


def test_convolution() -> None:
    lines = of_one("Conv", {"x": X, "c": floats(6, 4, 3, 3)}, pads=[1, 1, 1, 1], strides=[2, 1])
    assert lines == [
        "y: f32[n<2, o<6, h<4, w<8] = sum(c<4, kh<3, kw<3) "
        "(x[n, c, h*2 + kh - 1, kw + w - 1] else 0.0) * c_[o, c, kh, kw]"
    ]


def test_convolution_without_padding_has_no_else() -> None:
    lines = of_one("Conv", {"x": X, "c": floats(6, 4, 3, 3)})
    assert lines == [
        "y: f32[n<2, o<6, h<6, w<6] = sum(c<4, kh<3, kw<3) x[n, c, h + kh, kw + w] * c_[o, c, kh, kw]"
    ]


def test_pointwise_convolution_is_a_matmul() -> None:
    lines = of_one("Conv", {"x": X, "c": floats(6, 4, 1, 1)})
    assert lines == ["y: f32[n<2, o<6, h<8, w<8] = sum(c<4) x[n, c, h, w] * c_[o, c, 0, 0]"]


def test_depthwise_convolution_has_no_channel_sum() -> None:
    lines = of_one("Conv", {"x": X, "c": floats(4, 1, 3, 3)}, group=4)
    assert lines == [
        "y: f32[n<2, o<4, h<6, w<6] = sum(kh<3, kw<3) x[n, o, h + kh, kw + w] * c_[o, 0, kh, kw]"
    ]


def test_grouped_convolution_divides_the_output_channel() -> None:
    lines = of_one("Conv", {"x": X, "c": floats(6, 2, 1, 3)}, group=2)
    assert lines == [
        "y: f32[n<2, o<6, h<8, w<6] = sum(c<2, kw<3) x[n, c + o // 3*2, h, kw + w] * c_[o, c, 0, kw]"
    ]


def test_bias_is_a_definition_of_its_own() -> None:
    first, second = of_one("Conv", {"x": X, "c": floats(6, 4, 1, 1), "c2": floats(6)})
    assert first.startswith("y_acc: f32[n<2, o<6, h<8, w<8] = sum(c<4)")
    assert second == "y: f32[n<2, o<6, h<8, w<8] = y_acc[n, o, h, w] + c2_[o]"


def test_transposed_convolution_with_stride_equal_to_kernel_sums_channels_only() -> None:
    lines = of_one("ConvTranspose", {"x": X, "c": floats(4, 3, 2, 2)}, strides=[2, 2])
    assert lines == [
        "y: f32[n<2, o<3, h<16, w<16] = sum(c<4) x[n, c, h // 2, w // 2] * c_[c, o, h % 2, w % 2]"
    ]


def test_max_pool_pads_with_minus_infinity() -> None:
    lines = of_one("MaxPool", {"x": X}, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])
    assert lines == [
        "y: f32[n<2, c<4, h<4, w<4] = max(kh<3, kw<3) (x[n, c, h*2 + kh - 1, kw + w*2 - 1] else -inf)"
    ]


def test_softmax_is_four_definitions() -> None:
    assert of_one("Softmax", {"x": floats(3, 5)}) == [
        "y_max: f32[i<3, j<1] = max(r<5) x[i, r]",
        "y_exp: f32[i<3, j<5] = exp(x[i, j] - y_max[i, 0])",
        "y_sum: f32[i<3, j<1] = sum(r<5) y_exp[i, r]",
        "y: f32[i<3, j<5] = y_exp[i, j] / y_sum[i, 0]",
    ]


def test_layer_normalization_takes_two_passes() -> None:
    lines = of_one("LayerNormalization", {"x": floats(3, 5), "c": floats(5)})
    assert lines == [
        "y_mean_sum: f32[i<3, j<1] = sum(r<5) x[i, r]",
        "y_mean: f32[i<3, j<1] = y_mean_sum[i, j] / 5.0",
        "y_squares: f32[i<3, j<1] = sum(r<5) (x[i, r] - y_mean[i, 0]) * (x[i, r] - y_mean[i, 0])",
        "y_variance: f32[i<3, j<1] = y_squares[i, j] / 5.0",
        "y_inverse: f32[i<3, j<1] = rsqrt(y_variance[i, j] + 9.999999747378752e-06)",
        "y: f32[i<3, j<5] = (x[i, j] - y_mean[i, 0]) * y_inverse[i, 0] * c_[j]",
    ]


def test_matmul_broadcasts_batches_by_subscript() -> None:
    lines = of_one("MatMul", {"x": floats(3, 2, 4), "z": floats(1, 4, 5)})
    assert lines == ["y: f32[b<3, i<2, j<5] = sum(k<4) x[b, i, k] * z[0, k, j]"]


def test_half_precision_accumulates_in_f32() -> None:
    first, second = of_one(
        "MatMul", {"x": floats(2, 4).astype(np.float16), "z": floats(4, 5).astype(np.float16)}
    )
    assert first == "y_acc: f32[i<2, j<5] = sum(k<4) f32(x[i, k]) * f32(z[k, j])"
    assert second == "y: f16[i<2, j<5] = f16(y_acc[i, j])"


def test_scalar_constants_are_literals() -> None:
    assert of_one("Mul", {"x": floats(3), "c": np.array([2.5], F)}) == ["y: f32[i<3] = x[i] * 2.5"]


def test_resize_by_two_is_affine() -> None:
    inputs = {"x": X, "a": None, "c": np.array([1, 1, 2, 2], F)}
    lines = of_one("Resize", inputs, mode="nearest", coordinate_transformation_mode="asymmetric",
                   nearest_mode="floor")  # fmt: skip
    assert lines == ["y: f32[n<2, c<4, h<16, w<16] = x[n, c, h // 2, w // 2]"]
    lines = of_one("Resize", inputs, mode="nearest")
    assert lines == ["y: f32[n<2, c<4, h<16, w<16] = x[n, c, h // 2, w // 2]"]


def test_constant_indices_in_steps_are_affine() -> None:
    assert of_one("Gather", {"x": floats(9, 2), "c": shape_of(1, 3, 5)}) == [
        "y: f32[i<3, j<2] = x[i*2 + 1, j]"
    ]


def test_identity_and_no_ops_copy_nothing() -> None:
    data = model(
        [node("Identity", "x", "a"), node("Cast", "a", "b", to=1), node("Relu", "b", "c"),
         node("Identity", "c", "y")],
        {"x": (F, (2,))}, ["y"],
    )  # fmt: skip
    assert body(data) == ["y: f32[i<2] = max(x[i], 0.0)"]


def test_what_no_output_needs_is_not_looked_at() -> None:
    data = model(
        [node("NoSuchOperator", "x", "a"), node("Relu", "x", "y")], {"x": (F, (2,))}, ["y"]
    )
    assert body(data) == ["y: f32[i<2] = max(x[i], 0.0)"]


def test_batch_normalization_folds_into_a_convolution_that_nobody_else_reads() -> None:
    statistics = {"s": floats(6), "b": floats(6), "m": floats(6), "v": np.abs(floats(6)) + 0.1}
    nodes = [
        node("Conv", "x w cb", "t"), node("BatchNormalization", "t s b m v", "y", epsilon=1e-3),
    ]  # fmt: skip
    constants = {"w": floats(6, 4, 3, 3), "cb": floats(6), **statistics}
    data = model(nodes, {"x": (F, (2, 4, 8, 8))}, ["y"], constants)
    imported = check(data, {"x": X})
    assert len(imported.program.body) == 2 and len(imported.program.constants) == 2
    assert "exact up to rounding" in imported.warnings[0]
    shared = model(nodes, {"x": (F, (2, 4, 8, 8))}, ["y", "t"], constants)
    imported = check(shared, {"x": X})
    assert not imported.warnings
    assert "BatchNormalization" in imported.origins["y"]


def test_batch_normalization_folds_into_gemm() -> None:
    constants = {
        "w": floats(5, 4),
        "s": floats(5),
        "b": floats(5),
        "m": floats(5),
        "v": np.abs(floats(5)),
    }
    nodes = [node("Gemm", "x w", "t", transB=1), node("BatchNormalization", "t s b m v", "y")]
    imported = check(model(nodes, {"x": (F, (3, 4))}, ["y"], constants), {"x": floats(3, 4)})
    assert len(imported.program.body) == 2 and imported.warnings


def test_constant_subgraphs_are_folded_and_equal_constants_kept_once() -> None:
    nodes = [
        node("Transpose", "w", "t"), node("Cast", "t", "f", to=1), node("MatMul", "x f", "a"),
        node("MatMul", "x v", "b"), node("Add", "a b", "y"),
    ]  # fmt: skip
    w = floats(5, 4).astype(np.float16)
    constants = {"w": w, "v": w.T.astype(F)}
    imported = check(model(nodes, {"x": (F, (3, 4))}, ["y"], constants), {"x": floats(3, 4)})
    assert len(imported.program.constants) == 1


def test_large_constants_are_not_made_by_folding() -> None:
    nodes = [node("Expand", "one shape", "t"), node("Add", "x t", "y")]
    constants = {"one": np.ones((1,), F), "shape": shape_of(1000, 1000)}
    imported = check(
        model(nodes, {"x": (F, (1000, 1000))}, ["y"], constants), {"x": floats(1000, 1000)}
    )
    assert all(a.nbytes < 100 for a in imported.program.values.values())


def test_raw_data_of_constants_is_not_copied() -> None:
    data = model([node("Add", "x w", "y")], {"x": (F, (300,))}, ["y"], {"w": floats(300)})
    (array,) = import_onnx(data).program.values.values()
    assert not array.flags.owndata and not array.flags.writeable


NAMES = [
    ("/model/layer.1/Conv_output_0", "model_layer_1_Conv"),
    ("4195", "v4195"),
    ("max", "max_"),
    ("f32", "f32_"),
    ("i", "i_"),
    ("kh", "kh_"),
    ("é", "v_"),
    ("StatefulPartitionedCall/model:0", "StatefulPartitionedCall_model"),
]


@pytest.mark.parametrize(("onnx_name", "expected"), NAMES)
def test_names_are_readable_identifiers(onnx_name: str, expected: str) -> None:
    data = model([node("Relu", "x", "PLACE"), node("Exp", "PLACE", "y")], {"x": (F, (2,))}, ["y"])
    import onnx

    m = onnx.load_model_from_string(data)
    m.graph.node[0].output[0] = m.graph.node[1].input[0] = onnx_name
    imported = import_onnx(m.SerializeToString())
    assert imported.program.body[0].name == expected
    assert imported.values[onnx_name] == expected


def test_inputs_keep_their_names_and_indices_give_way() -> None:
    data = model([node("MatMul", "i k", "j")], {"i": (F, ("n", 3)), "k": (F, (3, "m"))}, ["j"])
    (d,) = import_onnx(data).program.body
    assert isinstance(d, Definition)
    assert [a.name for a in d.all_axes] == ["i1", "j1", "k1"]
    assert [t.name for t in import_onnx(data).program.inputs] == ["i", "k"]


def test_origins_name_node_and_operator() -> None:
    n = node("Softmax", "x", "y")
    n.name = "classifier"
    imported = import_onnx(model([n], {"x": (F, (2, 3))}, ["y"]))
    assert set(imported.origins.values()) == {"classifier (Softmax)"}
    assert set(imported.origins) == {"y", "y_max", "y_exp", "y_sum"}


def test_outputs_that_are_inputs_or_named_twice_are_copied() -> None:
    data = model(
        [node("Relu", "x", "a"), node("Identity", "a", "b")], {"x": (F, (2,))}, ["a", "b", "x"]
    )
    imported = check(data, {"x": floats(2)})
    assert len(set(imported.program.results)) == 3
    assert list(imported.outputs.values()) == ["a", "b", "x"]


def test_statement_kinds() -> None:
    lstm = of_kinds(
        "LSTM", {"x": floats(3, 1, 2), "c1": floats(1, 8, 2), "c2": floats(1, 8, 2)}, hidden_size=2
    )
    assert Recurrence in lstm
    assert Scatter in of_kinds("ScatterND", {"x": floats(3), "c": np.array([[1]]), "z": floats(1)})
    assert Extern in of_kinds("TopK", {"x": floats(3), "c": np.array([2])})


def of_kinds(op: str, inputs: dict[str, np.ndarray], **attributes: object) -> set[type]:
    return {type(s) for s in import_onnx(single(op, inputs, 18, **attributes)[0]).program.body}


def test_indices_from_data_never_read_outside() -> None:
    at = np.array([1, 2], I64)
    assert of_one("Gather", {"x": floats(4, 3), "z": at}) == [
        "y: f32[i<2, j<3] = (x[where(z[i] < 0, z[i] + 4, z[i]), j] else 0.0)"
    ]
    constant = of_one("Gather", {"x": floats(4, 3), "c": np.array([3, 0, 3])})
    assert constant == ["y: f32[i<3, j<3] = x[c_[i], j]"]
    data = model(
        [node("Gather", "x k", "y")], {"x": (F, ("N",))}, ["y"], {"k": np.array([3, 0, 3])}
    )
    assert body(data) == ["y: f32[i<3] = (x[k_[i]] else 0.0)"]
