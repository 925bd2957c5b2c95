"""Functions of the model, bodies of operators without a row, and branches taken at import."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from tilewright.errors import UserError
from tilewright.frontend.onnx import import_onnx
from tilewright.ir.program import If
from unit.frontend.onnx.support import (
    assert_agree,
    check,
    floats,
    graph,
    model,
    node,
    onnxruntime_results,
    run,
    single,
)

F = np.float32


def function(
    name: str,
    inputs: list[str],
    outputs: list[str],
    nodes: list[onnx.NodeProto],
    attributes: list[str] | None = None,
    defaults: list[onnx.AttributeProto] | None = None,
) -> onnx.FunctionProto:
    return helper.make_function(
        "local", name, inputs, outputs, nodes,
        [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)],
        attributes or [], defaults or [],
    )  # fmt: skip


def referring(op: str, inputs: str, outputs: str, **attributes: str) -> onnx.NodeProto:
    """A node whose attributes refer to those of the function."""
    n = node(op, inputs, outputs)
    for name, of in attributes.items():
        a = n.attribute.add()
        a.name, a.ref_attr_name, a.type = name, of, onnx.AttributeProto.FLOAT
    return n


def test_local_functions_nest_and_pass_attributes() -> None:
    leaky = function(
        "Leaky", ["a"], ["b"], [referring("LeakyRelu", "a", "b", alpha="slope")], ["slope"]
    )
    twice = function(
        "Twice", ["a", "w"], ["c"],
        [node("MatMul", "a w", "t"), node("Leaky", "t", "u", domain="local", slope=0.25),
         node("Add", "u a", "c")],
    )  # fmt: skip
    data = model(
        [node("Twice", "x k", "h", domain="local"), node("Twice", "h k", "y", domain="local")],
        {"x": (F, (2, 3))}, ["y"], {"k": floats(3, 3)}, opset=20, functions=[leaky, twice],
        domains=["local"],
    )  # fmt: skip
    imported = check(data, {"x": floats(2, 3)})
    assert all("Twice" in origin for origin in imported.origins.values())
    assert {s.name for s in imported.program.body} >= {"h_t", "y_t"}


def test_default_attributes_of_functions() -> None:
    leaky = function(
        "Leaky", ["a"], ["b"], [referring("LeakyRelu", "a", "b", alpha="slope")],
        defaults=[helper.make_attribute("slope", 0.5)],
    )  # fmt: skip
    data = model(
        [node("Leaky", "x", "y", domain="local")], {"x": (F, (4,))}, ["y"], opset=20,
        functions=[leaky], domains=["local"],
    )  # fmt: skip
    check(data, {"x": floats(4)})


def test_functions_that_call_themselves_are_refused() -> None:
    endless = function("Endless", ["a"], ["b"], [node("Endless", "a", "b", domain="local")])
    data = model(
        [node("Endless", "x", "y", domain="local")], {"x": (F, (4,))}, ["y"], opset=20,
        functions=[endless], domains=["local"],
    )  # fmt: skip
    with pytest.raises(UserError, match=r"F004.*deeper"):
        import_onnx(data)


FALLBACKS = [
    ("SwiGLU", 28, {"x": floats(2, 4), "z": floats(2, 4, seed=1)}, {}),
    ("HannWindow", 17, {"c": np.array(9, np.int64)}, {"periodic": 0}),
    ("SoftmaxCrossEntropyLoss", 13, {"x": floats(3, 5), "z": np.array([1, 4, 0])}, {"reduction": "sum"}),
    ("NegativeLogLikelihoodLoss", 13, {"x": floats(3, 5), "z": np.array([1, -1, 0])}, {"ignore_index": -1}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "opset", "inputs", "attributes"), FALLBACKS, ids=lambda v: str(v)[:12]
)
def test_operators_without_a_row_go_through_their_function_body(
    op: str, opset: int, inputs: dict[str, np.ndarray], attributes: dict[str, object]
) -> None:
    data, feeds = single(op, inputs, opset, **attributes)
    check(data, feeds, by="onnxruntime" if "Likelihood" in op else "reference")


def branches() -> dict[str, onnx.GraphProto]:
    return {
        "then_branch": graph([node("Relu", "x", "t"), node("Mul", "t two", "r1")], {}, ["r1"], {"two": np.array(2, F)}),
        "else_branch": graph([node("Neg", "x", "r2")], {}, ["r2"]),
    }  # fmt: skip


def test_a_constant_condition_chooses_a_branch() -> None:
    for value in (True, False):
        data = model(
            [node("If", "cond", "y", **branches())],
            {"x": (F, (3,))},
            ["y"],
            {"cond": np.array(value)},
        )
        check(data, {"x": floats(3)})


def test_a_condition_on_sizes_chooses_a_branch() -> None:
    data = model(
        [node("Shape", "x", "s"), node("Size", "s", "rank"), node("Equal", "rank one", "cond"),
         node("If", "cond", "y", **branches())],
        {"x": (F, ("N",))}, ["y"], {"one": np.array(1, np.int64)},
    )  # fmt: skip
    imported = check(data, {"x": floats(3)})
    assert "Relu" not in str(imported.origins)  # the branch's definitions belong to the If


def test_a_condition_known_at_run_time_is_a_branch() -> None:
    data = model(
        [node("If", "cond", "y", **branches())], {"x": (F, (3,)), "cond": (np.bool_, ())}, ["y"]
    )
    for value in (True, False):
        check(data, {"x": floats(3), "cond": np.array(value)})
    assert any(isinstance(s, If) for s in import_onnx(data).program.body)
    imported = import_onnx(data, known={"cond": np.array(True)})
    assert len(imported.program.inputs) == 1


def test_a_condition_on_a_symbolic_size_asks_for_the_size() -> None:
    """What PyTorch writes for `squeeze`: a branch on whether a size is 1."""
    squeeze = graph([node("Squeeze", "x last", "r1")], {}, ["r1"], {"last": np.array([-1])})
    keep = graph([node("Identity", "x", "r2")], {}, ["r2"])
    data = model(
        [node("Shape", "x", "s"), node("Gather", "s last_1", "n"), node("Equal", "n one", "cond"),
         node("If", "cond", "t", then_branch=squeeze, else_branch=keep), node("Relu", "t", "y")],
        {"x": (F, (3, "n.frames"))}, ["y"], {"last_1": np.array([-1]), "one": np.array([1])},
    )  # fmt: skip
    with pytest.raises(UserError, match=r"F005.*the condition must follow") as caught:
        import_onnx(data)
    assert caught.value.hint == "import with sizes={'n_frames': number}"
    for name, size in (("n.frames", 1), ("n_frames", 4)):
        imported = import_onnx(data, sizes={name: size})
        x = floats(3, size)
        assert_agree(run(imported, {"x": x}), onnxruntime_results(data, {"x": x}))
