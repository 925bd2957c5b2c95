"""Bad ONNX files: every error typed, with code, place and next step; hostile files among them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tilewright.errors import InternalError, UserError
from tilewright.frontend.onnx import import_onnx
from tilewright.frontend.onnx.proto import NEWEST_OPSET
from unit.frontend.onnx.support import floats, model, node

F = np.float32


def relu() -> bytes:
    return model([node("Relu", "x", "y")], {"x": (F, (2, 3))}, ["y"])


def assert_refused(data: Any, code: str, message: str, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        import_onnx(data, **options)
    error = caught.value
    assert not isinstance(error, InternalError)
    assert error.code == code, error
    assert message in error.message, error
    assert error.where
    return error


# ---- F001: not a readable ONNX model


@pytest.mark.parametrize(
    "data",
    [b"", b"not a model", b"\x00" * 64, b"PK\x03\x04" + b"x" * 50, b"\x80\x04K\x01."],
    ids=["empty", "text", "zeros", "zip", "pickle"],
)
def test_what_is_no_model(data: bytes) -> None:
    error = assert_refused(data, "F001", "not an ONNX model")
    assert "copy it again" in error.hint


def test_truncated_anywhere() -> None:
    data = model([node("Add", "x w", "y")], {"x": (F, (64,))}, ["y"], {"w": floats(64)})
    import_onnx(data)
    for length in range(0, len(data) - 1, 7):
        with pytest.raises(UserError, match=r"^\[F00[1-6]\]"):
            import_onnx(data[:length])


def test_flipped_bytes_never_crash() -> None:
    data = model(
        [node("Conv", "x w", "t", pads=[1, 1, 1, 1]), node("Reshape", "t s", "y")],
        {"x": (F, (1, 2, 4, 4))}, ["y"], {"w": floats(2, 2, 3, 3), "s": np.array([1, -1])},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 2):
            broken[at] ^= 1 << int(rng.integers(0, 8))
        try:
            import_onnx(bytes(broken))
        except UserError as error:
            assert error.code[0] in "FP", error


def test_missing_file(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none.onnx", "F001", "cannot be read: No such file")
    assert_refused(tmp_path, "F001", "cannot be read")


def edited(change: Callable[[onnx.ModelProto], None], data: bytes | None = None) -> bytes:
    m = onnx.load_model_from_string(data or relu())
    change(m)
    return m.SerializeToString()


def test_a_tensor_of_the_wrong_length() -> None:
    data = model([node("Add", "x w", "y")], {"x": (F, (4,))}, ["y"], {"w": floats(4)})

    def shorten(m: onnx.ModelProto) -> None:
        m.graph.initializer[0].raw_data = b"abc"

    assert_refused(edited(shorten, data), "F001", "3 bytes for a tensor of 16")

    def negative(m: onnx.ModelProto) -> None:
        m.graph.initializer[0].dims[0] = -4

    assert_refused(edited(negative, data), "F001", "negative size")

    def huge(m: onnx.ModelProto) -> None:
        m.graph.initializer[0].dims[0] = 2**60

    assert_refused(edited(huge, data), "F001", "bytes for a tensor of")


def test_missing_inputs_and_attributes() -> None:
    def of(n: onnx.NodeProto) -> bytes:
        return model([n], {"x": (F, (1, 2, 3, 3))}, ["y"])

    assert_refused(of(node("Conv", "x", "y")), "F001", "Conv lacks its input 1")
    assert_refused(of(node("MaxPool", "x", "y")), "F001", "MaxPool lacks its attribute 'kernel_shape'")
    assert_refused(of(node("Cast", "x", "y")), "F001", "Cast lacks its attribute 'to'")
    assert_refused(of(node("Cast", "x", "y", to=99)), "F001", "unknown element type 99")


def test_attributes_and_inputs_against_the_standard() -> None:
    def of(n: onnx.NodeProto) -> bytes:
        return model([n], {"x": (F, (1, 2, 3, 3)), "k": (np.int64, (1, 2, 3, 3))}, ["y"])

    assert_refused(of(node("Relu", "x x", "y")), "F001", "Relu has 2 inputs, at most 1")
    assert_refused(of(node("Transpose", "x", "y", perm=2)), "F001", "attribute 'perm' has a wrong type")
    assert_refused(of(node("ReduceMax", "x", "y", keepdims=7)), "F001", "'keepdims' is 7, not 0 or 1")
    assert_refused(of(node("And", "x x", "y")), "F006", "input 0 of And cannot be f32")
    assert_refused(of(node("Add", "x k", "y")), "F006", "operands of different dtypes f32, i64")
    assert_refused(of(node("Concat", "x k", "y", axis=0)), "F006", "operands of different dtypes")


def test_names_that_are_no_text() -> None:
    assert_refused(relu().replace(b"Relu", b"Re\xff\xfe"), "F001", "a name is no text")


def test_reads_outside_a_tensor_are_found() -> None:
    """Statistics of three channels for four: no row compares them, the definitions tell."""
    three = {n: np.abs(floats(3)) for n in ("s", "b", "m", "v")}
    data = model(
        [node("BatchNormalization", "x s b m v", "y")], {"x": (F, (1, 4, 5))}, ["y"], three
    )
    error = assert_refused(data, "F006", "reads outside")
    assert "BatchNormalization" in error.where


# ---- F002: external data


def with_external(folder: Path, location: str = "w.bin", **fields: str) -> Path:
    m = onnx.load_model_from_string(
        model([node("Add", "x w", "y")], {"x": (F, (4,))}, ["y"], {"w": floats(4)})
    )
    t = m.graph.initializer[0]
    t.ClearField("raw_data")
    t.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **fields}.items():
        entry = t.external_data.add()
        entry.key, entry.value = key, value
    path = folder / "model.onnx"
    path.write_bytes(m.SerializeToString())
    return path


def test_external_data_is_read_from_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"\0" * 8 + floats(4).tobytes())
    imported = import_onnx(with_external(tmp_path, "sub/w.bin", offset="8", length="16"))
    (array,) = imported.program.values.values()
    np.testing.assert_array_equal(array, floats(4))
    assert not array.flags.owndata


def test_external_data_missing_or_too_short(tmp_path: Path) -> None:
    error = assert_refused(with_external(tmp_path), "F002", "cannot be opened: No such file")
    assert "beside the model" in error.hint
    (tmp_path / "w.bin").write_bytes(b"\0" * 15)
    assert_refused(with_external(tmp_path), "F002", "has 15 bytes, 0 to 16 are asked for")
    assert_refused(with_external(tmp_path, length="8"), "F002", "8 bytes for a tensor of 16")
    (tmp_path / "w.bin").write_bytes(b"")
    assert_refused(with_external(tmp_path), "F002", "has 0 bytes")
    assert_refused(with_external(tmp_path, offset="-1"), "F002", "offset of external data is '-1'")
    assert_refused(with_external(tmp_path, offset="99999999999999999999"), "F002", "are asked for")
    assert_refused(with_external(tmp_path, length="1e9"), "F002", "length of external data is '1e9'")


@pytest.mark.parametrize(
    "location",
    [
        "../w.bin",
        "/etc/passwd",
        "a/../../w.bin",
        "",
        "C:\\w.bin",
        "\\w.bin",
        "..\\w.bin",
        "w\0.bin",
    ],
)
def test_external_data_may_not_leave_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(floats(4).tobytes())
    assert_refused(with_external(folder, location), "F002", "leaves the model's folder")


def test_external_data_through_links(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    target = tmp_path / "w.bin"
    target.write_bytes(floats(4).tobytes())
    (folder / "w.bin").symlink_to(target)
    assert_refused(with_external(folder), "F002", "symbolic link")
    (folder / "sub").symlink_to(tmp_path)
    assert_refused(with_external(folder, "sub/w.bin"), "F002", "symbolic link")
    (folder / "w.bin").unlink()
    os.link(target, folder / "w.bin")
    assert_refused(with_external(folder), "F002", "hard link")


def test_external_data_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "w.bin").mkdir()
    assert_refused(with_external(tmp_path), "F002", "")
    (tmp_path / "w.bin").rmdir()
    os.mkfifo(tmp_path / "w.bin")
    assert_refused(with_external(tmp_path), "F002", "not a regular file")


def test_external_data_of_a_model_given_as_bytes(tmp_path: Path) -> None:
    error = assert_refused(with_external(tmp_path).read_bytes(), "F002", "given as bytes")
    assert "path" in error.hint


# ---- F003 and F004


def test_a_newer_opset() -> None:
    def newer(m: onnx.ModelProto) -> None:
        m.opset_import[0].version = NEWEST_OPSET + 1

    error = assert_refused(edited(newer), "F003", f"opset {NEWEST_OPSET + 1}")
    assert "version_converter" in error.hint


@pytest.mark.parametrize("version", [0, -1, 1 << 31, -(1 << 63), (1 << 63) - 1])
def test_numbers_that_are_no_opset(version: int) -> None:
    def changed(m: onnx.ModelProto) -> None:
        m.opset_import[0].version = version

    assert_refused(edited(changed), "F001", f"{version} is no version of the opset 'ai.onnx'")


def test_an_operator_that_its_opset_does_not_have_yet() -> None:
    x = {"x": (np.int32, (2,))}
    data = model([node("BitwiseNot", "x", "y")], x, ["y"], opset=17)
    assert_refused(data, "F005", "operator 'BitwiseNot' is of opset 18, not of opset 17")
    import_onnx(model([node("BitwiseNot", "x", "y")], x, ["y"], opset=18))


def test_an_identity_of_nothing() -> None:
    assert_refused(model([node("Identity", "", "y")], {"x": (F, (2,))}, ["y"]), "F001", "lacks its input 0")


def test_limits_that_are_no_scalars() -> None:
    x = {"x": (F, (2, 3)), "low": (F, (2, 3))}
    assert_refused(model([node("Clip", "x low", "y")], x, ["y"]), "F006", "a limit is no scalar")
    one = {"x": (F, (2, 3)), "low": (F, (1,))}
    import_onnx(model([node("Clip", "x low", "y")], one, ["y"]))


def test_sequences_whose_batch_is_their_time() -> None:
    x = {"x": (F, (4, 4)), "n": (np.int64, (4,))}
    data = model([node("ReverseSequence", "x n", "y", batch_axis=0, time_axis=0)], x, ["y"])
    assert_refused(data, "F006", "time_axis and batch_axis are both 0")


@pytest.mark.parametrize("size", [(1 << 63) - 1, 1 << 40, (1 << 16) + 1])
def test_kernels_without_end(size: int) -> None:
    x = {"x": (F, (1, 3, 32, 32))}
    pool = node("AveragePool", "x", "y", kernel_shape=[size, 2], auto_pad="SAME_LOWER")
    assert_refused(model([pool], x, ["y"]), "F006", f"a kernel of {size} elements for an axis of size 32")


def test_the_newest_opset_is_that_of_the_oldest_onnx_that_is_allowed() -> None:
    assert onnx.defs.onnx_opset_version() >= NEWEST_OPSET


def test_cycles_and_undefined_names() -> None:
    x = {"x": (F, (2,))}
    cycle = model(
        [node("Add", "x b", "a"), node("Relu", "a", "b"), node("Exp", "b", "y")], x, ["y"]
    )
    assert_refused(cycle, "F004", "cycle through")
    assert_refused(model([node("Add", "x y", "y")], x, ["y"]), "F004", "cycle through 'y'")
    assert_refused(
        model([node("Add", "x q", "y")], x, ["y"]), "F004", "'q' is read but nothing defines it"
    )
    assert_refused(model([node("Relu", "x", "y")], x, ["z"]), "F004", "'z' is read but nothing defines it")
    assert_refused(
        model([node("Relu", "x", "y"), node("Exp", "x", "y")], x, ["y"]), "F004", "defined twice"
    )


def test_nodes_out_of_order_are_sorted() -> None:
    data = model([node("Exp", "a", "y"), node("Relu", "x", "a")], {"x": (F, (2,))}, ["y"])
    assert [s.name for s in import_onnx(data).program.body] == ["a_", "y"]


def test_deep_graphs_need_no_deep_stack() -> None:
    names = ["x", *(f"t{k}" for k in range(5000)), "y"]
    nodes = [node("Relu", a, b) for a, b in itertools.pairwise(names)]
    assert len(import_onnx(model(nodes[::-1], {"x": (F, (2,))}, ["y"])).program.body) == 5001


# ---- F005: no row, or not this form


def test_unsupported_operators_are_named_with_the_nearest() -> None:
    data = model([node("MaxPoll", "x", "y")], {"x": (F, (2,))}, ["y"])
    error = assert_refused(data, "F005", "operator 'MaxPoll' of domain 'ai.onnx' is not supported")
    assert "nearest supported operator is MaxPool" in error.hint
    assert error.where == "node 'y' (MaxPoll, opset 22)"
    named = node("Fancy", "x", "y", domain="com.example")
    named.name = "layer7"
    data = model([named], {"x": (F, (2,))}, ["y"], domains=["com.example"])
    error = assert_refused(data, "F005", "operator 'Fancy' of domain 'com.example'")
    assert error.where == "node 'layer7' (Fancy, opset 1)"


FORMS = [
    ("Resize", {"mode": "lanczos"}, "mode 'lanczos'"),
    ("Pad", {"mode": "mirror"}, "mode 'mirror'"),
]


@pytest.mark.parametrize(("op", "attributes", "message"), FORMS)
def test_unsupported_forms(op: str, attributes: dict[str, Any], message: str) -> None:
    inputs = {"Resize": "x - - s", "Pad": "x p"}[op]
    constants = {"s": np.array([1, 1, 6, 6]), "p": np.array([0, 0, 1, 1] * 2)}
    data = model([node(op, inputs, "y", **attributes)], {"x": (F, (1, 1, 3, 3))}, ["y"], constants)
    error = assert_refused(data, "F005", message)
    assert "modes: " in error.hint


def test_control_flow_and_random_numbers() -> None:
    body = helper.make_graph(
        [node("Identity", "c0", "c1"), node("Identity", "v0", "v1")], "body",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("i", 7, []), ("c0", 9, []), ("v0", 1, [2]))],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("c1", 9, []), ("v1", 1, [2]))],
    )  # fmt: skip
    grows = helper.make_graph(
        [node("Identity", "c0", "c1"), node("Concat", "v0 v0", "v1", axis=0)], "body",
        list(body.input), list(body.output),
    )  # fmt: skip
    data = model([node("Loop", "- - x", "y", body=grows)], {"x": (F, (2,))}, ["y"])
    assert_refused(data, "F005", "a state whose shape turns from f32[2] into f32[4]")
    stacks = helper.make_graph(
        [*body.node, node("Identity", "v0", "s")], "body", list(body.input),
        [*body.output, helper.make_tensor_value_info("s", 1, [2])],
    )  # fmt: skip
    data = model([node("Loop", "- - x", "y z", body=stacks)], {"x": (F, (2,))}, ["y", "z"])
    assert_refused(data, "F005", "scan outputs of a loop without a number of steps")
    bad = node("Scan", "x", "y", body=body, num_scan_inputs=1)
    assert_refused(model([bad], {"x": (F, (2,))}, ["y"]), "F001", "its body does not fit its inputs")
    data = model([node("RandomNormalLike", "x", "y")], {"x": (F, (2,))}, ["y"])
    assert_refused(data, "F005", "random numbers")


def test_unsupported_element_types() -> None:
    def typed(element: int) -> bytes:
        def change(m: onnx.ModelProto) -> None:
            m.graph.input[0].type.tensor_type.elem_type = element

        return edited(change)

    error = assert_refused(typed(TensorProto.STRING), "F005", "element type string")
    assert "f32" in error.hint and error.where == "input 'x'"
    assert_refused(typed(TensorProto.FLOAT8E4M3FN), "F005", "element type float8e4m3fn")
    assert_refused(typed(TensorProto.INT4), "F005", "element type int4")
    assert_refused(typed(0), "F001", "unknown element type 0")


def test_forms_older_than_the_row() -> None:
    n = node("Add", "x x", "y")
    error = assert_refused(model([n], {"x": (F, (2,))}, ["y"], opset=6), "F005", "form of opset 6")
    assert error.hint == "opset 7 or newer"


def test_inputs_that_are_no_tensors() -> None:
    def change(m: onnx.ModelProto) -> None:
        m.graph.input[0].CopyFrom(
            helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [2])
        )

    assert_refused(edited(change), "F005", "no sequences")


def test_outputs_that_a_row_does_not_give() -> None:
    batch = {n: np.abs(floats(2)) for n in ("s", "b", "m", "v")}
    data = model(
        [node("BatchNormalization", "x s b m v", "y a")], {"x": (F, (1, 2, 3))}, ["y", "a"], batch
    )
    assert_refused(data, "F005", "output 1 ('a') is not provided")


# ---- F006: contradicting shapes

CONTRADICTIONS: list[tuple[list[onnx.NodeProto], dict[str, Any], str]] = [
    ([node("Add", "x a", "y")], {"a": floats(4)}, "Add: axis 1: 3 is not 4"),
    ([node("MatMul", "x a", "y")], {"a": floats(4, 2)}, "the contracted sizes: 3 is not 4"),
    ([node("Concat", "x a", "y", axis=1)], {"a": floats(3, 3)}, "axis 0: 2 is not 3"),
    ([node("Concat", "x a", "y", axis=1)], {"a": floats(3)}, "different ranks"),
    ([node("Reshape", "x a", "y")], {"a": np.array([4, 2])}, "6 elements do not fit [4, 2]"),
    ([node("Reshape", "x a", "y")], {"a": np.array([-1, -1])}, "more than one size is -1"),
    ([node("Reshape", "x a", "y")], {"a": np.array([-1, 4])}, "not divisible by 4"),
    ([node("Reshape", "x a", "y")], {"a": np.array([2, 3, 0])}, "size 0 at 2 copies an axis"),
    ([node("Squeeze", "x a", "y")], {"a": np.array([0])}, "squeezed axis 0: 2 is not 1"),
    ([node("Transpose", "x", "y", perm=[0, 0])], {}, "perm [0, 0] is no order"),
    ([node("Split", "x", "y z", axis=1, num_outputs=3)], {}, "3 parts for 2 outputs"),
    ([node("Softmax", "x", "y", axis=5)], {}, "axis 5 of Softmax is outside a tensor of rank 2"),
    ([node("Expand", "x a", "y")], {"a": np.array([4, 3])}, "2 is not 4"),
    ([node("Gather", "a b", "y")], {"a": floats(3), "b": np.array([5])}, "out of bounds"),
    (
        [node("Einsum", "x a", "y", equation="ij,jk->ik")],
        {"a": floats(4, 2)},
        "axis 'j': 3 is not 4",
    ),
    ([node("Einsum", "x", "y", equation="ij->k")], {}, "axis 'k' is in no operand"),
    ([node("TopK", "x a", "y i")], {"a": np.array([4])}, "k = 4 of 3 elements"),
    ([node("Add", "x a", "y")], {"a": np.arange(3)}, "different dtypes"),
    ([node("Slice", "x a a a a", "y")], {"a": np.array([0])}, "a step of 0"),
]


@pytest.mark.parametrize(
    ("nodes", "constants", "message"), CONTRADICTIONS, ids=[m[:20] for *_, m in CONTRADICTIONS]
)
def test_contradictions(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], message: str
) -> None:
    error = assert_refused(model(nodes, {"x": (F, (2, 3))}, ["y"], constants), "F006", message)
    assert nodes[-1].op_type in error.where


def test_convolutions_that_do_not_fit() -> None:
    def of(weights: tuple[int, ...], **attributes: Any) -> bytes:
        return model(
            [node("Conv", "x w", "y", **attributes)],
            {"x": (F, (1, 4, 5, 5))},
            ["y"],
            {"w": floats(*weights)},
        )

    assert_refused(of((2, 3, 3, 3)), "F006", "input channels: 4 is not 3")
    assert_refused(of((3, 2, 3, 3), group=2), "F006", "3 output channels in 2 groups")
    assert_refused(of((2, 4, 7, 7)), "F006", "a kernel reaching over 7 does not fit size 5")
    assert_refused(of((2, 4, 3)), "F006", "different ranks")
    assert_refused(of((2, 4, 3, 3), strides=[0, 1]), "F006", "strides is [0, 1]")
    assert_refused(of((2, 4, 3, 3), pads=[1]), "F006", "do not fit 2 spatial axes")
    assert_refused(of((2, 4, 3, 3), kernel_shape=[2, 2]), "F006", "is not [3, 3]")


def test_an_input_without_rank() -> None:
    def change(m: onnx.ModelProto) -> None:
        m.graph.input[0].type.tensor_type.ClearField("shape")

    error = assert_refused(edited(change), "F006", "no declared rank")
    assert "symbolic" in error.hint


def test_a_size_named_like_an_input() -> None:
    data = model([node("Relu", "x", "y")], {"x": (F, ("x", 2))}, ["y"])
    assert_refused(data, "F006", "'x' is both an input and a size")


# ---- hostile sizes: refused or imported lazily, in little time and memory

HUGE = 2**40


def test_huge_sizes_cost_nothing() -> None:
    def of(n: onnx.NodeProto, shape: tuple[int, ...] = (1, 1, HUGE), **constants: Any) -> bytes:
        return model([n], {"x": (F, shape)}, ["y"], constants)

    import_onnx(of(node("Expand", "x s", "y"), (1,), s=np.array([HUGE])))
    import_onnx(of(node("Tile", "x s", "y"), (1,), s=np.array([HUGE])))
    import_onnx(of(node("Pad", "x s", "y"), (1,), s=np.array([HUGE, HUGE])))
    import_onnx(of(node("Range", "a b c_", "y"), a=np.array(0), b=np.array(HUGE), c_=np.array(1)))
    import_onnx(of(node("ConstantOfShape", "s", "y"), s=np.array([HUGE, HUGE])))
    pool = {"kernel_shape": [3], "pads": [1, 1]}
    import_onnx(of(node("AveragePool", "x", "y", **pool)))
    assert_refused(
        of(node("Resize", "x - - s", "y", mode="linear"), s=np.array([1, 1, 7])),
        "F005",
        "more than",
    )
    assert_refused(of(node("DFT", "x", "y"), (1, HUGE, 1)), "F005", "more than")
