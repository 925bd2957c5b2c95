"""If, Loop, Scan and sizes that values define: interpreter and native code against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tilewright as tw
from tilewright.errors import UserError
from tilewright.frontend.onnx import import_onnx
from tilewright.ir.program import If, Statement, While, blocks_of
from unit.frontend.onnx.support import (
    assert_agree,
    floats,
    graph,
    model,
    node,
    onnxruntime_results,
    reference_results,
    run,
)

F, I64, BOOL = np.float32, np.int64, np.bool_
Feeds = dict[str, Any]


def body(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[Any, list[Any]]],
    outputs: dict[str, tuple[Any, list[Any]]],
    constants: dict[str, np.ndarray[Any, Any]] | None = None,
) -> onnx.GraphProto:
    """A subgraph with typed outputs, which Loop and Scan need in onnxruntime."""
    g = graph(nodes, inputs, [], constants)
    for name, (t, shape) in outputs.items():
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(t))
        g.output.append(helper.make_tensor_value_info(name, kind, shape))
    return g


def assert_both_agree(data: bytes, feeds: Feeds, by: str = "onnxruntime") -> tw.onnx.OnnxModel:
    """Interpreter (where one Program serves all) and native code against the framework, twice."""
    expected = (onnxruntime_results if by == "onnxruntime" else reference_results)(data, feeds)
    loaded = tw.onnx.load(data)
    if not loaded.is_specialised:
        assert_agree(run(import_onnx(data), feeds), expected)
    for _ in range(2):
        assert_agree(loaded.run(feeds), expected)
    return loaded


def kinds(data: bytes) -> set[type]:
    def walk(body: tuple[Statement, ...]) -> set[type]:
        return {type(s) for s in body}.union(
            *(walk(b.body) for s in body for b in blocks_of(s)), set()
        )

    return walk(import_onnx(data).program.body)


HEAD: dict[str, tuple[Any, list[Any]]] = {"i": (I64, []), "c0": (BOOL, [])}


def counted_loop(condition: str = "c0") -> onnx.GraphProto:
    """v' = v * w + i with w from outside; collects v."""
    nodes = [
        node("Cast", "i", "f", to=TensorProto.FLOAT), node("Mul", "v0 w", "m"),
        node("Add", "m f", "v1"), node("ReduceMax", "v1", "top", keepdims=0),
        node("Less", "top limit", "small"), node("Identity", condition, "c1"),
        node("Identity", "v0", "row"),
    ]  # fmt: skip
    return body(
        nodes, {**HEAD, "v0": (F, [3])}, {"c1": (BOOL, []), "v1": (F, [3]), "row": (F, [3])}
    )


@pytest.mark.parametrize("trips", [0, 1, 5])
def test_loop_of_a_known_number_of_steps(trips: int) -> None:
    data = model(
        [node("Loop", "trips - x", "y rows", body=counted_loop())],
        {"x": (F, (3,)), "w": (F, (3,))}, ["y", "rows"],
        {"trips": np.array(trips, I64), "limit": np.array(0, F)},
    )  # fmt: skip
    assert_both_agree(data, {"x": floats(3), "w": floats(3, seed=1)})


@pytest.mark.parametrize("limit", [-100.0, 3.0, 1e9])
def test_loop_that_a_condition_ends(limit: float) -> None:
    data = model(
        [node("Less", "zero limit", "start"),
         node("Loop", "trips start x", "y rows", body=counted_loop("small"))],
        {"x": (F, (3,)), "w": (F, (3,)), "limit": (F, ())}, ["y", "rows"],
        {"trips": np.array(9, I64), "zero": np.array(0, F)},
    )  # fmt: skip
    feeds = {"x": floats(3), "w": floats(3, seed=1), "limit": np.array(limit, F)}
    loaded = assert_both_agree(data, feeds)
    assert not loaded.is_specialised and While in kinds(data)


