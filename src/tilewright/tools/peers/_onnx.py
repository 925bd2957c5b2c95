"""A row as ONNX models: what the adapters of runtimes that read ONNX share.

In: a workload with a model file, or with nodes in ONNX's text form. Out: serialized models, in
order of preference. Invariant: constants become initializers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.tools.peers import Unavailable
from tilewright.tools.suite import bound_program, input_specs, model_file, output_specs

if TYPE_CHECKING:
    import numpy as np

    from tilewright.tools.suite import Workload

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["element_type", "onnx_models"]

OPSET, IR_VERSION = 23, 11
_TEXT_NAMES = {"float32": "float", "float64": "double"}


def element_type(dtype: Any) -> int:
    """ONNX's number of a NumPy dtype, ml_dtypes' included."""
    import numpy as np
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def onnx_models(workload: Workload, constants: Mapping[str, Array]) -> list[bytes | Path]:
    """Every form of the workload. Errors: Unavailable where it has none."""
    if workload.model:
        return [model_file(workload)]
    if not workload.onnx:
        raise Unavailable("the row has no ONNX form")
    return [_model(workload, workload.fill(form), constants) for form in workload.onnx]


def _model(workload: Workload, nodes: str, constants: Mapping[str, Array]) -> bytes:
    from onnx import helper, numpy_helper, parser

    def value(name: str, shape: tuple[int, ...], dtype: str) -> str:
        kind = _TEXT_NAMES.get(dtype, dtype)
        return f"{kind}[{', '.join(map(str, shape))}] {name}"

    given = [value(n, *spec) for n, spec in input_specs(workload).items() if n not in constants]
    results = [
        value(name, *spec)
        for name, spec in zip(result_names(workload), output_specs(workload), strict=True)
    ]
    body = "\n".join(_in_order([line for line in _lines(nodes) if line.strip()]))
    graph = parser.parse_graph(f"g ({', '.join(given)}) => ({', '.join(results)}) {{\n{body}\n}}")
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in constants.items())
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    data: bytes = model.SerializeToString()
    return data


def result_names(workload: Workload) -> list[str]:
    """The program's results by name."""
    return list(bound_program(workload).results)


def _lines(nodes: str) -> list[str]:
    """One entry per node; a node with a body spans several lines."""
    out: list[str] = []
    depth = 0
    for line in nodes.splitlines():
        if depth:
            out[-1] += "\n" + line
        else:
            out.append(line)
        depth += line.count("{") - line.count("}")
    return out


def _in_order(lines: list[str]) -> list[str]:
    """Constants first, so that a form may name one below its first use."""
    return sorted(lines, key=lambda line: "Constant" not in line.partition("=")[2][:10])
