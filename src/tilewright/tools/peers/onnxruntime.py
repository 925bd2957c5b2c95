"""onnxruntime: inputs and outputs bound to fixed buffers, constants as initializers.

In: a workload with a model file or ONNX nodes. Out: an `Entry` around `run_with_iobinding`.
Invariant: one session per workload, sequential execution, exactly `threads` threads.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

from tilewright.tools.peers import BoundCall, Entry, Unavailable
from tilewright.tools.suite import aligned_empty, input_specs, make_inputs, output_specs

if TYPE_CHECKING:
    import numpy as np

    from tilewright.tools.suite import Workload

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["Adapter", "onnx_bytes"]


def onnx_bytes(workload: Workload, constants: dict[str, Array]) -> bytes:
    """The workload's ONNX nodes as a model; `constants` become initializers."""
    from onnx import helper, numpy_helper
    from onnx.helper import np_dtype_to_tensor_dtype

    def value(name: str, shape: tuple[int, ...], dtype: str) -> Any:
        import numpy as np

        return helper.make_tensor_value_info(name, np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    nodes = [
        helper.make_node(
            node["op"], list(node["inputs"]), list(node["outputs"]), **node.get("attributes", {})
        )
        for node in workload.onnx
    ]
    graph = helper.make_graph(
        nodes,
        workload.name,
        [
            value(name, *spec)
            for name, spec in input_specs(workload).items()
            if name not in constants
        ],
        [
            value(name, *spec)
            for name, spec in zip(workload.onnx[-1]["outputs"], output_specs(workload), strict=True)
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


class Adapter:
    """The peer `onnxruntime`."""

    def available(self) -> str:
        try:
            return metadata.version("onnxruntime")
        except metadata.PackageNotFoundError:
            raise Unavailable("not installed: pip install 'tilewright[peers]'") from None

    def prepare(self, workload: Workload, threads: int, copies: int) -> Entry:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        everything = make_inputs(workload, input_specs(workload), seed=1)
        constants = {name: everything[name] for name in workload.constants}
        source: str | bytes
        if workload.model:
            from tilewright.tools.wheels import model_path

            source = str(model_path(workload.model))
        elif workload.onnx:
            source = onnx_bytes(workload, constants)
        else:
            raise Unavailable("this row has no ONNX form")
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        given = {name: array for name, array in everything.items() if name not in constants}
        shapes = [(array.shape, array.dtype) for array in session.run(None, given)]
        calls = [self._bind(session, given, shapes) for _ in range(copies)]
        return Entry(calls, "bound", f"{threads} threads, all optimizations, io binding")

    @staticmethod
    def _bind(session: Any, given: dict[str, Array], shapes: list[tuple[Any, Any]]) -> BoundCall:
        binding = session.io_binding()
        inputs = {}
        for name, array in given.items():
            buffer = aligned_empty(array.shape, array.dtype)
            buffer[...] = array
            binding.bind_input(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
            inputs[name] = buffer
        outputs = [aligned_empty(shape, dtype) for shape, dtype in shapes]
        for value, buffer in zip(session.get_outputs(), outputs, strict=True):
            binding.bind_output(
                value.name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data
            )
        run = session.run_with_iobinding
        return BoundCall(lambda: run(binding), inputs, lambda: outputs)