@pytest.mark.parametrize("trips", [0, 1, 6])
def test_loop_whose_number_of_steps_is_a_value(trips: int) -> None:
    inner = counted_loop()
    del inner.output[2:]
    data = model(
        [node("Loop", "trips - x", "y", body=inner)],
        {"x": (F, (3,)), "w": (F, (3,)), "trips": (I64, ())}, ["y"], {"limit": np.array(0, F)},
    )  # fmt: skip
    feeds = {"x": floats(3), "w": floats(3, seed=1), "trips": np.array(trips)}
    assert not assert_both_agree(data, feeds).is_specialised
    data = model(
        [node("Loop", "trips - x", "y rows", body=counted_loop())],
        {"x": (F, (3,)), "w": (F, (3,)), "trips": (I64, ())}, ["y", "rows"],
        {"limit": np.array(0, F)},
    )  # fmt: skip
    assert assert_both_agree(data, feeds).is_specialised  # the rows must have a place


def test_loop_whose_state_grows_is_unrolled() -> None:
    grows = body(
        [node("Identity", "c0", "c1"), node("Concat", "v0 x", "v1", axis=0)],
        {**HEAD, "v0": (F, ["n"])}, {"c1": (BOOL, []), "v1": (F, ["m"])},
    )  # fmt: skip
    data = model(
        [node("Loop", "trips - x", "y", body=grows)], {"x": (F, (3,))}, ["y"],
        {"trips": np.array(4, I64)},
    )  # fmt: skip
    assert_both_agree(data, {"x": floats(3)})
    assert While not in kinds(data)


def test_a_branch_in_a_loop() -> None:
    """The Collatz steps of a number: a loop with a condition around a branch."""
    half = graph([node("Div", "v0 two", "r1")], {}, ["r1"], {"two": np.array(2, I64)})
    up = graph(
        [node("Mul", "v0 three", "m"), node("Add", "m one", "r2")], {}, ["r2"],
        {"three": np.array(3, I64)},
    )  # fmt: skip
    step = body(
        [node("Mod", "v0 two", "rest"), node("Equal", "rest zero", "even"),
         node("If", "even", "v1", then_branch=half, else_branch=up),
         node("Greater", "v1 one", "c1"), node("Add", "k0 one", "k1")],
        {**HEAD, "v0": (I64, []), "k0": (I64, [])},
        {"c1": (BOOL, []), "v1": (I64, []), "k1": (I64, [])},
        {"zero": np.array(0, I64), "two": np.array(2, I64)},
    )  # fmt: skip
    data = model(
        [node("Loop", "- true x zero0", "y k", body=step)], {"x": (I64, ())}, ["y", "k"],
        {"true": np.array(True), "zero0": np.array(0, I64), "one": np.array(1, I64)},
    )  # fmt: skip
    for x, steps in ((27, 111), (6, 8)):
        assert tw.onnx.load(data).run({"x": np.array(x)})[1] == steps
        assert_both_agree(data, {"x": np.array(x)})
    assert kinds(data) >= {If, While}


@pytest.mark.parametrize("directions", [(0, 0, 0), (1, 0, 1), (0, 1, 1)])
def test_scan(directions: tuple[int, int, int]) -> None:
    step = body(
        [node("Add", "h0 a", "s"), node("Mul", "s b", "h1"), node("Sub", "h1 x0", "out")],
        {"h0": (F, [4]), "a": (F, [4]), "b": (F, [4])}, {"h1": (F, [4]), "out": (F, [4])},
    )  # fmt: skip
    data = model(
        [node("Scan", "h x z", "last all", body=step, num_scan_inputs=2, scan_input_axes=[0, 1],
              scan_input_directions=directions[:2], scan_output_directions=directions[2:],
              scan_output_axes=[1])],
        {"h": (F, (4,)), "x": (F, ("T", 4)), "z": (F, (4, "T")), "x0": (F, (4,))},
        ["last", "all"],
    )  # fmt: skip
    for t in (1, 5):
        feeds = {"h": floats(4), "x": floats(t, 4, seed=1), "z": floats(4, t, seed=2)}
        assert_both_agree(data, {**feeds, "x0": floats(4, seed=3)})


