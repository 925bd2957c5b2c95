"""Models with symbolic sizes: one import, many sizes, each compared with onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tilewright.errors import UserError
from tilewright.frontend.onnx import Imported, import_onnx
from unit.frontend.onnx.support import assert_agree, floats, model, node, onnxruntime_results, run

F = np.float32
I64 = np.int64


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, I64)


def assert_agrees_at_all(data: bytes, shapes: list[dict[str, tuple[int, ...]]]) -> Imported:
    """Import once, then compare with onnxruntime at every set of shapes."""
    imported = import_onnx(data)
    for k, sizes in enumerate(shapes):
        feeds = {n: floats(*s, seed=k) for n, s in sizes.items()}
        assert_agree(run(imported, feeds), onnxruntime_results(data, feeds))
    return imported


def test_flatten_by_shape_gather_concat() -> None:
    data = model(
        [node("Shape", "x", "s"), node("Gather", "s zero", "b"), node("Gather", "s two", "t"),
         node("Mul", "b t", "bt"), node("Unsqueeze", "bt ax", "u"),
         node("Concat", "u rest", "shape", axis=0), node("Transpose", "x", "xt", perm=[0, 2, 1]),
         node("Reshape", "xt shape", "y")],
        {"x": (F, ("B", 6, "T"))}, ["y"],
        {"zero": np.array(0, I64), "two": np.array(2, I64), "ax": ints(0), "rest": ints(-1)},
    )  # fmt: skip
    imported = assert_agrees_at_all(data, [{"x": (2, 6, 5)}, {"x": (1, 6, 1)}])
    assert [str(e) for e in imported.program.tensors["y"].shape] == ["B*T", "6"]


def test_heads_are_split_and_merged_with_plain_indices() -> None:
    data = model(
        [node("Reshape", "x split", "h"), node("Transpose", "h", "ht", perm=[0, 2, 1, 3]),
         node("Transpose", "ht", "hb", perm=[0, 2, 1, 3]), node("Reshape", "hb merge", "y")],
        {"x": (F, ("B", "T", 24))}, ["y"], {"split": ints(0, 0, 4, -1), "merge": ints(0, 0, -1)},
    )  # fmt: skip
    imported = assert_agrees_at_all(data, [{"x": (2, 5, 24)}])
    lines = [str(s) for s in imported.program.body]
    assert lines[0] == "h_: f32[i<B, j<T, k<4, l<6] = x[i, j, k*6 + l]"
    assert lines[-1] == "y: f32[i<B, j<T, k<24] = hb[i, j, k // 6, k % 6]"


def test_expand_through_where_and_equal() -> None:
    """What PyTorch writes for `expand`: -1 keeps a size."""
    data = model(
        [node("Shape", "z", "s"), node("Slice", "s a b", "tail"),
         node("Concat", "minus tail", "target", axis=0), node("Equal", "target minus_one", "keep"),
         node("ConstantOfShape", "rank", "ones", value=onnx.numpy_helper.from_array(ints(1))),
         node("Where", "keep ones target", "full"), node("Expand", "x full", "y")],
        {"x": (F, (3, 1)), "z": (F, ("N", "M"))}, ["y"],
        {"a": ints(1), "b": ints(2), "minus": ints(-1), "minus_one": ints(-1), "rank": ints(2)},
    )  # fmt: skip
    imported = assert_agrees_at_all(data, [{"x": (3, 1), "z": (2, 7)}])
    assert [str(e) for e in imported.program.tensors["y"].shape] == ["3", "M"]


def test_slices_to_the_end_and_from_the_end() -> None:
    data = model(
        [node("Slice", "x one far", "a"), node("Slice", "x minus far", "b"),
         node("Slice", "x zero minus", "c_"), node("Slice", "x back low zero step", "d"),
         node("Slice", "x zero ten", "e")],
        {"x": (F, ("N", 2))}, ["a", "b", "c_", "d", "e"],
        {"one": ints(1), "zero": ints(0), "far": ints(2**63 - 1), "minus": ints(-2),
         "back": ints(-1), "low": ints(-(2**63)), "step": ints(-2), "ten": ints(10)},
    )  # fmt: skip
    imported = assert_agrees_at_all(data, [{"x": (n, 2)} for n in (2, 5, 12)])
    shapes = {t: str(imported.program.tensors[t].shape[0]) for t in imported.program.results}
    assert list(shapes.values()) == ["N - 1", "2", "N - 2", "(N + 1) // 2", "min(10, N)"]
    (dim,) = imported.program.dims
    assert dim.lo == 2


def test_feature_pyramid_teaches_a_multiple() -> None:
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
    data = model(
        [node("Conv", "x w", "half", **conv), node("Conv", "half w2", "quarter", **conv),
         node("Resize", "quarter - scales", "up", mode="nearest", nearest_mode="floor",
              coordinate_transformation_mode="asymmetric"), node("Add", "up half", "y")],
        {"x": (F, (1, 2, "H", "W"))}, ["y"],
        {"w": floats(3, 2, 3, 3), "w2": floats(3, 3, 3, 3), "scales": np.array([1, 1, 2, 2], F)},
        opset=13,
    )  # fmt: skip
    imported = assert_agrees_at_all(data, [{"x": (1, 2, 8, 12)}, {"x": (1, 2, 4, 4)}])
    assert [d.multiple for d in imported.program.dims] == [4, 4]
    assert imported.assumptions[0] == "H is a multiple of 4: node 'y' (Add)"
    assert [str(e) for e in imported.program.tensors["half"].shape[2:]] == ["H // 2", "W // 2"]
    with pytest.raises(UserError, match="R004"):
        run(imported, {"x": floats(1, 2, 6, 8)})


def test_broadcast_of_two_names_makes_them_one() -> None:
    data = model([node("Add", "x z", "y")], {"x": (F, ("N", 3)), "z": (F, ("M", 3))}, ["y"])
    imported = assert_agrees_at_all(data, [{"x": (4, 3), "z": (4, 3)}])
    assert len(imported.program.dims) == 1
    assert imported.assumptions == ("N is M: node 'y' (Add)",)
    with pytest.raises(UserError, match="R004"):
        run(imported, {"x": floats(4, 3), "z": floats(5, 3)})


def test_broadcast_with_a_number_fixes_the_size() -> None:
    data = model([node("Add", "x z", "y")], {"x": (F, ("N", 3)), "z": (F, (4, 3))}, ["y"])
    imported = import_onnx(data)
    assert not imported.program.dims
    assert str(imported.program.inputs[0]) == "x: f32[4, 3]"


def test_sizes_through_floating_point() -> None:
    """Shape -> Cast -> Mul -> Floor -> Cast -> Resize sizes."""
    data = model(
        [node("Shape", "x", "s"), node("Slice", "s two four", "hw"), node("Cast", "hw", "f", to=1),
         node("Mul", "f scale", "g"), node("Floor", "g", "fl"), node("Cast", "fl", "hw2", to=7),
         node("Slice", "s zero two", "nc"), node("Concat", "nc hw2", "sizes", axis=0),
         node("Resize", "x - - sizes", "y", mode="linear")],
        {"x": (F, (1, 2, "H", "W"))}, ["y"],
        {"zero": ints(0), "two": ints(2), "four": ints(4), "scale": np.array([2.0, 0.5], F)},
        opset=13,
    )  # fmt: skip
    imported = assert_agrees_at_all(data, [{"x": (1, 2, 5, 8)}, {"x": (1, 2, 3, 6)}])
    assert [str(e) for e in imported.program.tensors["y"].shape] == ["1", "2", "H*2", "W // 2"]


def test_sizes_that_an_exporter_baked_in_are_found() -> None:
    """A Reshape to a traced length means that the length is not free."""
    data = model(
        [node("Shape", "x", "s"), node("Gather", "s one", "b"), node("Mul", "b four", "bh"),
         node("Concat", "five bh two", "shape", axis=0), node("Reshape", "x shape", "y")],
        {"x": (F, ("T", "B", 8))}, ["y"],
        {"one": ints(1), "four": ints(4), "five": ints(5), "two": ints(2)},
    )  # fmt: skip
    imported = assert_agrees_at_all(data, [{"x": (5, 3, 8)}])
    assert imported.assumptions == ("T is 5: node 'y' (Reshape)",)


def test_slices_teach_what_other_slices_use() -> None:
    """`roll`: the first part is simple once the second says that there are two elements."""
    data = model(
        [node("Slice", "x zero two", "a"), node("Slice", "x two far", "b"),
         node("Concat", "b a", "y", axis=0)],
        {"x": (F, ("N", 3))}, ["y"], {"zero": ints(0), "two": ints(2), "far": ints(2**40)},
    )  # fmt: skip
    imported = assert_agrees_at_all(data, [{"x": (2, 3)}, {"x": (5, 3)}])
    assert str(imported.program.tensors["y"].shape[0]) == "N"


def test_range_and_arithmetic_masks() -> None:
    data = model(
        [node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Range", "zero n one", "i"),
         node("Unsqueeze", "i ax", "col"), node("LessOrEqual", "i col", "mask"),
         node("Where", "mask x low", "m"), node("Softmax", "m", "y")],
        {"x": (F, ("N", "N"))}, ["y"],
        {"zero": np.array(0, I64), "one": np.array(1, I64), "ax": ints(1),
         "low": np.array(-1e9, F)},
    )  # fmt: skip
    assert_agrees_at_all(data, [{"x": (n, n)} for n in (1, 4)])


def test_pooling_and_same_padding() -> None:
    data = model(
        [node("MaxPool", "x", "a", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
         node("AveragePool", "x", "b", kernel_shape=[3, 2], pads=[1, 0, 1, 0], strides=[1, 2]),
         node("GlobalAveragePool", "x", "g"), node("Conv", "x w", "d", auto_pad="SAME_LOWER", strides=[2, 1])],
        {"x": (F, ("N", 2, "H", "W"))}, ["a", "b", "g", "d"], {"w": floats(4, 2, 3, 4)},
    )  # fmt: skip
    assert_agrees_at_all(data, [{"x": (1, 2, h, w)} for h, w in ((6, 7), (5, 4), (9, 8))])


def test_split_and_concat_of_symbolic_axes() -> None:
    data = model(
        [node("Split", "x", "a b", axis=1, num_outputs=2), node("Concat", "b a x", "y", axis=1)],
        {"x": (F, (2, "N"))}, ["y"],
    )  # fmt: skip
    imported = assert_agrees_at_all(data, [{"x": (2, 6)}])
    assert imported.program.dims[0].multiple == 2


def test_padding_by_a_computed_amount() -> None:
    data = model(
        [node("Shape", "x", "s"), node("Gather", "s one", "n"), node("Mod", "n four", "r"),
         node("Sub", "four r", "p"), node("Unsqueeze", "p ax", "u"),
         node("Concat", "z3 u", "pads", axis=0), node("Pad", "x pads", "y")],
        {"x": (F, (2, "N"))}, ["y"],
        {"one": np.array(1, I64), "four": np.array(4, I64), "ax": ints(0), "z3": ints(0, 0, 0)},
    )  # fmt: skip
    assert_agrees_at_all(data, [{"x": (2, n)} for n in (1, 4, 7)])


def test_prefix_sums_top_k_and_non_zero() -> None:
    data = model(
        [node("CumSum", "x ax", "a"), node("TopK", "x k", "v i", axis=1),
         node("Greater", "x zero", "m"), node("NonZero", "m", "at"), node("Transpose", "at", "t"),
         node("GatherND", "x t", "chosen")],
        {"x": (F, ("N", "M"))}, ["a", "v", "i", "at", "chosen"],
        {"ax": np.array(1, I64), "k": ints(2), "zero": np.array(0, F)},
    )  # fmt: skip
    assert_agrees_at_all(data, [{"x": (2, 3)}, {"x": (3, 5)}])


def test_values_of_inputs_can_be_baked_in() -> None:
    data = model([node("Reshape", "x shape", "y")], {"x": (F, (2, 6)), "shape": (I64, (2,))}, ["y"])
    with pytest.raises(UserError, match=r"F005.*must follow from constants") as caught:
        import_onnx(data)
    assert caught.value.inputs == ("shape",)  # type: ignore[attr-defined]
    assert "import with known={'shape': array}" == caught.value.hint
    imported = import_onnx(data, known={"shape": ints(3, -1)})
    assert list(imported.inputs) == ["x"]
    x = floats(2, 6)
    assert_agree(run(imported, {"x": x}), [x.reshape(3, 4)])


def test_empty_and_odd_names_of_sizes() -> None:
    data = model([node("Relu", "x", "y")], {"x": (F, ("?", "a b", "H.0", "?"))}, ["y"])
    names = [d.name for d in import_onnx(data).program.dims]
    assert names == ["x_d0", "a_b", "H_0", "x_d3"]
