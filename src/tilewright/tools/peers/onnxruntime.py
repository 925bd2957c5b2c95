"""onnxruntime: inputs and outputs bound to fixed buffers, constants as initializers.

In: a workload with a model file or ONNX nodes. Out: `Entry`s around `run_with_iobinding`.
Invariant: one session per form, sequential execution, exactly `threads` threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.tools.peers import BoundCall, Entry, Unavailable, package_version
from tilewright.tools.peers._onnx import element_type, onnx_models
from tilewright.tools.suite import aligned_copy, aligned_empty, output_specs, peer_inputs

if TYPE_CHECKING:
    import numpy as np

    from tilewright.tools.suite import Workload

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["Adapter"]


class Adapter:
    """The peer `onnxruntime`."""

    def available(self) -> str:
        return package_version("onnxruntime")

    def prepare(self, workload: Workload, threads: int, copies: int) -> list[Entry]:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4
        given, constants = peer_inputs(workload)
        entries, refused = [], None
        for source in onnx_models(workload, constants):
            data = str(source) if isinstance(source, Path) else source
            try:
                session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
                entries.append(self._entry(session, workload, given, threads, copies))
            except Unavailable:
                raise
            except Exception as error:  # noqa: BLE001  another form may be taken
                refused = error
        if not entries and refused is not None:
            raise refused
        return entries

    def _entry(
        self, session: Any, workload: Workload, given: dict[str, Array], threads: int, copies: int
    ) -> Entry:
        settings = f"{threads} threads, all optimizations, io binding"
        if workload.model:
            shapes = [(array.shape, array.dtype) for array in session.run(None, given)]
        else:
            shapes = output_specs(workload)
        if workload.fresh:
            if any(str(dtype) == "bfloat16" for _, dtype in shapes):
                raise Unavailable("onnxruntime makes no new arrays of bfloat16")
            calls = [self._fresh(session, given) for _ in range(copies)]
            return Entry(calls, "fresh", f"{threads} threads, all optimizations")
        calls = [self._bind(session, given, shapes) for _ in range(copies)]
        return Entry(calls, "bound", settings)

    @staticmethod
    def _fresh(session: Any, given: dict[str, Array]) -> BoundCall:
        inputs = {name: aligned_copy(array) for name, array in given.items()}
        last: list[Any] = [None]

        def call() -> None:
            last[0] = session.run(None, inputs)

        return BoundCall(call, inputs, lambda: last[0])

    @staticmethod
    def _bind(session: Any, given: dict[str, Array], shapes: list[tuple[Any, Any]]) -> BoundCall:
        binding = session.io_binding()
        inputs = {}
        for name, array in given.items():
            buffer = inputs[name] = aligned_copy(array)
            binding.bind_input(
                name, "cpu", 0, element_type(buffer.dtype), buffer.shape, buffer.ctypes.data
            )
        outputs = [aligned_empty(shape, dtype) for shape, dtype in shapes]
        for value, buffer in zip(session.get_outputs(), outputs, strict=True):
            binding.bind_output(
                value.name, "cpu", 0, element_type(buffer.dtype), buffer.shape, buffer.ctypes.data
            )
        run = session.run_with_iobinding
        return BoundCall(lambda: run(binding), inputs, lambda: outputs)