def test_branches_of_other_sizes() -> None:
    short = graph(
        [node("Slice", "x s0 s2", "r1")], {}, ["r1"], {"s0": np.array([0]), "s2": np.array([2])}
    )
    chosen = graph(
        [node("Greater", "x zero", "p"), node("Compress", "x p", "r2", axis=0)], {}, ["r2"],
        {"zero": np.array(0, F)},
    )  # fmt: skip
    data = model(
        [node("If", "cond", "t", then_branch=short, else_branch=chosen), node("Neg", "t", "y"),
         node("ReduceSum", "y", "sum", keepdims=0)],
        {"x": (F, ("N",)), "cond": (BOOL, ())}, ["y", "sum"],
    )  # fmt: skip
    for cond in (True, False):
        assert_both_agree(data, {"x": floats(7), "cond": np.array(cond)})


# ---- sizes that values define --------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 6), (1, 1), (0, 4), (17, 13)])
def test_non_zero_and_what_follows(shape: tuple[int, int]) -> None:
    data = model(
        [node("Greater", "x zero", "m"), node("NonZero", "m", "at"), node("Transpose", "at", "t"),
         node("GatherND", "x t", "chosen"), node("ReduceSum", "chosen", "sum", keepdims=0),
         node("Softmax", "chosen", "soft", axis=0), node("Shape", "t", "size"),
         node("Concat", "chosen flat", "long", axis=0), node("Reshape", "x minus", "flat")],
        {"x": (F, ("N", "M"))}, ["at", "chosen", "sum", "soft", "size", "long"],
        {"zero": np.array(0, F), "minus": np.array([-1])},
    )  # fmt: skip
    assert_both_agree(data, {"x": floats(*shape)})


def test_non_zero_of_a_scalar() -> None:
    data = model([node("NonZero", "x", "y")], {"x": (F, ())}, ["y"])
    for x in (0.0, 2.0):
        assert_both_agree(data, {"x": np.array(x, F)}, by="reference")


@pytest.mark.parametrize("ordered", [0, 1])
def test_unique(ordered: int) -> None:
    data = model(
        [node("Unique", "x", "y first inverse counts", sorted=ordered),
         node("Mul", "y y", "square")],
        {"x": (I64, ("N",))}, ["y", "first", "inverse", "counts", "square"],
    )  # fmt: skip
    for n in (1, 9):
        assert_both_agree(data, {"x": np.random.default_rng(n).integers(0, 5, n)})


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_compress(axis: int | None) -> None:
    attributes = {} if axis is None else {"axis": axis}
    data = model(
        [node("Compress", "x c", "y", **attributes)], {"x": (F, (4, 5)), "c": (BOOL, (4,))}, ["y"]
    )
    for c in ([True, False, True, True], [False] * 4):
        assert_both_agree(data, {"x": floats(4, 5), "c": np.array(c)})


def test_non_max_suppression() -> None:
    rng = np.random.default_rng(0)
    low = rng.random((2, 30, 2), F)
    boxes = np.concatenate([low, low + 0.3 * rng.random((2, 30, 2), F)], -1)
    data = model(
        [node("NonMaxSuppression", "b s most iou low", "kept"),
         node("Gather", "kept two", "index", axis=1)],
        {"b": (F, (2, 30, 4)), "s": (F, (2, 3, 30))}, ["kept", "index"],
        {"most": np.array([5]), "iou": np.array([0.3], F), "low": np.array([0.2], F),
         "two": np.array([2])},
    )  # fmt: skip
    assert_both_agree(data, {"b": boxes, "s": rng.random((2, 3, 30), F)})


@pytest.mark.parametrize("k", [0, 1, 4])
def test_top_k_of_a_value(k: int) -> None:
    data = model(
        [node("TopK", "x k", "v i", axis=1)], {"x": (F, (3, 4)), "k": (I64, (1,))}, ["v", "i"]
    )
    assert not assert_both_agree(data, {"x": floats(3, 4), "k": np.array([k])}).is_specialised


