"""Random shapes: regrouped subscripts, slices, half precision, and mutated nodes."""

from __future__ import annotations

import importlib
import random
import warnings
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.errors import InternalError, TilewrightError
from tilewright.frontend.onnx import ValueNeeded, import_onnx
from unit.frontend.onnx.support import assert_agree, check, floats, model, node, run, single

F = np.float32


@st.composite
def equal_shapes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two shapes of one element count, made by multiplying the same factors in groups."""
    factors = draw(st.lists(st.sampled_from([1, 2, 2, 3, 4, 5]), min_size=1, max_size=6))

    def grouped() -> list[int]:
        order = draw(st.permutations(factors)) if draw(st.booleans()) else factors
        shape = [1]
        for f in order:
            if draw(st.booleans()):
                shape.append(f)
            else:
                shape[-1] *= f
        return shape

    return grouped(), grouped()


@settings(max_examples=80, deadline=None)
@given(equal_shapes())
def test_reshape_is_numpy_reshape(shapes: tuple[list[int], list[int]]) -> None:
    old, new = shapes
    x = np.arange(prod(old), dtype=F).reshape(old)
    data, feeds = single("Reshape", {"x": x, "c": np.array(new, np.int64)}, 13)
    assert_agree(run(import_onnx(data), feeds), [x.reshape(new)])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4), st.sampled_from([1, 2, 3, 6]), st.sampled_from([1, 2, 4]), st.integers(1, 3)
)
def test_reshape_with_symbolic_sizes(n: int, a: int, b: int, m: int) -> None:
    """[N, 6, M, 4] -> [N, a, -1, b]: the -1 holds the symbolic rest."""
    target = np.array([0, a, -1, b], np.int64)
    data = model([node("Reshape", "x s", "y")], {"x": (F, ("N", 6, "M", 4))}, ["y"], {"s": target})
    x = np.arange(n * 6 * m * 4, dtype=F).reshape(n, 6, m, 4)
    assert_agree(run(import_onnx(data), {"x": x}), [x.reshape(n, a, -1, b)])


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 7), st.integers(-9, 9), st.integers(-9, 9),
    st.sampled_from([-3, -2, -1, 1, 2, 3]), st.booleans(),
)  # fmt: skip
def test_slice_is_python_slice(size: int, start: int, end: int, step: int, symbolic: bool) -> None:
    x = np.arange(size, dtype=F)
    expected = x[slice(start, None if step < 0 and end < -size else end, step)]
    if step < 0 and end < -size:
        expected = x[start::step]
    constants = {"a": np.array([start]), "b": np.array([end]), "s": np.array([step])}
    n = node("Slice", "x a b - s", "y")
    shape = ("N",) if symbolic else (size,)
    imported = import_onnx(model([n], {"x": (F, shape)}, ["y"], constants))
    try:
        assert_agree(run(imported, {"x": x}), [expected])
    except TilewrightError as error:  # a narrower range of the size was taken for granted
        assert symbolic and error.code == "R004"
        assert imported.program.dims[0].lo > size


HALF: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("MatMul", {"x": floats(3, 40), "c": floats(40, 5)}, {}),
    ("Gemm", {"x": floats(3, 40), "c": floats(5, 40), "c2": floats(5)}, {"transB": 1}),
    ("Conv", {"x": floats(1, 4, 6, 6), "c": floats(3, 4, 3, 3), "c2": floats(3)}, {}),
    ("ReduceMean", {"x": floats(4, 50)}, {"axes": [1]}),
    ("ReduceSum", {"x": floats(4, 50)}, {}),
    ("Softmax", {"x": floats(4, 20)}, {}),
    ("AveragePool", {"x": floats(1, 2, 6, 6)}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("GlobalAveragePool", {"x": floats(1, 2, 6, 6)}, {}),
    ("CumSum", {"x": floats(3, 30), "c": np.array(1)}, {}),
    ("Relu", {"x": floats(7)}, {}),
    ("LayerNormalization", {"x": floats(3, 20), "c": floats(20)}, {}),
]


@pytest.mark.parametrize(("op", "inputs", "attributes"), HALF, ids=[h[0] for h in HALF])
def test_half_precision(op: str, inputs: dict[str, Any], attributes: dict[str, Any]) -> None:
    half = {n: a.astype(np.float16) if a.dtype == F else a for n, a in inputs.items()}
    data, feeds = single(op, half, 17, **attributes)
    imported = check(data, feeds, by="reference")
    program = imported.program
    assert program.tensors[program.results[0]].dtype.name == "f16"
    sums = [s for s in map(str, program.body) if " = sum(" in s or " = scan sum(" in s]
    assert all(": f32[" in s for s in sums)


MODULES = ["conv", "pad", "slice", "gathernd", "reducesum", "attention", "resize", "split", "topk",
           "gridsample", "convtranspose", "maxpool", "lstm", "einsum", "quantizelinear"]  # fmt: skip
ODD = [-(2**63), -(2**31), -7, -2, -1, 0, 1, 3, 9, 2**20, 2**40, 2**62]


def mutated(m: Any, rng: random.Random) -> Any:
    copy = type(m)()
    copy.CopyFrom(m)
    n = rng.choice(copy.graph.node)
    i = rng.choice(copy.graph.input)
    shape = i.type.tensor_type.shape.dim
    match rng.randrange(4):
        case 0 if n.attribute:
            a = rng.choice(n.attribute)
            a.i, a.f, a.s = rng.choice(ODD), float("nan"), b"zzz"
            if a.ints:
                a.ints[rng.randrange(len(a.ints))] = rng.choice(ODD)
        case 1 if len(shape):
            rng.choice(shape).dim_value = max(rng.choice(ODD), 0)
        case 2:
            i.type.tensor_type.elem_type = rng.choice([1, 2, 3, 6, 7, 9, 10, 11, 16])
        case _ if n.input:
            n.input[rng.randrange(len(n.input))] = rng.choice(["", i.name])
    return copy


@pytest.mark.slow
def test_mutated_nodes_give_typed_errors() -> None:
    from onnx.backend.test.case import node as cases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in MODULES:
            importlib.import_module(f"onnx.backend.test.case.node.{name}")
    rng = random.Random(0)
    collected = [c for c in cases._NodeTestCases if c.model.graph.input]
    for _ in range(1500):
        case = rng.choice(collected)
        data = mutated(case.model, rng).SerializeToString()
        names = [i.name for i in case.model.graph.input]
        values = dict(zip(names, case.data_sets[0][0], strict=False))
        try:
            try:
                import_onnx(data)
            except ValueNeeded as error:
                import_onnx(data, known={n: values[n] for n in error.inputs if n in values})
        except TilewrightError as error:
            assert not isinstance(error, InternalError), case.name
