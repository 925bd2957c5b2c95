"""Small ONNX models, and the comparison of their Program with onnxruntime or the ONNX reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tilewright.frontend.onnx import Imported, import_onnx
from tilewright.ir.interpreter import run_program
from tilewright.ir.program_parser import parse_program
from tilewright.ir.program_verifier import verify_program

Array = np.ndarray[Any, Any]
Shape = Sequence[int | str]


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[Any, Shape]],
    outputs: Sequence[str],
    constants: Mapping[str, Array] | None = None,
) -> onnx.GraphProto:
    """A graph; inputs are name -> (NumPy type, shape); output types are left open."""
    return helper.make_graph(
        list(nodes),
        "g",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.dtype(t)), list(s))
            for n, (t, s) in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(o) for o in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[Any, Shape]],
    outputs: Sequence[str],
    constants: Mapping[str, Array] | None = None,
    opset: int = 22,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> bytes:
    """The bytes of a model."""
    m = helper.make_model(
        graph(nodes, inputs, outputs, constants),
        opset_imports=[
            helper.make_opsetid("", opset),
            *(helper.make_opsetid(d, 1) for d in domains),
        ],
        functions=list(functions),
        ir_version=8 if opset < 21 else 10,
    )
    return m.SerializeToString()


def node(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """A node; names are separated by spaces, `-` is an omitted input."""
    names = ["" if x == "-" else x for x in inputs.split()]
    domain = attributes.pop("domain", "")
    return helper.make_node(op, names, outputs.split(), domain=domain, **attributes)


def single(
    op: str, inputs: Mapping[str, Array], opset: int, outputs: str = "y", **attributes: Any
) -> tuple[bytes, dict[str, Array]]:
    """A model of one node; inputs named `c...` are constants, an input that is None is omitted."""
    given = {n: np.asarray(a) for n, a in inputs.items() if a is not None}
    names = " ".join("-" if a is None else n for n, a in inputs.items())
    constants = {n: a for n, a in given.items() if n.startswith("c")}
    feeds = {n: a for n, a in given.items() if n not in constants}
    data = model(
        [node(op, names, outputs, **attributes)],
        {n: (a.dtype, a.shape) for n, a in feeds.items()},
        outputs.split(),
        constants,
        opset,
    )
    return data, feeds


def run(imported: Imported, feeds: Mapping[str, Array]) -> list[Array]:
    """The results of the Program in the oracle's precision; the Program must round-trip as text."""
    text = str(imported.program)
    verify_program(imported.program)
    assert str(parse_program(text)) == text
    by_onnx = {o: n for n, o in imported.inputs.items()}
    return run_program(imported.program, {by_onnx[n]: a for n, a in feeds.items() if n in by_onnx})


def onnxruntime_results(data: bytes, feeds: Mapping[str, Array]) -> list[Array]:
    """What onnxruntime gives, with one thread and no graph optimization."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def reference_results(data: bytes, feeds: Mapping[str, Array]) -> list[Array]:
    """What ONNX's own reference evaluator gives."""
    from onnx.reference import ReferenceEvaluator

    with np.errstate(all="ignore"):
        return ReferenceEvaluator(onnx.load_model_from_string(data)).run(None, dict(feeds))


def assert_agree(got: Sequence[Array], expected: Sequence[Array], tolerance: float = 1e-4) -> None:
    """Same shapes; integers equal, floats within `tolerance` of the largest element."""
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, (a.shape, b.shape)
        if b.dtype.kind in "biu":
            np.testing.assert_array_equal(a.astype(b.dtype), b)
            continue
        half = b.dtype.itemsize == 2
        wide = b.astype(np.float64)
        scale = float(np.max(np.abs(wide[np.isfinite(wide)]), initial=1e-2))
        np.testing.assert_allclose(
            a.astype(np.float64), wide, rtol=0, atol=(1e-2 if half else tolerance) * scale
        )


def check(
    data: bytes, feeds: Mapping[str, Array], *, by: str = "onnxruntime", tolerance: float = 1e-4
) -> Imported:
    """Import, run and compare with `by` (onnxruntime or reference)."""
    imported = import_onnx(data)
    expected = (onnxruntime_results if by == "onnxruntime" else reference_results)(data, feeds)
    assert_agree(run(imported, feeds), expected, tolerance)
    return imported


def floats(*shape: int, seed: int = 0) -> Array:
    """Normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


FLOAT = TensorProto.FLOAT