@pytest.mark.parametrize(("start", "end", "step"), [(1, 5, 1), (-3, 99, 2), (8, -9, -3), (4, 2, 1)])
def test_slice_by_values(start: int, end: int, step: int) -> None:
    data = model(
        [node("Slice", "x s e axes steps", "y"), node("Relu", "y", "z")],
        {"x": (F, (3, 7)), "s": (I64, (1,)), "e": (I64, (1,))}, ["y", "z"],
        {"axes": np.array([1]), "steps": np.array([step])},
    )  # fmt: skip
    feeds = {"x": floats(3, 7), "s": np.array([start]), "e": np.array([end])}
    assert not assert_both_agree(data, feeds).is_specialised


# ---- models that are imported for values ---------------------------------------------------------


def test_shapes_that_are_inputs() -> None:
    data = model(
        [node("Reshape", "x shape", "a"), node("Tile", "x times", "b"), node("Range", "z n d", "c"),
         node("Expand", "one shape", "e")],
        {"x": (F, (2, 6)), "shape": (I64, (2,)), "times": (I64, (2,)), "n": (F, ())},
        ["a", "b", "c", "e"], {"z": np.array(1, F), "d": np.array(0.5, F), "one": np.array(1, F)},
    )  # fmt: skip
    x, times = floats(2, 6), np.array([1, 2])
    loaded = tw.onnx.load(data)
    assert loaded.is_specialised
    with pytest.raises(UserError, match="F005"):
        _ = loaded.program
    for shape, n in (([3, 4], 3), ([12, 1], 2), ([3, 4], 3)):
        feeds = {"x": x, "shape": np.array(shape), "times": times, "n": np.array(n, F)}
        assert_agree(loaded.run(feeds), onnxruntime_results(data, feeds))
    compiled = tw.compile(loaded, feeds)
    assert_agree(compiled.run(feeds), onnxruntime_results(data, feeds))
    assert_agree([*compiled(x)], onnxruntime_results(data, feeds))
    with pytest.raises(UserError, match="another value of 'shape'") as caught:
        compiled.run({**feeds, "shape": np.array([4, 3])})
    assert caught.value.code == "R007"
    with pytest.raises(UserError, match="input 'n' is missing"):
        loaded.run({"x": x, "shape": np.array([3, 4]), "times": times})


def test_sizes_that_the_graph_computes() -> None:
    """The limit of a Range comes from data: it is read first, by a model of its own."""
    data = model(
        [node("ReduceMax", "x", "top", keepdims=0), node("Ceil", "top", "up"),
         node("Range", "z up d", "c"), node("Add", "c top", "y")],
        {"x": (F, ("N",))}, ["y"], {"z": np.array(0, F), "d": np.array(1, F)},
    )  # fmt: skip
    loaded = tw.onnx.load(data)
    for x in ([1.5, 3.2, 0.1], [7.9], [-2.0, 1.0]):
        feeds = {"x": np.array(x, F)}
        assert_agree(loaded.run(feeds), onnxruntime_results(data, feeds))


def test_a_branch_that_does_not_fit_is_not_taken() -> None:
    """For these sizes only one branch makes sense: the condition's value is asked for."""
    one = graph([node("MatMul", "x a", "r1")], {}, ["r1"], {"a": floats(4, 2)})
    two = graph([node("MatMul", "x b", "r2")], {}, ["r2"], {"b": floats(5, 2)})
    data = model(
        [node("Equal", "kind one", "c"), node("If", "c", "y", then_branch=one, else_branch=two)],
        {"x": (F, (3, "K")), "kind": (I64, ())}, ["y"], {"one": np.array(1)},
    )  # fmt: skip
    loaded = tw.onnx.load(data)
    for kind, size in ((1, 4), (2, 5), (1, 4)):
        x = floats(3, size)
        weights = floats(4, 2) if kind == 1 else floats(5, 2)
        assert_agree(loaded.run({"x": x, "kind": np.array(kind)}), [x @ weights])
    with pytest.raises(UserError, match="F006"):
        loaded.run({"x": floats(3, 4), "kind": np.array(2)})
